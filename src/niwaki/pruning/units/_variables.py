"""Variables that stand for channels: which belong together, which must stay, and why."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FIXED", "Units", "kernel_channels", "loses_groups"]

FIXED = 0  # the variable of values that no unit owns, and that stay therefore


class Units:
    """Disjoint sets of variables; variable 0 is what stays.

    Every dimension of every parameter brings a variable for each index along it. What the forward
    pass does ties variables together: a set of them can only be removed as a whole.
    """

    def __init__(self) -> None:
        self._parent = [FIXED]
        self._why: dict[int, str] = {}
        self._members: dict[int, list[int]] = {}  # of each set that is not a single variable
        self._roots: Tensor | None = None  # of all variables, where nothing has changed for long
        self._asked = 0  # for so many variables since the last change

    def new(self, count: int) -> Tensor:
        """Return so many variables that are tied to nothing."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._change()
        return torch.arange(start, start + count)

    def find(self, variables: Tensor) -> Tensor:
        """Return the representative of each variable's set, its lowest; 0 for what stays."""
        self._asked += variables.numel()
        if self._roots is None and self._asked > len(self._parent):
            self._roots = torch.tensor([self._root(v) for v in range(len(self._parent))])
        if self._roots is not None:
            return self._roots[variables.long()]
        found = [self._root(variable) for variable in variables.flatten().tolist()]
        return torch.tensor(found, dtype=torch.long).view(variables.shape)

    def tie(self, one: Tensor, other: Tensor, why: str) -> None:
        """Let each variable go only with its partner; what is tied to what stays, stays."""
        if self._roots is not None and torch.equal(self.find(one), self.find(other)):
            return
        for a, b in set(zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)):
            first, second = self._root(a), self._root(b)
            if first == second:
                continue
            self._change()
            if FIXED in (first, second):
                stays, tied = (a, b) if first == FIXED else (b, a)
                self.fix(torch.tensor([tied]), self._why.get(stays, why))
            else:
                root, lower = min(first, second), max(first, second)
                self._parent[lower] = root
                members = (self._members.pop(root, [root]), self._members.pop(lower, [lower]))
                few, many = sorted(members, key=len)
                many.extend(few)
                self._members[root] = many

    def fix(self, variables: Tensor, why: str) -> None:
        """Let variables, and all that are tied to them, stay."""
        roots = {self._root(v) for v in variables.flatten().tolist()} - {FIXED}
        for root in roots:
            self._change()
            self._why |= dict.fromkeys(self._members.pop(root, [root]), why)
            self._parent[root] = FIXED

    def why(self, variables: Tensor) -> list[str]:
        """Return the reasons for which those of the variables that stay do so, each one once."""
        return list(dict.fromkeys(self._why[v] for v in variables.tolist() if v in self._why))

    def _change(self) -> None:
        self._roots, self._asked = None, 0

    def _root(self, variable: int) -> int:
        parent = self._parent
        root = variable
        while parent[root] != root:
            root = parent[root]
        while parent[variable] != root:
            parent[variable], variable = root, parent[variable]
        return root


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
