"""Which variables of a weight are the outputs and the inputs of its layer."""

from __future__ import annotations

from torch import Tensor

from niwaki.pruning.units._union_find import Units

__all__ = ["kernel_channels", "loses_groups"]


def loses_groups(groups: int, outputs: int, inputs: int) -> bool:
    """Whether a convolution loses whole groups, as a depthwise one does.

    All others keep their groups and lose the same place in each.
    """
    return groups > 1 and groups in (outputs, inputs)


def kernel_channels(
    units: Units,
    weight: tuple[Tensor | None, Tensor | None],
    shape: tuple[int, int],
    groups: int = 1,
    transposed: bool = False,
    why: str = "",
) -> tuple[Tensor | None, Tensor | None]:
    """Return the variables of the output and of the input channels; ties those of groups.

    Parameters
    ----------
    units : Units
        Ties what only goes together.
    weight : pair of Tensor or None
        Variables along the first two dimensions of the weight; None for a width of 1, or for a
        weight that is computed.
    shape : pair of int
        Sizes of these dimensions.
    groups, transposed
        The settings of the convolution.
    why : str
        Names the operation.
    """
    first, second = weight
    if groups == 1:
        return (second, first) if transposed else (first, second)
    if first is None:
        return None, None
    each = shape[0] // groups  # outputs of a group, or inputs where it is transposed
    bundles = first.view(groups, each)
    if loses_groups(groups, shape[0], shape[1] * groups):
        units.tie(bundles, bundles[:, :1].expand_as(bundles), why)
        other = bundles[:, 0].repeat_interleave(shape[1])
    else:
        units.tie(bundles, bundles[:1].expand_as(bundles), why)
        if second is None:
            return (None, first) if transposed else (first, None)
        other = second.repeat(groups)
    return (other, first) if transposed else (first, other)
