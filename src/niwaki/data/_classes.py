"""Which output of a network is which class of a data set: by name, never by accident of order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any
from unicodedata import normalize

from torch.utils.data import DataLoader, Subset

from niwaki.errors import DataError

__all__ = [
    "check_same_classes",
    "distinct",
    "imagenet_ids",
    "imagenet_names",
    "is_imagenet",
    "listed",
    "match_classes",
    "number_classes",
    "spelled",
    "wordnet_id",
    "words_of",
]

_ID = re.compile(r"(?<![A-Za-z0-9])n\d{8}(?!\d)")


def imagenet_ids() -> tuple[str, ...]:
    """Return the 1000 WordNet ids, such as ``n01440764``."""
    return tuple(_synsets())


def imagenet_names() -> list[str]:
    """Return the 1000 names: the first word of each class, with its id where two share a word."""
    return distinct({identity: words[0] for identity, words in _synsets().items()})


def distinct(names: dict[str, str]) -> list[str]:
    """Return names by id, each followed by its id where others are the same."""
    often = Counter(names.values())
    return [f"{name} ({key})" if often[name] > 1 else name for key, name in names.items()]


def is_imagenet(names: Sequence[str]) -> bool:
    """Return whether these are ImageNet's 1000 classes in order, up to a few odd spellings."""
    if len(names) != len(_synsets()):
        return False
    pairs = zip(names, _synsets().items(), strict=True)
    known = sum(
        wordnet_id(name) == identity or spelled(name) in map(spelled, words)
        for name, (identity, words) in pairs
    )
    return known >= 0.98 * len(names)


def words_of(identity: str) -> tuple[str, ...]:
    """Return the words of a WordNet id, none for one that ImageNet's 1000 classes lack."""
    return _synsets().get(identity, ())


def wordnet_id(name: str) -> str | None:
    """Return the WordNet id that a name contains, such as ``n01440764-tench`` does."""
    found = _ID.search(name)
    return found.group() if found else None


def spelled(name: str) -> str:
    """Return a name without what spellings differ by: case, hyphens, underscores, spaces, marks.

    Between two digits something stays, so that 1_1 is not 11.
    """
    plain = normalize("NFC", normalize("NFC", name).casefold())
    parts = re.sub(r"[\W_]+", " ", plain.replace("'", ""))
    return re.sub(r"(?<!\d) | (?!\d)", "", parts)


