"""Two networks whose units the criteria score."""

import torch
import torch.nn.functional as F
from torch import nn


def randomise(model):
    """Norms with statistics that matter, in double precision and evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.3, 1.3)
    return model.double().eval()


class Plain(nn.Sequential):
    """Each kind of layer: strided, grouped, transposed, depthwise, linear; some with a norm.

    Without a transposed one, for what is not defined there: a plain convolution of its output size.
    """

    def __init__(self, transposed=True):
        middle = nn.ConvTranspose2d(8, 6, 2, groups=2, stride=2, bias=False)
        if not transposed:
            middle = nn.Conv2d(8, 6, 5, padding=4, groups=2, bias=False)
        super().__init__(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, groups=2),
            nn.ReLU(),
            middle,
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


def per_sample(values):
    """Sum over everything but samples and units (in the second dimension)."""
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def captured(model, inputs, where):
    """Outputs of the named modules, copied before anything overwrites them; and the model's."""
    outputs = {}

    def keep(name):
        def hook(module, args, output):
            outputs[name] = output
            return output.clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in where]
    output = model(inputs)
    for handle in handles:
        handle.remove()
    return outputs, output


def close(scores, expected):
    assert list(scores) == list(expected)
    for layer, values in expected.items():
        torch.testing.assert_close(scores[layer], values.detach(), rtol=1e-9, atol=1e-12)


def l2(values):
    return values / values.norm()
