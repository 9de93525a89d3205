"""What ``explain``, ``compare`` and ``evaluate`` share: choosing images and explaining them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.table import Table

from niwaki.errors import NiwakiError, PropagationError
from niwaki.stages import allowed, stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from niwaki.attribution import ClassChoice, Method, Target
    from niwaki.cli._loading import Loaded
    from niwaki.data import Images
    from niwaki.runs import Folder

__all__ = [
    "SHOWN",
    "Explained",
    "Picked",
    "attribute_with_loss",
    "by_default",
    "explain_images",
    "pick",
    "print_rows",
    "some_of",
    "table",
]

# What most people compare, from the plainest to the most refined.
_USUAL = (
    "gradient",
    "input_t_gradient",
    "smoothgrad",
    "integrated_gradients",
    "guided_backprop",
    "deconvnet",
    "deep_taylor",
    "lrp.epsilon",
    "lrp.alpha_2_beta_1",
    "lrp.epsilon_plus",
    "lrp.epsilon_plus_flat",
    "lrp.sequential_preset_a_flat",
)


def by_default() -> list[str]:
    """Return the usual methods of the catalogue."""
    from niwaki import attribution

    known = attribution.names()
    return [name for name in _USUAL if name in known]


SHOWN = 64  # images on a sheet at the most
Keep: TypeAlias = "Callable[[dict[str, Tensor], Tensor, Tensor], None]"


@dataclass(frozen=True)
class Picked:
    """Some images of a data set."""

    data: Images
    indices: list[int]
    name: str

    @property
    def subset(self) -> torch.utils.data.Subset[Any]:
        """The picked images alone."""
        from torch.utils.data import Subset

        return Subset(self.data, self.indices)

    def file_name(self, position: int) -> str:
        """Name of an image."""
        index = self.indices[position]
        return self.data.paths[index].name if self.data.paths else f"{self.name} {index}"


def pick(data: Images, limit: int, seed: int, name: str) -> Picked:
    """Draw images at random, as many of each class as possible; sorted as in the data."""
    import torch

    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    seen: Counter[int] = Counter()
    turns: list[tuple[int, int, int]] = []
    for index in order:
        turns.append((seen[data.targets[index]], len(turns), index))
        seen[data.targets[index]] += 1
    return Picked(data, sorted(index for _, _, index in sorted(turns)[:limit]), name)


def some_of(images: Images, what: str, of: int) -> Images:
    """Return the images, or as many of each class as `niwaki estimate` tries a command with."""
    count = allowed(what, len(images), of)
    if count == len(images):
        return images
    return images.subset(pick(images, count, 0, what).indices)


@dataclass(frozen=True)
class Explained:
    """The predictions for images, and the first of them with their heatmaps, to be shown.

    Attributes
    ----------
    images : Tensor
        Shape (n, C, H, W), from 0 to 1; n is at most `SHOWN`.
    heatmaps : dict of str to Tensor
        By method, shape (n, C, H, W).
    rows : list of dict
        For each image, also those that are not shown: its name, class, prediction and probability.
    lost : dict of str to float
        The methods whose maps `niwaki explain` refuses, because relevance is lost on the way: the
        share that is lost, of the image that loses most.
    left_out : dict of str to str
        The methods that cannot explain this network at all: why.
    """

    images: Tensor
    heatmaps: dict[str, Tensor]
    rows: list[dict[str, Any]]
    lost: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def heading(self, text: str) -> str:
        """Say in the heading of a sheet how many images it shows, if not all."""
        shown, every = len(self.images), len(self.rows)
        return text if shown == every else f"{text} (the first {shown} of {every} images)"

    def told(self, loaded: Loaded, target: ClassChoice) -> dict[str, Any]:
        """Return what `niwaki.report.save_heatmaps` says of the images."""
        return {
            "rows": self.rows,
            "target": loaded.choice_name(target),
            "lost": self.lost,
            "left_out": self.left_out,
            "every": len(self.rows),
        }

    def titles(self, width: int = 24) -> list[str]:
        """Prediction with its probability and, where known, the true class, for a picture."""
        titles = []
        for row in self.rows[: len(self.images)]:
            said = f"{_short(row['prediction'], width - 6)} {row['probability']:.0%}"
            true = row["class"]
            titles.append(said if true is None else f"{said}\ntrue: {_short(true, width - 6)}")
        return titles


@stage("explaining")
def explain_images(
    loaded: Loaded,
    picked: Picked,
    methods: Sequence[str],
    target: ClassChoice,
    batch_size: int,
    *,
    strict: bool = True,
    folder: Folder = None,
    keep: Keep | None = None,
) -> Explained:
    """Compute the heatmaps of some images under some methods.

    Unless `strict`, a method is shown also where relevance is lost on the way, with the share,
    and one that cannot explain the network is left out, with the reason. A folder keeps finished
    batches. Each batch is handed to `keep`: heatmaps by method, outputs and labels.
    """
    import torch

    from niwaki import attribution, models
    from niwaki.data import batches
    from niwaki.progress import bar
    from niwaki.propagation import per_class
    from niwaki.runs import digest, identified, open_run

    place = models.home(loaded.model)
    example, _ = next(iter(batches(picked.subset, 1, place)))
    judged = per_class(loaded.model, example)
    made = {name: attribution.create(name, judged) for name in methods}
    lost: dict[str, float] = {}
    left_out: dict[str, str] = {}

    def heatmap(name: str, batch: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return what a part keeps of a method: its heatmaps, and the share that gets lost."""
        if strict:
            return {f"by {name}": made[name].attribute(batch, classes)}
        try:
            found, share = attribute_with_loss(made[name], batch, classes)
        except PropagationError as error:
            left_out[name] = str(error)
            return {}
        return {f"by {name}": found, f"lost by {name}": torch.tensor(share)}

    def explain(
        batch: Tensor, labels: Tensor, advance: Callable[[float], None]
    ) -> dict[str, Tensor]:
        output = models.class_outputs(judged, batch, "the sheet of predictions")
        if isinstance(target, int) and target >= output.shape[1]:
            raise NiwakiError(
                f"--target {target}: the network has {output.shape[1]} outputs, numbered from 0"
            )
        classes = attribution.chosen_classes(output, labels, target)
        heatmaps: dict[str, Tensor] = {}
        for name in made:
            if name not in left_out:
                heatmaps |= heatmap(name, batch, classes)
            advance(len(batch) / len(made))
        if not heatmaps:
            raise NiwakiError(f"no method can explain this: {next(iter(left_out.values()))}")
        return {"inputs": batch, "outputs": output, **heatmaps}

    def identity() -> dict[str, Any]:
        return {
            "explained": list(methods),
            "model": identified(loaded.model),
            "data": digest(picked.subset, ordered=True),
            "target": target,
            "strict": strict,
            "batch_size": batch_size,
        }

    shown: list[dict[str, Tensor]] = []
    said: list[tuple[float, int]] = []
    with open_run(folder, identity) as kept, bar("explaining", len(picked.indices)) as advance:
        for number, (batch, truth) in enumerate(batches(picked.subset, batch_size, place)):
            part = kept.once(f"batch-{number:05}", partial(explain, batch, truth, advance))
            heatmaps = {name: part[f"by {name}"] for name in methods if f"by {name}" in part}
            for name in heatmaps:
                share = float(part.get(f"lost by {name}", 0))
                lost[name] = max(share, lost.get(name, 0.0))
            if keep is not None:
                keep(heatmaps, part["outputs"], truth)
            if (left := SHOWN - len(said)) > 0:
                first = {"inputs": part["inputs"], **heatmaps}
                shown.append({name: values[:left].clone() for name, values in first.items()})
            best = torch.softmax(part["outputs"], 1).max(1)
            said += zip(best.values.tolist(), best.indices.tolist(), strict=True)
    names = [name for name in shown[0] if name not in left_out]
    first = {name: torch.cat([part[name] for part in shown]) for name in names}
    return Explained(
        picked.data.preprocessing.denormalise(first.pop("inputs")),
        first,
        _rows(loaded, picked, said),
        {name: share for name, share in lost.items() if share and name in first},
        left_out,
    )


