"""Questions: one signature, and a catalogue in which a decorator registers them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from niwaki.auditing._finding import Finding
from niwaki.auditing._interventions import tries_of
from niwaki.auditing._latent import Latent, latent_of
from niwaki.auditing._material import Material
from niwaki.auditing._power import Tries
from niwaki.auditing._spray import Strategies
from niwaki.auditing._training import Training
from niwaki.errors import suggested
from niwaki.ranges import INDEX, checked


@dataclass(frozen=True, eq=False)
class Evidence:
    """What every question of an audit can look at.

    Attributes
    ----------
    material : Material
        The images with their heatmaps, and what is known of them.
    strategies : tuple of Strategies
        Clusters of these heatmaps.
    training : Training or None
        The images that the network learned from, if they are known.
    confirmed : dict of str to ndarray
        Positions of images that a person accepted as having a thing, by its name.
    """

    material: Material
    strategies: tuple[Strategies, ...] = ()
    training: Training | None = None
    confirmed: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @cached_property
    def tries(self) -> dict[int, Tries]:
        """For each class what changes of its images do where nothing is suspected."""
        rng = np.random.default_rng(0)
        return {
            label: tries_of(self.material, self.material.members(label), rng)
            for label in self.material.classes()
        }

    @cached_property
    def latent(self) -> Latent:
        """What the channels of some layers do on the images, and how much relevance they carry."""
        return latent_of(self.material)

    @checked(label=INDEX)
    def tries_of_others(self, label: int) -> Tries:
        """Return the same for all other classes together."""
        others = [tries for other, tries in self.tries.items() if other != label]
        return Tries(
            np.concatenate([tries.margins for tries in others]),
            np.concatenate([tries.changed for tries in others]),
            self.material.draws,
        )


Finder = Callable[[Evidence, np.random.Generator], Iterable[Finding]]
F = TypeVar("F", bound=Finder)


@dataclass(frozen=True)
class Question:
    """A question that an audit asks, usually of each class.

    Attributes
    ----------
    name : str
        Name of the question; it begins the keys of its findings.
    asks : str
        The question in words.
    find : callable
        From the evidence and a generator, of everything that is drawn at random, to findings:
        whatever was looked at, also where the answer is no, as the correction of the p-values
        counts them. Nothing, where the evidence lacks what the question needs.
    """

    name: str
    asks: str
    find: Finder


_CATALOGUE: dict[str, Question] = {}


def question(name: str, asks: str) -> Callable[[F], F]:
    """Register a function from evidence and a generator to findings as a question of audits.

    Parameters
    ----------
    name : str
        Name of the question, such as ``"position"``.
    asks : str
        The question in words.

    Examples
    --------
    >>> @question("brightness", "Does the network know a class by how bright its images are?")
    ... def find_brightness(evidence, rng):
    ...     return [...]  # a `Finding` for each class
    """

    def decorator(find: F) -> F:
        _CATALOGUE[name] = Question(name, asks, find)
        return find

    return decorator


def names() -> list[str]:
    """Return the names of all questions, sorted."""
    return sorted(_CATALOGUE)


def describe(name: str) -> str:
    """Return a question in words."""
    return choose([name])[0].asks


def choose(chosen: Sequence[str] | None = None) -> list[Question]:
    """Return questions by their names, or all of them.

    Raises
    ------
    ValueError
        For a name that does not exist, or none at all.
    """
    if chosen is None:
        return [_CATALOGUE[name] for name in names()]
    wanted = [chosen] if isinstance(chosen, str) else list(dict.fromkeys(chosen))
    if not wanted:
        raise ValueError(f"no question is chosen; there are {', '.join(names())}")
    for name in wanted:
        if name not in _CATALOGUE:
            hint = suggested(name, _CATALOGUE)
            raise ValueError(f"there is no question {name!r}; {hint}All: {', '.join(names())}")
    return [_CATALOGUE[name] for name in wanted]


def generator_of(name: str, seed: int) -> np.random.Generator:
    """Return a question's own random numbers, which do not depend on what else is asked."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
