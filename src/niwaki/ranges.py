"""The range of every number that may be given: stated once, checked before anything is computed.

A `Range` says which numbers an option may take, and why. `checked` puts ranges on the parameters of
a function or the fields of a class; the command line puts the same ranges on its options.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import KW_ONLY, dataclass, replace
from difflib import get_close_matches
from functools import cache, wraps
from math import inf, isfinite
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from niwaki.errors import RangeError, UnknownOptionError
from niwaki.options import names_of, retold

__all__ = [
    "BATCH",
    "BELOW_ONE",
    "CORRELATION",
    "CLASSES",
    "DECAY",
    "EXPONENT",
    "EPOCHS",
    "FACTOR",
    "FEW",
    "FINITE",
    "FRACTION",
    "INDEX",
    "INSIDE",
    "LEARNING_RATE",
    "NATURAL",
    "LENGTH",
    "PATCHES",
    "PIXELS",
    "PRICE",
    "PERCENT",
    "PER_STEP",
    "POSITIVE",
    "ROUNDS",
    "SEED",
    "SHARE",
    "SIDE",
    "SMALL",
    "SOME",
    "STEPS",
    "TEMPERATURE",
    "THREADS",
    "TOLERANCE",
    "UNITS",
    "WEIGHT_STEPS",
    "Range",
    "checked",
]

Target = TypeVar("Target", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Which numbers are allowed.

    Attributes
    ----------
    low, high : float
        The ends. An infinite end is open: NaN and infinity are never allowed.
    whole : bool
        Only whole numbers.
    open_low, open_high : bool
        Whether an end is itself excluded.
    why : str
        What speaks against the numbers outside, or what to do; it follows the range in messages.
    """

    low: float = -inf
    high: float = inf
    _: KW_ONLY
    whole: bool = False
    open_low: bool = False
    open_high: bool = False
    why: str = ""

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        low, high = _told(self.low), _told(self.high)
        if self.low == -inf and self.high == inf:
            return kind
        if self.high == inf:
            return f"{kind} above {low}" if self.open_low else f"{kind} from {low} on"
        if self.low == -inf:
            return f"{kind} below {high}" if self.open_high else f"{kind} up to {high}"
        kind = "a whole number" if self.whole else "a number"
        if self.open_low and self.open_high:
            return f"{kind} between {low} and {high}, both excluded"
        if self.open_low:
            return f"{kind} above {low} and up to {high}"
        if self.open_high:
            return f"{kind} from {low} to below {high}"
        return f"{kind} from {low} to {high}"

    def __contains__(self, value: object) -> bool:
        number = value.item() if getattr(value, "ndim", None) == 0 else value  # type: ignore[attr-defined]
        if isinstance(number, bool) or not isinstance(number, Real):
            return False
        if self.whole and not isinstance(number, Integral):
            return False
        if not isfinite(number):
            return False
        found = int(number) if isinstance(number, Integral) else float(number)
        above = found > self.low if self.open_low else found >= self.low
        below = found < self.high if self.open_high else found <= self.high
        return above and below

    def but(self, **changes: Any) -> Range:
        """Return the range with other ends or another reason."""
        return replace(self, **changes)

    def check(self, what: str, value: object) -> None:
        """Refuse a value, or an entry of a sequence or mapping, that lies outside.

        Parameters
        ----------
        what : str
            Names the value in the message, such as ``"keep ="`` or ``"--keep"``.
        value : object
            None, and tensors of several values, are not looked at.

        Raises
        ------
        RangeError
            With the value, the range and the reason.
        """
        if value is None or getattr(value, "ndim", 0) != 0:
            return
        values: Sequence[object] = [value]
        if isinstance(value, Mapping):
            values = list(value.values())
        elif isinstance(value, (Sequence, Set)) and not isinstance(value, (str, bytes)):
            values = list(value)
        for one in values:
            if one is not None and one not in self:
                reason = f"; {self.why}" if self.why else ""
                raise RangeError(f"{what} {_shown(value)}: must be {self}{reason}")


def checked(**ranges: Range) -> Callable[[Target], Target]:
    """Check the arguments of a function, or of a class when it is made, against their ranges.

    The check comes before the function's first line. Where an annotation is a ``Literal``, its
    values are checked, too. A parameter that may be None, or be given as
    text (``max_memory="2GB"``, names of layers), is checked where it is a number. Of options that
    the function hands on, one that nobody has is told as an option of the function.

    Parameters
    ----------
    **ranges : Range
        By the name of the parameter.

    Raises
    ------
    RangeError
        When the function is called with a value outside.
    UnknownOptionError
        For an option that neither the function has nor what it hands options on to.
    """

    def decorate(target: Target) -> Target:
        if isinstance(target, type):
            made = cast(Any, target)
            made.__init__ = decorate(made.__init__)
            return target
        signature = inspect.signature(target)
        if unknown := ranges.keys() - signature.parameters.keys():
            raise TypeError(f"{target.__qualname__} has no parameters {sorted(unknown)}")
        kinds = {name: str(signature.parameters[name].annotation) for name in ranges}
        # Keys of a mapping are text, its values are not.
        textual = {n for n, kind in kinds.items() if "str" in re.sub(r"\w+\[str, ", "", kind)}
        choices = cache(lambda: _choices(target))

        @wraps(target)
        def call(*args: Any, **options: Any) -> Any:
            try:
                given = signature.bind_partial(*args, **options).arguments
            except TypeError:  # the function says better what is wrong with its arguments
                _check_names(target, signature, options)
                return target(*args, **options)
            for name in ranges.keys() & given.keys():
                value = given[name]
                if name in textual and _is_text(value):
                    continue
                if value is None and "None" not in kinds[name]:
                    raise RangeError(f"{name} = None: must be {ranges[name]}")
                ranges[name].check(f"{name} =", value)
            for name, known in choices().items():
                if name in given:
                    _check_choice(name, given[name], known)
            try:
                return target(*args, **options)
            except UnknownOptionError as error:
                if error.option not in options or error.option in signature.parameters:
                    raise
                raise retold(error, target) from error

        call.__niwaki_ranges__ = ranges  # type: ignore[attr-defined]
        return cast(Target, call)

    return decorate


