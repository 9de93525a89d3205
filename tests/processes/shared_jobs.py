"""What the processes of a crew are asked to do; each returns plain data to compare."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import niwaki
from niwaki import processes
from niwaki.accumulation import Totals
from niwaki.car import _index as car_room
from niwaki.errors import DataError, LostRelevanceError
from niwaki.pruning import Plan, Removal, rebuild, replay
from niwaki.pruning.repair import _jointly

SIDE = 12


def network(seed: int = 0) -> nn.Module:
    """A small network with batch norms, a residual sum and two linear layers."""
    torch.manual_seed(seed)
    return _Small().eval()


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.hidden = nn.Linear(12, 10)
        self.out = nn.Linear(10, 3)
        with torch.no_grad():
            self.norm.running_mean.normal_(0, 0.1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = (x + self.branch(x)).relu()
        x = self.last(x).relu().mean((2, 3))
        found: Tensor = self.out(self.hidden(x).relu())
        return found


def images(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return inputs, torch.randint(0, 3, (count,), generator=generator)


def sums(values: list[Tensor]) -> dict[str, Tensor]:
    """Add up those of this process; the first of all has a name of its own."""
    totals = Totals()
    for number, value in enumerate(values):
        if processes.is_mine(number):
            more = {"all": value, **({"first": value} if number == 0 else {})}
            totals = totals.update(more, 1)
    return {**totals.reduced().state_dict()}


def numbers_seen(data: Any, batch_size: int) -> list[float]:
    found = niwaki.data.batches(data, batch_size, shared=True)
    return [float(x.flatten()[0]) for inputs, _ in found for x in inputs]


def fails_in(number: int) -> str:
    """Let one process fail, and see that all do."""
    with processes.agreed():
        if processes.rank() == number:
            raise LostRelevanceError("lost here", 0.7)
    return "went on"


def decides() -> tuple[int, str]:
    """Decide by the rank, once well and once badly."""
    value = processes.decided(lambda: processes.rank() + 7)
    try:
        processes.decided(_refuse)
    except DataError as error:
        return value, str(error)
    return value, ""


def _refuse() -> None:
    raise DataError(f"refused by process {processes.rank()}")


def scores(criterion: str, count: int, batch_size: int) -> dict[str, Tensor]:
    found = niwaki.score(network(), images(count), criterion, batch_size=batch_size)
    return {**found, "samples": torch.tensor(found.samples)}


def weight_scores(criterion: str, count: int, batch_size: int) -> dict[str, Tensor]:
    data = images(count)
    return dict(niwaki.score_weights(network(), data, criterion, batch_size=batch_size))


def accuracies(count: int, batch_size: int) -> tuple[float, Tensor]:
    data = images(count)
    return (
        niwaki.evaluation.accuracy(network(), data, batch_size=batch_size),
        niwaki.evaluation.confusion(network(), data, batch_size=batch_size),
    )


def pruned(count: int, options: dict[str, Any], folder: str | None = None) -> dict[str, Any]:
    """Prune, and return the plan, the accuracies, the weights and what the folder holds."""
    run = niwaki.pruning.Run(folder, 8)
    options = {"schedule": niwaki.pruning.Schedule(steps=3), **options}
    found = niwaki.prune(network(), images(count), keep=0.5, test=images(30, 5), run=run, **options)
    return {
        "plan": found.plan.to_json(),
        "rows": [(row.units, row.macs, row.accuracy) for row in found.trajectory],
        "weights": {**found.model.state_dict()},
    }


@contextmanager
def failing(room: Any, name: str, after: int | None) -> Iterator[list[None]]:
    """Let a function of a module fail in process 1 after so many calls, and count them."""
    whole, calls = getattr(room, name), list[None]()

    def counting(*given: Any) -> Any:
        calls.append(None)
        if after is not None and processes.rank() == 1 and len(calls) > after:
            raise DataError("stopped")
        return whole(*given)

    setattr(room, name, counting)
    try:
        yield calls
    finally:
        setattr(room, name, whole)


def car_index(count: int, folder: str | None = None, stop_after: int | None = None) -> Any:
    """Return all counts of an index; the process that is told so fails after so many batches."""
    with failing(car_room, "measure", stop_after) as calls:
        found = niwaki.car.index(network(), images(count), batch_size=8, folder=folder)
    kinds = ("broken", "mended", "near_ties", "loss_change", "margin_change")
    tensors = {f"{kind}/{n}": getattr(layer, kind) for n, layer in found.items() for kind in kinds}
    return tensors, found.baseline, len(calls)


def searched(count: int, folder: str | None = None, sampled: bool = False, remove: int = 5) -> Any:
    """Remove units greedily; return what was removed, and what of the work this process did."""
    from niwaki.car import Sampling, Stop, _evaluator

    with failing(_evaluator.Evaluator, "without", None) as calls:
        found = niwaki.car.greedy(
            network(), images(count), Stop(remove=remove), batch_size=8, folder=folder,
            sampling=Sampling(tolerance=0.1) if sampled else None, test=images(30, 5),
        )  # fmt: skip
    rows = [(row.units, row.accuracy, row.validation) for row in found.trajectory]
    return (
        found.plan.to_json(),
        rows,
        found.settings["removals"],
        {**found.model.state_dict()},
        len(calls),
    )


class _Labelled(TensorDataset):
    preprocessing = niwaki.data.Preprocessing(SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)


def audited(count: int, folder: str | None = None) -> Any:
    """Return what an audit found, in words and numbers."""
    found = niwaki.audit(network(), _Labelled(*images(count)), batch_size=8, folder=folder)
    rows = [(f.key, f.effect, f.p_seen, str(f)) for f in found.findings]
    return rows, found.accuracy, found.material.relevance[:], found.material.labels


def collected(count: int, folder: str) -> list[float]:
    found = niwaki.auditing.collect(network(), _Labelled(*images(count)), folder, batch_size=8)
    return [float(value) for value in found.read("attribution").flatten()[::7]]


def profiled(count: int, folder: str | None = None, stop_after: int | None = None) -> Any:
    """Return what filters respond to; the process that is told so fails after so many batches."""
    from niwaki.filters import _gather as room

    with failing(room, "_read", stop_after) as calls:
        data = _Labelled(*images(count))
        found = niwaki.filters.profile(
            network(), data, patches=5, batch_size=8, folder=folder,
            preprocessing=_Labelled.preprocessing,
        )  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for name, layer in found.items():
        for best in ("by_activation", "by_relevance"):
            for what, value in getattr(layer, best).tensors().items():
                tensors[f"{name}/{best}/{what}"] = value
        for what in ("active", "active_images", "class_means", "class_relevance", "colour",
                     "class_selectivity", "correlation"):  # fmt: skip
            tensors[f"{name}/{what}"] = getattr(layer, what)
    return tensors, found.samples, len(calls)


def filters_drawn(count: int, folder: str) -> dict[str, Tensor]:
    """Return the pictures of a layer's filters, and how different filters are."""
    from niwaki.filters import _pictures

    _pictures._TOGETHER = 5  # of the layer's twelve: in three parts
    room, data = niwaki.filters, _Labelled(*images(count))
    layer = room.profile(network(), data, patches=3, batch_size=8)["last"]

    def make(layer: Any, units: Any) -> Any:
        known = {"count": 3, "steps": 2, "preprocessing": data.preprocessing}
        return room.pictures(network(), data, layer, filters=units, **known)

    with niwaki.runs.open_run(folder, lambda: {"drawn": "filters"}) as kept:
        shown = list(room.kept_pictures(kept, layer, make))
    other = room.layer_diversity(network(), data, batch_size=8)
    found = {f"effective/{name}": torch.tensor(one.effective) for name, one in other.items()}
    for unit, one in enumerate(shown):
        assert one.visualisation is not None
        found[f"{unit}/seen"] = one.visualisation
        found[f"{unit}/pixels"] = one.by_activation.pixels
        found[f"{unit}/heat"] = one.by_relevance.heatmaps
    return found


