"""Scores: one value per unit, by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from niwaki.display import html_table
from niwaki.errors import DataError
from niwaki.files import read_layers, write_layers
from niwaki.schema import Form, Text, Whole

__all__ = ["NORMALISATIONS", "Scores"]

NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda scores: scores.new_ones(()),
    "sum": lambda scores: scores.abs().sum(),
    "mean": lambda scores: scores.abs().mean(),
    "l2": lambda scores: scores.square().sum().sqrt(),
    "max": lambda scores: scores.abs().max(),
}


@dataclass(frozen=True, eq=False)
class Scores(Mapping[str, Tensor]):
    """Layer name to one value per unit; the higher, the more the unit matters.

    Attributes
    ----------
    by_layer : dict of str to Tensor
        Double precision, on the CPU, in the order in which the signal meets the layers.
    criterion : str
        What produced them.
    samples : int
        Number of samples that they come from.
    fingerprint : str
        Fingerprint of the network's weights, see `niwaki.models.fingerprint`.

    Raises
    ------
    DataError
        For NaN among the scores.
    """

    by_layer: dict[str, Tensor]
    criterion: str = ""
    samples: int = 0
    fingerprint: str = ""

    def __post_init__(self) -> None:
        for layer, values in self.by_layer.items():
            if bool(values.isnan().any()):
                raise DataError(
                    f"the scores of {layer!r} have NaN ({int(values.isnan().sum())} of "
                    f"{values.numel()}), which cannot be ranked"
                )

    def __getitem__(self, layer: str) -> Tensor:
        return self.by_layer[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_layer)

    def __len__(self) -> int:
        return len(self.by_layer)

    def normalised(self, how: str) -> Scores:
        """Divide each layer's scores by one number.

        Parameters
        ----------
        how : {"none", "sum", "mean", "l2", "max"}
            Their sum, mean, Euclidean norm or largest, all of absolute values. A layer of zeros
            stays as it is.

        Raises
        ------
        ValueError
            For a name that does not exist.
        """
        if how not in NORMALISATIONS:
            raise ValueError(f"normalise {how!r} is not one of {', '.join(NORMALISATIONS)}")
        divided = {}
        for layer, value in self.by_layer.items():
            size = NORMALISATIONS[how](value)
            divided[layer] = value / size if size > 0 else value
        return replace(self, by_layer=divided)

    def flat(self) -> Tensor:
        """Return all scores as one vector, layer after layer."""
        return torch.cat([value.flatten() for value in self.by_layer.values()])

    def ranks(self) -> Tensor:
        """Rank all units together: 0 for the lowest; ties share their mean rank."""
        flat = self.flat()
        _, inverse, counts = torch.unique(flat, return_inverse=True, return_counts=True)
        ends = counts.cumsum(0).double()
        ranks: Tensor = (ends - (counts.double() + 1) / 2)[inverse]
        return ranks

    def rank_correlation(self, other: Scores) -> float:
        """Spearman's rank correlation over all units, from -1 to 1."""
        self._same_units(other)
        return float(torch.corrcoef(torch.stack([self.ranks(), other.ranks()]))[0, 1])

    def overlap(self, other: Scores, count: int) -> float:
        """Share of the `count` lowest units that both have in common, from 0 to 1."""
        self._same_units(other)
        if not 1 <= count <= len(self.flat()):
            raise ValueError(f"count = {count}: must lie between 1 and {len(self.flat())} units")
        lowest = [set(s.flat().argsort(stable=True)[:count].tolist()) for s in (self, other)]
        return len(lowest[0] & lowest[1]) / count

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        write_layers(
            path,
            self.by_layer,
            criterion=self.criterion,
            samples=self.samples,
            fingerprint=self.fingerprint,
        )

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            If the file is missing or holds no scores.
        """
        about: dict[str, Form] = {"criterion": Text(), "samples": Whole(), "fingerprint": Text()}
        return read_layers(path, cls, "scores", about)

    def _same_units(self, other: Scores) -> None:
        mine = {name: value.numel() for name, value in self.by_layer.items()}
        theirs = {name: value.numel() for name, value in other.by_layer.items()}
        if mine != theirs:
            different = next(n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n))
            raise ValueError(
                f"the scores are of different networks: {different!r} has "
                f"{mine.get(different, 'no')} and {theirs.get(different, 'no')} units"
            )

    def _repr_html_(self) -> str:
        rows = [
            {
                "layer": layer,
                "scores": values.numel(),
                "lowest": float(values.min()),
                "median": float(values.median()),
                "highest": float(values.max()),
            }
            for layer, values in self.by_layer.items()
        ]
        return html_table(rows, repr(self))

    def __repr__(self) -> str:
        count = sum(value.numel() for value in self.by_layer.values())
        what = "weights" if any(value.dim() > 1 for value in self.by_layer.values()) else "units"
        where = f"{count} {what} in {len(self)} layers"
        return f"Scores({self.criterion}: {where}, {self.samples} samples)"
