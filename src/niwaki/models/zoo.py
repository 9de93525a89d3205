"""Small networks of the literature for CIFAR-10, MNIST and 8 x 8 digits, and one for tissue."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from niwaki.data import Preprocessing
from niwaki.datasets import DIGITS, TISSUE

__all__ = [
    "ResNet",
    "ShortcutA",
    "lenet",
    "resnet20",
    "resnet56",
    "tissue_net",
    "vgg_digits",
    "vgglike",
]

_CIFAR10 = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
_NUMERALS = [str(digit) for digit in range(10)]
_IMAGENET_COLOURS = Preprocessing(32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_CENTRED = Preprocessing(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_MNIST = Preprocessing(28, mean=(0.1307,), std=(0.3081,), channels=1)

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


def _knows(**facts: Any) -> Callable[[Builder], Builder]:
    """Put what is known of a network's inputs and outputs on the function that builds it."""

    def put(function: Builder) -> Builder:
        for name, value in facts.items():
            setattr(function, name, value)
        return function

    return put


@_knows(preprocessing=_IMAGENET_COLOURS, class_names=_CIFAR10)
def resnet20(num_classes: int = 10) -> "ResNet":
    """ResNet-20 for CIFAR (He et al. 2016), 0.27 million parameters."""
    return ResNet(3, num_classes)


@_knows(preprocessing=_IMAGENET_COLOURS, class_names=_CIFAR10)
def resnet56(num_classes: int = 10) -> "ResNet":
    """ResNet-56 for CIFAR (He et al. 2016), 0.86 million parameters."""
    return ResNet(9, num_classes)


@_knows(preprocessing=_CENTRED, class_names=_CIFAR10)
def vgglike(num_classes: int = 10) -> nn.Sequential:
    """A plain stack of 3 x 3 and 1 x 1 convolutions for CIFAR."""
    blocks = [
        [(64, 3), (32, 1), (64, 3)],
        [(32, 3), (64, 1)],
        [(128, 3), (128, 1)],
        [(64, 3), (128, 3)],
        [(128, 1)],
    ]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for block, convolutions in enumerate(blocks, 1):
        for i, (width, kernel) in enumerate(convolutions, 1):
            layers[f"conv{block}_{i}"] = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
            layers[f"relu{block}_{i}"] = nn.ReLU()
            channels = width
        if block < len(blocks):
            layers[f"pool{block}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels * 2 * 2, num_classes)
    return nn.Sequential(layers)


@_knows(preprocessing=_MNIST, class_names=_NUMERALS)
def lenet(num_classes: int = 10) -> nn.Sequential:
    """LeNet for MNIST, two convolutions and two linear layers (LeCun et al. 1998, as in Caffe)."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * 4 * 4, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, num_classes),
        )
    )


@_knows(preprocessing=DIGITS, class_names=_NUMERALS)
def vgg_digits(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """A small VGG with batch norm for images of 8 x 8 pixels; it trains in seconds."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for block, width in enumerate((32, 64), 1):
        for i in (1, 2):
            layers[f"conv{block}_{i}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers[f"bn{block}_{i}"] = nn.BatchNorm2d(width)
            layers[f"relu{block}_{i}"] = nn.ReLU()
            channels = width
        layers[f"pool{block}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels * 2 * 2, num_classes)
    return nn.Sequential(layers)


@_knows(preprocessing=TISSUE, class_names=["normal", "tumour"])
def tissue_net(num_classes: int = 2) -> nn.Sequential:
    """A small plain network with batch norm for tiles of 64 x 64 pixels; it trains in seconds."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for block, width in enumerate((16, 24, 32, 32), 1):
        # The first one halves the image itself: most of the time would go there otherwise.
        kernel, stride = (5, 2) if block == 1 else (3, 1)
        layers[f"conv{block}"] = nn.Conv2d(
            channels, width, kernel, stride, padding=kernel // 2, bias=False
        )
        layers[f"bn{block}"] = nn.BatchNorm2d(width)
        layers[f"relu{block}"] = nn.ReLU()
        if block > 1:
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        channels = width
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels * 4 * 4, num_classes)
    return nn.Sequential(layers)


class ShortcutA(nn.Module):
    """The shortcut without parameters of He et al. 2016, option A.

    It takes every `stride`-th pixel and puts the input channels in the middle of the output
    channels, the rest of which are zero.

    Parameters
    ----------
    in_channels, out_channels
        Number of channels, `out_channels` not the smaller one.
    stride
        Step between the pixels that are kept.

    Attributes
    ----------
    source : Tensor
        For each output channel the input channel that it copies, or -1 for zero. Pruning edits
        it, and `in_channels`, to follow the channels around it.
    """

    source: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stride = stride
        source = torch.full((out_channels,), -1)
        start = (out_channels - in_channels) // 2
        source[start : start + in_channels] = torch.arange(in_channels)
        # It follows from the architecture, and published weights do not hold it.
        self.register_buffer("source", source, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        x = x[:, :, :: self.stride, :: self.stride]
        zero = x.new_zeros(x.shape[0], 1, x.shape[2], x.shape[3])
        # The remainder turns -1 into the index of the zero channel, which comes last.
        index = self.source.remainder(self.in_channels + 1)
        return torch.cat([x, zero], dim=1).index_select(1, index)

    def extra_repr(self) -> str:
        """Show the channels and the stride."""
        return f"{self.in_channels}, {len(self.source)}, stride={self.stride}"


class _Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and the shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ShortcutA(in_channels, out_channels, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return self.relu2(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """The residual network for CIFAR of He et al. 2016: three stages of 16, 32 and 64 channels.

    Parameters
    ----------
    blocks
        Blocks in each stage, n in the paper: the network has 6 n + 2 layers with weights.
    num_classes
        Number of outputs.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images of shape (N, 3, 32, 32) to logits of shape (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.flatten(self.pool(x)))  # type: ignore[no-any-return]


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(_Block(out_channels, out_channels, 1) for _ in range(blocks - 1)))
