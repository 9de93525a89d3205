"""A data set with what is known of its images besides their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from niwaki.data._preprocessing import Preprocessing
from niwaki.errors import DataError

Array = NDArray[Any]


class Described(Subset[Any]):
    """A data set with what is known of its images besides their labels.

    What is not given is taken from the data set itself, if that has an attribute of the name.

    Parameters
    ----------
    data : Dataset
        Of pairs (input of shape (C, H, W), label).
    preprocessing : Preprocessing, optional
        Between pixels and inputs.
    class_names : sequence of str, optional
        One for each output of the network; the attribute is ``classes``.
    groups : sequence, optional
        Of each image the slide, patient or source that it was cut from: numbers or names. Images of
        a group are alike for that reason alone.
    regions : mapping of str to sequence, optional
        Regions that somebody has marked, by name: for each image a mask of the inputs' size, bool,
        or its points, rows and columns of shape (points, 2).

    Raises
    ------
    DataError
        Groups of another number than the images.

    Examples
    --------
    >>> niwaki.audit(model, Described(images, groups=slide_of_each_image))
    """

    def __init__(
        self,
        data: Dataset[Any],
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        groups: Sequence[Any] | Array | None = None,
        regions: Mapping[str, Array | Sequence[Array]] | None = None,
    ) -> None:
        count = len(data)  # type: ignore[arg-type]
        super().__init__(data, range(count))
        if groups is not None and len(groups) != count:
            raise DataError(
                f"groups has {len(groups)} entries for {count} images: give one for each"
            )
        self.preprocessing = preprocessing or getattr(data, "preprocessing", None)
        self.classes: list[str] = list(class_names or getattr(data, "classes", None) or ())
        known = getattr(data, "groups", None) if groups is None else groups
        self.groups: Array | None = None if known is None else np.asarray(known)
        self.regions = regions or getattr(data, "regions", {})
        if hasattr(data, "targets"):
            self.targets = data.targets
