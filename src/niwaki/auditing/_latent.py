"""Inside the network: how active each channel is on an image, and how much relevance it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.arrays import Array
from niwaki.auditing._material import Material
from niwaki.auditing._on_disk import blocks
from niwaki.criteria import Scores, hidden_layers
from niwaki.errors import LostRelevanceError, ModelError, NothingToPruneError
from niwaki.propagation import Operation, epsilon_plus, propagate, unit_dimension
from niwaki.ranges import FEW, checked

_LAYERS = 4  # spread over the depth, the last one among them
_MOST_LOST = 0.9  # of the relevance of most images: what is left says nothing of their answers


@dataclass(frozen=True, eq=False)
class Latent:
    """The channels of some layers on images.

    Attributes
    ----------
    layers : tuple of str
        In the order of the network.
    activity : dict of str to ndarray
        Mean output of each channel, behind its norm and activation, shape (N, channels).
    peak : dict of str to ndarray
        The largest output of each channel over space, of the same shape: a small thing shows there.
    relevance : dict of str to ndarray
        Relevance of each channel for the predicted class, as a share of the layer's
        absolute relevance, shape (N, channels).
    outputs : ndarray
        Outputs of the network, shape (N, classes).
    lost : ndarray
        The share of each image's relevance that got lost on its way, shape (N,).
    """

    layers: tuple[str, ...]
    activity: dict[str, Array]
    peak: dict[str, Array]
    relevance: dict[str, Array]
    outputs: Array
    lost: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def embedding(self) -> Array:
        """The activity of the last layer, on which the network decides."""
        return self.activity[self.layers[-1]]


def latent_of(material: Material) -> Latent:
    """Look at the channels of up to four layers on all images of an audit.

    Raises
    ------
    ModelError
        The network has no hidden layers.
    LostRelevanceError
        Nearly all relevance of most images is lost on the way.
    """
    try:
        dimension = channels_of(material.model, material.inputs[:1].to(material.device))
    except NothingToPruneError as error:
        raise ModelError(
            "this network has no hidden layers, which show where its predictions come from; leave "
            "out what is said of centres, and the question 'centre'"
        ) from error
    parts = [
        look_inside(material.model, material.inputs[block].to(material.device), dimension)
        for block in blocks(len(material), material.batch_size)
    ]
    return joined(parts)


def channels_of(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Return up to four hidden layers, evenly over the depth, and the dimension of channels."""
    layers = hidden_layers(model, example)
    places = np.linspace(0, len(layers) - 1, min(_LAYERS, len(layers))).round().astype(int)
    chosen = [layers[place] for place in places]
    return {layer.name: unit_dimension(layer.operation) for layer in chosen}


def look_inside(model: nn.Module, inputs: Tensor, dimension: dict[str, int]) -> Latent:
    """Look at the channels of layers on a batch, by LRP (epsilon, z+ in convolutions).

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, with an output for each class.
    inputs : Tensor
        Shape (N, ...), where the model is.
    dimension : dict of str to int
        See `channels_of`.
    """
    seen = _PerChannel(dimension)

    def begin(output: Tensor) -> Tensor:
        return nn.functional.one_hot(output.argmax(1), output.shape[1]).to(output)

    found = propagate(model, inputs, epsilon_plus(), begin, [seen], to_input=False, max_loss=None)
    layers = tuple(name for name in dimension if name in seen.carried)
    return Latent(
        layers,
        {name: seen.active[name].numpy() for name in layers},
        {name: seen.peak[name].numpy() for name in layers},
        {name: seen.carried[name].numpy() for name in layers},
        found.output.double().cpu().numpy(),
        found.lost.double().cpu().numpy(),
    )


