"""Data sets of Hugging Face's `datasets`, which lie in Arrow files and are read from the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from niwaki.data._images import Images
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._read import in_mode, read_image
from niwaki.errors import DataError

__all__ = ["folder_of", "open_arrow"]

_SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves
_SERVE = {  # the part that is held back has many names
    "train": ("train", "training"),
    "test": ("test", "validation", "val", "valid", "dev"),
    "val": ("validation", "val", "valid", "dev", "test"),
}
_LIKE_LABELS = ("label", "labels", "class")


def open_arrow(spec: str, preprocessing: Preprocessing, split: str) -> Images:
    """Open a data set of the Hugging Face Hub, or of a folder, with images and their classes.

    Parameters
    ----------
    spec
        ``NAME_OR_FOLDER``, or ``NAME_OR_FOLDER:SPLIT``, which is then read whatever split is asked
        for.
    preprocessing
        How images become inputs.
    split
        The part. A data set of a single part is read whole.

    Raises
    ------
    DataError
        A package that is not installed; a data set that cannot be loaded, without images, or with
        two columns that may be meant; no such split; images with and without a class.
    """
    name, chosen = _parsed(spec)
    loaded = _loaded(name)
    part = _part(loaded, name, chosen, split)
    return _images(loaded[part], f"{name}/{part}", preprocessing)


def folder_of(spec: str) -> Path | None:
    """Return the folder that a spec names; None for a name of the Hub."""
    folder = Path(_parsed(spec)[0]).expanduser()
    return folder if folder.exists() else None


def _parsed(spec: str) -> tuple[str, str]:
    if Path(spec).expanduser().exists():
        return spec, ""
    name, _, split = spec.rpartition(":")
    return (name, split) if name else (split, "")


def _loaded(name: str) -> Any:
    """Return all parts of a data set, by name."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"hf:{name} is read by the package datasets: pip install 'niwaki[datasets]'"
        ) from error
    folder = Path(name).expanduser()
    try:
        if any((folder / file).exists() for file in _SAVED):
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder) if folder.exists() else name)
    # What is missing, unreachable or broken comes as errors of many packages.
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise DataError(
            f"hf:{name} cannot be loaded: {type(error).__name__}: {said}; give the name of a data "
            "set of the Hub, or a folder that Dataset.save_to_disk has written"
        ) from error
    return {"all": found} if isinstance(found, datasets.Dataset) else found


def _part(loaded: Any, name: str, chosen: str, split: str) -> str:
    present = list(loaded)
    if not chosen and len(present) == 1:
        return str(present[0])
    wanted = (chosen,) if chosen else _SERVE.get(split, (split,))
    for part in wanted:
        if part in loaded:
            return part
    raise DataError(
        f"hf:{name} has no split {chosen or split!r}; it has {', '.join(present)}: name one, as in "
        f"hf:{name}:{present[0]}"
    )


def _images(table: Any, name: str, preprocessing: Preprocessing) -> Images:
    import datasets

    column = _column(table, datasets.Image, name)
    if column is None:
        raise DataError(f"hf:{name} has no column of images; it has {_told(table)}")
    rows = _Rows.of(table, column, name)
    targets, classes = _labels(table, _column(table, datasets.ClassLabel, name), name)
    return Images(
        rows.read,
        targets,
        classes,
        preprocessing,
        paths=rows,
        stored=rows.stored,
        count=len(rows),
    )


def _column(table: Any, kind: type, name: str) -> str | None:
    """Return the name of the one column of a kind."""
    found = [column for column, feature in table.features.items() if isinstance(feature, kind)]
    if len(found) > 1:
        raise DataError(
            f"hf:{name} has {len(found)} columns of the kind {kind.__name__}: {', '.join(found)}; "
            "keep the one that is meant (Dataset.remove_columns), save it (save_to_disk), and give "
            "the folder"
        )
    return found[0] if found else None


def _told(table: Any) -> str:
    return ", ".join(f"{name} ({type(kind).__name__})" for name, kind in table.features.items())


def _labels(table: Any, column: str | None, name: str) -> tuple[list[int] | None, list[str]]:
    """Return the class of each row, and their names; None and none without classes."""
    if column is None:
        if like := [known for known in _LIKE_LABELS if known in table.features]:
            raise DataError(
                f"the column {like[0]!r} of hf:{name} is no ClassLabel, so that its classes have "
                f"no names; make it one (Dataset.class_encode_column({like[0]!r})), save it "
                "(save_to_disk), and give the folder"
            )
        return None, []
    numbers = table.select_columns([column]).with_format("numpy")[:][column]
    # A row without a class is a missing value, or -1 as benchmarks have it that hide them.
    labels = np.nan_to_num(np.asarray(numbers, dtype=np.float64), nan=-1).astype(np.int64)
    bare = labels < 0
    if bare.all():
        return None, []
    if bare.any():
        raise DataError(
            f"{bare.sum()} of {len(labels)} rows of hf:{name} have no class, the first is row "
            f"{bare.argmax()}; take them out (Dataset.filter)"
        )
    return labels.tolist(), list(table.features[column].names)


@dataclass(frozen=True)
class _Rows(Sequence[Path]):
    """The images in the rows of a data set; as a sequence, their names.

    A name is that of the data set, the split, the row, and the file that the image was made from,
    if that is known.
    """

    name: str
    column: str
    mode: str | None  # into which the data set wants images to be converted
    files: Any = field(compare=False)  # columns with the bytes and the path of each image

    @classmethod
    def of(cls, table: Any, column: str, name: str) -> _Rows:
        import datasets

        plain = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        return cls(name, column, table.features[column].mode, plain.flatten())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[row] for row in range(*number.indices(len(self)))]
        row = range(len(self))[number]
        path = self.files.select_columns([f"{self.column}.path"])[row][f"{self.column}.path"]
        return Path(self.name, str(row), *([Path(path).name] if path else []))

    def stored(self, number: int) -> bytes:
        """Return the file of an image, from the Arrow file or from where that says it is."""
        row = self.files[number]
        found, path = row[f"{self.column}.bytes"], row[f"{self.column}.path"]
        if found is not None:
            return bytes(found)
        if path is None:
            raise DataError(f"{self[number]} has no image; take the row out (Dataset.filter)")
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self[number]} is not in the data set, and its file cannot be read: {error}"
            ) from error

    def read(self, number: int) -> Image.Image:
        """Read an image."""
        image = read_image(self[number], self.stored(number))
        if self.mode in (None, image.mode):
            return image
        # Pillow alone would clip grey of 16 bits to white, and show what is transparent.
        return in_mode(image, self.mode)