def slide_maps(file: str, folder: str | None = None, batch_size: int = 3) -> Any:
    """Return the rows of a slide's tiles and, in the first process, the maps."""
    from niwaki.slides import Tiling, explain_slide, open_slide

    preprocessing = niwaki.data.Preprocessing(SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
    methods = ["gradient", "lrp.epsilon_plus"]
    slide = open_slide(file, 0.5)
    with explain_slide(
        network(), slide, preprocessing, classes={1: "one", 2: "two"}, methods=methods,
        tiling=Tiling(whole=True), batch_size=batch_size, workers=0, folder=folder,
    ) as found:  # fmt: skip
        maps = {
            layer.title: torch.from_numpy(store.read(0, 0, store.shape[1], store.shape[0]))
            for layer, store in found.maps.items()
        }
        return found.rows, maps


def tuned(count: int, norms: bool) -> dict[str, Tensor]:
    """Fine-tune on batches that leave a last one of an odd number."""
    model = network()
    if not norms:
        model.norm = nn.Identity().eval()
    settings = niwaki.pruning.FineTune(epochs=2, batch_size=16, lr=0.05)
    found = niwaki.pruning.fine_tune(model, images(count), settings)
    loss = torch.tensor([epoch.loss for epoch in found.epochs])
    return {**model.state_dict(), "loss": loss}


def curves(count: int) -> dict[str, Tensor]:
    """Perturb images, with noise and ties that are drawn, and randomise the network."""
    methods, data, room = ["gradient", "lrp.epsilon"], images(count), niwaki.evaluation
    how = room.Perturbation((3, 3), 4, replacement="gaussian")
    found = room.perturbation_curves(network(), data, methods, how, batch_size=8)
    alike = room.randomisation_test(network(), data, methods, layers=2, batch_size=8)
    tensors = {f"{n}/{order}": v for n, c in found.items() for order, v in c.scores.items()}
    return tensors | {f"{name}/alike": each.spearman for name, each in alike.items()}


def sparse(count: int, folder: str | None = None) -> dict[str, Tensor]:
    run = niwaki.pruning.Run(folder, 8)
    data, test = images(count), images(30, 5)
    found = niwaki.prune_weights(network(), data, keep=0.4, steps=2, test=test, run=run)
    rows = torch.tensor([row.accuracy for row in found.trajectory])
    return {**found.model.state_dict(), "accuracy": rows}


def other_network() -> None:
    niwaki.models.check_same_network(network(int(processes.rank() == 2)))


def accuracy_alone(count: int) -> float | None:
    """Measure in one process, while the others do not call."""
    if processes.rank() != 1:
        return None
    with processes.alone():
        return niwaki.evaluation.accuracy(network(), images(count))


def rebuilt(images: int, kept: int) -> dict[str, Tensor]:
    """Rebuild a network whose last layer reads more features than there are rows.

    Only some of the samples count where layers are fitted jointly, if they take more bytes.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 24, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 64, 5),
    ).double().eval()  # fmt: skip
    smaller, plan = copy.deepcopy(model), Plan(((Removal("0", (1, 4)), Removal("2", (0, 7))),))
    inputs = torch.randn(images, 1, 12, 12, dtype=torch.float64)
    replay(smaller, inputs[:2], plan)
    with patch.object(_jointly, "_KEPT", kept):
        data = inputs, torch.zeros(images)
        rebuild(smaller, model, data, plan, mirror=False, jointly=True)
    return smaller.state_dict()