def joined(parts: Sequence[Latent]) -> Latent:
    """Return several batches as one.

    Raises
    ------
    LostRelevanceError
        Nearly all relevance of most images is lost on the way. Single images may lose it, as
        where the output is nearly zero.
    """
    layers = parts[0].layers
    lost = np.concatenate([part.lost for part in parts])
    usual = float(np.median(lost)) if len(lost) else 0.0
    if usual > _MOST_LOST:
        raise LostRelevanceError(
            f"{usual:.0%} of the relevance of most images is lost inside this network, so its "
            "channels do not show where the predictions come from; niwaki compare shows which "
            "methods lose less, and questions that need no look inside can be chosen by name",
            usual,
        )
    return Latent(
        layers,
        {name: np.concatenate([part.activity[name] for part in parts]) for name in layers},
        {name: np.concatenate([part.peak[name] for part in parts]) for name in layers},
        {name: np.concatenate([part.relevance[name] for part in parts]) for name in layers},
        np.concatenate([part.outputs for part in parts]),
        lost,
    )


class _PerChannel:
    """An observer that keeps one number for each image and channel of some layers."""

    def __init__(self, dimension: dict[str, int]) -> None:
        self._dimension = dimension
        self.active: dict[str, Tensor] = {}
        self.peak: dict[str, Tensor] = {}
        self.carried: dict[str, Tensor] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Keep the mean; that behind a norm comes later and takes its place."""
        name = operation.layer
        if name in self._dimension:
            others, values = self._others(name, output), output.detach().double()
            self.active[name] = (values.mean(others) if others else values).cpu()
            self.peak[name] = (values.amax(others) if others else values).cpu()

    def activation(self, operation: Operation, output: Tensor) -> None:
        """Keep the mean behind the activation in its place."""
        self.output(operation, output)

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Keep the sum, as a share of the layer's absolute relevance."""
        name = operation.layer
        if name in self._dimension:
            others, values = self._others(name, relevance), relevance.detach().double()
            size = values.abs().flatten(1).sum(1, keepdim=True).clamp_min(1e-12)
            share = ((values.sum(others) if others else values) / size).cpu()
            self.carried[name] = share + self.carried.get(name, torch.zeros(()))

    def _others(self, name: str, values: Tensor) -> list[int]:
        channel = self._dimension[name] % values.dim()
        return [d for d in range(1, values.dim()) if d != channel]


@checked(neighbours=FEW)
def odd_filters(latent: Latent, neighbours: int = 3) -> Scores:
    """Say how unlike the other units of its layer each unit is, by the images that it serves.

    After DORA (Bykov et al. 2023, "DORA: Exploring outlier representations in deep neural
    networks"): units are compared by the cosine of their outputs on the same images, and units far
    from all others often stand for artefacts. Here it is the cosine of their relevances.

    Parameters
    ----------
    latent : Latent
        The latent relevance of the images.
    neighbours : int
        The mean distance to so many nearest units counts.

    Returns
    -------
    Scores
        By layer, shape (units,): the distance, less the layer's median, in units of its median
        absolute deviation. `prune_artefact` takes it as its order. Units without relevance get the
        lowest score: nothing depends on them.
    """
    scores = {}
    for layer in latent.layers:
        relevance = latent.relevance[layer].T
        length = np.linalg.norm(relevance, axis=1, keepdims=True)
        alive = length[:, 0] > 1e-9
        distance = _distances(relevance[alive] / length[alive], neighbours)
        values = np.full(len(relevance), -np.inf)
        values[alive] = distance
        known = values[alive]
        if len(known):
            off = known - np.median(known)
            values[alive] = off / max(float(np.median(np.abs(off))), 1e-9)
        values[~alive] = values[alive].min() if alive.any() else 0.0
        scores[layer] = torch.from_numpy(values)
    count = len(latent.outputs)
    return Scores(scores, "oddness of filters", count, "")


def _distances(unit: Array, neighbours: int) -> Array:
    """Return the mean cosine distance of each row to the nearest others, shape (n,)."""
    if len(unit) < 2:
        return np.zeros(len(unit))
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    count = min(neighbours, len(unit) - 1)
    found: Array = np.sort(distance, axis=1)[:, :count].mean(1)
    return found
