"""How many epochs of fine-tuning is the rebuild of layers worth?

    python experiments/transfer/epochs.py --data CATS_DOGS --weights squeezenet1_1.safetensors

SqueezeNet is adapted to the classes of DATA and pruned in steps of 15 % of its MACs, down to 40 %.
After each step it is left as it is, rebuilt from 10 images per class without a gradient step,
fine-tuned on all training images or on those 10 per class alone, or rebuilt and then fine-tuned.
OUT/results.json and OUT/table.md are written anew after each finished run; the same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from augment import Augmented
from run import HERE, Material, adapted, drawn, opened, pruned, shared_out, splits, together
from summary import percent

from niwaki import data
from niwaki.files import write_json, write_text
from niwaki.pruning import Trajectory, area
from niwaki.runs import discard

SHARES = (0.85, 0.7, 0.55, 0.4)
EACH = 10  # references of each class


@dataclass(frozen=True)
class Way:
    """What is done after each step.

    Attributes
    ----------
    criterion, repair : str
        As in run.py.
    epochs : int
        Of fine-tuning.
    few : bool
        Whether fine-tuning gets the reference images alone.
    """

    criterion: str = "lrp"
    repair: str = "none"
    epochs: int = 0
    few: bool = False


WAYS = {
    "nothing": Way(),
    "rebuilt": Way("lrp.rebuilt", "rebuild"),
    "1 epoch": Way(epochs=1),
    "3 epochs": Way(epochs=3),
    "10 epochs": Way(epochs=10),
    "10 epochs, reference images only": Way(epochs=10, few=True),
    "rebuilt, then 1 epoch": Way("lrp.rebuilt", "rebuild", 1),
    "rebuilt, then 3 epochs": Way("lrp.rebuilt", "rebuild", 3),
}


def main() -> None:
    """Adapt and prune in each way, for each seed."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    out = asked.out or HERE / "results" / f"{asked.data.name}-epochs"
    results = opened(out / "results.json", asked)
    training, test = splits(asked)
    for seed in asked.seeds:
        material = drawn(training, test, asked, seed)
        model = adapted(material, asked, seed, out, results)
        for label, way in WAYS.items():
            runs = results["runs"].setdefault(label, {})
            if str(seed) in runs or (asked.only and label not in asked.only):
                continue
            settings = argparse.Namespace(
                **{**vars(asked), "repair": way.repair, "epochs": way.epochs}
            )
            given = few(material, training, asked, seed) if way.few else material
            steps = out / "steps" / f"{label}-{seed}"
            runs[str(seed)] = pruned(model, way.criterion, given, settings, seed, steps)
            write_json(out / "results.json", results)
            write_text(out / "table.md", table(results))
            discard(steps)
    print(table(results))


def few(
    material: Material, training: tuple[Any, Any], asked: argparse.Namespace, seed: int
) -> Material:
    """Let fine-tuning see the reference images alone, cropped at random like all others."""
    some = shared_out(training, asked, seed)
    return replace(
        material, training=Augmented(*together(data.references(some, EACH, seed)), asked.size)
    )


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each way, accuracies over the seeds, and the time of a step."""
    whole = [100 * entry["accuracy"] for entry in results["adapted"].values()]
    head = " | ".join(f"{100 * share:.0f} %" for share in SHARES)
    lines = [
        f"Unpruned, adapted to {results['settings']['data']}: {fmean(whole):.1f} %. Accuracy in % "
        "after each step, at the share of the MACs that it leaves; area: the mean from 100 % to "
        f"{100 * SHARES[-1]:.0f} %; time: seconds for all steps, with scoring and testing.",
        "",
        f"| after each step | {head} | area | time | seeds |",
        "| --- |" + " ---: |" * (len(SHARES) + 3),
    ]
    for label in WAYS:
        found = list(results["runs"].get(label, {}).values())
        runs = [Trajectory.from_json(run["trajectory"]) for run in found]
        if not runs:
            continue
        cells = [percent([_after(run[step]) for run in runs]) for step in range(1, len(SHARES) + 1)]
        areas = percent([area(run, "macs", between=(SHARES[-1], 1.0)) for run in runs])
        seconds = fmean(run["seconds"] for run in found)
        lines.append(f"| {label} | {' | '.join(cells)} | {areas} | {seconds:.0f} | {len(runs)} |")
    about = results["settings"]
    told = ", ".join(f"{name} {about[name]}" for name in ("size", "train_share", "adapt_epochs"))
    return (
        "\n".join([*lines, "", f"{told}, {EACH} references per class. {results['machine']}."])
        + "\n"
    )


def _after(step: Any) -> float:
    return float(step.accuracy if step.accuracy_tuned is None else step.accuracy_tuned)


def arguments() -> argparse.Namespace:
    """Read the command line; what the ways have in common is fixed."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--data", required=True, type=Path, help="folder with train and test")
    ask.add_argument("--weights", required=True, type=Path, help="SqueezeNet 1.1 on ImageNet")
    ask.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--size", type=int, default=96, help="height and width of inputs")
    ask.add_argument("--train-share", type=float, default=0.5, help="of the training images")
    ask.add_argument("--adapt-epochs", type=int, default=5, help="of the unpruned network")
    ask.add_argument("--only", nargs="+", choices=WAYS, help="ways; default: all")
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--out", type=Path)
    ask.set_defaults(
        references=EACH, of="macs", per_step=0.15, keep=SHARES[-1], final_epochs=0, lr=0.001,
        adapt_lr=0.001,
    )  # fmt: skip
    return ask.parse_args()


if __name__ == "__main__":
    main()
