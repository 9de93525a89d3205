"""Composites: which rule each operation gets, as a readable table.

A composite is a list of rows, read from the top; the first that fits an operation gives its rule.
The names and defaults are zennit's (Anders et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from niwaki.propagation.operation import KINDS, Kind, Operation, Rule
from niwaki.propagation.rules import Gradient, Pass

__all__ = ["Assign", "Composite", "base_rows", "first_rows"]

Place = Literal["any", "first", "last"]


@dataclass(frozen=True)
class Assign:
    """One row of a composite: the operations that fit get the rule.

    Parameters
    ----------
    rule : Rule
        What they get.
    kind : str or tuple of str, optional
        Kinds of operation (`niwaki.propagation.KINDS`); default: all.
    layer : str
        Layer name or pattern with ``*`` and ``?``, such as ``"features.*"``.
    operation : str
        Name or pattern of the function, such as ``"conv2d"``.
    place : {"any", "first", "last"}
        ``"first"``: layers the input reaches without passing another layer; ``"last"``: layers from
        which the output is reached without passing another.

    Raises
    ------
    ValueError
        For a kind or place that does not exist.
    """

    rule: Rule
    kind: Kind | tuple[Kind, ...] = KINDS
    layer: str = "*"
    operation: str = "*"
    place: Place = "any"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kinds)  # one form, so that equal rows are equal
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(
                    f"there is no kind of operation {kind!r}; kinds: {', '.join(KINDS)}"
                )
        if self.place not in ("any", "first", "last"):
            raise ValueError(f"place {self.place!r} is not one of 'any', 'first', 'last'")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds as a tuple."""
        return (self.kind,) if isinstance(self.kind, str) else tuple(self.kind)

    def fits(self, operation: Operation) -> bool:
        """Whether this row is about `operation`."""
        return (
            operation.kind in self.kinds
            and fnmatchcase(operation.layer, self.layer)
            and fnmatchcase(operation.name, self.operation)
            and (self.place != "first" or operation.first)
            and (self.place != "last" or operation.last)
        )

    def __str__(self) -> str:
        kinds = "any" if self.kinds == KINDS else ", ".join(self.kinds)
        return f"{kinds:28} {self.layer:16} {self.operation:12} {self.place:6} {self.rule}"


@dataclass(frozen=True)
class Composite:
    """Rows that give every operation its rule; prints as a table.

    Parameters
    ----------
    name : str
        What it is called.
    rows : tuple of Assign
        Read from the top, the first that fits counts.

    Examples
    --------
    >>> from niwaki.propagation import AlphaBeta, Assign, epsilon_plus
    >>> mine = epsilon_plus().with_rows(Assign(AlphaBeta(2, 1), layer="features.0"))
    """

    name: str
    rows: tuple[Assign, ...]

    def rule(self, operation: Operation) -> Rule | None:
        """Return the rule of the first row that fits, or None."""
        return next((row.rule for row in self.rows if row.fits(operation)), None)

    def with_rows(self, *rows: Assign) -> Composite:
        """Return a composite in which `rows` come before all others."""
        return replace(self, rows=(*rows, *self.rows))

    @property
    def is_derivative(self) -> bool:
        """Whether every operation gets its own derivative, so that autograd suffices."""
        return bool(self.rows) and all(isinstance(row.rule, Gradient) for row in self.rows)

    @property
    def looks_at_last(self) -> bool:
        """Whether a rule depends on a layer being the last one."""
        return any(row.place == "last" for row in self.rows)

    def __str__(self) -> str:
        head = f"{'kind':28} {'layer':16} {'operation':12} {'place':6} rule"
        return "\n".join([self.name, head, *map(str, self.rows)])


def base_rows(sums: Rule, averages: Rule) -> tuple[Assign, ...]:
    """Return the rows that all composites of layer-wise relevance propagation share."""
    return (
        Assign(Pass(), kind=("activation", "scale", "product", "norm")),
        Assign(sums, kind="sum"),
        Assign(averages, kind="average"),
        Assign(Gradient(), kind=("max_pool", "move")),
    )


def first_rows(
    rule: Rule, kind: Kind | tuple[Kind, ...] = ("convolution", "linear")
) -> tuple[Assign, ...]:
    """Return the rows that give the first layers a rule of their own.

    A batch norm in front of them normalises the input, as a shift and a scale by hand would:
    relevance passes.
    """
    return Assign(rule, kind, place="first"), Assign(Pass(), "batch_norm", place="first")
