"""What ``explain``, ``compare`` and ``evaluate`` share: choosing images and explaining them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.table import Table

from niwaki.errors import NiwakiError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from niwaki.cli._options import Loaded
    from niwaki.data import Images
    from niwaki.runs import Folder

__all__ = ["Explained", "Picked", "by_default", "explain_images", "pick", "table"]

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


@dataclass(frozen=True)
class Explained:
    """Images, what the network says of them, and why.

    Attributes
    ----------
    images : Tensor
        Shape (N, C, H, W), from 0 to 1.
    heatmaps : dict of str to Tensor
        By method, shape (N, C, H, W).
    outputs : Tensor
        Of the network, shape (N, classes).
    labels : Tensor
        Shape (N,); -1 where not known.
    rows : list of dict
        For each image: its name, class, prediction and probability.
    """

    images: Tensor
    heatmaps: dict[str, Tensor]
    outputs: Tensor
    labels: Tensor
    rows: list[dict[str, Any]]

    def titles(self, width: int = 24) -> list[str]:
        """Prediction with its probability and, where known, the true class, for a picture."""
        titles = []
        for row in self.rows:
            said = f"{_short(row['prediction'], width - 6)} {row['probability']:.0%}"
            true = row["class"]
            titles.append(said if true is None else f"{said}\ntrue: {_short(true, width - 6)}")
        return titles


def explain_images(
    loaded: Loaded,
    picked: Picked,
    methods: Sequence[str],
    target: int | None,
    batch_size: int,
    *,
    strict: bool = True,
    folder: Folder = None,
) -> Explained:
    """Compute the heatmaps of some images under some methods.

    Unless `strict`, a method is shown also where relevance gets lost on its way. A folder keeps
    finished batches.
    """
    import torch

    from niwaki import attribution, models
    from niwaki.data import batches
    from niwaki.models import fingerprint
    from niwaki.propagation import per_class
    from niwaki.runs import digest, open_run

    place = models.home(loaded.model)
    example, _ = next(iter(batches(picked.subset, 1, place)))
    judged = per_class(loaded.model, example)
    made = {name: attribution.create(name, judged) for name in methods}
    for explainer in made.values() if not strict else ():
        if isinstance(explainer, attribution.Propagating):
            explainer.max_loss = None

    def explain(batch: Tensor) -> dict[str, Tensor]:
        output = models.respond(judged, batch)
        if target is not None and target >= output.shape[1]:
            raise NiwakiError(
                f"--target {target}: the network has {output.shape[1]} outputs, numbered from 0"
            )
        heatmaps = {f"by {name}": how.attribute(batch, target) for name, how in made.items()}
        return {"inputs": batch, "outputs": output, **heatmaps}

    def identity() -> dict[str, Any]:
        return {
            "explained": list(methods),
            "model": fingerprint(loaded.model),
            "data": digest(picked.subset, ordered=True),
            "target": target,
            "strict": strict,
            "batch_size": batch_size,
        }

    parts: list[dict[str, Tensor]] = []
    labels: list[Tensor] = []
    with open_run(folder, identity) as kept:
        for batch, truth in batches(picked.subset, batch_size, place, "explaining"):
            parts.append(kept.once(f"batch-{len(parts):05}", partial(explain, batch)))
            labels.append(truth.cpu())
    said = torch.cat([part["outputs"] for part in parts])
    return Explained(
        picked.data.preprocessing.denormalise(torch.cat([part["inputs"] for part in parts])),
        {name: torch.cat([part[f"by {name}"] for part in parts]) for name in methods},
        said,
        torch.cat(labels),
        _rows(loaded, picked, said),
    )


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return rows of equal keys as a table for the terminal."""
    shown = Table(box=None, pad_edge=False)
    for column, value in rows[0].items():
        number = isinstance(value, (int, float))
        shown.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*("" if value is None else str(value) for value in row.values()))
    return shown


def _rows(loaded: Loaded, picked: Picked, outputs: Tensor) -> list[dict[str, Any]]:
    import torch

    best = torch.softmax(outputs, 1).max(1)
    rows = []
    for position, index in enumerate(picked.indices):
        label = picked.data.targets[index]
        true = loaded.class_name(label) if picked.data.labelled else None
        rows.append(
            {
                "image": picked.file_name(position),
                "class": true,
                "prediction": loaded.class_name(int(best.indices[position])),
                "probability": round(float(best.values[position]), 4),
            }
        )
    return rows


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
