"""Patterns: the direction in which each unit's signal lies, learned from data."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.attribution._pattern_statistics import (
    Estimator,
    PatternSums,
    estimate,
    run,
)
from niwaki.contexts import undisturbed
from niwaki.data import Data, batches
from niwaki.errors import ModelError, PatternWarning
from niwaki.files import read_layers, write_layers
from niwaki.models import fingerprint, home
from niwaki.processes import agreed
from niwaki.ranges import BATCH, checked
from niwaki.schema import Form, Text, Whole

__all__ = ["Patterns", "fit_patterns"]


@dataclass(frozen=True, eq=False)
class Patterns(Mapping[str, Tensor]):
    """Layer name to a tensor of the weight's shape: each unit's pattern a, with w^T a = 1.

    The weight w is the one with the batch norm behind the layer folded in. The pattern of a unit
    that could not be estimated is zero, so that nothing is attributed through it.

    Attributes
    ----------
    by_layer : dict of str to Tensor
        On the CPU.
    estimator : str
        What they were estimated with, see `fit_patterns`.
    samples : int
        Number of images that they come from.
    fingerprint : str
        The fingerprint of the network's weights, see `niwaki.models.fingerprint`.
    """

    by_layer: dict[str, Tensor]
    estimator: str = ""
    samples: int = 0
    fingerprint: str = ""

    def __getitem__(self, layer: str) -> Tensor:
        return self.by_layer[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_layer)

    def __len__(self) -> int:
        return len(self.by_layer)

    @property
    def missing(self) -> dict[str, int]:
        """Number of units in each layer whose pattern could not be estimated and is zero."""
        return {
            name: int((~pattern.flatten(1).any(1)).sum()) for name, pattern in self.by_layer.items()
        }

    def to(self, device: torch.device | str) -> dict[str, Tensor]:
        """Return the tensors on a device."""
        return {name: pattern.to(device) for name, pattern in self.by_layer.items()}

    def check(self, model: nn.Module) -> None:
        """Refuse a network of other shapes, and warn of one with other weights.

        Raises
        ------
        ModelError
            Naming the first layer that differs.
        """
        for name, pattern in self.by_layer.items():
            weight = _weight(model, name)
            if name.startswith("unnamed layer"):  # made on the fly: its rule checks the shape
                continue
            if weight is None or weight.shape != pattern.shape:
                has = "no weight" if weight is None else f"a weight of shape {tuple(weight.shape)}"
                raise ModelError(
                    f"the patterns are of another network: in layer {name!r} they have shape "
                    f"{tuple(pattern.shape)}, and {type(model).__name__} has {has} there. Fit them "
                    "on this network with niwaki.attribution.fit_patterns"
                )
        if self.fingerprint and self.fingerprint != fingerprint(model):
            warnings.warn(
                "the patterns were fitted on a network with other weights (or the same in another "
                "precision); fit them again on this one",
                PatternWarning,
                stacklevel=3,
            )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        write_layers(
            path,
            self.by_layer,
            estimator=self.estimator,
            samples=self.samples,
            fingerprint=self.fingerprint,
        )

    @classmethod
    def load(cls, path: str | Path) -> Patterns:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            If the file is missing or holds no patterns.
        """
        about: dict[str, Form] = {"estimator": Text(), "samples": Whole(), "fingerprint": Text()}
        return read_layers(path, cls, "patterns", about)

    def __repr__(self) -> str:
        units = sum(len(pattern) for pattern in self.by_layer.values())
        return (
            f"Patterns({self.estimator}: {units} units in {len(self)} layers, "
            f"{sum(self.missing.values())} without a pattern, {self.samples} samples)"
        )


@undisturbed
@checked(batch_size=BATCH)
def fit_patterns(
    model: nn.Module,
    data: Data,
    *,
    estimator: Estimator = "relu",
    batch_size: int = 32,
    layers: Collection[str] | None = None,
) -> Patterns:
    """Estimate the pattern of every unit from data, in one pass (Kindermans et al. 2018).

    A unit computes y = w^T x from a signal, which determines y, and a distractor, which its weight
    filters out. The pattern is the direction in which the signal lies. Every patch that a
    convolution sees is a sample. Biases and labels play no role.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. It is read, never changed.
    data : DataLoader, Dataset or pair of tensors
        Images like those to be explained; the labels are not used.
    estimator : {"relu", "linear", "negative"}
        ``"relu"``: the part above zero of the two-component estimator, over the samples for which
        the unit is active, for units before a ReLU; ``"negative"``: likewise over the others;
        ``"linear"``: over all samples. All layers get the same, the last one too, as in
        iNNvestigate.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.
    layers : collection of str, optional
        Names of the layers; default: all. Methods need all of them.

    Returns
    -------
    Patterns
        Zero for a unit that no sample counts for (never active under ``"relu"``, always active
        under ``"negative"``), and for one whose output does not vary.

    Raises
    ------
    ValueError
        For an estimator or a layer that does not exist.
    ModelError, DataError, PropagationError
        For a network or data that cannot be used; transposed convolutions have no patterns.

    Warns
    -----
    PatternWarning
        For a layer in which no unit has a pattern.
    """
    totals, weights, met = Totals(), dict[str, Tensor](), list[str]()
    place, title = home(model), "fitting patterns"
    with agreed():
        for inputs, _ in batches(data, batch_size, place, title, shared=True):
            sums = PatternSums(layers, estimator=estimator)
            run(model, inputs, sums)
            totals = totals.update(sums.sums, len(inputs))
            weights, met = sums.weights, sums.met
        if totals.samples == 0:  # there was no batch for this process
            sums = PatternSums(layers, estimator=estimator)
            run(model, next(batches(data, 1, place))[0][:1], sums)
            weights, met = sums.weights, sums.met
    totals = totals.reduced()
    weights = dict(reversed(weights.items()))  # they were met on the way back
    absent = set(layers or ()) - set(weights)
    if absent:
        raise ValueError(
            f"there is no convolution or linear layer {min(absent)!r}; layers: "
            f"{', '.join(dict.fromkeys(reversed(met)))}"
        )
    found = estimate(totals, weights)
    patterns = Patterns(found, estimator, totals.samples, fingerprint(model))
    _warn_of_empty(patterns)
    return patterns


def _warn_of_empty(patterns: Patterns) -> None:
    empty = [name for name, n in patterns.missing.items() if n == len(patterns[name])]
    if empty:
        warnings.warn(
            f"no unit of layer {empty[0]!r} has a pattern: on these data none is ever counted by "
            f"the estimator {patterns.estimator!r}, or no output varies. Nothing will be "
            "attributed through it; use more, and more varied, data",
            PatternWarning,
            stacklevel=3,
        )


def _weight(model: nn.Module, layer: str) -> Tensor | None:
    """Return a layer's weight by the name that a pass gives the layer, if it has one."""
    names = dict(model.named_modules(remove_duplicate=False))
    if layer in names:
        weight = getattr(names[layer], "weight", None)
        return weight if isinstance(weight, Tensor) else None
    return dict(model.named_parameters()).get(layer)
