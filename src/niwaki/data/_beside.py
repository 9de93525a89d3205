"""What is known about images besides their labels: masks, groups, regions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, Subset

from niwaki.arrays import Array
from niwaki.data._images import Images
from niwaki.data._known import known_of
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._read import orientation, read_image, upright
from niwaki.data._references import labels_of
from niwaki.errors import DataError

Mask = NDArray[np.bool_]


def groups_by_name(images: Images, pattern: str) -> list[str]:
    """Return the group of each image, such as its slide, from the name of its file.

    Parameters
    ----------
    images : Images
        From files.
    pattern : str
        A regular expression that is searched for in each name. What its first pair of brackets
        matches is the group; without brackets, what all of it matches.

    Raises
    ------
    DataError
        Images without files, an expression that is none, or a name in which it is not found.

    Examples
    --------
    >>> niwaki.data.groups_by_name(images, r"^(.+)_x")  # slide7_x1024_y2048.png is of slide7
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise DataError(f"{pattern!r} is no regular expression: {error}") from error
    groups = []
    for path in _paths(images):
        found = search(path.name)
        if found is None:
            raise DataError(
                f"{pattern!r} is not found in the name {path.name!r}; each image's name must say "
                "which group it belongs to"
            )
        group = found.group(1) if found.re.groups else found.group()
        if not group:
            raise DataError(
                f"{pattern!r} finds nothing in the name {path.name!r} that could tell its group: "
                "what its first pair of brackets matches is empty"
            )
        groups.append(group)
    return groups


