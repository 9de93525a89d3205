"""Options that do nothing beside, or without, others: they are refused rather than ignored."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from niwaki.errors import NiwakiError

__all__ = ["Acts"]


@dataclass(frozen=True)
class Acts:
    """Where an option acts, as a part of its annotation.

    Attributes
    ----------
    beside : tuple of str
        Parameters of which one must be given, such as ``"epochs"``, or have a value, as in
        ``"optimizer=sgd"``; none: it always acts.
    without : tuple of str
        Parameters of which none may be given.
    """

    beside: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def check(
        self, parameter: inspect.Parameter, given: Mapping[str, Any], flags: Mapping[str, str]
    ) -> None:
        """Refuse an option that is given and would be ignored.

        Parameters
        ----------
        parameter : inspect.Parameter
            The option; its default always passes.
        given, flags : mapping
            The value of each parameter, and how a person writes it.

        Raises
        ------
        NiwakiError
            With both options.
        """
        value = given[parameter.name]
        if value in (parameter.default, None, [], ()):
            return
        said = flags[parameter.name] + ("" if isinstance(value, bool) else f" {_shown(value)}")
        if self.beside and not any(_holds(one, given) for one in self.beside):
            wanted = " or ".join(_written(one, flags) for one in self.beside)
            raise NiwakiError(
                f"{said} does nothing without {wanted}: give that, too, or leave it out"
            )
        for name in self.without:
            if given[name]:
                raise NiwakiError(
                    f"{said} does nothing beside {flags[name]}: leave one of them out"
                )


def _holds(one: str, given: Mapping[str, Any]) -> bool:
    name, told, value = one.partition("=")
    return given[name] == value if told else bool(given[name])


def _written(one: str, flags: Mapping[str, str]) -> str:
    name, told, value = one.partition("=")
    return f"{flags[name]} {value}" if told else flags[name]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
