"""The image files below a folder, and a word on every one that is left out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from niwaki.data._read import SLIDES
from niwaki.errors import DataError, LeftOutWarning

__all__ = ["SUFFIXES", "find_images", "has_image", "subfolders"]

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
        kind = _kind(folder, file)
        if kind is None:
            continue
        if kind:
            left_out.setdefault(kind, []).append(file)
        elif file.stat().st_size == 0:
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
    return any(_kind(folder, file) == "" for file in _files(folder, True))


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


def _kind(folder: Path, file: Path) -> str | None:
    """Return "" for an image, why it is left out, or None for what is no image by its name."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES and suffix not in _OTHERS:
        return None
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return "hidden image files"
    if not file.exists():
        return "links that lead nowhere"
    if suffix in SLIDES:
        return "slides, which are not read,"
    if suffix in SUFFIXES or suffix in Image.registered_extensions():
        return ""
    return f"{suffix} files, which Pillow cannot read here (convert them),"
