"""A network that looks at tiles: what it predicts for each, and which pixels are the reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from niwaki import models
from niwaki.attribution import Propagating, create
from niwaki.data import Preprocessing
from niwaki.errors import DataError
from niwaki.propagation import per_class
from niwaki.slides._grid import Grid, Reach, reach_of

__all__ = ["Network", "upsampled"]


class Network:
    """A network with the classes and the methods for which a slide is mapped.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning (N, classes), or a map of them, (N, classes, height, width).
    preprocessing : Preprocessing
        Its mean, deviation and channels; tiles are read at their size, never resized.
    classes : sequence of int
        The outputs that are mapped.
    methods : sequence of str
        Each one of `niwaki.attribution.names`.

    Attributes
    ----------
    maps : bool
        Whether it returns a map.
    outputs : int
        How many classes it has.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        classes: Sequence[int],
        methods: Sequence[str],
    ) -> None:
        self._place = models.home(model)
        self._preprocessing = preprocessing
        side = preprocessing.size
        example = self._inputs(torch.zeros(2, side, side, preprocessing.channels).byte())
        said = models.respond(model, example)
        self.maps = said.dim() == 4
        if not self.maps:
            model = per_class(model, example)
            said = models.class_outputs(model, example, "a map of a slide")
        self.outputs = max(2, said.shape[1])
        if wrong := [number for number in classes if not 0 <= number < said.shape[1]]:
            raise DataError(
                f"the network has {said.shape[1]} outputs, numbered from 0: there is no class "
                f"{wrong[0]}"
            )
        self.model = model
        self.classes = tuple(classes)
        self.methods = {name: create(name, model) for name in methods}

    def reach(self) -> Reach | None:
        """Return how far an output of the map looks; None for a network without a map."""
        if not self.maps:
            return None
        side, channels = self._preprocessing.size, self._preprocessing.channels
        for _ in range(3):
            found = reach_of(self.model, channels, side)
            if found is not None:
                return found
            side *= 2
        return None

    def look(self, pixels: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Run the network on tiles, and explain it.

        Parameters
        ----------
        pixels : Tensor
            Shape (N, side, side, channels), uint8.
        grid : Grid
            Which of the pixels are kept.

        Returns
        -------
        dict of str to Tensor
            "probabilities": (N, all classes). "map": (N, classes, positions, positions), of a
            network that returns one, where tiles are cut. "relevance METHOD": (N, classes,
            core, core). "lost METHOD": (N,), the share of a tile's relevance that was lost on the
            way, where that is more than the method may lose.
        """
        inputs = self._inputs(pixels)
        said = models.respond(self.model, inputs)
        chances = torch.softmax(said, 1) if said.shape[1] > 1 else torch.sigmoid(said)
        found = {}
        if self.maps:
            if grid.stride:
                found["map"] = chances[:, list(self.classes)].cpu()
            inside = _kept(grid, said.shape[-1])
            chances = chances[..., inside, :][..., inside].mean((2, 3))
        found["probabilities"] = chances.cpu()
        kept = slice(grid.margin, grid.side - grid.margin)
        for name in self.methods:
            maps, lost = self._relevance(name, inputs)
            maps = maps.sum(2)
            if lost is not None:
                found[f"lost {name}"] = lost.cpu()
            found[f"relevance {name}"] = maps[..., kept, kept].transpose(0, 1).contiguous().cpu()
        return found

    def _relevance(self, name: str, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the relevance for each class, shape (classes, N, channels, side, side).

        Among many tiles a few have an output of almost nothing, of which stabilizers take a share
        that would be an error for a single heatmap. Here it is told.
        """
        method = self.methods[name]
        if isinstance(method, Propagating):
            found, lost = method.attribute_with_loss(inputs, list(self.classes))
            limit = method.max_loss
            told = None if limit is None else torch.where(lost > limit, lost, 0)
            return found.detach(), told
        return torch.stack([method.attribute(inputs, one).detach() for one in self.classes]), None

    def _inputs(self, pixels: Tensor) -> Tensor:
        known = self._preprocessing
        scaled = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
        mean = torch.tensor(known.mean)[:, None, None]
        std = torch.tensor(known.std)[:, None, None]
        inputs = (scaled - mean) / std
        return inputs if self._place is None else inputs.to(self._place)


def upsampled(chances: Tensor, grid: Grid) -> NDArray[np.float32]:
    """Return a map of positions, shape (n, n), as the pixels of a tile's core.

    The positions of a network without padding are fewer: their pixels lie around the centre.
    """
    before = (grid.side - chances.shape[-1] * grid.stride) // 2
    pixels = chances.numpy().repeat(grid.stride, 0).repeat(grid.stride, 1)
    kept = slice(grid.margin - before, grid.margin - before + grid.core)
    return np.ascontiguousarray(pixels[kept, kept], dtype=np.float32)


def _kept(grid: Grid, count: int) -> slice:
    """Return the positions of a map whose pixels are kept."""
    if not grid.stride:
        return slice(None)
    before = (grid.side - count * grid.stride) // 2
    first = -(-(grid.margin - before) // grid.stride)
    return slice(first, first + max(1, grid.core // grid.stride))
