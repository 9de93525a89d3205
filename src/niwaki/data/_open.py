"""The names of data sets: a decorator registers one, and one function opens it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from niwaki.data._folder import open_path
from niwaki.data._images import Images
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._torchvision import open_torchvision
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
        each class, or with `train`, `test` or `val` folders of these; or, without labels, a
        folder of images or one image file.
    preprocessing
        How images become inputs. Embedded data sets bring their own; all others need it.
    split
        Which part, "train" or "test"; "val" and "test" serve for each other where only one is
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
    scheme, colon, name = spec.partition(":")
    is_torchvision = colon == ":" and scheme == "torchvision"
    path = Path(spec).expanduser()
    if not is_torchvision and not path.exists():
        raise DataError(
            f"no data set and no file or folder is named {spec!r}; valid are "
            f"{', '.join(names())}, torchvision:NAME (such as torchvision:CIFAR10), the path of a "
            "folder with a folder for each class, of a folder of images, or of an image"
        )
    if preprocessing is None:
        raise DataError(
            f"how the images of {spec!r} become inputs is not known; pass a Preprocessing with the "
            "size, mean and std that the network was trained with"
        )
    if is_torchvision:
        return open_torchvision(name, preprocessing, split, root)
    return open_path(path, preprocessing, split)
