"""The data set of labelled images that every kind of source becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from niwaki.data._classes import listed, match_classes, number_classes
from niwaki.data._preprocessing import Preprocessing
from niwaki.errors import DataError
from niwaki.ranges import INDEX, checked

__all__ = ["Images"]

T = TypeVar("T")


class Images(Dataset[tuple[Tensor, int]]):
    """Images in a fixed order, each with a label, as inputs of a network.

    Parameters
    ----------
    read
        Gives the i-th image. A function that can be pickled, not a lambda: a DataLoader's
        workers get it.
    targets
        For each image the index of its class; None when `count` images have no labels, and
        then every label is -1.
    classes
        Names of the classes.
    preprocessing
        Turns an image into an input.
    paths
        The file of each image, where there is one. Of an image in an archive, the path of the
        archive and then its name there.
    stored
        Gives the i-th image as the bytes of its file; default: those of the file in `paths`.
    count
        Number of images, needed only without `targets`.

    Attributes
    ----------
    labelled : bool
        Whether there are labels.
    targets : list of int
        The label of each image: the index of the network's output for its class.
    classes : list of str
        Names of the classes.
    outputs : list of int
        For each of `classes` the label it has; 0, 1, 2, ... unless `mapped`.
    by_position : bool
        Whether the labels are only the places of the classes, which nobody has compared with a
        network's outputs.
    paths : sequence of Path or None
        The file of each image, or its name in an archive.
    preprocessing : Preprocessing
        Turns an image into an input.
    """

    def __init__(
        self,
        read: Callable[[int], Image.Image],
        targets: Sequence[int] | None,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        *,
        paths: Sequence[Path] | None = None,
        stored: Callable[[int], bytes] | None = None,
        count: int = 0,
    ) -> None:
        self._read = read
        self.labelled = targets is not None
        self.targets = [-1] * count if targets is None else [int(target) for target in targets]
        self.classes = list(classes)
        self.outputs = list(range(len(self.classes)))
        self.by_position = True
        self.paths = paths
        self._stored = stored
        self.preprocessing = preprocessing

    @classmethod
    @checked(targets=INDEX)
    def of_pixels(
        cls,
        pixels: NDArray[np.uint8],
        targets: Sequence[int] | None,
        classes: Sequence[str],
        preprocessing: Preprocessing,
    ) -> Images:
        """Make a data set of images that are in memory.

        Parameters
        ----------
        pixels : ndarray
            Shape (N, H, W, 3) or, if grey, (N, H, W), uint8.
        targets, classes, preprocessing
            See `Images`.
        """
        read = partial(_nth, pixels)
        return cls(read, targets, classes, preprocessing, count=len(pixels))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the input, of shape (C, H, W), and the label of one image."""
        target = self.targets[index]  # Raises the IndexError that ends a for loop.
        image = self.image(index)
        try:
            return self.preprocessing(image), target
        except DataError as error:
            if self.paths is None:
                raise
            raise DataError(f"{self.paths[index]}: {error}") from error

    def __repr__(self) -> str:
        """Say how many images of what size."""
        kind = f"{len(self.classes)} classes" if self.labelled else "no labels"
        return f"Images({len(self)} images, {kind}, {self.preprocessing.size} px)"

    def image(self, index: int) -> Image.Image:
        """Return one image as it is in the source."""
        return self._read(index)

    def stored(self, index: int) -> bytes:
        """Return the file of one image as it is in the source; DataError where there are none."""
        if self._stored is not None:
            return self._stored(index)
        if self.paths is None:
            raise DataError("these images do not come from files")
        return self.paths[index].read_bytes()

    def class_name(self, label: int) -> str:
        """Return the name of the class that has this label, or the label itself as text."""
        names = [
            name for name, output in zip(self.classes, self.outputs, strict=True) if output == label
        ]
        return ", ".join(names) or str(label)

    def subset(self, indices: Sequence[int]) -> Images:
        """Return some of the images, in the order of their numbers in `indices`."""
        twin = Images(
            _Chosen(self._read, tuple(indices)),
            [self.targets[i] for i in indices] if self.labelled else None,
            self.classes,
            self.preprocessing,
            paths=None if self.paths is None else _ChosenPaths(self.paths, tuple(indices)),
            stored=None if self._stored is None else _Chosen(self._stored, tuple(indices)),
            count=len(indices),
        )
        twin.outputs, twin.by_position = list(self.outputs), self.by_position
        return twin

    def mapped(self, outputs: Sequence[int]) -> Images:
        """Return the same images with label `outputs[i]` for the i-th class.

        Raises
        ------
        DataError
            No labels, not one output for each class, or a negative one.
        """
        if not self.labelled:
            raise DataError("these images have no labels that could be mapped to outputs")
        if len(outputs) != len(self.classes):
            raise DataError(
                f"outputs has {len(outputs)} entries for {len(self.classes)} classes "
                f"({listed(self.classes)}); give one output index for each"
            )
        if min(outputs) < 0:
            raise DataError(f"outputs has {min(outputs)}; an output index is 0 or more")
        order = dict(zip(self.outputs, outputs, strict=True))
        twin = Images(
            self._read,
            [order[target] for target in self.targets],
            self.classes,
            self.preprocessing,
            paths=self.paths,
            stored=self._stored,
        )
        twin.outputs = [int(output) for output in outputs]
        twin.by_position = False
        return twin

    def matched(self, names: Sequence[str]) -> Images:
        """Return the same images with the label of the output that has the name of their class.

        Parameters
        ----------
        names
            Names of the network's outputs, in order. See `match_classes` for what is alike.

        Raises
        ------
        DataError
            A class that none or several of the names are like, with both lists.
        """
        return self.mapped(match_classes(self.classes, names)) if self.labelled else self

    def numbered(self, count: int) -> Images:
        """Return the same images for a network of so many outputs whose names are not known.

        Raises
        ------
        DataError
            Where the classes and the outputs do not fit together, see `number_classes`.
        """
        return self.mapped(number_classes(self.classes, count)) if self.labelled else self


def _nth(pixels: NDArray[np.uint8], index: int) -> Image.Image:
    return Image.fromarray(pixels[index])


@dataclass(frozen=True)
class _Chosen(Generic[T]):
    """Reads the images of a subset by their numbers in it."""

    read: Callable[[int], T]
    indices: tuple[int, ...]

    def __call__(self, number: int) -> T:
        return self.read(self.indices[number])


@dataclass(frozen=True)
class _ChosenPaths(Sequence[Path]):
    """The paths of a subset, which a million images need not keep a second time."""

    paths: Sequence[Path]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return _ChosenPaths(self.paths, self.indices[number])
        return self.paths[self.indices[number]]