def attribute_with_loss(how: Method, batch: Tensor, target: Target) -> tuple[Tensor, float]:
    """Compute heatmaps also where relevance is lost; return them and the share that is lost.

    The share is that of the sample that loses most, and 0 where the method accepts what is lost.
    """
    from niwaki.attribution import Propagating

    if not isinstance(how, Propagating) or how.max_loss is None:
        return how.attribute(batch, target), 0.0
    found, lost = how.attribute_with_loss(batch, [target])
    share = float(lost.max())
    return found[0], 0.0 if share <= how.max_loss else share


def print_rows(rows: Sequence[dict[str, Any]], show: Callable[..., None], rest: str) -> None:
    """Print as many rows as are shown, and say where the others are."""
    show(table(rows[:SHOWN]))
    if len(rows) > SHOWN:
        show(f"and {len(rows) - SHOWN:,} more: {rest}")


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return rows of equal keys as a table for the terminal."""
    shown = Table(box=None, pad_edge=False)
    for column, value in rows[0].items():
        number = isinstance(value, (int, float))
        shown.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*("" if value is None else str(value) for value in row.values()))
    return shown


def _rows(
    loaded: Loaded, picked: Picked, said: Sequence[tuple[float, int]]
) -> list[dict[str, Any]]:
    rows = []
    for position, index in enumerate(picked.indices):
        label = picked.data.targets[index]
        true = loaded.class_name(label) if picked.data.labelled else None
        rows.append(
            {
                "image": picked.file_name(position),
                "class": true,
                "prediction": loaded.class_name(said[position][1]),
                "probability": round(said[position][0], 4),
            }
        )
    return rows


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