class Masks(Sequence[Mask]):
    """Masks of images from a folder, read when they are asked for.

    A mask has the name of its image, with any suffix, in a folder of the class's name or in the
    folder itself; every pixel that is neither black nor transparent is inside. An image without a
    mask has none of the region. A mask that lies as the camera has stored its image, and not as
    people see it, is turned with it.

    Parameters
    ----------
    images : Images
        From files. Masks are resized and cropped as these are.
    folder : Path
        With the masks.

    Raises
    ------
    DataError
        Images without files, a folder that has a mask for none of them, two masks of one name, or
        two images of which a mask might be; later, a mask that cannot be read or has another size
        than its image.
    """

    def __init__(self, images: Images, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder with masks")
        self._images, self._paths = images, _paths(images)
        known = _by_name(folder)
        places = [(Path(path.parent.name, path.stem), Path(path.stem)) for path in self._paths]
        self._files = [known.get(own, known.get(flat)) for own, flat in places]
        if not any(self._files):
            raise DataError(
                f"{folder} has no mask for any of the {len(places)} images; that of "
                f"{self._paths[0].name} would be {places[0][0]}.png or {places[0][1]}.png"
            )
        _check_single(self._paths, self._files)
        shape = images.preprocessing
        self._fit = Preprocessing(
            shape.size, shape.resize, mean=(0.0,), std=(1.0,), channels=1, interpolation="nearest"
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mask]: ...
    def __getitem__(self, index: Any) -> Mask | Sequence[Mask]:
        """Return an image's mask, shape (H, W) of the inputs."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        file = self._files[index]
        if file is None:
            return np.zeros((self._fit.size, self._fit.size), dtype=np.bool_)
        mask, image = read_image(file), self._images.image(index)
        if mask.size != image.size and mask.size == image.size[::-1]:
            with Image.open(BytesIO(self._images.stored(index))) as stored:
                mask = upright(mask, orientation(stored))
        if mask.size != image.size:
            raise DataError(
                f"the mask {file} has {mask.size[0]} x {mask.size[1]} pixels, its image "
                f"{self._paths[index]} {image.size[0]} x {image.size[1]}"
            )
        found: Mask = self._fit(_inside(mask))[0].numpy() > 0
        return found


def _inside(mask: Image.Image) -> Image.Image:
    """Return a mask as white on black: white what is neither black nor transparent.

    Grey would round the dark colours by which some programs number regions to black.
    """
    if mask.mode == "P" or "transparency" in mask.info:
        mask = mask.convert("RGBA")
    elif mask.mode in ("CMYK", "YCbCr", "LAB", "HSV", "PA", "La", "RGBa"):
        mask = mask.convert("RGB" if mask.mode in ("CMYK", "YCbCr", "HSV") else "RGBA")
    values = np.atleast_3d(np.asarray(mask))
    if mask.mode in ("LA", "RGBA"):
        inside = (values[..., :-1] != 0).any(-1) & (values[..., -1] != 0)
    else:
        inside = (values != 0).any(-1)
    return Image.fromarray(inside.astype(np.uint8) * 255)


def _by_name(folder: Path) -> dict[Path, Path]:
    """Return mask files by their paths without suffixes, each of which may occur once."""
    known: dict[Path, Path] = {}
    for file in _files(folder):
        other = known.setdefault(file.relative_to(folder).with_suffix(""), file)
        if other != file:
            raise DataError(f"{other} and {file} are two masks of one name; take one of them away")
    return known


def _check_single(images: Sequence[Path], masks: Sequence[Path | None]) -> None:
    """Refuse images of one class and one name, of which a mask might be either's."""
    seen: dict[tuple[Path, str], Path] = {}
    for image, mask in zip(images, masks, strict=True):
        other = seen.setdefault((image.parent, image.stem), image)
        if mask is not None and other != image:
            raise DataError(
                f"the mask {mask} may be of {other} or of {image}, which differ by their suffix "
                "alone; rename one of them and its mask"
            )


def _paths(images: Images) -> Sequence[Path]:
    if images.paths is None:
        raise DataError("these images do not come from files, and have no names to go by")
    return images.paths


def _files(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")
    )


class Described(Subset[Any]):
    """A data set with what is known about its images besides their labels.

    What is not given is taken from the data set itself, or from the one that it is a subset of,
    if that has an attribute of the name.

    Parameters
    ----------
    data : Dataset
        A data set of pairs (input of shape (C, H, W), label).
    preprocessing : Preprocessing, optional
        Between pixels and inputs.
    class_names : sequence of str, optional
        One for each output of the network; the attribute is ``classes``.
    groups : sequence, optional
        The slide, patient or source that each image was cut from: numbers or names. Images of
        a group are alike for that reason alone.
    centres : sequence, optional
        The hospital, laboratory or scanner that each image comes from: numbers or names. All
        images of a group are of one centre.
    regions : mapping of str to sequence, optional
        Regions that somebody has marked, by name: for each image a mask of the inputs' size, bool,
        or its points, rows and columns of shape (points, 2).

    Raises
    ------
    DataError
        Groups or centres of another number than the images.

    Examples
    --------
    >>> slides = niwaki.data.Described(test_set, groups=slide_of_each_image)
    >>> found = niwaki.audit(model, slides)
    """

    def __init__(
        self,
        data: Dataset[Any],
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        groups: Sequence[Any] | Array | None = None,
        centres: Sequence[Any] | Array | None = None,
        regions: Mapping[str, Array | Sequence[Array]] | None = None,
    ) -> None:
        count = len(data)  # type: ignore[arg-type]
        super().__init__(data, range(count))
        for name, given in (("groups", groups), ("centres", centres)):
            if given is not None and len(given) != count:
                raise DataError(
                    f"{name} has {len(given)} entries for {count} images: give one for each"
                )
        self.preprocessing = preprocessing or known_of(data, "preprocessing")
        self.classes: list[str] = list(class_names or known_of(data, "classes") or ())
        known = known_of(data, "groups") if groups is None else groups
        self.groups: Array | None = None if known is None else np.asarray(known)
        known = known_of(data, "centres") if centres is None else centres
        self.centres: Array | None = None if known is None else np.asarray(known)
        self.regions = regions or known_of(data, "regions") or {}
        if hasattr(data, "targets"):
            self.targets = labels_of(data)
