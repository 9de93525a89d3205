"""Opening tar files of images by a pattern."""

from __future__ import annotations

from pathlib import Path

from niwaki.data._folder import SPLITS, held_back
from niwaki.data._images import Images
from niwaki.data._patterns import find_shards
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._shards import Members, list_members
from niwaki.errors import DataError

__all__ = ["open_webdataset", "shards_of"]

_SPLIT = "{split}"


def open_webdataset(pattern: str, preprocessing: Preprocessing, split: str) -> Images:
    """Open the images in the tar files that a pattern stands for.

    Classes are in the order of their names, or of their numbers if all are numbers. Where the
    pattern has ``{split}``, all parts have the classes of the training part, and after these what
    else they have.

    Raises
    ------
    DataError
        Files that are missing or no tar files of images, or no such split.
    """
    parts = shards_of(pattern)
    name = held_back(split, list(parts)) if _SPLIT in pattern else ""
    if name is None:
        raise DataError(f"{pattern} has no split {split!r}; it has {', '.join(parts)}")
    images = list_members(parts[name])
    learned = images if name in ("", "train") else None
    if learned is None and "train" in parts and images.classes:
        learned = list_members(parts["train"])
    return _labelled(images, _in_order(learned) if learned else [], preprocessing)


def shards_of(pattern: str) -> dict[str, list[Path]]:
    """Return the files that a pattern stands for, by split; of one without splits, by ""."""
    if _SPLIT not in pattern:
        return {"": find_shards(pattern)}
    parts = {name: find_shards(pattern.replace(_SPLIT, name), some=False) for name in SPLITS}
    if not any(parts.values()):
        raise DataError(
            f"there are no shards {pattern}, with {', '.join(SPLITS)} for {_SPLIT}; check the path"
        )
    return {name: files for name, files in parts.items() if files}


def _in_order(images: Members) -> list[str]:
    """Return the classes that occur, numbers by their size."""
    if all(name.isdecimal() for name in images.classes):
        return sorted(images.classes, key=lambda name: (int(name), name))
    return sorted(images.classes)


def _labelled(images: Members, learned: list[str], preprocessing: Preprocessing) -> Images:
    classes = [*learned, *(name for name in _in_order(images) if name not in learned)]
    places = {name: place for place, name in enumerate(classes)}
    numbers = [places[name] for name in images.classes]
    return Images(
        images.read,
        [numbers[label] for label in images.labels] if images.classes else None,
        classes if images.classes else [],
        preprocessing,
        paths=images,
        stored=images.stored,
        count=len(images),
    )
