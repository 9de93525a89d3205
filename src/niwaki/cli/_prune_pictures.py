"""What the page of a pruning shows of images: heatmaps after each step, changed predictions."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import attribution, models
from niwaki.cli._heatmaps import Picked, attribute_with_loss
from niwaki.data import Data, batches
from niwaki.errors import PropagationError
from niwaki.evaluation import latency
from niwaki.files import write_json
from niwaki.propagation import per_class, trace
from niwaki.report import Pictures, heat_strip, photograph
from niwaki.stages import stage

if TYPE_CHECKING:
    from niwaki.cli._loading import Loaded
    from niwaki.data import Images
    from niwaki.pruning import Pruned

__all__ = ["Photographs", "answers", "write_changed"]

_METHODS = ("lrp.epsilon_plus", "input_t_gradient")  # the first that the network allows
_SIDE = 224  # pixels, to which larger heatmaps are averaged
_MOST = 24  # steps with heatmaps on a page
_SHOWN = 24  # images whose prediction has changed


class Photographs:
    """Looks at a network: explains the same photographs, and notes its widths and its time.

    Parameters
    ----------
    loaded : Loaded
        The unpruned network, which decides the method.
    picked : Picked
        The photographs; they may be none.
    example : Tensor
        A batch to measure the time with.
    batch_size : int
        For explaining.
    """

    def __init__(self, loaded: Loaded, picked: Picked, example: Tensor, batch_size: int) -> None:
        self._example, self._size = example, batch_size
        place = models.home(loaded.model)
        self._inputs = []
        if picked.indices:
            self._inputs = [inputs for inputs, _ in batches(picked.subset, batch_size, place)]
        self.method = self._choose(loaded.model)
        self.layers = [layer.name for layer in trace(loaded.model, example[:1])]

    def _choose(self, model: nn.Module) -> str:
        for name in _METHODS[:-1]:
            try:
                for inputs in self._inputs[:1]:
                    self._explain(model, inputs[:1], name)
            except PropagationError:
                continue
            return name
        return _METHODS[-1]

    def __call__(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Look at the current network after a step."""
        layers = trace(model, self._example[:1])
        # The least of several: whatever else runs on the machine only adds to it.
        times = [latency(model, self._example, repeats=1, warm_up=1) for _ in range(3)]
        seconds = min(times) / len(self._example)
        parts = [self._explain(model, inputs, self.method) for inputs in self._inputs]
        names = parts[0] if parts else ()
        joined = {name: torch.cat([part[name] for part in parts]) for name in names}
        return {
            "units": torch.tensor([layer.units for layer in layers]),
            "seconds": torch.tensor(seconds, dtype=torch.float64),
            **joined,
        }

    def _explain(self, model: nn.Module, inputs: Tensor, name: str) -> dict[str, Tensor]:
        judged = per_class(model, inputs)
        output = models.class_outputs(judged, inputs, "what the network predicts")
        best = torch.softmax(output, 1).max(1)
        heat, lost = attribute_with_loss(attribution.create(name, judged), inputs, best.indices)
        heat = heat.sum(1, keepdim=True)
        if max(heat.shape[-2:]) > _SIDE:
            size = [round(n * _SIDE / max(heat.shape[-2:])) for n in heat.shape[-2:]]
            heat = F.interpolate(heat, size=size, mode="area")
        return {
            "heat": heat.float(),
            "said": best.indices,
            "sure": best.values,
            "lost": torch.full((len(inputs),), lost),
        }

    def write(
        self, folder: Path, loaded: Loaded, picked: Picked, pruned: Pruned, pictures: Pictures
    ) -> None:
        """Write ``steps.json``, and the photographs with their heatmaps into the pictures."""
        rows = {row.step: row for row in pruned.trajectory if row.step in pruned.observed}
        numbers = _spaced(sorted(rows))
        seen = {number: pruned.observed[number] for number in numbers}
        first = seen[numbers[0]]
        write_json(
            folder / "steps.json",
            {
                "layers": self.layers,
                "method": self.method,
                "side": picked.data.preprocessing.size,
                "lost": max(
                    (float(s["lost"].max()) for s in seen.values() if "lost" in s), default=0.0
                ),
                "steps": [self._row(rows[number], seen[number]) for number in numbers],
                "photos": [
                    _photo(loaded, picked, place, list(seen.values()), pictures)
                    for place in range(len(first.get("heat", ())))
                ],
            },
        )

    def _row(self, row: Any, seen: Mapping[str, Tensor]) -> dict[str, Any]:
        accuracy = row.accuracy if row.accuracy_tuned is None else row.accuracy_tuned
        units = zip(self.layers, seen["units"].tolist(), strict=True)
        return {
            "step": row.step,
            "accuracy": accuracy,
            "macs": row.macs,
            "params": row.params,
            "seconds": float(seen["seconds"]),
            "units": dict(units),
        }


