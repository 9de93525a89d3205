"""Features moved from one centre to another: a layer's channels get what the other centre has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.arrays import Array
from niwaki.auditing._material import Material
from niwaki.auditing._on_disk import blocks
from niwaki.auditing._signature import FEWEST


def layer_means(material: Material, layer: str) -> Array | None:
    """Return the mean output of each channel of a layer, shape (N, channels).

    None where the layer is not called as a module, or returns no channels.
    """
    found: list[Array] = []

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and (output.dim() in (2, 4)):
            flat = output.flatten(2).mean(2) if output.dim() == 4 else output
            found.append(flat.double().cpu().numpy())

    handle = material.model.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.no_grad():
            for block in blocks(len(material), material.batch_size):
                material.model(material.inputs[block].to(material.device, copy=True))
    finally:
        handle.remove()
    means = np.concatenate(found) if found else np.zeros((0, 0))
    return means if len(means) == len(material) else None


def outputs_moved(material: Material, layer: str, steps: Array) -> Array:
    """Return the outputs if a layer's channels are moved everywhere on an image.

    Parameters
    ----------
    material : Material
        The images.
    layer : str
        Name of a module that returns shape (N, C, H, W) or (N, C).
    steps : ndarray
        For each image, shape (N, C).
    """

    def move(output: Tensor, block: Array) -> Tensor:
        step = torch.from_numpy(steps[block]).to(output)
        return output + (step[:, :, None, None] if output.dim() == 4 else step)

    return outputs_changed(material, layer, move)


def outputs_changed(
    material: Material, layer: str, change: Callable[[Tensor, Array], Tensor]
) -> Array:
    """Return the outputs for all images if the output of a layer is changed.

    Parameters
    ----------
    material : Material
        The images.
    layer : str
        Name of a module.
    change : callable
        From its output on a batch, and the positions of the batch's images, to another output.
    """
    outputs = []
    current = np.zeros(0, int)
    handle = material.model.get_submodule(layer).register_forward_hook(
        lambda module, _, output: change(output, current)
    )
    try:
        with torch.no_grad():
            for block in blocks(np.arange(len(material)), material.batch_size):
                current = block
                shown = material.inputs[torch.as_tensor(block)].to(material.device, copy=True)
                outputs.append(material.model(shown).cpu())
    finally:
        handle.remove()
    found: Array = torch.cat(outputs).double().numpy()
    return found


def step_between(means: Array, labels: Array, source: Array, target: Array) -> Array | None:
    """Return what lies between two centres' channels, mean over the classes that both have.

    Parameters
    ----------
    means : ndarray
        See `layer_means`.
    labels : ndarray
        Shape (N,).
    source, target : ndarray
        The images of either centre, shape (N,), bool.
    """
    parts, weights = [], []
    for label in np.unique(labels):
        have, want = (group & (labels == label) for group in (source, target))
        if min(have.sum(), want.sum()) >= FEWEST:
            parts.append(means[want].mean(0) - means[have].mean(0))
            weights.append(1 / (1 / have.sum() + 1 / want.sum()))
    return np.average(parts, axis=0, weights=weights) if parts else None


def random_step(within: Array, length: float, rng: np.random.Generator) -> Array:
    """Return a step of a length in a random direction, as images of one class and centre differ.

    Parameters
    ----------
    within : ndarray
        What each image differs by from the mean of its class and centre, shape (N, C).
    length : float
        Length of the step.
    rng : numpy.random.Generator
        Draws the direction.
    """
    direction: Array = rng.normal(size=len(within)) @ within
    size = float(np.linalg.norm(direction))
    return direction * (length / size) if size > 0 else direction