def _check_names(
    target: Callable[..., Any], signature: inspect.Signature, options: Mapping[str, object]
) -> None:
    """Refuse an option that a function does not have, with the one that may be meant."""
    for name in options:
        if name not in signature.parameters and target.__name__ != "__init__":
            raise UnknownOptionError(name, {f"{target.__name__}()": names_of(target)})


def _choices(target: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """Return the values that each parameter annotated with a Literal, or None, may have."""
    try:
        hints = get_type_hints(target)
    except NameError:  # names that only type checkers import
        return {}
    found = {}
    for name, hint in hints.items():
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if all(get_origin(part) is Literal or part is type(None) for part in parts):
            values = [value for part in parts for value in get_args(part)]
            if values and name != "return":
                found[name] = (*values, None) if type(None) in parts else tuple(values)
    return found


def _check_choice(name: str, value: object, known: tuple[Any, ...]) -> None:
    if any(value is one or (type(value) is type(one) and value == one) for one in known):
        return
    valid = [repr(one) for one in known if one is not None]
    text = f"not one of {', '.join(valid)}"
    if len(valid) == 2:
        text = f"neither {valid[0]} nor {valid[1]}"
    close = get_close_matches(str(value), [str(one) for one in known], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise RangeError(f"{name} = {value!r} is {text}{hint}")


def _is_text(value: object) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(parts, (str, bytes)) or not hasattr(parts, "__iter__"):
        return isinstance(parts, str)
    return any(isinstance(part, str) for part in cast(Any, parts))


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _told(end: float) -> str:
    if isinstance(end, int) or (float(end).is_integer() and abs(end) < 1e15):
        return f"{int(end):,}"
    return f"{end:g}"


_TOO_MANY = "more than that would not end"

FINITE = Range()
POSITIVE = Range(0, open_low=True)
NATURAL = Range(0, whole=True)
INDEX = Range(0, 2**31 - 1, whole=True, why="outputs, units and images are numbered from 0")
SHARE = Range(0, 1, open_low=True)
INSIDE = Range(0, 1, open_low=True, open_high=True)
BELOW_ONE = Range(0, 1, open_high=True)
FRACTION = Range(0, 1)
CORRELATION = Range(-1, 1)
PERCENT = Range(0, 100, open_low=True)
FACTOR = Range(0, 1e6, why="larger ones leave nothing but rounding")
SMALL = Range(0, 1e6, why="it only keeps denominators away from 0")
TOLERANCE = Range(0, 1e6)
EXPONENT = Range(0, 10, why="by a larger exponent nothing but the cost decides")
SEED = Range(0, 2**32 - 1, whole=True, why="the generators of NumPy take no other")
SIDE = Range(1, 16_384, whole=True, why="a colour image of that side alone takes 3 GB")
BATCH = Range(1, 2**20, whole=True, why="a batch is held in memory as a whole")
PIXELS = Range(-1e6, 1e6, why="pixels are numbers about 1, or up to 255")
PRICE = Range(0, 1e9)
CLASSES = Range(1, 100_000, whole=True, why="the last layer alone would not fit into memory")
LENGTH = Range(1, 2**24, whole=True)
STEPS = Range(1, 10_000, whole=True, why=_TOO_MANY)
PER_STEP = INSIDE.but(low=1e-4, open_low=False, why="smaller steps would not end")
WEIGHT_STEPS = STEPS.but(high=255, why="the step in which a weight went is kept in a byte")
DECAY = Range(0, 100, why="by a larger one weights vanish")
EPOCHS = Range(1, 100_000, whole=True, why=_TOO_MANY)
LEARNING_RATE = Range(0, 1_000, open_low=True, why="by such steps training diverges")
TEMPERATURE = Range(0, 1_000, open_low=True, why="outputs are divided by it")
UNITS = Range(1, 10**9, whole=True)
PATCHES = Range(1, 256, whole=True, why="each is a picture on the page of every filter")
PHOTOGRAPHS = Range(0, 200, whole=True, why="each has a heatmap for every step on the page")
ROUNDS = Range(1, 100_000, whole=True, why=_TOO_MANY)
SOME = Range(1, 10**9, whole=True)
FEW = Range(1, 1_000, whole=True, why="they are all held in memory")
THREADS = Range(1, 1_024, whole=True, why="as many as the machine has cores is the most that helps")
