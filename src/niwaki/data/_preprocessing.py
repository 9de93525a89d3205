"""How an image becomes the input of a network, and back."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from niwaki.data._read import in_mode
from niwaki.errors import DataError
from niwaki.ranges import FEW, PIXELS, SIDE, checked

__all__ = ["Preprocessing"]

_MODES = {1: "L", 3: "RGB"}


@checked(size=SIDE, resize=SIDE, mean=PIXELS, std=PIXELS.but(low=0, open_low=True), channels=FEW)
@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1] and normalise, as torchvision's presets do it.

    Parameters
    ----------
    size
        Height and width of the input.
    resize
        Length of the image's shorter side before the centre crop; None resizes the whole
        image to (`size`, `size`), without a crop, when it has another size.
    mean, std
        Mean and standard deviation of each channel, in units of [0, 1].
    channels
        3 reads images as RGB, 1 as grey.
    interpolation
        "bilinear", "bicubic" or "nearest".

    Raises
    ------
    DataError
        Values that do not fit together.
    """

    size: int
    resize: int | None = None
    _: KW_ONLY
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Check that the values fit together."""
        # Lists are welcome (JSON has no tuples), but a frozen value should be hashable.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if self.channels not in _MODES:
            raise DataError(f"channels={self.channels}; an image has 1 (grey) or 3 (RGB)")
        if self.resize is not None and self.resize < self.size:
            raise DataError(f"resize={self.resize} is smaller than the crop size={self.size}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise DataError(
                f"mean {self.mean} and std {self.std} need one value for each of the "
                f"{self.channels} channels"
            )
        if min(self.std) <= 0:
            raise DataError(f"std {self.std} must be positive")
        if self.interpolation not in ("bilinear", "bicubic", "nearest"):
            raise DataError(
                f"interpolation {self.interpolation!r} is none of 'bilinear', 'bicubic', 'nearest'"
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an image of any mode into a float tensor of shape (channels, size, size).

        Transparent areas are shown on white. Grey of 16 bits is scaled to 8; 32-bit numbers, whose
        range is not known, are refused with a DataError.
        """
        image = in_mode(image, _MODES[self.channels])
        mode = InterpolationMode(self.interpolation)
        if self.resize is not None:
            image = tvf.resize(image, [self.resize], interpolation=mode)
            image = tvf.center_crop(image, [self.size, self.size])
        elif image.size != (self.size, self.size):
            image = tvf.resize(image, [self.size, self.size], interpolation=mode)
        pixels: Tensor = tvf.convert_image_dtype(tvf.pil_to_tensor(image), torch.float32)
        return (pixels - _per_channel(self.mean, pixels)) / _per_channel(self.std, pixels)

    def denormalise(self, tensor: Tensor) -> Tensor:
        """Turn inputs of shape (..., channels, H, W) back into pixels in [0, 1]."""
        pixels = tensor * _per_channel(self.std, tensor) + _per_channel(self.mean, tensor)
        return pixels.clamp(0, 1)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` and `json.dumps` understand."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Rebuild what `to_json` returned; DataError for unknown or missing entries."""
        known = {field.name for field in fields(cls)}
        missing = {"size", "mean", "std"} - values.keys()
        if unknown := values.keys() - known:
            raise DataError(f"preprocessing has no {sorted(unknown)}; it has {sorted(known)}")
        if missing:
            raise DataError(f"preprocessing lacks {sorted(missing)}")
        return cls(**values)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
