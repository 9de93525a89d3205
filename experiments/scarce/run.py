"""Pruning without fine-tuning from few images: accuracy at equal MACs.

    python experiments/scarce/run.py resnet20 --data CIFAR10 --weights resnet20.safetensors
    python experiments/scarce/run.py squeezenet --data IMAGENETTE --weights squeezenet.safetensors
    python experiments/scarce/run.py efficientnet --data IMAGENETTE --weights lite0.safetensors
    python experiments/scarce/run.py resnet20 --table repairs choices own ...

DATA is a folder with train and test (or val), each with a folder per class. Finished runs are kept
in OUT and not done again. Writes OUT/table.md, OUT/comparison.json and OUT/curves.png, with what
earlier calls have found.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import bottlenecks
import torch
from bottlenecks import IMAGENETTE
from contenders import STEPS, TABLES, contenders, repairing
from recipes import means
from torch import Tensor, nn

import niwaki
from niwaki import data, models
from niwaki.files import write_text
from niwaki.pruning import Comparison, Outcome, Run, Schedule, compare
from niwaki.report import plot_comparison

HERE = Path(__file__).parent
IMAGENET_NORM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NETWORKS = {
    "resnet20": ("niwaki.models.zoo:resnet20", data.Preprocessing(32, **IMAGENET_NORM)),
    "resnet56": ("niwaki.models.zoo:resnet56", data.Preprocessing(32, **IMAGENET_NORM)),
    "vgglike": (
        "niwaki.models.zoo:vgglike",
        data.Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3),
    ),
    "squeezenet": ("torchvision:squeezenet1_1", data.Preprocessing(160, 180, **IMAGENET_NORM)),
}


def main() -> None:
    """Run one network."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("network", choices=[*NETWORKS, "efficientnet"])
    ask.add_argument("--data", required=True, type=Path)
    ask.add_argument("--weights", required=True, type=Path)
    ask.add_argument("--references", type=int, nargs="+", default=[1, 2, 5, 10, 50])
    ask.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 105)))
    ask.add_argument("--test", type=int, default=400, help="test images")
    ask.add_argument("--classes", type=int, default=3, help="of Imagenette, drawn by the seed")
    ask.add_argument("--recalibrate", action="store_true", help="batch norms, for every contender")
    ask.add_argument(
        "--table",
        nargs="+",
        choices=TABLES,
        help="repairs: each repair of the same choice; choices: each choice, rebuilt; own: each "
        "method with its own choice and repair. Default: criteria, not repaired",
    )
    ask.add_argument("--only", nargs="+", help="labels of contenders")
    ask.add_argument("--without", nargs="+", default=[], help="labels of contenders")
    ask.add_argument("--rules", type=Path, help="what rules.py has chosen, to take part as well")
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--out", type=Path)
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    repaired = "-recalibrated" if asked.recalibrate else "-repairs" if asked.table else ""
    out = asked.out or HERE / "results" / f"{asked.network}{repaired}"
    report(found_by(asked, out), asked, out)


def found_by(asked: argparse.Namespace, out: Path) -> Comparison:
    """Build the network, read the images, and compare."""
    if asked.network == "efficientnet":
        model = bottlenecks.network(asked.weights)
        training, test = bottlenecks.images(asked.data, 160)
    else:
        spec, preprocessing = NETWORKS[asked.network]
        model = models.build(spec, weights=asked.weights)
        training, test = (load(asked.data, split, preprocessing) for split in ("train", "test"))
    if asked.network == "squeezenet":
        return restricted(model, training, test, asked, out)
    return play(model, training, subset(test, asked.test), asked.seeds, asked, out / "runs")


def play(
    model: nn.Module,
    training: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    seeds: list[int],
    asked: argparse.Namespace,
    folder: Path,
) -> Comparison:
    """Compare all contenders on a network."""
    if asked.table:
        who = repairing(model, tuple(asked.table))
    else:
        who = contenders(model, repaired=asked.recalibrate, rules=asked.rules)
    return compare(
        model,
        training,
        [
            entry
            for entry in who
            if (not asked.only or entry.label in asked.only) and entry.label not in asked.without
        ],
        test=test,
        references=asked.references,
        seeds=seeds,
        keep=0.3,
        repair="recalibrate" if asked.recalibrate else None,
        schedule=Schedule(STEPS),
        run=Run(
            folder=folder,
            batch_size=50,
            callback=lambda run: print(
                f"{run.label:32} {run.references} {run.seed} "
                + " ".join(f"{step.accuracy:.2f}" for step in run.trajectory),
                flush=True,
            ),
        ),
    )


