"""Transfer: SqueezeNet adapted to few classes, then pruned step by step with fine-tuning.

    python experiments/transfer/run.py --data SCENE15 --weights squeezenet1_1.safetensors
    python experiments/transfer/run.py --data SCENE15 --weights ... --of units --out results-units

DATA is a folder with train/ and test/ (or val/), each with a folder per class. OUT/results.json,
OUT/table.md and OUT/curves.png are written anew after each finished run; the same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from augment import Augmented, centre
from safetensors.torch import save_file
from summary import plot, table
from torch import Tensor, nn

import niwaki
from niwaki import data, models
from niwaki.evaluation import accuracy
from niwaki.files import write_atomically, write_json, write_text
from niwaki.pruning import FineTune, Run, Schedule, fine_tune
from niwaki.runs import discard

HERE = Path(__file__).parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision has them
LARGER = 1.125  # images are kept so much larger than the crops that are drawn from them
LEARNED = 0.95  # of the loss of guessing: what training must get below
HEAD = ("classifier.1.weight", "classifier.1.bias")
# Criteria, and the exponent of the cost by which each ranks.
CRITERIA = dict.fromkeys(
    ("lrp", "lrp.epsilon_plus", "taylor", "taylor_gates", "gradient", "weight", "activation",
     "random", "lrp.rebuilt"),
    Schedule().per_cost,
)  # fmt: skip
CRITERIA["lrp.epsilon_plus"] = 0.0  # as Yeom et al. (2021)

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Material:
    """What a seed works with: the training images larger than the crops, and both as inputs."""

    training: Augmented
    references: Pair
    test: Pair
    classes: int


def main() -> None:
    """Adapt and prune, for each seed."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    out = asked.out or HERE / "results" / asked.data.name
    results = opened(out / "results.json", asked)
    training, test = splits(asked)
    for seed in asked.seeds:
        material = drawn(training, test, asked, seed)
        model = adapted(material, asked, seed, out, results)
        for name in asked.criteria:
            steps = out / "steps" / f"{name}-{seed}"
            runs = results["runs"].setdefault(name, {})
            if str(seed) not in runs:
                runs[str(seed)] = pruned(model, name, material, asked, seed, steps)
                summarise(results, out)
            discard(steps)
    print(summarise(results, out))


def drawn(training: Pair, test: Pair, asked: argparse.Namespace, seed: int) -> Material:
    """Draw the share of the training images that is used."""
    few = shared_out(training, asked, seed)
    inputs = centre(few[0], asked.size), few[1]
    if asked.references:
        inputs = together(data.references(inputs, asked.references, seed))
    classes = int(training[1].max()) + 1
    return Material(Augmented(*few, asked.size), inputs, test, classes)


def shared_out(training: Pair, asked: argparse.Namespace, seed: int) -> Pair:
    """Draw a share of the training images, as many of each class."""
    if asked.train_share == 1:
        return training
    smallest = int(training[1].bincount().min())
    number = max(1, round(asked.train_share * smallest))
    return together(data.references(training, number, seed))


def adapted(
    material: Material,
    asked: argparse.Namespace,
    seed: int,
    out: Path,
    results: dict[str, Any],
) -> nn.Module:
    """Return the network with a head for these classes, trained; from the folder if it is there."""
    path = out / f"adapted-{seed}.safetensors"
    model = fresh(asked.weights, material.classes, seed).to(asked.device)
    if path.exists() and str(seed) in results["adapted"]:
        models.load_weights(model, path)
        return model
    started = time.perf_counter()
    settings = FineTune(epochs=asked.adapt_epochs, lr=asked.adapt_lr, batch_size=32, seed=seed)
    history = fine_tune(model, material.training, settings)
    if history[-1].loss > LEARNED * math.log(material.classes):
        # SqueezeNet ends in a ReLU: once it is off for all images, nothing is learned any more.
        losses = ", ".join(f"{epoch.loss:.3f}" for epoch in history)
        raise SystemExit(f"seed {seed} learned nothing (losses {losses}): lower --adapt-lr")
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, lambda file: save_file(state, file))
    results["adapted"][str(seed)] = {
        "accuracy": accuracy(model, material.test, batch_size=50),
        "epochs": [asdict(epoch) for epoch in history],
        "seconds": time.perf_counter() - started,
    }
    write_json(out / "results.json", results)
    return model


def fresh(weights: Path, classes: int, seed: int) -> nn.Module:
    """Build the network with the weights of ImageNet and a new head."""
    state = models.build("torchvision:squeezenet1_1", weights=weights).state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.build("torchvision:squeezenet1_1", weights="random", classes=classes)
    model.load_state_dict({**state, **{name: model.state_dict()[name] for name in HEAD}})
    return model


