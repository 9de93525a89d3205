"""Training images as fine-tuning sees them: a random crop, mirrored half of the time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Augmented", "centre"]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Random crops of images in memory, mirrored with probability one half.

    Chance comes from torch's global generator, which `niwaki.pruning.fine_tune` seeds: the same
    seed gives the same crops.

    Parameters
    ----------
    images : Tensor
        Of shape (N, channels, H, W), larger than the crops.
    labels : Tensor
        Of shape (N,).
    size : int
        Height and width of the crops.
    """

    def __init__(self, images: Tensor, labels: Tensor, size: int) -> None:
        if min(images.shape[2:]) < size:
            raise ValueError(f"crops of {size} px do not fit into images of {images.shape[2:]}")
        self.images, self.labels, self.size = images, labels, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        top, left = (int(torch.randint(room - self.size + 1, ())) for room in image.shape[1:])
        crop = image[:, top : top + self.size, left : left + self.size]
        return (crop.flip(2) if torch.rand(()) < 0.5 else crop), self.labels[index]


def centre(images: Tensor, size: int) -> Tensor:
    """Cut the middle out of images of shape (N, channels, H, W)."""
    top, left = ((room - size) // 2 for room in images.shape[2:])
    return images[:, :, top : top + size, left : left + size].contiguous()
