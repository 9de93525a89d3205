"""Networks for the tests: torchvision's, bias-free and in scale, and one written with functions."""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

__all__ = ["Functional", "Modular", "calibrated", "network", "without_biases"]


class Modular(nn.Module):
    """A small network with a residual sum, a concatenation and pools, written with modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(4, 6, 1)
        self.right = nn.Conv2d(4, 5, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(11)
        self.head = nn.Linear(11, 4)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        x = self.relu(x + self.norm2(self.conv2(x)))
        x = torch.cat([self.left(x[:, :4]), self.right(x[:, 4:])], 1)
        return self.head(self.flat(self.mean(self.relu(self.norm3(x)))))


class Functional(Modular):
    """The same network, written with functions, methods and in-place operations."""

    def forward(self, x: Tensor) -> Tensor:
        def norm(x: Tensor, of: nn.BatchNorm2d) -> Tensor:
            return F.batch_norm(x, of.running_mean, of.running_var, of.weight, of.bias, eps=of.eps)

        def conv(x: Tensor, of: nn.Conv2d) -> Tensor:
            return F.conv2d(x, of.weight, of.bias, padding=of.padding)

        x = F.max_pool2d(F.relu(norm(conv(x, self.conv1), self.norm1), inplace=True), 2)
        y = norm(conv(x, self.conv2), self.norm2)
        y += x
        left, right = torch.relu_(y).chunk(2, dim=1)
        x = torch.cat((conv(left, self.left), conv(right, self.right)), dim=1)
        x = norm(x, self.norm3).clamp(min=0).mean(dim=(2, 3))
        return F.linear(x, self.head.weight, self.head.bias)


def network(name: str, classes: int = 7) -> nn.Module:
    """A torchvision network in float64, with random weights from a fixed seed."""
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return model.double().eval()


def without_biases(model: nn.Module) -> nn.Module:
    """Set every bias, and every running mean, to zero."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.zero_()
    return model


@torch.no_grad()
def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    """Set the running variance of each batch norm so that its output has unit mean square."""

    def calibrate(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        norm.running_var.copy_(inputs[0].square().mean((0, 2, 3)) + 1e-12)

    hooks = [
        m.register_forward_pre_hook(calibrate)
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return model
