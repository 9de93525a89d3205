"""Repair in closed form: the rest of a network is fitted to what the whole one computes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from niwaki.contexts import undisturbed
from niwaki.data import Data
from niwaki.errors import FewSamplesWarning, ModelError
from niwaki.machine import parse_bytes, physical
from niwaki.models import home, plain_copy
from niwaki.models.network import Network, UntraceableError
from niwaki.pruning._plan import Plan
from niwaki.pruning.repair._fitting import ALIKE, Fitting, width_of
from niwaki.pruning.repair._lockstep import Lockstep
from niwaki.pruning.repair._rows import drawn, mirrored
from niwaki.pruning.units._surgery import completed
from niwaki.ranges import FACTOR, checked
from niwaki.stages import stage

__all__ = ["Rebuilt", "rebuild", "unlisted"]

PULL = 10.0
_FEW = 5  # samples


@dataclass(frozen=True)
class Rebuilt:
    """What a repair has done.

    Attributes
    ----------
    errors : dict of str to tuple of float
        For each layer that was fitted, the mean squared error of its outputs on the reference
        samples before and afterwards, as a share of the variance of what it should give.
    left_out : tuple of str
        Layers that read something else than before but could not be fitted: they compute in a way
        of their own, or share a weight with another layer.
    """

    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [f"{'layer':40} {'before':>8} {'after':>8}"]
        rows += [f"{name:40} {a:>8.1%} {b:>8.1%}" for name, (a, b) in self.errors.items()]
        return "\n".join([*rows, *(f"{name:40} left as it is" for name in self.left_out)])


@undisturbed
@stage("rebuilding")
@checked(pull=FACTOR)
def rebuild(
    model: nn.Module,
    original: nn.Module,
    data: Data,
    plan: Plan | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    pull: float = PULL,
    mirror: bool = True,
    jointly: bool = False,
    max_memory: int | str | None = None,
) -> Rebuilt:
    """Fit the layers of a pruned network to what the unpruned one computes, without training.

    In the order of the forward pass, every convolution and linear layer that reads something else
    than before gets the weights and the bias (without one, the running mean of the batch norm
    behind it) that bring its outputs nearest to those of the unpruned network on the reference
    samples, given what the layers before it, already fitted, now feed it. This is a ridge
    regression over the positions of all samples, pulled toward the weights that the layer has. At
    the sum of a residual block, the last layer of the branch aims at the whole sum, less what the
    shortcut now gives. Where a ReLU or another activation with flat parts follows, an output that
    it cuts off does not have to be reproduced: it only has to be cut off again. On the positions
    that are used, no layer's error grows.

    The result does not depend on how the samples are batched.

    Parameters
    ----------
    model : nn.Module
        The pruned network, in evaluation mode; changed in place, unless an error is raised.
    original : nn.Module
        The unpruned network, in evaluation mode. It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples; labels are not used. Of more than 1,000, a random part of that size
        serves, the same in every call.
    plan : Plan, optional
        What was removed from `original`. Default: nothing.
    masks : mapping of str to Tensor, optional
        Layer name to a mask in the shape of its weight: these layers are fitted too, and of their
        weights only those where the mask is True change.
    pull : float
        How many samples the present weights of a layer count for: by default they weigh as much as
        ten reference samples.
    mirror : bool
        Whether the mirror image of each image is used as well. It needs no label and does not have
        to look natural: it is one more input for which both networks should agree. With more than
        500 images it is left out.
    jointly : bool
        Whether each layer is then fitted once more, together with the layers whose outputs it alone
        reads, such as the first convolution of a residual block with the second. Their weights may
        then differ from what brings their own outputs nearest. By Gauss and Newton's method: the
        least squares over all these weights, linearised, are solved by conjugate gradients, twice.
        This takes about four times as long, and is what `prune` does by default.
    max_memory : int or str, optional
        Bytes, or such as ``"2GB"``, beyond which values inside the networks are kept on disk.
        Default: half of the machine's memory.

    Returns
    -------
    Rebuilt
        The error of each layer, before and afterwards.

    Raises
    ------
    ModelError
        If the operations of the network cannot be listed, or the two do not belong together.
    DataError
        If a layer reads or gives NaN or infinite values on the samples.

    Warns
    -----
    FewSamplesWarning
        If there are fewer than five samples.

    References
    ----------
    He, Zhang and Sun (2017), "Channel pruning for accelerating very deep neural networks", for the
    least squares; El Halabi, Srinivas and Lacoste-Julien (2022), "Data-efficient structured pruning
    via submodular optimization", for inputs taken from the pruned network. Zhang, Zou, He and Sun
    (2016), "Accelerating very deep convolutional networks for classification and detection", for
    responses behind the activation as the target.

    Examples
    --------
    >>> pruned = niwaki.prune(model, references, keep=0.5, repair=None)
    >>> print(niwaki.pruning.rebuild(pruned.model, model, references, pruned.plan))
    """
    memory = physical() // 2 if max_memory is None else parse_bytes(max_memory)
    inputs = drawn(data, home(original))
    if len(inputs) < _FEW:
        warnings.warn(
            f"rebuild: {len(inputs)} reference sample(s) hardly tell how units vary, so that the "
            f"weights stay near what they are; give {_FEW} or more. They need no labels",
            FewSamplesWarning,
            stacklevel=3,
        )
    _check_together(model, original, masks or {})
    inputs = mirrored(inputs) if mirror else inputs
    walk = Lockstep(_listed(original, inputs), _listed(model, inputs), memory)
    with torch.no_grad():
        plan = plan or Plan()
        if not _lists_all(plan, original, model):
            plan = completed(original, inputs[:2], plan)
        fitting = Fitting(walk, plan, masks or {}, pull, jointly=jointly)
        fitting.run(inputs)
        for name in fitting.changed:
            there = model.get_submodule(name).state_dict(keep_vars=True)
            for key, tensor in walk.small.modules[name].state_dict().items():
                there[key].copy_(tensor)
    return Rebuilt(fitting.errors, tuple(fitting.left_out))


def unlisted(model: nn.Module, example: Tensor) -> str | None:
    """Say why a network cannot be rebuilt; None if it can."""
    try:
        _listed(model, example)
    except ModelError as error:
        return str(error)
    return None


def _listed(model: nn.Module, inputs: Tensor) -> Network:
    try:
        return Network(plain_copy(model), inputs[:2], sized=True)
    except UntraceableError as error:
        raise ModelError(
            f"{type(model).__name__} cannot be rebuilt, because its operations cannot be listed "
            f"({error}); take another repair, such as 'recalibrate', or none"
        ) from error


def _check_together(model: nn.Module, original: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Refuse networks of other layers, weights that are computed, and masks that fit nothing."""
    if plain_copy(model).state_dict().keys() != model.state_dict().keys():
        raise ModelError(
            "rebuild: weights of the pruned network are computed anew in each pass (by a "
            "parametrization or a hook); make them permanent first"
        )
    names = {name for name, _ in model.named_modules()}
    odd = names ^ {name for name, _ in plain_copy(original).named_modules()}
    if odd:
        raise ModelError(
            "rebuild: the pruned and the unpruned network do not belong together: only one of them "
            f"has a module {min(odd)!r}"
        )
    for name, mask in masks.items():
        weight = getattr(model.get_submodule(name), "weight", None) if name in names else None
        if weight is None or weight.shape != mask.shape:
            there = "there is no such layer" if weight is None else f"has {tuple(weight.shape)}"
            raise ModelError(f"rebuild: a mask of shape {tuple(mask.shape)} for {name!r}: {there}")
        if mask.dtype != torch.bool:
            raise ModelError(
                f"rebuild: the mask of {name!r} is of type {mask.dtype}; a mask is True where a "
                "weight stays: give a comparison, such as mask > 0"
            )


def _lists_all(plan: Plan, original: nn.Module, model: nn.Module) -> bool:
    """Whether a plan lists every layer that has lost outputs, as those of `prune` do."""
    removed, after = plan.removed(), dict(model.named_modules())
    return all(
        width_of(module) - removed.get(name, 0) == width_of(after[name])
        for name, module in original.named_modules()
        if isinstance(module, ALIKE)
    )
