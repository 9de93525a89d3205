"""The classification data sets that torchvision downloads."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torchvision.datasets
from PIL import Image
from torch.utils.data import Dataset

from niwaki.data._images import Images
from niwaki.data._preprocessing import Preprocessing
from niwaki.errors import DataError

__all__ = ["open_torchvision"]

# The part that is held back is called "test" or "val"; either serves for the other.
_HELD_BACK = {"test": "val", "val": "test"}


def open_torchvision(
    name: str, preprocessing: Preprocessing, split: str, root: str | Path | None
) -> Images:
    """Open a torchvision data set by the name of its class, downloaded to `root` once.

    Raises
    ------
    DataError
        No such data set or split, labels that are not classes, or a failed download.
    """
    kind = getattr(torchvision.datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, Dataset)):
        raise DataError(
            f"torchvision has no data set {name!r}; write it as its class, for example "
            "torchvision:CIFAR10, torchvision:MNIST or torchvision:Imagenette"
        )
    folder = Path(root) if root is not None else Path.home() / ".cache" / "niwaki"
    folder.mkdir(parents=True, exist_ok=True)
    source = _construct(name, kind, split, folder)
    targets = _targets(name, source)
    read = partial(_nth, source)
    return Images(read, targets, _class_names(source, targets), preprocessing)


def _nth(source: Any, index: int) -> Image.Image:
    image: Image.Image = source[index][0]
    return image


def _construct(name: str, kind: Any, split: str, folder: Path) -> Any:
    parameters = inspect.signature(kind).parameters
    download = "download" in parameters
    try:
        if "split" in parameters:
            try:
                return _present_or_downloaded(kind, folder, download, split=split)
            except ValueError:
                if split not in _HELD_BACK:
                    raise
                return _present_or_downloaded(kind, folder, download, split=_HELD_BACK[split])
        if "train" in parameters:
            if split not in ("train", *_HELD_BACK):
                raise ValueError(f"no split {split!r}, only 'train' and 'test'")
            return _present_or_downloaded(kind, folder, download, train=split == "train")
        return _present_or_downloaded(kind, folder, download)
    # Failed downloads are OSError or RuntimeError, unknown splits ValueError, and data sets that
    # need other arguments TypeError.
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(
            f"cannot open torchvision:{name} (split {split!r}) in {folder}: {error}; without a "
            "connection, put its files there, or open a folder of images"
        ) from error


def _present_or_downloaded(kind: Any, folder: Path, download: bool, **options: Any) -> Any:
    try:
        return kind(folder, **options)
    except RuntimeError:  # this is how torchvision says that the files are missing or broken
        if not download:
            raise
        return kind(folder, download=True, **options)


def _targets(name: str, source: Any) -> list[int]:
    # There is no common name; reading every image for its label is the last resort.
    for attribute in ("targets", "labels", "_labels"):
        if (found := getattr(source, attribute, None)) is not None:
            break
    else:
        pairs = getattr(source, "_samples", None) or (source[i] for i in range(len(source)))
        found = [pair[1] for pair in pairs]
    try:
        return [int(label) for label in found]
    except (TypeError, ValueError) as error:
        raise DataError(f"torchvision:{name} has no single class for each image") from error


def _class_names(source: Any, targets: list[int]) -> list[str]:
    known = getattr(source, "classes", None)
    if known is None:
        return [str(label) for label in range(max(targets, default=-1) + 1)]
    # Imagenette lists synonyms; the first is the usual name.
    return [label if isinstance(label, str) else str(label[0]) for label in known]