def pruned(
    model: nn.Module,
    name: str,
    material: Material,
    asked: argparse.Namespace,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Prune by one criterion, with fine-tuning after each step, and longer in the end."""
    started = time.perf_counter()
    # Step n is tuned by seed + n: those of different seeds shall not meet.
    settings = {"lr": asked.lr, "batch_size": 32, "seed": 1000 * (seed + 1)}
    settings["training"] = material.training
    tune = FineTune(epochs=asked.epochs, **settings) if asked.epochs else None
    found = niwaki.prune(
        model,
        material.references,
        f"random:seed={seed}" if name == "random" else name,
        keep=asked.keep,
        of=asked.of,
        schedule=Schedule(per_step=asked.per_step, per_cost=CRITERIA[name]),
        repair=None if asked.repair == "none" else asked.repair,
        tune=tune,
        test=material.test,
        run=Run(folder, 50, shown(f"{name} {seed}")),
    )
    final = None
    if asked.final_epochs:
        network = copy.deepcopy(found.model)
        longer = FineTune(epochs=asked.final_epochs, lr=asked.lr, batch_size=32, seed=seed)
        fine_tune(network, material.training, longer)
        final = accuracy(network, material.test, batch_size=50)
    return {
        "trajectory": found.trajectory.to_json(),
        "final": final,
        "seconds": time.perf_counter() - started,
    }


def shown(title: str) -> Callable[[niwaki.pruning.Step], None]:
    """Print a line per step."""

    def line(step: niwaki.pruning.Step) -> None:
        tuned = "" if step.accuracy_tuned is None else f" -> {step.accuracy_tuned:.3f}"
        print(
            f"{title:24} step {step.step:2} {step.macs / 1e6:7.1f} M MACs {step.units:5} units "
            f"{step.accuracy:.3f}{tuned} {step.seconds:.0f} s",
            flush=True,
        )

    return line


def splits(asked: argparse.Namespace) -> tuple[Pair, Pair]:
    """Read the training images, larger than the crops, and the middle of the test images."""
    larger = round(asked.size * LARGER)
    training, test = (read(asked.data, split, larger) for split in ("train", "test"))
    return training, (centre(test[0], asked.size), test[1])


def read(folder: Path, split: str, size: int) -> Pair:
    """Decode a split once, as square images."""
    preprocessing = data.Preprocessing(size, size, mean=MEAN, std=STD)
    images = data.open_data(folder, preprocessing, split=split)
    return together(images, f"reading {split} images")


def together(images: Any, description: str | None = None) -> Pair:
    """Bring a data set into memory."""
    found = data.in_memory(images, limit=2**34, description=description)
    assert isinstance(found, tuple)
    return found


def opened(path: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Read what is done already, of the same settings only; seeds and criteria may be added."""
    free = ("data", "weights", "criteria", "seeds", "threads", "out", "only")
    settings = {name: value for name, value in vars(asked).items() if name not in free}
    settings |= {"data": asked.data.name, "weights": asked.weights.name}
    if path.exists():
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if results["settings"] != settings:
            raise SystemExit(
                f"{path} was measured with {results['settings']}, not {settings}: choose another "
                "--out, or delete it"
            )
        return results
    machine = f"{platform.machine()}, {asked.threads} threads, {asked.device}"
    versions = f"torch {torch.__version__}, niwaki {niwaki.__version__}"
    return {"settings": settings, "machine": f"{machine}, {versions}", "adapted": {}, "runs": {}}


def summarise(results: dict[str, Any], out: Path) -> str:
    """Write the numbers, the table and the curves of what is done."""
    write_json(out / "results.json", results)
    text = table(results)
    write_text(out / "table.md", text)
    plot(out / "curves.png", results)
    return text


def arguments() -> argparse.Namespace:
    """Read the command line."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--data", required=True, type=Path, help="folder with train and test")
    ask.add_argument("--weights", required=True, type=Path, help="SqueezeNet 1.1 on ImageNet")
    ask.add_argument("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA)[:-1])
    ask.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--size", type=int, default=128, help="height and width of inputs")
    ask.add_argument(
        "--train-share", type=float, default=1.0, help="of the training images, by the seed"
    )
    ask.add_argument(
        "--references", type=int, help="per class, for the criteria; default: all training images"
    )
    ask.add_argument("--of", choices=["macs", "units"], default="macs", help="what is removed")
    ask.add_argument("--per-step", type=float, default=0.05, help="share of it per step")
    ask.add_argument("--keep", type=float, default=0.3, help="share that is left in the end")
    ask.add_argument("--epochs", type=int, default=10, help="of fine-tuning after each step")
    ask.add_argument(
        "--repair", choices=["none", "rebuild", "recalibrate", "compensate"], default="none"
    )
    ask.add_argument("--final-epochs", type=int, default=10, help="more of them in the end")
    ask.add_argument("--lr", type=float, default=0.001, help="of fine-tuning")
    ask.add_argument("--adapt-epochs", type=int, default=20, help="of the unpruned network")
    ask.add_argument("--adapt-lr", type=float, default=0.001)
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--out", type=Path)
    return ask.parse_args()


if __name__ == "__main__":
    main()
