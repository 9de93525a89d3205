"""Two networks whose units the criteria score."""

import torch
import torch.nn.functional as F
from torch import nn


def randomise(model):
    """Norms with statistics that matter, in double precision and evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.3, 1.3)
    return model.double().eval()


class Plain(nn.Sequential):
    """Each kind of layer: strided, grouped, transposed, depthwise, linear; some with a norm."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, groups=2),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 2, groups=2, stride=2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.Flatten(),
            nn.Linear(6 * 6 * 6, 7),
            nn.ReLU(),
            nn.Linear(7, 4),
        )


# Layer, and where its unit's output is taken: behind the norm; behind the activation.
UNITS = {"0": ("1", "2"), "3": ("3", "4"), "5": ("6", "7"), "8": ("8", "8"), "10": ("10", "11")}


class Functional(nn.Module):
    """Layers that are no modules, and one that is used twice."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 3, 3, 3) / 4)
        self.twice = nn.Conv2d(5, 5, 3, padding=1)
        self.matrix = nn.Parameter(torch.randn(4, 5) / 2)

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.kernel))
        x = self.twice(x).relu()
        x = self.twice(x).relu()
        return F.linear(x.mean((2, 3)), self.matrix)