def _photo(
    loaded: Loaded,
    picked: Picked,
    place: int,
    seen: list[Mapping[str, Tensor]],
    pictures: Pictures,
) -> dict[str, Any]:
    data, index = picked.data, picked.indices[place]
    image = data.preprocessing.denormalise(data[index][0])
    strip, limit = heat_strip(torch.stack([step["heat"][place] for step in seen]))
    return {
        "name": picked.file_name(place),
        "class": loaded.class_name(data.targets[index]) if data.labelled else None,
        "photo": pictures.add(f"steps/{place:03}-photograph.webp", photograph(image)),
        "heat": pictures.add(f"steps/{place:03}-heatmaps.webp", strip),
        "limit": limit,
        "answers": [
            [
                loaded.class_name(int(step["said"][place])),
                round(float(step["sure"][place]), 4),
            ]
            for step in seen
        ],
    }


def _spaced(numbers: list[int]) -> list[int]:
    """Choose some of many steps, evenly, the first and the last among them."""
    if len(numbers) <= _MOST:
        return numbers
    places = [round(place * (len(numbers) - 1) / (_MOST - 1)) for place in range(_MOST)]
    return [numbers[place] for place in dict.fromkeys(places)]


@stage("measuring accuracy")
def answers(model: nn.Module, data: Data, batch_size: int) -> Tensor:
    """Return the probabilities of all classes for all images, shape (N, classes)."""
    found = array("f")  # many small tensors between large ones would leave holes in the memory
    classes = 0
    for inputs, _ in batches(data, batch_size, models.home(model)):
        output = models.class_outputs(model, inputs, "a comparison of predictions")
        classes = output.shape[1]
        found.extend(torch.softmax(output.float(), 1).flatten().tolist())
    return torch.tensor(found).view(-1, classes)


def write_changed(
    folder: Path, loaded: Loaded, images: Images, before: Tensor, after: Tensor, pictures: Pictures
) -> None:
    """Write ``changed.json``: how many predictions differ, and some of the images.

    Those are shown whose probability for the true class fell most.
    """
    true = torch.tensor(images.targets)
    said, now = before.argmax(1), after.argmax(1)
    rows = torch.arange(len(true))
    fell = before[rows, true] - after[rows, true]
    different = (said != now).nonzero().flatten()
    order = different[fell[different].argsort(descending=True, stable=True)].tolist()[:_SHOWN]

    def told(place: int, number: int) -> dict[str, Any]:
        image = images.preprocessing.denormalise(images[place][0])
        return {
            "name": images.paths[place].name if images.paths else f"image {place}",
            "class": loaded.class_name(int(true[place])),
            "before": loaded.class_name(int(said[place])),
            "after": loaded.class_name(int(now[place])),
            "before_sure": round(float(before[place].max()), 4),
            "after_sure": round(float(after[place].max()), 4),
            "photo": pictures.add(f"changed/{number:03}.webp", photograph(image)),
        }

    write_json(
        folder / "changed.json",
        {
            "images": len(true),
            "changed": len(different),
            "lost": int(((said == true) & (now != true)).sum()),
            "won": int(((said != true) & (now == true)).sum()),
            "side": images.preprocessing.size,
            "shown": [told(place, number) for number, place in enumerate(order)],
        },
    )
