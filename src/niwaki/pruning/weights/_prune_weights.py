"""Unstructured pruning: score the weights, mask the lowest, look, and again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.contexts import undisturbed
from niwaki.criteria import Criterion, Scores, create, score_weights
from niwaki.data import Data, batches, check_same_classes
from niwaki.errors import ModelError, NiwakiError, NothingToPruneError
from niwaki.evaluation import warn_near_chance
from niwaki.processes import decided
from niwaki.propagation import trace
from niwaki.pruning._bundles import Run, matching
from niwaki.pruning._saved import shapes
from niwaki.pruning.repair._rebuild import rebuild, unlisted
from niwaki.pruning.steps import Measure
from niwaki.pruning.weights._masks import Over, mask_weights, place, select_weights
from niwaki.pruning.weights._pruned_weights import PrunedWeights, WeightStep, WeightTrajectory
from niwaki.ranges import INSIDE, UNITS, WEIGHT_STEPS, checked
from niwaki.runs import Part, described, digest, identified, open_run

__all__ = ["prune_weights"]

_LAST = "last"
_GONE, _STATE = "gone:", "state:"  # before the names of what is kept


@undisturbed
@checked(keep=INSIDE, steps=WEIGHT_STEPS, min_weights=UNITS.but(low=0))
def prune_weights(
    model: nn.Module,
    data: Data,
    criterion: str | Criterion = "lrp",
    *,
    keep: float = 0.5,
    over: Over = "network",
    steps: int = 1,
    test: Data | None = None,
    ignore: Sequence[str] = (),
    min_weights: int = 1,
    repair: Literal["rebuild"] | None = None,
    run: Run = Run(),
) -> PrunedWeights:
    """Set the weights that matter least to zero, until a share of them is left.

    In each step the remaining weights are scored again, and those with the lowest scores are
    removed; one that is gone stays gone. Shapes stay as they are, so that nothing becomes faster:
    what shrinks is what must be stored. Biases and norms are not touched, unless the network is
    repaired.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples with their labels, that the criterion looks at.
    criterion : str or Criterion
        One of ``niwaki.criteria.names("weight")``, with options as in ``"lrp:max_loss=None"``, or
        what `niwaki.criteria.create` has made.
    keep : float
        Share of the weights to keep, between 0 and 1; the sparsity is 1 less this.
    over : {"network", "layer"}
        Whether weights are ranked over the whole network, or within each layer, so that all layers
        keep the same share.
    steps : int
        Number of steps, 255 at the most; what is left shrinks by the same factor in each.
    test : DataLoader, Dataset or pair of tensors, optional
        Measures the accuracy after each step.
    ignore : sequence of str
        Layers whose weights stay; the name of a module stands for all layers in it, and a pattern
        such as ``"features.*"`` for those that it fits.
    min_weights : int
        Weights that each layer keeps at the least, so that no layer is cut through.
    repair : {"rebuild"}, optional
        Whether the weights that are left are fitted, after each step, to what the unpruned network
        computes on the reference samples, see `rebuild`.
    run : Run
        The folder that steps are kept in, the size of batches, and who is told about each
        `WeightStep`.

    Returns
    -------
    PrunedWeights
        With `.model`, `.masks()` and `.trajectory`.

    Raises
    ------
    ValueError
        For options out of range.
    ModelError, DataError, NothingToPruneError
        For a network or data that cannot be used.

    Examples
    --------
    >>> pruned = niwaki.pruning.prune_weights(model, (images, labels), "lrp", keep=0.2, steps=4)
    >>> print(pruned.trajectory)
    >>> pruned.save("sparse")
    """
    made, batch_size = create(criterion, "weight"), run.batch_size
    models.check(model)
    check_same_classes(data, test, "the reference and the test images")
    example = next(iter(batches(data, 1, models.home(model))))[0][:1]
    why = None if repair is None else unlisted(model, torch.cat([example] * 2))
    if why is not None:
        raise ModelError(why)
    gone = _nothing_gone(model, example, ignore)
    _check_reach({layer: at.numel() for layer, at in gone.items()}, keep, min_weights)

    def identity() -> dict[str, Any]:
        return {
            "model": identified(model),
            "data": digest(data, seeded=repair is not None),
            "test": None if test is None else digest(test),
            "criterion": described(made),
            "keep": keep,
            "over": over,
            "steps": steps,
            "ignore": [ignore] if isinstance(ignore, str) else list(ignore),
            "min_weights": min_weights,
            "repair": repair,
            "batch_size": batch_size,
        }

    with open_run(run.folder, identity) as kept:

        def look(step: int, since: float) -> None:
            right = Measure(test, None, batch_size).accuracy(working, test)
            weights = {layer: at.numel() for layer, at in gone.items()}
            left = {layer: int((at == 0).sum()) for layer, at in gone.items()}
            rows.append(WeightStep(step, weights, left, right, time.perf_counter() - since))
            kept.write(_LAST, _stored(gone, working), rows=[asdict(row) for row in rows])
            run.tell(rows[-1])

        since = time.perf_counter()
        working, gone, rows = _begun(kept.read(_LAST), model, gone)
        for row in rows:
            run.tell(row)
        if not rows:
            look(0, since)
            warn_near_chance(model, test, rows[0].accuracy, "before pruning")
        for step in range(len(rows), steps + 1):
            since = time.perf_counter()
            scores = score_weights(working, data, made, batch_size=batch_size)
            there = {layer: at == 0 for layer, at in gone.items()}
            selected = select_weights(
                Scores({layer: scores[layer] for layer in gone}),
                keep ** (step / steps),
                over=over,
                min_weights=min_weights,
                among=there,
            )
            masks = _decided(selected)
            for layer, mask in masks.items():
                gone[layer][there[layer] & ~mask] = step
            working = mask_weights(working, masks)
            if repair is not None:
                rebuild(working, model, data, masks=_of_modules(working, masks))
            look(step, since)
    return PrunedWeights(
        working,
        gone,
        WeightTrajectory(tuple(rows)),
        tuple(example.shape[1:]),
        shapes(model),
        {
            "granularity": "weights",
            "criterion": repr(made),
            "keep": keep,
            "over": over,
            "repair": repair,
        },
    )


def _begun(
    part: Part | None, model: nn.Module, gone: dict[str, Tensor]
) -> tuple[nn.Module, dict[str, Tensor], list[WeightStep]]:
    """Return the network after the last step that a run has kept, or the one to begin with."""
    if part is None:
        return mask_weights(model, {layer: at == 0 for layer, at in gone.items()}), gone, []
    gone = _of_kind(part.tensors, _GONE)
    working = mask_weights(model, {layer: at == 0 for layer, at in gone.items()})
    working.load_state_dict(_of_kind(part.tensors, _STATE))
    return working, gone, [WeightStep(**row) for row in part.about["rows"]]


def _decided(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks of the first process, which follow from floating-point numbers."""
    return decided(lambda: masks)


