"""Pruning away an artefact: the filters that see it, and nothing else that matters, are removed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from niwaki import models, pruning
from niwaki.arrays import Array
from niwaki.auditing._material import margins
from niwaki.auditing._statistics import auc
from niwaki.contexts import undisturbed
from niwaki.criteria import Scores, hidden_layers
from niwaki.errors import DataError, FallbackWarning, ModelError, NothingToPruneError
from niwaki.propagation import Maps, epsilon_plus, per_class, propagate, unit_dimension
from niwaki.pruning import Removal
from niwaki.ranges import FRACTION, checked

_STEPS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.17, 0.23, 0.3)


@dataclass(frozen=True)
class Trial:
    """One number of removed units and what it does.

    Attributes
    ----------
    units : int
        Removed.
    effect : float
        By how much the artefact still moves the output: the mean size of the change of the margin
        between images with the artefact and the same images without it.
    accuracy, auc : float
        On clean images. A network that takes the absence of the artefact for a sign of the other
        class has a wrong threshold, which lowers its accuracy but not its AUC.
    """

    units: int
    effect: float
    accuracy: float
    auc: float


@dataclass(frozen=True, eq=False)
class PrunedArtefact:
    """A network without the units that see an artefact.

    Attributes
    ----------
    model : nn.Module
        The smaller network; the given one is unchanged.
    removals : tuple of Removal
        What was removed; a `niwaki.pruning.Plan` of one step.
    scores : Scores
        How specific to the artefact each unit is, see `specificity`.
    trials : tuple of Trial
        All numbers of units that were tried, from 0.
    """

    model: nn.Module = field(repr=False)
    removals: tuple[Removal, ...]
    scores: Scores
    trials: tuple[Trial, ...]


@undisturbed
def specificity(
    model: nn.Module, artefact: tuple[Tensor, Tensor, Array], clean: tuple[Tensor, Tensor]
) -> Scores:
    """Say for each unit how much of an artefact's relevance passes through it, and how little else.

    Relevance starts with 1 at the class. A unit's share of its layer's relevance on the artefact's
    region of images that have it, less its share on clean images: from -1 to 1.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    artefact : tuple
        Inputs that have it, shape (N, C, H, W), their classes, and where it is: (N, H, W), bool.
    clean : tuple
        Inputs that do not, and their classes.
    """
    inputs, labels, masks = artefact
    layers = hidden_layers(model, inputs[:1])
    dimension = {layer.name: unit_dimension(layer.operation) for layer in layers}
    seen = _shares(model, inputs, labels, torch.tensor(masks), dimension)
    usual = _shares(model, *clean, None, dimension)
    return Scores(
        {name: seen[name] - usual[name] for name in seen},
        "artefact specificity",
        len(inputs) + len(clean[0]),
        models.fingerprint(model),
    )


@undisturbed
@checked(tolerance=FRACTION)
def prune_artefact(
    model: nn.Module,
    artefact: tuple[Tensor, Tensor, Array],
    without: Tensor,
    clean: tuple[Tensor, Tensor],
    *,
    tolerance: float = 0.01,
    scores: Scores | None = None,
    rebuilt: bool = True,
) -> PrunedArtefact:
    """Remove the units that carry an artefact's relevance and not that of other images.

    Units are removed in the order of `specificity`, in steps of up to 30 % of all. Of the trials
    whose AUC on clean images is within `tolerance` of the best, the one with the least effect is
    kept. Nothing is trained. By default the layers that are left are fitted again.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes); stays as it is.
    artefact : tuple
        Inputs that have it, shape (N, C, H, W), their classes, and where it is: (N, H, W), bool.
    without : Tensor
        The same images without it (inpainted, or as they were), shape (N, C, H, W).
    clean : tuple
        Inputs that do not have it, and their classes, of all classes.
    tolerance : float
        AUC on clean images that may be lost.
    scores : Scores, optional
        The order in which units are removed, highest first, as far as it is above 0, such as
        `odd_filters`; default: `specificity`.
    rebuilt : bool
        Whether the layers that are left are fitted, after each trial's removal, to what the given
        network computes on the clean images (`niwaki.pruning.rebuild`). This restores accuracy, so
        that more units can go, and the artefact does not come back, as these images lack it.
        ``False``: all other weights stay as they are.

    Warns
    -----
    FallbackWarning
        If the network cannot be rebuilt; its units are removed all the same.

    Raises
    ------
    DataError
        Artefact and repaired images of different number.
    NothingToPruneError
        No unit is more active on the artefact than elsewhere.
    """
    inputs, labels, _ = artefact
    if inputs.shape != without.shape:
        raise DataError(
            f"images with the artefact are {tuple(inputs.shape)}, without it "
            f"{tuple(without.shape)}; give the same images in the same order"
        )
    models.check(model)
    scores = scores or specificity(model, artefact, clean)
    order = _order(models.deep_copy(model), inputs[:1], scores)
    if not order:
        raise NothingToPruneError(
            "no unit that sees the artefact more than other images may be removed"
        )
    total = sum(len(value) for value in scores.values())
    counts = sorted({max(1, round(step * total)) for step in _STEPS})
    trials = [_try(model, 0, inputs, without, labels, clean)]
    networks: list[tuple[nn.Module, tuple[Removal, ...]]] = [(models.deep_copy(model), ())]
    for count in counts:
        removals = _removals(order[:count], scores)
        if not removals or count > len(order):
            break
        smaller = models.deep_copy(model)
        pruning.operate(smaller, inputs[:2], removals)
        # What cannot be rebuilt after one trial cannot after the others.
        rebuilt = rebuilt and _rebuild(smaller, model, clean, removals)
        networks.append((smaller, removals))
        trials.append(_try(smaller, count, inputs, without, labels, clean))
    best = max(trial.auc for trial in trials)
    allowed = [i for i, trial in enumerate(trials) if trial.auc >= best - tolerance]
    chosen = min(allowed, key=lambda i: trials[i].effect)
    return PrunedArtefact(networks[chosen][0], networks[chosen][1], scores, tuple(trials))


def _shares(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    masks: Tensor | None,
    dimension: dict[str, int],
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Each unit's share of its layer's absolute relevance, inside masks where they are given."""
    sums = {name: torch.zeros(()).double() for name in dimension}
    model = per_class(model, inputs[:2])
    for start in range(0, len(inputs), batch_size):
        part = slice(start, start + batch_size)
        maps = Maps(set(dimension))

        def begin(output: Tensor, part: slice = part) -> Tensor:
            return nn.functional.one_hot(labels[part], output.shape[1]).to(output)

        propagate(model, inputs[part], epsilon_plus(), begin, [maps], to_input=False, max_loss=None)
        for name, relevance in maps.relevances.items():
            size = relevance.abs().double()
            if masks is not None and size.dim() == 4:
                inside = nn.functional.adaptive_max_pool2d(
                    masks[part, None].double(), size.shape[-2:]
                )
                size = size * inside
            others = [d for d in range(size.dim()) if d != dimension[name] % size.dim()]
            sums[name] = sums[name] + size.sum(others)
    return {name: value / value.sum().clamp_min(1e-12) for name, value in sums.items()}


