"""EfficientNet-Lite0, a network of linear bottlenecks, pruned from few images without training.

    python experiments/scarce/bottlenecks.py --data IMAGENETTE --weights WEIGHTS.safetensors

IMAGENETTE is a folder with train and val, each with a folder per class. The network is cut to these
ten classes. Of each class in train, 20 images are tested on beside all of val, 10 are left out, and
references are drawn from the rest. Each way to prune is a criterion and a repair, such as
``taylor_gates+rebuild``. Prints the accuracy at 90, 80, ... 50 % of the MACs; with ``--json``, what
is found there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import warnings
from itertools import product
from pathlib import Path
from statistics import fmean

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import niwaki
from niwaki import data
from niwaki.errors import FallbackWarning
from niwaki.files import write_json
from niwaki.pruning import Schedule

Pair = tuple[Tensor, Tensor]
WAYS = (
    "lrp.rebuilt+rebuild", "lrp.rebuilt+recalibrate", "lrp.rebuilt+none", "lrp+rebuild",
    "taylor_gates+rebuild", "taylor_gates.rebuilt+rebuild", "weight+rebuild", "random+rebuild",
)  # fmt: skip
TESTED, LEFT_OUT = 20, 10  # images of each class in train
#: The classes of Imagenette among those of ImageNet.
IMAGENETTE = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


def main() -> None:
    """Prune by each criterion, from each draw."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--data", required=True, type=Path)
    ask.add_argument("--weights", required=True, type=Path)
    ask.add_argument("--ways", nargs="+", default=WAYS, help="criterion+repair")
    ask.add_argument("--json", type=Path, help="the accuracies, by way and draw")
    ask.add_argument("--references", type=int, default=10, help="per class")
    ask.add_argument("--seeds", type=int, nargs="+", default=[100])
    ask.add_argument("--size", type=int, default=160, help="of the images, in pixels")
    ask.add_argument("--threads", type=int, default=1)
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore", FallbackWarning)
    model = network(asked.weights)
    pool, test = images(asked.data, asked.size)
    found = json.loads(asked.json.read_text()) if asked.json and asked.json.exists() else {}
    for seed, way in product(asked.seeds, asked.ways):
        known = found.setdefault(way, {})
        if str(seed) not in known:
            criterion, _, repair = way.partition("+")
            pruned = niwaki.prune(
                model,
                draw(pool, asked.references, seed),
                criterion,
                keep=0.5,
                schedule=Schedule(steps=5),
                repair=None if repair == "none" else repair,
                test=test,
            )
            known[str(seed)] = [step.accuracy for step in pruned.trajectory]
        print(
            f"{way:34} {seed} " + " ".join(f"{100 * a:.1f}" for a in known[str(seed)]), flush=True
        )
        if asked.json:
            write_json(asked.json, found)
    print(table(found))


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: the mean over the draws, the best way first."""
    rows = {
        way: [fmean(step) for step in zip(*runs.values(), strict=True)]
        for way, runs in found.items()
    }
    lines = [
        "| choice + repair | draws | 90 % | 80 % | 70 % | 60 % | 50 % | mean |",
        "| --- |" + " ---: |" * 7,
    ]
    for way, steps in sorted(rows.items(), key=lambda row: -fmean(row[1][1:])):
        cells = [f"{100 * accuracy:.1f}" for accuracy in (*steps[1:], fmean(steps[1:]))]
        lines.append(f"| {way} | {len(found[way])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def network(weights: Path) -> nn.Module:
    """Build it with the outputs of Imagenette's classes alone."""
    state = load_file(weights)
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][IMAGENETTE]
    model = timm.create_model("efficientnet_lite0", num_classes=len(IMAGENETTE)).eval()
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # with which the weights were trained
    return model


def images(folder: Path, size: int) -> tuple[Pair, Pair]:
    """Return the images that references are drawn from, and those that are tested on."""
    known = data.Preprocessing(size, int(size / 0.875), mean=(0.498,) * 3, std=(0.502,) * 3)
    (x, y), held = (
        data.in_memory(data.open_data(str(folder), split=split, preprocessing=known))
        for split in ("train", "val")
    )
    generator = torch.Generator().manual_seed(0)
    orders = [_shuffled(y, label, generator) for label in range(len(IMAGENETTE))]
    tested = torch.cat([order[:TESTED] for order in orders])
    rest = torch.cat([order[TESTED + LEFT_OUT :] for order in orders])
    test = torch.cat([held[0], x[tested]]), torch.cat([held[1], y[tested]])
    return (x[rest], y[rest]), test


def draw(pool: Pair, count: int, seed: int) -> Pair:
    """Draw as many references of each class."""
    x, y = pool
    generator = torch.Generator().manual_seed(seed)
    at = [_shuffled(y, label, generator)[:count] for label in range(len(IMAGENETTE))]
    return x[torch.cat(at)], y[torch.cat(at)]


def _shuffled(labels: Tensor, label: int, generator: torch.Generator) -> Tensor:
    places = (labels == label).nonzero()[:, 0]
    return places[torch.randperm(len(places), generator=generator)]


if __name__ == "__main__":
    main()