def _stored(gone: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Put together what a step leaves: when each weight went, and all values there are."""
    state = {f"{_STATE}{name}": value for name, value in model.state_dict().items()}
    return {**{f"{_GONE}{layer}": at for layer, at in gone.items()}, **state}


def _of_kind(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name[len(kind) :]: value for name, value in tensors.items() if name.startswith(kind)}


def _of_modules(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out masks of weights that belong to no module of their own."""
    names = {name for name, _ in model.named_modules()}
    return {layer: mask for layer, mask in masks.items() if layer in names}


def _check_reach(weights: Mapping[str, int], keep: float, min_weights: int) -> None:
    """Refuse a share that cannot be met, as too many weights stay in every layer."""
    whole = sum(weights.values())
    least = sum(min(min_weights, count) for count in weights.values())
    # One weight in each layer is what keeps it from being cut through, however small the share.
    if least > max(round(keep * whole), len(weights)):
        raise NiwakiError(
            f"keep = {keep:.3g} of the weights cannot be reached: with min_weights = {min_weights} "
            f"left in each of {len(weights)} layers, {least / whole:.3g} remain. Keep more, or ask "
            "for fewer in every layer"
        )


def _nothing_gone(model: nn.Module, example: Tensor, ignore: Sequence[str]) -> dict[str, Tensor]:
    """For each layer whose weights may be removed, zeros in the shape of its weight."""
    layers = [layer.name for layer in trace(model, example)]
    names = [ignore] if isinstance(ignore, str) else ignore
    kept = {layer for name in names for layer in matching(layers, name, "ignore", model)}
    zeros = {}
    for layer in layers:
        if layer not in kept:
            module, parameter = place(model, layer)
            shape = model.get_submodule(module).get_parameter(parameter).shape
            zeros[layer] = torch.zeros(shape, dtype=torch.uint8)
    if not zeros:
        raise NothingToPruneError(
            f"{type(model).__name__} has no convolution or linear layer whose weights may be "
            "removed"
        )
    return zeros
