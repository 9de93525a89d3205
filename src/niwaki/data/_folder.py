"""Images from files: a folder for each class, a folder of images, or one image."""

import warnings
from functools import partial
from pathlib import Path

from PIL import Image

from niwaki.data._images import Images
from niwaki.data._listing import SUFFIXES, find_images, has_image, subfolders
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._read import read_image, refuse_slide
from niwaki.errors import DataError, LeftOutWarning

__all__ = ["open_path"]

_SPLITS = ("train", "test", "val")


def open_path(path: Path, preprocessing: Preprocessing, split: str) -> Images:
    """Open a folder for each class, a folder of images, or a single image file.

    As in torchvision's `ImageFolder`, classes are in the order of their folders' names, their
    images may lie deeper, and images that lie beside the class folders are not read. All splits
    of a folder have the classes of its training split, and after these what else they have.

    Raises
    ------
    DataError
        Nothing there, no image in it, a class without images, or no such split.
    """
    if path.is_file():
        refuse_slide(path)
        return _unlabelled([path], preprocessing)
    folder = _split_folder(path, split)
    files = {sub.name: find_images(sub) for sub in subfolders(folder)}
    if any(files.values()):
        if beside := find_images(folder, deep=False):
            warnings.warn(
                f"{len(beside)} images beside the class folders in {folder} left out, the first is "
                f"{beside[0].name}",
                LeftOutWarning,
                stacklevel=2,
            )
        return _labelled(folder, files, _classes(path, folder, files), preprocessing)
    loose = find_images(folder, deep=False)
    if not loose:
        raise DataError(
            f"no image in {folder}; images end in {', '.join(SUFFIXES)} and lie in a "
            "folder for each class"
        )
    return _unlabelled(loose, preprocessing)


def _labelled(
    folder: Path, files: dict[str, list[Path]], classes: list[str], preprocessing: Preprocessing
) -> Images:
    if empty := [name for name, found in files.items() if not found]:
        raise DataError(
            f"{len(empty)} of {len(files)} class folders in {folder} have no image, the first is "
            f"{empty[0]!r}; fill them or take them away"
        )
    paths = [path for found in files.values() for path in found]
    targets = [classes.index(name) for name, found in files.items() for _ in found]
    read = partial(_read_nth, paths)
    return Images(read, targets, classes, preprocessing, paths=paths)


def _classes(path: Path, folder: Path, files: dict[str, list[Path]]) -> list[str]:
    """Return the classes of all splits: a network numbers them as its training images do."""
    splits = [path / name for name in _SPLITS if folder != path and (path / name).is_dir()]
    named = {
        split.name: [sub.name for sub in subfolders(split) if sub.name in files or has_image(sub)]
        for split in splits
    }
    learned = named.get("train", [])
    others = {*files, *(name for names in named.values() for name in names)} - {*learned}
    return [*learned, *sorted(others)]


def _unlabelled(paths: list[Path], preprocessing: Preprocessing) -> Images:
    read = partial(_read_nth, paths)
    return Images(read, None, [], preprocessing, paths=paths, count=len(paths))


def _read_nth(paths: list[Path], index: int) -> Image.Image:
    return read_image(paths[index])


def _split_folder(path: Path, split: str) -> Path:
    present = [name for name in _SPLITS if (path / name).is_dir()]
    if not present:
        return path
    # Data sets name the part that is held back "test" or "val"; either serves for the other.
    fallback = {"test": "val", "val": "test"}.get(split, split)
    for name in (split, fallback):
        if (path / name).is_dir():
            return path / name
    raise DataError(f"{path} has no split {split!r}; it has {', '.join(present)}")