def restricted(
    model: nn.Module,
    training: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    asked: argparse.Namespace,
    out: Path,
) -> Comparison:
    """Scenario 2 of Yeom et al. (2021): a network for a few random classes, anew for each seed."""
    runs: list[Outcome] = []
    for seed in asked.seeds:
        draw = torch.Generator().manual_seed(seed)
        classes = torch.randperm(10, generator=draw)[: asked.classes].tolist()
        small = models.build("torchvision:squeezenet1_1", weights="random", classes=asked.classes)
        state = model.state_dict()
        head = [IMAGENETTE[c] for c in classes]
        for name in ("classifier.1.weight", "classifier.1.bias"):
            state[name] = state[name][head]
        small.load_state_dict(state)
        parts = [choose(part, classes) for part in (training, test)]
        found = play(small.eval(), *parts, [seed], asked, out / f"runs-{seed}")
        runs += found.runs
    return Comparison(tuple(runs), found.settings)


def load(folder: Path, split: str, preprocessing: data.Preprocessing) -> tuple[Tensor, Tensor]:
    """Decode a split once."""
    images = data.open_data(str(folder), split=split, preprocessing=preprocessing)
    return data.in_memory(images, description=f"reading {split} images")


def subset(pair: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Draw test images, the same for all."""
    chosen = torch.randperm(len(pair[1]), generator=torch.Generator().manual_seed(1))[:count]
    return pair[0][chosen], pair[1][chosen]


def choose(pair: tuple[Tensor, Tensor], classes: list[int]) -> tuple[Tensor, Tensor]:
    """Keep some classes, numbered in their order."""
    places = [(pair[1] == label).nonzero()[:, 0] for label in classes]
    labels = [torch.full((len(place),), new) for new, place in enumerate(places)]
    return pair[0][torch.cat(places)], torch.cat(labels)


def report(found: Comparison, asked: argparse.Namespace, out: Path) -> None:
    """Write the table, the numbers and the curves."""
    out.mkdir(parents=True, exist_ok=True)
    found = merged(found, out / "comparison.json")
    write_text(out / "comparison.json", one_line_each(found))
    sizes = found.references
    rows = {(row.label, row.references): row for row in means(found)}
    best = {size: max(row.mean or 0 for (_, n), row in rows.items() if n == size) for size in sizes}
    lines = [
        "Mean accuracy at 90, 80, ... 30 % of the MACs, in %, with the standard deviation over "
        "the draws.",
        "",
        "| contender | " + " | ".join(f"{size} per class" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    last = {label: rows.get((label, sizes[-1])) for label in found.labels}
    for label in sorted(last, key=lambda label: -(getattr(last[label], "mean", None) or 0)):
        cells = [_cell(rows.get((label, size)), best[size]) for size in sizes]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    machine = f"{platform.machine()}, {asked.threads} threads, torch {torch.__version__}"
    lines += ["", f"{machine}, niwaki {niwaki.__version__}, seeds {asked.seeds}."]
    write_text(out / "table.md", "\n".join(lines) + "\n")
    plot_comparison(out / "curves.png", found, heading=asked.network)
    print("\n".join(lines))


def one_line_each(found: Comparison) -> str:
    """Write a comparison as JSON with a line for each run, as it is kept with the tables."""
    told = found.to_json()
    runs = ",\n".join(json.dumps(run) for run in told.pop("runs"))
    return f'{json.dumps(told)[:-1]}, "runs": [\n{runs}\n]}}\n'


def merged(found: Comparison, path: Path) -> Comparison:
    """Add the runs that earlier calls have written, of other contenders and draws."""
    if not path.exists():
        return found
    done = {(run.label, run.references, run.seed) for run in found.runs}
    earlier = Comparison.from_json(json.loads(path.read_text(encoding="utf-8")))
    for name in ("weights", "batch_size"):
        if earlier.settings.get(name) != found.settings.get(name):
            raise SystemExit(f"{path} holds a comparison of another {name}: choose another --out")
    rest = [run for run in earlier.runs if (run.label, run.references, run.seed) not in done]
    settings = dict(found.settings)
    for name in ("references", "seeds"):
        settings[name] = sorted({*settings[name], *earlier.settings[name]})
    return Comparison((*found.runs, *rest), settings)


def _cell(row: object, best: float) -> str:
    mean, std = getattr(row, "mean", None), getattr(row, "std", None)
    if mean is None:
        return "-"
    text = f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")
    return f"**{text}**" if mean >= best else text


if __name__ == "__main__":
    main()
