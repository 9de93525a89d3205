"""ImageNet's classes by their WordNet ids and words, in the order of networks' outputs."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

__all__ = [
    "distinct",
    "imagenet_ids",
    "imagenet_names",
    "is_imagenet",
    "spelled",
    "wordnet_id",
    "words_of",
]

_ID = re.compile(r"(?<![A-Za-z0-9])n\d{8}(?!\d)")


def imagenet_ids() -> tuple[str, ...]:
    """Return the 1000 WordNet ids, such as ``n01440764``."""
    return tuple(_words())


def imagenet_names() -> list[str]:
    """Return the 1000 names: the first word of each class, with its id where two share a word."""
    return distinct({identity: words[0] for identity, words in _words().items()})


def distinct(names: dict[str, str]) -> list[str]:
    """Return names by id, each followed by its id where others are the same."""
    often = Counter(names.values())
    return [f"{name} ({key})" if often[name] > 1 else name for key, name in names.items()]


def is_imagenet(names: Sequence[str]) -> bool:
    """Return whether these are ImageNet's 1000 classes in order, up to a few odd spellings."""
    if len(names) != len(_words()):
        return False
    pairs = zip(names, _words().items(), strict=True)
    known = sum(
        wordnet_id(name) == identity or spelled(name) in map(spelled, words)
        for name, (identity, words) in pairs
    )
    return known >= 0.98 * len(names)


def words_of(identity: str) -> tuple[str, ...]:
    """Return the words of a WordNet id, none for one that ImageNet's 1000 classes lack."""
    return _words().get(identity, ())


def wordnet_id(name: str) -> str | None:
    """Return the WordNet id that a name contains, such as ``n01440764-tench`` does."""
    found = _ID.search(name)
    return found.group() if found else None


def spelled(name: str) -> str:
    """Return a name without what spellings differ by: case, hyphens, underscores, spaces, marks.

    Between two digits something stays, so that 1_1 is not 11.
    """
    parts = re.sub(r"[\W_]+", " ", name.casefold().replace("'", ""))
    return re.sub(r"(?<!\d) | (?!\d)", "", parts)


@cache
def _words() -> dict[str, tuple[str, ...]]:
    text = files("niwaki.data").joinpath("imagenet.txt").read_text(encoding="utf-8")
    rows = (line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {identity: tuple(words.split(", ")) for identity, words in rows}
