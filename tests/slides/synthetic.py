"""Slides made for tests, with a nest of a known place, and networks that look for it."""

import numpy as np
import tifffile
import torch
from torch import nn

from niwaki.data import Preprocessing

PINK, PURPLE, WHITE = (225, 150, 190), (90, 40, 140), (244, 243, 244)
PLAIN = Preprocessing(64, mean=(0.0,) * 3, std=(1.0,) * 3)


def picture(height, width, nest, tissue=None, seed=0):
    """Glass with tissue in a box, a bit of texture, and a nest in a box of it; (x0, y0, x1, y1)."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = WHITE
    x0, y0, x1, y1 = tissue or (width // 8, height // 8, width - width // 8, height - height // 8)
    noise = rng.integers(-12, 13, (y1 - y0, x1 - x0, 1))
    pixels[y0:y1, x0:x1] = (np.array(PINK) + noise).clip(0, 255)
    x0, y0, x1, y1 = nest
    pixels[y0:y1, x0:x1] = PURPLE
    return pixels


def halved(pixels):
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def write_slide(path, pixels, mpp=0.25, levels=3, tile=256):
    """Write a pyramid as the generic tiled TIFF that OpenSlide reads."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(levels):
            unit = 1e4 / (mpp * 2**level) if mpp else 1
            file.write(
                pixels, tile=(tile, tile), photometric="rgb", compression="zlib",
                resolution=(unit, unit), resolutionunit="CENTIMETER" if mpp else "NONE",
                subfiletype=int(level > 0), metadata=None,
            )  # fmt: skip
            pixels = halved(pixels)
    return path


class Purple(nn.Module):
    """Says of each pixel how much bluer than green it is; classes: other, tumour."""

    def __init__(self, kernel=1):
        super().__init__()
        self.look = nn.Conv2d(3, 1, kernel, padding=kernel // 2)
        self.say = nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            self.look.weight.zero_()
            self.look.weight[0, :, kernel // 2, kernel // 2] = torch.tensor([0.0, -10.0, 10.0])
            self.look.bias[:] = -2.5
            self.say.weight[:] = torch.tensor([0.0, 4.0])[:, None, None, None]
            self.say.bias[:] = torch.tensor([0.0, -2.0])

    def forward(self, x):
        return self.say(self.look(x).relu())


class Whole(nn.Module):
    """A classifier of tiles: the mean of another's map, made clearer."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner or Purple()

    def forward(self, x):
        return self.inner(x).mean((2, 3)) * 3


def convolutional(seed=0):
    """A fully convolutional network with strides, pooling and a norm."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 2, 3, padding=1),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()
