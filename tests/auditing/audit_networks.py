"""Networks whose bias is known because it is written into their weights."""

from collections import OrderedDict

import torch
from torch import nn

from niwaki.datasets import TISSUE


def looking(weights):
    """A network that weighs how dark pixels are by a map (H, W): class 1 where that is much."""
    height, width = weights.shape
    model = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 1, 1),
            relu=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(height * width, 2),
        )
    )
    with torch.no_grad():
        model.conv.weight[:] = -1 / 3
        model.conv.bias[:] = -1.0  # only nuclei are dark enough
        model.fc.weight[1] = weights.flatten()
        model.fc.weight[0] = -weights.flatten()
        model.fc.bias[:] = 0
    return model.eval()


class Coloured(nn.Module):
    """Class 1 where there is much yellow (red, and no blue), besides a little of dark nuclei."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(3 * 64 * 64, 2)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.bias.zero_()
            self.conv.weight[0, :, 0, 0] = torch.tensor([0.0, 0.0, -1.0])
            self.conv.bias[0] = -5.0  # blue far below what tissue has
            self.conv.weight[1, :, 0, 0] = -1 / 3
            self.conv.bias[1] = -1.0
            self.conv.weight[2, :, 0, 0] = 0.1
            self.fc.weight.zero_()
            per_unit = self.fc.weight.view(2, 3, -1)
            per_unit[1, 0], per_unit[0, 0] = 0.05, -0.05
            per_unit[1, 1], per_unit[0, 1] = 0.002, -0.002
            # Between what tissue alone and what tissue with a mark gives.
            self.fc.bias.copy_(torch.tensor([2.0, -2.0]))
        self.eval()

    def forward(self, x):
        return self.fc(self.flatten(self.relu(self.conv(x))))


def inputs_of(tissue, pixels=None):
    shown = tissue.pixels if pixels is None else pixels
    values = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (TISSUE.mean, TISSUE.std))
    return (values - mean) / std, torch.from_numpy(tissue.labels)
