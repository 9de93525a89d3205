"""Affine operations of every kind, for the tests that rebuild them as dense matrices."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MAPS", "Map", "dense", "matrix_of", "randomised"]


class Function(nn.Module):
    """A function as a module, so that a map can be written down in a line."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give it float64 parameters and batch statistics of both signs, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
    return module


@dataclass(frozen=True)
class Map:
    """An affine operation, the shape of one input, and whether it has parameters."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    parameters: bool = True


def _in_place(x: Tensor) -> Tensor:
    a, b = x[:, :2].clone(), x[:, 2:]
    a += b
    return a


def _in_place_self(x: Tensor) -> Tensor:
    y = x.clone()
    y += y
    return y


def _matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(
        rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )


def _free(name: str, function: Callable[[Tensor], Tensor], *shape: int) -> Map:
    return Map(name, lambda: Function(function), shape, parameters=False)


def _with_norm(maps: list[Map]) -> list[Map]:
    norms = {2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d, 1: nn.BatchNorm1d}

    def build(each: Map) -> nn.Module:
        layer = each.build()
        units = getattr(layer, "out_channels", None) or layer.out_features
        return nn.Sequential(layer, norms[len(each.shape)](units))

    return [Map(f"{m.name}+norm", lambda m=m: build(m), m.shape) for m in maps]


LAYERS = [
    Map("linear", lambda: nn.Linear(5, 4), (5,)),
    Map("linear-unbiased", lambda: nn.Linear(5, 4, bias=False), (5,)),
    Map("conv1d", lambda: nn.Conv1d(3, 4, 3), (3, 6)),
    Map("conv2d", lambda: nn.Conv2d(3, 4, 3), (3, 5, 4)),
    Map("conv2d-unbiased", lambda: nn.Conv2d(3, 4, 3, bias=False), (3, 5, 4)),
    Map("conv2d-strided", lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 5)),
    Map("conv2d-dilated", lambda: nn.Conv2d(2, 3, 2, dilation=2), (2, 5, 5)),
    Map("conv2d-same", lambda: nn.Conv2d(2, 3, (3, 1), padding="same"), (2, 4, 4)),
    Map("conv2d-grouped", lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 4, 3)),
    Map("conv2d-depthwise", lambda: nn.Conv2d(3, 6, 3, groups=3), (3, 4, 4)),
    Map("conv3d", lambda: nn.Conv3d(2, 3, 2, padding=(1, 0, 0)), (2, 3, 3, 2)),
    Map("transposed1d", lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2), (4, 4)),
    Map("transposed2d", lambda: nn.ConvTranspose2d(3, 2, 3), (3, 3, 3)),
    Map(
        "transposed2d-grouped",
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (4, 3, 3),
    ),
    Map("transposed3d", lambda: nn.ConvTranspose3d(2, 4, 2, groups=2), (2, 2, 3, 2)),
]
NORMS = [
    Map("norm1d", lambda: nn.BatchNorm1d(4), (4,)),
    Map("norm2d", lambda: nn.BatchNorm2d(3), (3, 3, 2)),
    Map("norm2d-plain", lambda: nn.BatchNorm2d(3, affine=False), (3, 3, 2)),
    Map("norm3d", lambda: nn.BatchNorm3d(2), (2, 2, 3, 2)),
]
FREE = [
    _free("sum", lambda x: x[:, :2] + x[:, 2:], 4, 3),
    _free("sum-alpha", lambda x: torch.add(x[:, :2], x[:, 2:], alpha=0.5), 4, 3),
    _free("sum-in-place", _in_place, 4, 3),
    _free("sum-with-itself-in-place", _in_place_self, 4),
    _free("sum-broadcast", lambda x: x[:, :3] + x[:, 3:], 4, 3),
    _free("difference", lambda x: x[:, :2] - x[:, 2:], 4, 3),
    _free("avg-pool", lambda x: F.avg_pool2d(x, 2), 2, 4, 4),
    _free("avg-pool-padded", lambda x: F.avg_pool2d(x, 3, 2, 1), 2, 5, 4),
    _free(
        "avg-pool-uncounted",
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        *(2, 5, 4),
    ),
    _free("avg-pool1d", lambda x: F.avg_pool1d(x, 2), 2, 6),
    _free("avg-pool3d", lambda x: F.avg_pool3d(x, 2), 1, 2, 4, 2),
    _free("adaptive-avg-pool", lambda x: F.adaptive_avg_pool2d(x, (2, 3)), 2, 5, 4),
    _free("global-mean", lambda x: x.mean((2, 3)), 2, 3, 4),
    _free("sum-over-dims", lambda x: torch.sum(x, dim=(1,), keepdim=True), 3, 4),
    _free("nearest", lambda x: F.interpolate(x, scale_factor=2), 2, 3, 3),
    _free("bilinear", lambda x: F.interpolate(x, size=(5, 4), mode="bilinear"), 2, 3, 3),
]
PRODUCTS = [
    Map("matmul", lambda: Function(lambda x: x @ _matrix(5, 3)), (5,)),
    Map("matmul-left", lambda: Function(lambda x: torch.matmul(_matrix(3, 5), x)), (5, 2)),
]
NORMED = [m for m in LAYERS if m.name not in ("linear-unbiased", "conv2d-dilated")]
MAPS = [*LAYERS, *_with_norm(NORMED), *NORMS, *FREE, *PRODUCTS]


@lru_cache
def matrix_of(map_: Map) -> tuple[nn.Module, Tensor, Tensor]:
    """One randomised module of a map, with its dense matrix and offset."""
    module = randomised(map_.build())
    return module, *dense(module, map_.shape)


def dense(module: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Matrix and offset of an affine map, read off at the origin and the unit vectors."""
    size = int(torch.tensor(shape).prod())
    with torch.no_grad():
        offset = module(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        columns = module(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1)
    return (columns - offset).T, offset
