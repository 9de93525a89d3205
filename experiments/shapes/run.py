"""Does CAR prune colour filters first? Networks for which the answer is known.

Ten small networks learn both the shape and the colour in the images of `shapes`, by two heads on
the same filters. With the head for the shape the label is the shape, and colour tells nothing; with
the head for the colour it tells everything. The first-layer filters of both are pruned greedily by
classification accuracy reduction, and colour-selective filters are counted among the first to go.

    OMP_NUM_THREADS=1 python experiments/shapes/run.py --out shapes-results
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import niwaki
from niwaki import car, evaluation, filters
from niwaki.criteria import Scores
from niwaki.data import batches, open_data
from niwaki.datasets import SHAPES
from niwaki.files import write_json, write_text

FILTERS = 16  # of the first layer
FIRST = FILTERS // 2  # how many of the pruned are looked at
SELECTIVE = 0.25  # colour selectivity from which a filter counts
Pair = tuple[Tensor, Tensor]
LABELS = {"shape": "shapes", "colour": "shapes:colour"}


def trunk() -> OrderedDict[str, nn.Module]:
    """Three convolutions; 32 x 32 pixels in colour in, 512 features out."""
    return OrderedDict(
        conv1=nn.Conv2d(3, FILTERS, 5, stride=2, padding=2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(FILTERS, 24, 3, stride=2, padding=1),
        relu2=nn.ReLU(),
        conv3=nn.Conv2d(24, 32, 3, padding=1),
        relu3=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
    )


def read(split: str) -> dict[str, Pair]:
    """Draw the images once, and give them both labels."""
    inputs = torch.cat([x for x, _ in batches(open_data("shapes", split=split), 256)])
    return {
        label: (inputs, torch.tensor(open_data(spec, split=split).targets))
        for label, spec in LABELS.items()
    }


def train(data: dict[str, Pair], seed: int, epochs: int) -> dict[str, nn.Module]:
    """Train a network with two heads by Adam, one-cycle schedule; return one for each label."""
    torch.manual_seed(seed)
    layers = trunk()
    heads = {label: nn.Linear(512, 6) for label in data}
    shared = nn.Sequential(layers)
    parameters = [p for module in (shared, *heads.values()) for p in module.parameters()]
    inputs = data["shape"][0]
    optimiser = torch.optim.Adam(parameters, weight_decay=1e-4)
    steps = epochs * -(-len(inputs) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(64):
            optimiser.zero_grad()
            features = shared(inputs[chosen])
            losses = [
                nn.functional.cross_entropy(head(features), data[label][1][chosen])
                for label, head in heads.items()
            ]
            sum(losses).backward()
            optimiser.step()
            schedule.step()
    return {
        label: nn.Sequential(OrderedDict(**layers, fc=head)).eval() for label, head in heads.items()
    }


def study(seed: int, epochs: int) -> list[dict[str, Any]]:
    """Train one network, measure its filters, prune them for each label, and count."""
    torch.set_num_threads(1)
    since = time.perf_counter()
    models, test = train(read("train"), seed, epochs), read("test")
    half = len(test["shape"][0]) // 2
    return [prune(model, label, seed, test[label], half, since) for label, model in models.items()]


def prune(
    model: nn.Module, label: str, seed: int, test: Pair, half: int, since: float
) -> dict[str, Any]:
    """Prune the first layer for one label, and count the colour filters that go first."""
    search, unseen = [(test[0][part], test[1][part]) for part in (slice(half), slice(half, None))]
    known = filters.profile(model, search, layers=["conv1"], preprocessing=SHAPES, batch_size=128)
    colour = known["conv1"].colour.nan_to_num(0)
    marked = [("conv1", unit) for unit, value in enumerate(colour.tolist()) if value > SELECTIVE]
    pruned = car.greedy(model, search, car.Stop(remove=FILTERS - 1), layers=["conv1"], test=unseen)
    order = filters.removal_order(pruned.plan, {"conv1": FILTERS})
    found = filters.enrichment(order, marked, FILTERS, FIRST)
    place = torch.full((FILTERS,), float(len(order)), dtype=torch.float64)
    for position, (_, unit) in enumerate(order):
        place[unit] = position
    agreement = Scores({"conv1": place}).rank_correlation(Scores({"conv1": colour.double()}))
    return {
        "label": label,
        "seed": seed,
        "accuracy": evaluation.accuracy(model, unseen),
        "accuracy_half": pruned.trajectory.steps[FIRST].accuracy,
        "colour_selectivity": [round(value, 4) for value in colour.tolist()],
        "order": [unit for _, unit in order],
        "marked": found.marked,
        "found": found.found,
        "expected": found.expected,
        "p": found.p,
        "rank_correlation": agreement,
        "seconds": time.perf_counter() - since,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Write one line per label."""
    lines = [
        f"| label | accuracy | with half of conv1 | colour filters of {FILTERS} | among the first "
        f"{FIRST} pruned | expected | p, {len(rows) // 2} networks | colour against place |",
        "| --- " * 8 + "|",
    ]
    for label in LABELS:
        mine = [row for row in rows if row["label"] == label]
        parts = [
            filters.Enrichment(
                FILTERS, row["marked"], FIRST, row["found"], row["expected"], row["p"]
            )
            for row in mine
        ]
        lines.append(
            f"| {label} | {mean(row['accuracy'] for row in mine):.1%} "
            f"| {mean(row['accuracy_half'] for row in mine):.1%} "
            f"| {mean(p.marked for p in parts):.1f} | {mean(p.found for p in parts):.1f} "
            f"| {mean(p.expected for p in parts):.1f} | {filters.combined(parts):.2g} "
            f"| {mean(row['rank_correlation'] for row in mine):+.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all networks and write table.md and results.json."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--networks", type=int, default=10)
    options.add_argument("--epochs", type=int, default=8)
    options.add_argument("--jobs", type=int, default=1, help="processes")
    options.add_argument("--out", type=Path, default=Path("shapes-results"))
    given = options.parse_args()
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        for found in pool.map(study, range(given.networks), repeat(given.epochs)):
            rows += found
            for row in found:
                print(
                    f"{row['seed']:2} {row['label']:6}: accuracy {row['accuracy']:.1%}, of "
                    f"{row['marked']} colour filters {row['found']} among the first {FIRST}, "
                    f"{row['expected']:.1f} expected, {row['seconds']:.0f} s",
                    flush=True,
                )
            about = {
                "networks": rows,
                "niwaki": niwaki.__version__,
                "torch": torch.__version__,
                "machine": platform.machine(),
            }
            write_json(given.out / "results.json", about)
            write_text(given.out / "table.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