@cache
def _synsets() -> dict[str, tuple[str, ...]]:
    text = files("niwaki.data").joinpath("imagenet.txt").read_text(encoding="utf-8")
    rows = (line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {identity: tuple(words.split(", ")) for identity, words in rows}


_WAY_OUT = (
    "rename what is meant to be the same, or say which output each class is, in the order of the "
    "classes: outputs=, on the command line --outputs"
)
_ORDER = re.compile(r"\s*(\d+)(?:[\s._)-]+|(?=[^\W\d]))(?=.*[^\W\d])")  # 01_tench, 0 - zero


def match_classes(classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """Find the output of each class of a data set by its name.

    Names may differ in case, hyphens, underscores, spaces and punctuation, may have a number in
    front ("01_tench"), list synonyms after commas, and be, or contain, a WordNet id ("n01440764")
    where the other side has ImageNet's words. Classes that are plain numbers, where `names` are
    not, are the numbers of outputs.

    Parameters
    ----------
    classes
        Names of the data set's classes, such as the names of folders.
    names
        Names of the network's outputs, in order.

    Returns
    -------
    list of int
        For each of `classes` the index of its output.

    Raises
    ------
    DataError
        A class that no output, or more than one output, is named like; two classes of one output.
    """
    if is_imagenet(classes) and is_imagenet(names):
        return list(range(len(names)))
    numbers, found = _numbers(classes), _matches(classes, names)
    if numbers is not None and not any(found):
        return _in_range(classes, numbers, len(names))
    if missing := [name for name, places in zip(classes, found, strict=True) if not places]:
        raise DataError(_unmatched(missing, classes, names))
    for name, places in zip(classes, found, strict=True):
        if len(places) > 1:
            raise DataError(
                f"the class {name!r} could be any of the outputs "
                f"{', '.join(f'{names[place]!r} ({place})' for place in places)}; {_WAY_OUT}"
            )
    outputs = [places[0] for places in found]
    twice = [output for output, times in Counter(outputs).items() if times > 1]
    if twice:
        same = [name for name, output in zip(classes, outputs, strict=True) if output == twice[0]]
        raise DataError(
            f"the classes {', '.join(map(repr, same))} are all named like the output "
            f"{names[twice[0]]!r} ({twice[0]}); {_WAY_OUT}"
        )
    return outputs


def number_classes(classes: Sequence[str], count: int) -> list[int]:
    """Number the classes for a network of `count` outputs whose names are not known.

    They are numbered in their order, as torchvision's `ImageFolder` does, if there are as many as
    outputs (for one output: up to two). Numbers from 0 on with gaps are the numbers of outputs.

    Raises
    ------
    DataError
        Another number of classes than of outputs; numbers whose order as text is another one.
    """
    positions, numbers = list(range(len(classes))), _numbers(classes)
    if numbers is not None and 0 in numbers and len(numbers) <= max(numbers) < count:
        return numbers  # some are missing, so that they are no count of the folders
    fits = len(classes) == count if count > 1 else len(classes) <= 2
    if not fits:
        raise DataError(
            f"there are {len(classes)} classes ({listed(classes)}), and the network has {count} "
            f"outputs, whose names are not known; {_WAY_OUT}, or give the names of the outputs: "
            "classes="
        )
    if numbers is not None and numbers != sorted(numbers):
        first = min(numbers)
        raise DataError(
            f"the classes are numbers, and as text they come in another order: "
            f"{listed(classes)}. If the network was trained in this order, as with ImageFolder, "
            f"give the outputs {_commas(positions)}; if it counts them, give "
            f"{_commas([number - first for number in numbers])}: outputs=, on the command line "
            "--outputs"
        )
    return positions


def check_same_classes(first: Any, second: Any, said: str) -> None:
    """Refuse two data sets in which a class of one name has two labels.

    Parameters
    ----------
    first, second
        Data sets, of which those with named classes are looked at.
    said
        What they are, such as "the training and the test images".

    Raises
    ------
    DataError
        With both lists.
    """
    one, other = _labels(first), _labels(second)
    if one is None or other is None:
        return
    wrong = [name for name in one if name in other and one[name] != other[name]]
    clash = [
        (a, b)
        for a, label in one.items()
        for b, same in other.items()
        if label == same and a not in other and b not in one
    ]
    if not wrong and not clash:
        return
    lists = " and ".join(
        listed([f"{name} ({label})" for name, label in part.items()]) for part in (one, other)
    )
    if wrong:
        name = wrong[0]
        what = f"the class {name!r} has the label {one[name]} in one and {other[name]} in the other"
    else:
        what = f"{clash[0][0]!r} in one and {clash[0][1]!r} in the other have the same label"
    raise DataError(
        f"{said} do not number their classes alike: {what} ({lists}). Open both with the names of "
        "the network's outputs, open_data(..., classes=names), or one with the other's classes"
    )


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return the first names, and how many there are."""
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... {len(names)} in all"


def named_data(data: Any) -> Any:
    """Return the data set below loaders and subsets that may know its classes."""
    while isinstance(data, (Subset, DataLoader)):
        data = data.dataset
    return data


def _labels(data: Any) -> dict[str, int] | None:
    """Return the label of each named class, where a data set says it."""
    data = named_data(data)
    classes = getattr(data, "classes", None)
    if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
        return None
    if outputs := getattr(data, "outputs", None):
        return dict(zip(classes, outputs, strict=True))
    if getattr(data, "target_transform", None) is not None:
        return None
    return {str(name): position for position, name in enumerate(classes)} or None


def _matches(classes: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """Return for each class the outputs of its name, by the strictest reading that has one."""
    ids = imagenet_ids() if is_imagenet(names) else [wordnet_id(name) for name in names]
    outputs = list(zip(names, ids, strict=True))
    inputs = [(name, wordnet_id(name)) for name in classes]
    readings: list[Callable[[tuple[str, str | None]], set[str]]] = [
        lambda named: {named[0]},
        lambda named: {named[1]} if named[1] else set(),
        lambda named: {spelled(named[0])} - {""},
        _parts,
        _words,
        lambda named: _order_number(named[0]),
    ]
    found: list[list[int]] = [[] for _ in classes]
    for reading in readings:
        index: dict[str, list[int]] = {}
        for place, named in enumerate(outputs):
            for key in reading(named):
                index.setdefault(key, []).append(place)
        for places, named in zip(found, inputs, strict=True):
            if not places:
                places.extend(sorted({p for key in reading(named) for p in index.get(key, ())}))
    return found


def _parts(named: tuple[str, str | None]) -> set[str]:
    """Return the parts of a name: synonyms between commas, what follows a number or an id."""
    bare = named[0].replace(wordnet_id(named[0]) or " ", " ")
    parts = {bare, *re.split(r"[,;/|]", bare), _ORDER.sub("", bare, count=1)}
    return {key for key in map(spelled, parts) if any(c.isalpha() for c in key)}


def _words(named: tuple[str, str | None]) -> set[str]:
    """Return the parts of a name, and the words that WordNet has for its id."""
    return _parts(named) | {spelled(word) for word in words_of(named[1] or "")}


def _order_number(name: str) -> set[str]:
    """Return the number in front of a name, or that is the name: 0 of "0 - zero"."""
    found = _ORDER.match(name)
    number = found.group(1) if found else name
    return {str(int(number))} if number.isdecimal() else set()


def _numbers(classes: Sequence[str]) -> list[int] | None:
    """Return names that are all different numbers as numbers."""
    if not classes or not all(re.fullmatch(r"[0-9]+", name) for name in classes):
        return None
    numbers = [int(name) for name in classes]
    return numbers if len(set(numbers)) == len(numbers) else None


def _in_range(classes: Sequence[str], numbers: list[int], count: int) -> list[int]:
    if max(numbers) >= count:
        raise DataError(
            f"the classes are numbers ({listed(classes)}), and the network has only the outputs 0 "
            f"to {count - 1}; {_WAY_OUT}"
        )
    return numbers


def _unmatched(missing: list[str], classes: Sequence[str], names: Sequence[str]) -> str:
    close = {
        name: near[0]
        for name in missing[:12]
        if (near := get_close_matches(name.casefold(), [n.casefold() for n in names], 1, 0.75))
    }
    hint = ", ".join(f"{name!r} may be {near!r}" for name, near in list(close.items())[:3])
    return (
        f"{len(missing)} of {len(classes)} classes are named like no output of the network: "
        f"{listed(missing)}{f' ({hint})' if hint else ''}. The outputs are {listed(names)}; "
        f"{_WAY_OUT}"
    )


def _commas(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers[:30])) + (",..." if len(numbers) > 30 else "")