def _order(model: nn.Module, example: Tensor, scores: Scores) -> list[tuple[str, tuple[int, ...]]]:
    """List the units that may be removed, the most specific first: (layer, its channels)."""
    ranked = []
    coupling = pruning.couple(model, example, list(scores))
    coupling.warn_of_choices()
    for group in coupling:
        values = group.scores(scores)
        # One unit of each group stays: a layer must not be empty.
        places = values.argsort(descending=True)[: len(values) - 1].tolist()
        ranked += [
            (float(values[place]), group.root, group.units[place])
            for place in places
            if values[place] > 0
        ]
    ranked.sort(key=lambda row: -row[0])
    return [(layer, channels) for _, layer, channels in ranked]


def _removals(units: list[tuple[str, tuple[int, ...]]], scores: Scores) -> tuple[Removal, ...]:
    by_layer: dict[str, list[int]] = {}
    for layer, channels in units:
        by_layer.setdefault(layer, []).extend(channels)
    return tuple(
        Removal(layer, tuple(sorted(by_layer[layer]))) for layer in scores if layer in by_layer
    )


def _rebuild(
    smaller: nn.Module, model: nn.Module, clean: tuple[Tensor, Tensor], removals: Sequence[Removal]
) -> bool:
    """Fit the layers that are left in place, or warn and say that it cannot be done."""
    try:
        pruning.rebuild(smaller, model, clean, pruning.Plan((tuple(removals),)))
    except ModelError as error:
        warnings.warn(f"{error}. Units are removed without it", FallbackWarning, stacklevel=4)
        return False
    return True


def _try(
    model: nn.Module,
    units: int,
    inputs: Tensor,
    without: Tensor,
    labels: Tensor,
    clean: tuple[Tensor, Tensor],
) -> Trial:
    with torch.no_grad():
        said = [
            models.class_logits(model(x.clone()), "an audit") for x in (inputs, without, clean[0])
        ]
    truth = labels.cpu().numpy()
    on, off = (torch.from_numpy(margins(part.cpu().numpy(), truth)) for part in said[:2])
    accuracy = float((said[2].argmax(1) == clean[1]).double().mean())
    quality = auc(said[2].double().cpu().numpy(), clean[1].cpu().numpy())
    return Trial(units, float((on - off).abs().mean()), accuracy, quality)
