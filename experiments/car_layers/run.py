"""How near do cheap criteria come to CAR, layer by layer, and at what share of its cost?

    python experiments/car_layers/run.py vgglike --data CIFAR10 --weights vgglike.safetensors
    python experiments/car_layers/run.py resnet20 --data CIFAR10 --weights resnet20.safetensors
    python experiments/car_layers/run.py squeezenet --data IMAGENETTE --weights sqz.safetensors

DATA is a folder with train and test (or val), each with a folder per class. Every result is added
to OUT/results.json as it comes, and the same command goes on where it stopped; OUT/table.md is
written anew each time, with all networks that have been run.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS, Case
from table import table
from torch import Tensor, nn

import niwaki
from niwaki import data
from niwaki.evaluation import accuracy
from niwaki.files import write_json, write_text
from niwaki.filters import removal_order
from niwaki.pruning import Removal, operate

HERE = Path(__file__).parent
CRITERIA = ("car", "lrp", "taylor", "taylor_gates", "activation", "gradient", "weight", "random")
SHARES = (0.3, 0.5)
STEPS = (0.15, 0.3, 0.4, 0.5)  # after each of which `rescored` scores anew
Pair = tuple[Tensor, Tensor]
Values = dict[str, list[float]]


def main() -> None:
    """Run what is missing of one network."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("network", choices=NETWORKS)
    ask.add_argument("--data", required=True, type=Path)
    ask.add_argument("--weights", required=True, type=Path)
    ask.add_argument("--per-class", type=int, help="training images that criteria look at")
    ask.add_argument("--test", type=int, help="test images per class")
    ask.add_argument("--draws", type=int, default=3)
    ask.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    ask.add_argument("--out", type=Path, default=HERE)
    asked = ask.parse_args()
    torch.set_num_threads(1)
    case = NETWORKS[asked.network]
    test = images(asked.data, "test", case, asked.test or case.test, seed=0)
    notes = Notes(asked.out / "results.json", asked.network)
    about: dict[str, Any] = {"per_class": asked.per_class or case.per_class, "test": len(test[1])}
    about["machine"] = platform.machine()
    if notes.keep("about", lambda: about) != about:
        raise SystemExit(f"{asked.out} holds results of other settings: {notes.own['about']}")
    for draw in range(asked.draws):
        search = images(asked.data, "train", case, about["per_class"], seed=100 + draw)
        model = case.build(asked.weights)
        trial = Trial(model, search, test, list(case.layers), draw, notes)
        notes.keep(f"{draw} whole", lambda m=model: accuracy(m, test, batch_size=100))
        for name in asked.modes:
            MODES[name](trial, case)
    write_text(asked.out / "table.md", table(notes.all, CRITERIA, SHARES))


def images(folder: Path, split: str, case: Case, per_class: int, seed: int) -> Pair:
    """Draw some images of each class."""
    opened = data.open_data(folder, case.preprocessing, split=split)
    return data.in_memory(data.references(opened, per_class, seed=seed))


class Notes:
    """The results so far, in a file that is written after each."""

    def __init__(self, path: Path, network: str) -> None:
        self._path, self._network = path, network
        self.all: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        self.own = self.all.setdefault(network, {})

    def keep(self, key: str, make: Callable[[], Any]) -> Any:
        """Return a result, and make it where it is missing."""
        if key not in self.own:
            self.own[key] = make()
            write_json(self._path, self.all)
            shown = self.own[key]
            if isinstance(shown, dict):  # scores are too long
                shown = {k: v for k, v in shown.items() if k != "scores"}
            print(self._network, key, shown, flush=True)
        return self.own[key]


@dataclass(frozen=True)
class Trial:
    """A network, and one draw of the images that criteria look at."""

    model: nn.Module
    search: Pair
    test: Pair
    layers: list[str]
    draw: int
    notes: Notes

    def scored(self, criterion: str) -> Values:
        """Score the whole network's filters, once; keep the scores."""
        blind = criterion == "weight" and self.draw  # it looks at no images
        key = f"{0 if blind else self.draw} scores {criterion}"

        def make() -> dict[str, Any]:
            return timed(lambda: scores(self.model, self, criterion))

        found: Values = self.notes.keep(key, make)["scores"]
        return found

    def measured(self, layers: list[str], gone: Mapping[str, list[int]]) -> float:
        """Measure the accuracy on unseen images without some filters."""
        network = copy.deepcopy(self.model)
        remove(network, self.search[0], {name: gone[name] for name in layers})
        return accuracy(network, self.test, batch_size=100)


