"""Composites by name, as criteria use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches

from niwaki.propagation import (
    PRESETS,
    Assign,
    Composite,
    Epsilon,
    ZPlus,
    epsilon,
    gradient,
)

__all__ = ["named"]

_PRESETS: dict[str, Callable[..., Composite]] = {
    **PRESETS,
    "Epsilon": epsilon,
    "Gradient": gradient,
}
_BY_TEXT = {name.lower(): name for name in _PRESETS}


def named(text: str) -> Composite:
    """Make the preset of that name, with z-plus where it has epsilon at residual sums.

    Where two branches nearly cancel, the epsilon rule lets relevances of both signs grow without
    bound, which says nothing about a unit.

    Parameters
    ----------
    text : str
        ``"EpsilonPlus"`` or ``"epsilon_plus"``.

    Raises
    ------
    ValueError
        For a name that does not exist.
    """
    wanted = text.replace("_", "").lower()
    if wanted not in _BY_TEXT:
        close = [_BY_TEXT[name] for name in get_close_matches(wanted, _BY_TEXT, n=3, cutoff=0.4)]
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"there is no composite {text!r}; {hint}All: {', '.join(sorted(_PRESETS))}"
        )
    found = _PRESETS[_BY_TEXT[wanted]]()
    sums = next(row.rule for row in found.rows if "sum" in row.kinds)
    if isinstance(sums, Epsilon):
        changed = found.with_rows(Assign(ZPlus(), kind="sum"))
        return replace(changed, name=f"{found.name} with z-plus at sums")
    return found
