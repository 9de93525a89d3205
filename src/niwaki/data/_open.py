"""The names of data sets: a decorator registers one, and one function opens it or torchvision's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import torchvision.datasets
from PIL import Image
from torch.utils.data import Dataset

from niwaki.data._arrow import folder_of, open_arrow
from niwaki.data._folder import open_path
from niwaki.data._images import Images
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._webdataset import open_webdataset, shards_of
from niwaki.errors import DataError

Opener: TypeAlias = Callable[[Preprocessing | None, str], Images]

_OPENERS: dict[str, Opener] = {}


def register(name: str) -> Callable[[Opener], Opener]:
    """Make a function `(preprocessing or None, split) -> Images` known under a name."""

    def keep(function: Opener) -> Opener:
        if name in _OPENERS:
            raise ValueError(f"a data set named {name!r} is registered already")
        _OPENERS[name] = function
        return function

    return keep


def names() -> list[str]:
    """Return the names of the embedded data sets."""
    import_module("niwaki.datasets")  # what niwaki brings along registers itself
    return sorted(_OPENERS)


def opener(name: str) -> Opener | None:
    """Return the function that opens a registered data set, or None."""
    return _OPENERS[name] if name in names() else None


def open_data(
    spec: str | Path,
    preprocessing: Preprocessing | None = None,
    *,
    split: str = "test",
    classes: Sequence[str] | None = None,
    outputs: Sequence[int] | None = None,
    root: str | Path | None = None,
) -> Images:
    """Open images by the name of a data set or the path of a folder or file.

    Parameters
    ----------
    spec
        `digits`; `torchvision:NAME`, such as `torchvision:CIFAR10`; a folder with a folder for
        each class, or with `train`, `test` or `val` folders of these; `webdataset:PATTERN`, such
        as `webdataset:shards/{split}-*.tar`; `hf:NAME_OR_FOLDER`, such as `hf:beans`; or, without
        labels, a folder of images or one image file.
    preprocessing
        How images become inputs. Embedded data sets bring their own; all others need it.
    split
        The part, "train" or "test"; "val" and "test" serve for each other where only one is
        there. A folder without such parts is read whole.
    classes
        Names of the network's outputs, in order, such as `niwaki.models.class_names` gives: each
        class of the data gets the label of the output of its name, see `match_classes`.
    outputs
        Instead of `classes`, the index of the network's output for each class of the data, in
        the order of their names. Without either, labels are 0, 1, 2, ... in that order; where a
        folder has a `train` folder, in the order of the classes there.
    root
        Where torchvision keeps its downloads, by default `~/.cache/niwaki`.

    Returns
    -------
    Images
        A data set of pairs (input of shape (C, H, W), label).

    Raises
    ------
    DataError
        An unknown data set, a missing or empty folder, `classes` or `outputs` that do not fit.
    """
    images = _open(str(spec), preprocessing, split, root)
    if outputs is not None:
        return images.mapped(outputs)
    return images if classes is None else images.matched(classes)


def _open(
    spec: str, preprocessing: Preprocessing | None, split: str, root: str | Path | None
) -> Images:
    if embedded := opener(spec):
        return embedded(preprocessing, split)
    scheme, _, name = spec.partition(":")
    path = Path(spec).expanduser()
    if scheme not in SCHEMES and not path.exists():
        raise DataError(
            f"no data set and no file or folder is named {spec!r}; valid are "
            f"{', '.join(names())}, torchvision:NAME (such as torchvision:CIFAR10), "
            "webdataset:PATTERN (tar files), hf:NAME_OR_FOLDER (Hugging Face), the path of a "
            "folder with a folder for each class, of a folder of images, or of an image"
        )
    if preprocessing is None:
        raise DataError(
            f"how the images of {spec!r} become inputs is not known; pass a Preprocessing with the "
            "size, mean and std that the network was trained with"
        )
    match scheme:
        case "torchvision":
            return open_torchvision(name, preprocessing, split, root)
        case "webdataset":
            return open_webdataset(name, preprocessing, split)
        case "hf":
            return open_arrow(name, preprocessing, split)
        case _:
            return open_path(path, preprocessing, split)


SCHEMES = ("torchvision", "webdataset", "hf")


def read_places(spec: str) -> list[Path]:
    """Return the files and folders of the user's that a spec reads, which nothing may replace."""
    scheme, _, name = spec.partition(":")
    if spec in names() or scheme == "torchvision":
        return []
    if scheme == "webdataset":
        return [file for files in shards_of(name).values() for file in files]
    if scheme == "hf":
        folder = folder_of(name)
        return [] if folder is None else [folder]
    return [Path(spec).expanduser()]


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
