"""LeNet on MNIST: accuracy against filters removed, without fine-tuning, by CAR and by others.

    python experiments/car_lenet/run.py --data MNIST --weights lenet_mnist.safetensors

MNIST is a folder with train/ and test/, each with a folder per class. Results are added to
OUT/results.json as they come, and the same command goes on where it stopped; OUT/table.md is
written anew each time.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import ClassVar

import torch
from torch import Tensor, nn

import niwaki
from niwaki import data, models
from niwaki.accumulation import Totals
from niwaki.criteria import Criterion, register
from niwaki.evaluation import accuracy
from niwaki.files import write_json, write_text
from niwaki.models import zoo
from niwaki.propagation import Layer
from niwaki.pruning import Removal, operate

HERE = Path(__file__).parent
SCOPES = {"conv1": ["conv1"], "conv2": ["conv2"], "both": ["conv1", "conv2"]}
READERS = {"conv1": "conv2", "conv2": "fc1"}
CRITERIA = (
    "random weight outgoing_weight apoz activation taylor taylor_gates lrp".split()  # noqa: SIM905
)
SAME = ("weight", "outgoing_weight")  # look at no images: all draws are alike
SHARES = (0.5, 0.7)


@register("outgoing_weight")
class OutgoingWeight(Criterion):
    """Mean absolute weight with which the next layer of LeNet reads a unit; needs no data."""

    default_normalise: ClassVar[str] = "l2"
    needs_data: ClassVar[bool] = False

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        found = {}
        for layer in layers:
            width = len(model.get_submodule(layer.name).weight)
            found[layer.name] = torch.zeros(width)
            if layer.name in READERS:
                weight = model.get_submodule(READERS[layer.name]).weight.detach()
                by_unit = weight.reshape(len(weight), width, -1)
                found[layer.name] = by_unit.abs().mean((0, 2))
        return found


def main() -> None:
    """Run what is missing."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--data", required=True, type=Path)
    ask.add_argument("--weights", required=True, type=Path)
    ask.add_argument("--per-class", type=int, default=50, help="images that criteria look at")
    ask.add_argument("--test", type=int, default=100, help="test images per class")
    ask.add_argument("--draws", type=int, default=5)
    ask.add_argument("--scopes", nargs="+", default=list(SCOPES), choices=list(SCOPES))
    ask.add_argument("--steps", type=int, default=7, help="in which others remove 70 %%")
    ask.add_argument("--out", type=Path, default=HERE)
    asked = ask.parse_args()
    torch.set_num_threads(1)
    model = zoo.lenet().eval()
    models.load_weights(model, asked.weights)
    preprocessing = zoo.lenet.preprocessing
    training = data.open_data(asked.data, preprocessing, split="train")
    test = pair(data.references(data.open_data(asked.data, preprocessing, split="test"),
                                asked.test, seed=0))  # fmt: skip
    path = asked.out / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for draw in range(asked.draws):
        search = pair(data.references(training, asked.per_class, seed=100 + draw))
        for scope in asked.scopes:
            for criterion in ("car", *CRITERIA):
                key = f"{scope} {criterion} {draw}"
                if key in found or (draw and criterion in SAME):
                    continue
                curve = (
                    greedy(model, search, test, SCOPES[scope])
                    if criterion == "car"
                    else ranked(model, search, test, SCOPES[scope], criterion, asked.steps, draw)
                )
                found[key] = curve
                write_json(path, found)
                print(key, {share: f"{at(curve, share):.3f}" for share in SHARES}, flush=True)
    write_text(asked.out / "table.md", table(found))


def pair(chosen: data.Data) -> tuple[Tensor, Tensor]:
    """Read images and labels into memory."""
    parts = list(data.batches(chosen, 100))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def greedy(
    model: nn.Module,
    search: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    layers: list[str],
) -> list[tuple[float, float]]:
    """Remove the filter of the lowest CAR, again and again: (share removed, accuracy)."""
    count = sum(len(model.get_submodule(name).weight) for name in layers)
    pruned = niwaki.car.greedy(
        model,
        search,
        niwaki.car.Stop(remove=round(0.7 * count)),
        layers=layers,
        test=test,
        max_memory="1GB",
    )
    return [(step.step / count, step.accuracy) for step in pruned.trajectory]


def ranked(
    model: nn.Module,
    search: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    layers: list[str],
    criterion: str,
    steps: int,
    seed: int,
) -> list[tuple[float, float]]:
    """Score anew, remove the lowest, and again, in equal steps: (share removed, accuracy)."""
    options = {"seed": seed} if criterion == "random" else {}
    network, gone = copy.deepcopy(model), 0
    count = sum(len(model.get_submodule(name).weight) for name in layers)
    curve = [(0.0, accuracy(network, test, batch_size=100))]
    for step in range(1, steps + 1):
        wanted = round(0.7 * count * step / steps) - gone
        scores = niwaki.score(network, search, criterion, batch_size=100, **options)
        units = sorted((float(v), n, u) for n in layers for u, v in enumerate(scores[n]))
        left = {name: len(scores[name]) for name in layers}
        lowest: dict[str, list[int]] = {}
        for _, name, unit in units:
            if wanted and left[name] > 1:  # a layer keeps its last filter
                lowest.setdefault(name, []).append(unit)
                left[name], wanted, gone = left[name] - 1, wanted - 1, gone + 1
        operate(network, search[0][:2], [Removal(n, tuple(sorted(u))) for n, u in lowest.items()])
        curve.append((gone / count, accuracy(network, test, batch_size=100)))
    return curve


def at(curve: Sequence[Sequence[float]], share: float) -> float:
    """Return the accuracy at the share that is nearest."""
    return min(curve, key=lambda point: abs(point[0] - share))[1]


def table(found: dict[str, list[tuple[float, float]]]) -> str:
    """Write accuracy, mean and standard deviation over draws, at each share."""
    columns = [(scope, share) for scope in SCOPES for share in SHARES]
    rows = ["| criterion | " + " | ".join(f"{s}, {x:.0%} gone" for s, x in columns) + " |"]
    rows.append("| --- |" + " ---: |" * len(columns))
    for criterion in ("car", *CRITERIA):
        cells = []
        for scope, share in columns:
            curves = [c for k, c in found.items() if k.split()[:2] == [scope, criterion]]
            values = [100 * at(curve, share) for curve in curves]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread}" if values else "")
        rows.append(f"| {criterion} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
