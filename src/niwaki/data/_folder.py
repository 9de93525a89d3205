"""Folders of images: which files and classes are there, and how they are opened."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

from PIL import Image

from niwaki.data._images import Images
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._read import SLIDES, read_image, refuse_slide
from niwaki.errors import DataError, LeftOutWarning

SUFFIXES = (
    ".apng",
    ".avif",
    ".bmp",
    ".dib",
    ".gif",
    ".j2k",
    ".jfif",
    ".jp2",
    ".jpe",
    ".jpeg",
    ".jpf",
    ".jpg",
    ".jpx",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".qoi",
    ".tga",
    ".tif",
    ".tiff",
    ".webp",
)
# Images by their names that Pillow reads only with a plug-in of its own, if at all.
_OTHERS = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".psd", ".exr", ".hdr", ".svg", ".eps", ".pfm"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2", ".srw"),
    *SLIDES,
)


def find_images(folder: Path, *, deep: bool = True) -> list[Path]:
    """List the image files of a folder in the order of their paths.

    Links to files and folders are followed. Hidden files and folders, links that lead nowhere, and
    images that cannot be read because of their kind are left out, with a `LeftOutWarning` that
    counts them and names the first.

    Parameters
    ----------
    folder
        Where to look.
    deep
        Whether to look into the folders in it, too.

    Raises
    ------
    DataError
        A folder that cannot be listed, or empty image files: what would be missing is not known.
    """
    found: list[Path] = []
    left_out: dict[str, list[Path]] = {}
    empty: list[Path] = []
    for file in _files(folder, deep):
        kind, size = _kind(folder, file)
        if kind is None:
            continue
        if kind:
            left_out.setdefault(kind, []).append(file)
        elif size == 0:
            empty.append(file)
        else:
            found.append(file)
    if empty:
        raise DataError(
            f"{len(empty)} image files in {folder} are empty (0 bytes), the first is {empty[0]}; "
            "restore or delete them"
        )
    for kind, files in left_out.items():
        warnings.warn(
            f"{len(files)} {kind} in {folder} left out, the first is {min(files)}",
            LeftOutWarning,
            stacklevel=2,
        )
    return sorted(found)


def has_image(folder: Path) -> bool:
    """Return whether there is an image file below a folder."""
    return any(_kind(folder, file)[0] == "" for file in _files(folder, True))


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder that are not hidden, in the order of their names."""
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _files(folder: Path, deep: bool) -> Iterator[Path]:
    """Go through the files of a folder, and of each folder below it once."""

    def fail(error: OSError) -> None:
        raise DataError(
            f"the folder {error.filename} cannot be listed ({error.strerror}); change its "
            "permissions, or take it away"
        ) from error

    seen: set[str] = set()
    for root, below, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back to a folder above
            below.clear()
            continue
        seen.add(real)
        yield from (Path(root, name) for name in files)
        if not deep:
            below.clear()


def _kind(folder: Path, file: Path) -> tuple[str | None, int]:
    """Return "" for an image, why it is left out, or None for what is none by its name; its size.

    A file is looked at once: over a network, a million looks take minutes.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES and suffix not in _OTHERS:
        return None, 0
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return "hidden image files", 0
    try:
        size = file.stat().st_size
    except OSError:
        if file.is_symlink():
            return "links that lead nowhere", 0
        raise
    return kind_of(suffix), size


def kind_of(suffix: str) -> str | None:
    """Return "" for the suffix of an image, why such an image is left out, None for no image."""
    if suffix in SLIDES:
        return "slides, which are not read,"
    if suffix in SUFFIXES or (suffix in _OTHERS and suffix in Image.registered_extensions()):
        return ""
    if suffix in _OTHERS:
        return f"{suffix} files, which Pillow cannot read here (convert them),"
    return None


SPLITS = ("train", "test", "val")
_LIKE_SPLITS = {
    *SPLITS,
    *("training", "testing", "validation", "valid", "eval", "evaluation", "dev", "trainset"),
    *("testset", "train_set", "test_set", "training_set"),
}


def held_back(split: str, present: Sequence[str]) -> str | None:
    """Return the name of a split among those that are there; "test" and "val" are the same."""
    fallback = {"test": "val", "val": "test"}.get(split, split)
    return next((name for name in (split, fallback) if name in present), None)


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
    files: dict[str, list[Path]] = {}
    for sub in subfolders(folder):
        if _name(sub) in files:
            raise DataError(
                f"two folders in {folder} are named {_name(sub)!r}, in two ways of writing its "
                "letters: bring their images together"
            )
        files[_name(sub)] = find_images(sub)
    if any(files.values()):
        if folder == path:
            _refuse_splits(path, files)
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


def _name(folder: Path) -> str:
    """Return a folder's name; some systems write letters with marks as two characters."""
    return normalize("NFC", folder.name)


def _refuse_splits(path: Path, files: dict[str, list[Path]]) -> None:
    """Refuse folders of splits with other names than ours, which would be taken for classes."""
    named = [name for name, found in files.items() if found]
    inner = any(subfolders(path / found[0].relative_to(path).parts[0])
                for found in files.values() if found)  # fmt: skip
    if inner and all(name.casefold() in _LIKE_SPLITS for name in named):
        raise DataError(
            f"the folders in {path} are named like parts of a data set ({', '.join(named)}), not "
            f"like classes: rename them to {', '.join(SPLITS)}, or give one of them"
        )


def _labelled(
    folder: Path, files: dict[str, list[Path]], classes: list[str], preprocessing: Preprocessing
) -> Images:
    if empty := [name for name, found in files.items() if not found]:
        raise DataError(
            f"{len(empty)} of {len(files)} class folders in {folder} have no image, the first is "
            f"{empty[0]!r}; fill them or take them away"
        )
    paths = _Files(tuple(str(path) for found in files.values() for path in found))
    numbers = {name: number for number, name in enumerate(classes)}
    targets = [numbers[name] for name, found in files.items() for _ in found]
    read = partial(_read_nth, paths)
    return Images(read, targets, classes, preprocessing, paths=paths)


def _classes(path: Path, folder: Path, files: dict[str, list[Path]]) -> list[str]:
    """Return the classes of all splits: a network numbers them as its training images do."""
    splits = [path / name for name in SPLITS if folder != path and (path / name).is_dir()]
    named = {
        split.name: [
            _name(sub) for sub in subfolders(split) if _name(sub) in files or has_image(sub)
        ]
        for split in splits
    }
    learned = named.get("train", [])
    others = {*files, *(name for names in named.values() for name in names)} - {*learned}
    return [*learned, *sorted(others)]


def _unlabelled(found: list[Path], preprocessing: Preprocessing) -> Images:
    paths = _Files(tuple(map(str, found)))
    read = partial(_read_nth, paths)
    return Images(read, None, [], preprocessing, paths=paths, count=len(paths))


@dataclass(frozen=True)
class _Files(Sequence[Path]):
    """Files by their names, because paths would take three times as much memory."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: Any) -> Any:
        found = self.names[number]
        return _Files(found) if isinstance(number, slice) else Path(found)


def _read_nth(paths: Sequence[Path], index: int) -> Image.Image:
    return read_image(paths[index])


def _split_folder(path: Path, split: str) -> Path:
    present = [name for name in SPLITS if (path / name).is_dir()]
    if not present:
        return path
    name = held_back(split, present)
    if name is None:
        raise DataError(f"{path} has no split {split!r}; it has {', '.join(present)}")
    return path / name