def scores(model: nn.Module, trial: Trial, criterion: str) -> Values:
    """Score the filters of the layers that are looked at."""
    if criterion == "car":
        index = niwaki.car.index(model, trial.search, layers=trial.layers, max_memory="1GB")
        found = index.to_scores()
    else:
        options = {"seed": trial.draw} if criterion == "random" else {}
        found = niwaki.score(model, trial.search, criterion, batch_size=50, **options)
    return {name: [float(f"{v:.6g}") for v in found[name].tolist()] for name in trial.layers}


def timed(work: Callable[[], Values]) -> dict[str, Any]:
    """Measure the seconds of the processor, which other programs do not lengthen."""
    since = time.process_time()
    return {"scores": work(), "seconds": time.process_time() - since}


def lowest(values: list[float], count: int) -> list[int]:
    """List the filters of the lowest scores; the first of equals."""
    return sorted(range(len(values)), key=lambda unit: (values[unit], unit))[:count]


def remove(model: nn.Module, example: Tensor, gone: Mapping[str, list[int]]) -> None:
    """Take filters out of a network, physically."""
    removals = [Removal(name, tuple(sorted(units))) for name, units in gone.items() if units]
    operate(model, example[:2], removals)


def one_shot(trial: Trial, case: Case) -> None:
    """Score once, and remove the same share of every layer, or of one layer alone."""
    for criterion in CRITERIA:
        if criterion == "weight" and trial.draw:
            continue
        found = trial.scored(criterion)
        for scope, layers in (("one", [case.one]), ("all", trial.layers)):
            trial.notes.keep(
                f"{trial.draw} {scope} {criterion}",
                lambda found=found, layers=layers: {
                    str(share): trial.measured(
                        layers, {n: lowest(v, round(share * len(v))) for n, v in found.items()}
                    )
                    for share in SHARES
                },
            )


def rescored(trial: Trial, case: Case) -> None:
    """Remove a part of every layer, score anew, and so on."""
    for criterion in CRITERIA:
        if criterion == "random" or (criterion == "weight" and trial.draw):
            continue
        trial.notes.keep(
            f"{trial.draw} rescored {criterion}", lambda c=criterion: descend(trial, c)
        )


def descend(trial: Trial, criterion: str) -> dict[str, float]:
    """Prune all layers in steps."""
    network, curve = copy.deepcopy(trial.model), {}
    found = trial.scored(criterion)
    widths = {name: len(values) for name, values in found.items()}
    seconds = trial.notes.own[f"{trial.draw} scores {criterion}"]["seconds"]
    for step in STEPS:
        if step > STEPS[0]:
            told = timed(lambda n=network: scores(n, trial, criterion))
            found, seconds = told["scores"], seconds + told["seconds"]
        left = {name: round((1 - step) * width) for name, width in widths.items()}
        remove(network, trial.search[0], {n: lowest(v, len(v) - left[n]) for n, v in found.items()})
        if step in SHARES:
            curve[str(step)] = accuracy(network, trial.test, batch_size=100)
    return {**curve, "seconds": seconds}


def greedy(trial: Trial, case: Case) -> None:
    """Remove the filter of the lowest CAR of one layer, compute it anew, and so on."""
    trial.notes.keep(f"{trial.draw} one greedy", lambda: sequence(trial, case.one))
    alone = replace(trial, layers=[case.one])
    trial.notes.keep(
        f"{trial.draw} one index", lambda: timed(lambda: scores(alone.model, alone, "car"))
    )


def sequence(trial: Trial, layer: str) -> dict[str, Any]:
    """Search one layer greedily, down to half."""
    width = len(trial.model.get_submodule(layer).weight)
    since = time.process_time()
    found = niwaki.car.greedy(
        trial.model,
        trial.search,
        niwaki.car.Stop(remove=round(max(SHARES) * width)),
        layers=[layer],
        max_memory="1GB",
    )
    seconds = time.process_time() - since
    order = [unit for _, unit in removal_order(found.plan, {layer: width})]
    curve = {str(x): trial.measured([layer], {layer: order[: round(x * width)]}) for x in SHARES}
    return {**curve, "seconds": seconds}


MODES = {"one_shot": one_shot, "greedy": greedy, "rescored": rescored}

if __name__ == "__main__":
    main()
