"""The images that a network learned from, and how they look to it: statistics of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from niwaki import models
from niwaki.arrays import Array
from niwaki.auditing._explaining import groups_of, kept_batches, sample
from niwaki.auditing._material import Material
from niwaki.auditing._on_disk import blocks
from niwaki.criteria import hidden_layers
from niwaki.data import check_labels
from niwaki.errors import DataError, NothingToPruneError
from niwaki.ranges import SEED, SOME, checked
from niwaki.runs import Folder, digest, identified
from niwaki.stages import stage

_LAYERS = 8  # whose activations tell images apart, spread over the depth


@dataclass(frozen=True, eq=False)
class Training:
    """How the images that a network learned from look to it.

    Attributes
    ----------
    features : ndarray
        See `layer_statistics`, shape (N, features).
    labels : ndarray
        Shape (N,).
    right : ndarray
        Whether the network is right, shape (N,).
    layers : tuple of str
        The layers whose activations the features are.
    groups : ndarray
        The group of each image, such as its slide, shape (N,); numbered together with
        those of the audit's images.
    audited : ndarray
        The groups of the audit's images, in the same numbers.
    """

    features: Array
    labels: Array
    right: Array
    layers: tuple[str, ...]
    groups: Array
    audited: Array


@stage("explaining")
@checked(limit=SOME, seed=SEED)
def gather_training(
    material: Material,
    data: Dataset[Any],
    *,
    limit: int | None = 1000,
    seed: int = 0,
    folder: Folder = None,
) -> Training:
    """Look at a class-balanced sample of the images that a network learned from.

    Parameters
    ----------
    material : Material
        The audit's.
    data : Dataset
        A data set of pairs (input, label), prepared as the audit's images are; with ``groups``, if
        these have them, see `niwaki.data.Described`.
    limit : int, optional
        Largest number of images; None: all.
    seed : int
        Seed of the sample.
    folder : str or Path, optional
        Keeps finished batches; the same call resumes from there.

    Raises
    ------
    DataError
        Groups of one of both only; inputs of another size.
    """
    groups = groups_of(data)
    if (groups is not None) != material.grouped:
        raise DataError(
            "groups of the audited images and of the training images go together: images of a "
            "slide are alike, and those of another slide would seem unlike all of them for that "
            "alone; give both, or none"
        )
    chosen = sample(data, limit, seed)
    together = np.arange(len(chosen) + len(material))
    if groups is not None:
        together = np.unique(
            np.concatenate([groups[chosen], material.groups]), return_inverse=True
        )[1]
    layers = layers_of(material.model, material.inputs[:1].to(material.device))
    subset, size = Subset(data, chosen), material.batch_size

    def identity() -> dict[str, Any]:
        return {
            "layer statistics": layers,
            "model": identified(material.model),
            "training": digest(subset, ordered=True),
            "batch_size": size,
        }

    def look(batch: Tensor, truth: Tensor) -> dict[str, Tensor]:
        if batch.shape[1:] != material.inputs.shape[1:]:
            raise DataError(
                f"training images have the shape {tuple(batch.shape[1:])}, those audited "
                f"{tuple(material.inputs.shape[1:])}: prepare both in the same way"
            )
        check_labels(truth, material.outputs.shape[1], data)
        found, outputs = layer_statistics(material.model, batch, layers)
        return {
            "features": torch.from_numpy(found),
            "predicted": torch.from_numpy(outputs.argmax(1)),
        }

    place = models.home(material.model)
    found = kept_batches(
        subset, look, identity, folder, batch_size=size, place=place, description="training"
    )
    parts = list(found)
    known = torch.cat([part["labels"] for part in parts])
    count = len(chosen)
    return Training(
        torch.cat([part["features"] for part in parts]).numpy(),
        known.numpy(),
        (torch.cat([part["predicted"] for part in parts]) == known).numpy(),
        layers,
        together[:count],
        together[count:],
    )


def layer_statistics(
    model: nn.Module, inputs: Tensor, layers: Sequence[str]
) -> tuple[Array, Array]:
    """Describe images by the hidden layers of a network, not by its outputs.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. Never changed.
    inputs : Tensor
        Shape (N, C, H, W).
    layers : sequence of str
        See `layers_of`.

    Returns
    -------
    features : ndarray
        Mean and standard deviation over space of each of the layers' channels, shape
        (N, features); of the inputs, where there is no layer.
    outputs : ndarray
        Outputs of the network, shape (N, classes).
    """
    kept: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, output: Tensor) -> None:
        kept[name] = _summary(output if isinstance(module, nn.Linear) else output.movedim(1, -1))

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, _, output, name=name: keep(name, module, output)
        )
        for name in layers
    ]
    try:
        with torch.no_grad():
            outputs = model(inputs.clone())
    finally:
        for handle in handles:
            handle.remove()
    # A layer whose weight is used by a function, as in attention, is not called itself.
    parts = [kept[name] for name in layers if name in kept]
    features = torch.cat(parts or [_summary(inputs.movedim(1, -1))], 1)
    return features.numpy(), outputs.cpu().numpy()


def statistics_of(material: Material, layers: Sequence[str]) -> Array:
    """Return `layer_statistics` of an audit's images, shape (N, features)."""
    parts = [material.inputs[block] for block in blocks(len(material), material.batch_size)]
    return np.concatenate(
        [layer_statistics(material.model, part.to(material.device), layers)[0] for part in parts]
    )


def layers_of(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Return names of up to eight hidden layers, evenly over the depth."""
    try:
        layers = hidden_layers(model, example)
    except NothingToPruneError:
        return ()
    places = np.linspace(0, len(layers) - 1, min(_LAYERS, len(layers))).round().astype(int)
    return tuple(layers[place].name for place in places)


def _summary(channels_last: Tensor) -> Tensor:
    """Return mean and standard deviation over all but the first and last axis."""
    flat = (
        channels_last.flatten(1, -2).double() if channels_last.dim() > 2 else channels_last[:, None]
    )
    parts = [flat.mean(1), flat.std(1)] if flat.shape[1] > 1 else [flat.mean(1)]
    return torch.cat(parts, 1).float().cpu()
