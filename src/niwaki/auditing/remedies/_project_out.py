"""Projecting an artefact out: P-ClArC (Anders et al. 2022), as one more convolution."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from niwaki import models
from niwaki.contexts import undisturbed
from niwaki.errors import DataError, ModelError

_FALSE_ALARMS = 0.05  # share of clean images that are taken to have the artefact


def project_out(
    model: nn.Module,
    layer: str,
    artefact: tuple[Tensor, NDArray[Any]],
    clean: Tensor,
    *,
    reactive: bool = False,
) -> nn.Module:
    """Return a copy of a network that no longer sees an artefact's direction behind a layer.

    Behind the layer each position's vector of channels h becomes h - v v'(h - z): the component
    along the artefact's direction v is set to that of clean images, z being their mean. This is a
    convolution of 1 x 1, and is put in as one, so that the copy can be explained and pruned.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; stays as it is.
    layer : str
        Name of a module that returns shape (N, C, H, W) or (N, C): best the ReLU of one of the
        last blocks.
    artefact : tuple
        Inputs that have it, shape (N, C, H, W), and where it is: (N, H, W), bool.
    clean : Tensor
        Inputs that do not, shape (M, C, H, W).
    reactive : bool
        Whether images are left as they are unless the artefact is present on them: unless the
        component along its direction is, somewhere on the image, larger than on all but 5 % of the
        clean images (Bareeva et al. 2024, "Reactive model correction"). Images that lack the
        artefact then keep their predictions, and the threshold of the network stays right for them.
        A network like this is no longer made of convolutions alone, and is not pruned.

    Raises
    ------
    DataError
        There is no such layer.
    ModelError
        Its output has another shape, or the artefact leaves no trace in it.
    """
    models.check(model)
    direction, mean = artefact_direction(model, layer, artefact, clean)
    changed = models.deep_copy(model)
    usual = _outputs(model, layer, clean)
    size = len(direction)
    device = models.device_of(model)
    projector: nn.Conv2d | nn.Linear
    matrix = torch.eye(size) - torch.outer(direction, direction)
    bias = direction * (direction @ mean)
    if usual.dim() == 4:
        projector = nn.Conv2d(size, size, 1)
        matrix = matrix[:, :, None, None]
    else:
        projector = nn.Linear(size, size)
    with torch.no_grad():
        projector.weight.copy_(matrix)
        assert projector.bias is not None
        projector.bias.copy_(bias)
    part: nn.Module = projector
    if reactive:
        least = torch.quantile(_peaks(usual, direction, mean), 1 - _FALSE_ALARMS)
        part = _WherePresent(projector, direction, mean, least)
    parent, _, name = layer.rpartition(".")
    old = changed.get_submodule(layer)
    setattr(changed.get_submodule(parent), name, nn.Sequential(old, part.to(device)).eval())
    return changed


class _WherePresent(nn.Module):
    """Changes a layer's output on those images only that have an artefact."""

    direction: Tensor
    mean: Tensor
    least: Tensor

    def __init__(self, part: nn.Module, direction: Tensor, mean: Tensor, least: Tensor) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("direction", direction)
        self.register_buffer("mean", mean)
        self.register_buffer("least", least)

    def forward(self, x: Tensor) -> Tensor:
        """Return the changed output where the artefact is present, and the given one elsewhere."""
        with torch.no_grad():
            present = _peaks(x, self.direction, self.mean) > self.least
            gate = present.to(x).reshape(-1, *[1] * (x.dim() - 1))
        found: Tensor = self.part(x) * gate + x * (1 - gate)
        return found


def _peaks(outputs: Tensor, direction: Tensor, mean: Tensor) -> Tensor:
    """Return the largest component along a direction on each image, shape (N,)."""
    along = (outputs.detach().movedim(1, -1) - mean) @ direction
    return along.flatten(1).amax(1) if along.dim() > 1 else along


@undisturbed
def artefact_direction(
    model: nn.Module, layer: str, artefact: tuple[Tensor, NDArray[Any]], clean: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the direction of an artefact in a layer's channels, of length 1, and the clean mean.

    The direction is that of the difference of means: the activation pattern (Haufe et al. 2014) of
    a linear model that tells positions of the artefact from positions of clean images.

    Parameters
    ----------
    model, layer, artefact, clean
        As for `project_out`.
    """
    inputs, masks = artefact
    with_it = _outputs(model, layer, inputs)
    usual = _outputs(model, layer, clean)
    if with_it.dim() == 4:
        inside = nn.functional.adaptive_max_pool2d(
            torch.tensor(masks)[:, None].float(), with_it.shape[-2:]
        )
        on = with_it.movedim(1, -1)[inside[:, 0] > 0].mean(0)
        mean = usual.mean((0, 2, 3))
    elif with_it.dim() == 2:
        on, mean = with_it.mean(0), usual.mean(0)
    else:
        raise ModelError(f"{layer!r} returns {tuple(with_it.shape)}, not (N, C, H, W) or (N, C)")
    difference = on - mean
    length = difference.norm()
    if not length > 1e-8:
        raise ModelError(f"the artefact leaves no trace in {layer!r}; choose another layer")
    return difference / length, mean


def _outputs(model: nn.Module, layer: str, inputs: Tensor, batch_size: int = 128) -> Tensor:
    modules = dict(model.named_modules())
    if layer not in modules or layer == "":
        raise DataError(f"there is no layer {layer!r}; layers: {', '.join(list(modules)[1:20])}")
    kept: list[Tensor] = []
    handle = modules[layer].register_forward_hook(lambda _, __, out: kept.append(out.cpu()))
    try:
        with torch.no_grad():
            for part in torch.split(inputs, batch_size):
                model(part.clone())
    finally:
        handle.remove()
    return torch.cat(kept)
