"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8 x 8 pixels."""

import numpy as np

from niwaki.data import Images, Preprocessing, register
from niwaki.errors import DataError

__all__ = ["DIGITS"]

DIGITS = Preprocessing(8, mean=(0.305,), std=(0.376,), channels=1)


@register("digits")
def open_digits(preprocessing: Preprocessing | None, split: str) -> Images:
    """Open the fixed, stratified split: 1,200 images in "train", 597 in "test"."""
    # scikit-learn takes a second to import, which only these data should cost.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if split not in ("train", "test", "val"):
        raise DataError(f"digits has no split {split!r}; it has 'train' and 'test'")
    data = load_digits()
    train, test = train_test_split(
        np.arange(len(data.target)), train_size=1200, stratify=data.target, random_state=0
    )
    chosen = np.sort(train if split == "train" else test)
    # The 17 grey levels 0..16 become 0..255, so that these are images like any other.
    levels = np.rint(data.images[chosen] * (255 / 16)).astype(np.uint8)
    return Images.of_pixels(
        levels,
        data.target[chosen].tolist(),
        [str(digit) for digit in range(10)],
        preprocessing or DIGITS,
    )
