"""Pictures of single filters: their patches, cropped to what they see, and their heatmaps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki.attribution import Propagating
from niwaki.contexts import undisturbed
from niwaki.data import Data, Preprocessing
from niwaki.filters._feature_visualisation import feature_visualisation
from niwaki.filters._gather import relevance_method
from niwaki.filters._partial_pass import Places, reach
from niwaki.filters._profile import LayerProfile
from niwaki.filters._strongest import Strongest, images_at, known_preprocessing
from niwaki.models import device_of
from niwaki.ranges import INDEX, PATCHES, SEED, SIDE, STEPS, checked
from niwaki.runs import Run, each_once


@dataclass(frozen=True, eq=False)
class Patches:
    """The strongest patches of a filter.

    Attributes
    ----------
    pixels : Tensor
        From 0 to 1, NaN outside the image; shape (count, C, height, width).
    heatmaps : Tensor
        Where the filter's activation at this place comes from: its value sent back to the
        pixels by the rules of relevance, NaN outside; (count, height, width).
    values : Tensor
        How strong the filter is on each; shape (count,).
    images : Tensor
        Number of each image in the data.
    """

    pixels: Tensor
    heatmaps: Tensor
    values: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class FilterPictures:
    """All pictures of a filter.

    Attributes
    ----------
    by_activation, by_relevance : Patches
        The strongest, fewer than asked for where the filter is active on fewer images.
    visualisation : Tensor or None
        What activates it most, see `feature_visualisation`; shape (C, height, width).
    weights : Tensor or None
        For a first layer: the filter's own weights, shape (C, height, width).
    """

    by_activation: Patches
    by_relevance: Patches
    visualisation: Tensor | None
    weights: Tensor | None


@undisturbed
@checked(filters=INDEX, count=PATCHES, largest=SIDE, steps=STEPS.but(low=0), seed=SEED)
def pictures(
    model: nn.Module,
    data: Data,
    layer: LayerProfile,
    *,
    filters: Sequence[int] | None = None,
    count: int = 8,
    largest: int = 64,
    heatmaps: bool = True,
    steps: int = 48,
    method: str | Propagating = "lrp.epsilon_plus",
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    description: str | None = None,
) -> Iterator[FilterPictures]:
    """Make the pictures of a layer's filters, one filter after another.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    data : DataLoader, Dataset or pair of tensors
        What the profile was computed on.
    layer : LayerProfile
        One of the profile's.
    filters : sequence of int, optional
        Which; default: all of the layer.
    count : int
        Patches of each kind.
    largest : int
        Side in pixels above which patches and heatmaps are scaled down.
    heatmaps : bool
        Whether to compute the heatmap of each patch, of this filter alone. Without it, heatmaps are
        NaN.
    steps : int
        Steps of activation maximisation; 0 leaves it out.
    method : str or Propagating
        Its rules send the heatmaps back.
    preprocessing : Preprocessing, optional
        How pixels became inputs; default: what the data know of it. Where nothing is known, patches
        are stretched to their own range, and nothing is visualisation.
    seed : int
        Seed of activation maximisation.
    description : str, optional
        Title of the progress bar of maximisation; none if not given.

    Yields
    ------
    FilterPictures
        In the order of the filters.

    Raises
    ------
    DataError
        For a loader that does not go through its data in order.
    """
    known = preprocessing or known_preprocessing(data)
    explainer = relevance_method(model, method) if heatmaps else None
    visualised: Tensor | None = None
    units = range(len(layer)) if filters is None else filters
    if steps and known is not None:
        visualised = feature_visualisation(
            model, layer.name, known, filters=units, steps=steps, seed=seed, description=description
        )
        visualised = _shrunk(visualised, largest)
    look = _Look(model, data, layer, explainer, known, largest)
    for place, unit in enumerate(units):
        activation, relevance = look.patches(
            unit, layer.by_activation.first(count), layer.by_relevance.first(count)
        )
        yield FilterPictures(
            activation,
            relevance,
            None if visualised is None else visualised[place],
            None if layer.weights is None else layer.weights[unit],
        )


@dataclass(frozen=True)
class _Look:
    """A second look at the images of the strongest patches."""

    model: nn.Module
    data: Data
    layer: LayerProfile
    explainer: Propagating | None
    preprocessing: Preprocessing | None
    largest: int

    def patches(self, unit: int, *kinds: Strongest) -> list[Patches]:
        """Crop the patches of a unit, and their heatmaps, out of the images."""
        found = []
        numbers = sorted({n for kind in kinds for n in kind.images[unit].tolist() if n >= 0})
        if not numbers:
            return [_none(kind) for kind in kinds]
        inputs, _ = images_at(self.data, numbers)
        pixels = _to_pixels(inputs, self.preprocessing)
        for kind in kinds:
            some = kind.images[unit] >= 0
            rows = [numbers.index(n) for n in kind.images[unit][some].tolist()]
            positions = kind.positions[unit][some]
            if not rows:
                found.append(_none(kind))
                continue
            places = [self.layer.field.at(position) for position in positions.tolist()]
            heat = self._heatmaps(unit, inputs[rows], positions)
            found.append(
                Patches(
                    self._cut(pixels[rows], places),
                    self._cut(heat, places).squeeze(1),
                    kind.values[unit][some],
                    kind.images[unit][some],
                )
            )
        return found

    def _cut(self, images: Tensor, places: list[tuple[int, int, int, int]]) -> Tensor:
        """Crop one patch out of each image, all as large as the layer's largest field."""
        size = self.layer.field.size
        patches = [
            _padded(crop(image, place), place, size, image.shape[1:])
            for image, place in zip(images, places, strict=True)
        ]
        return _shrunk(torch.stack(patches), self.largest)

    def _heatmaps(self, unit: int, inputs: Tensor, positions: Tensor) -> Tensor:
        """Send the unit's output at one position back, summed over colours; (N, 1, H, W)."""
        if self.explainer is None:
            return torch.full_like(inputs[:, :1], torch.nan)
        device = device_of(self.model)
        name = self.layer.name
        signal = inputs.to(device).requires_grad_()
        observer = Places(name, torch.full_like(positions, unit), positions)
        reach(self.model, signal, [name], [observer], self.explainer.composite)
        values = observer.taken()
        (heat,) = torch.autograd.grad(values, signal, values.detach())
        return heat.sum(1, keepdim=True).cpu()


def crop(image: Tensor, place: tuple[int, int, int, int]) -> Tensor:
    """Cut top, bottom, left and right out of an image; NaN where that lies outside it.

    Parameters
    ----------
    image : Tensor
        Shape (C, H, W).
    place : tuple of int
        Top, bottom (exclusive), left, right (exclusive); may lie outside.
    """
    top, bottom, left, right = place
    patch = image.new_full((len(image), bottom - top, right - left), torch.nan)
    height, width = image.shape[1:]
    inside = image[:, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    row, column = max(-top, 0), max(-left, 0)
    patch[:, row : row + inside.shape[1], column : column + inside.shape[2]] = inside
    return patch


def _padded(
    patch: Tensor, place: tuple[int, int, int, int], size: tuple[int, int], image: Sequence[int]
) -> Tensor:
    """Lengthen a patch by NaN on the side of the nearer border.

    A position there may see less than others, where a pooling window reaches beyond the image.
    """
    top, bottom, left, right = place
    missing = size[0] - (bottom - top), size[1] - (right - left)
    above = missing[0] if top < image[0] - bottom else 0
    before = missing[1] if left < image[1] - right else 0
    sides = (before, missing[1] - before, above, missing[0] - above)
    return F.pad(patch, sides, value=torch.nan)


def _shrunk(patches: Tensor, largest: int) -> Tensor:
    """Scale patches of shape (N, C, H, W) down to a largest side; NaN counts as not there."""
    height, width = patches.shape[2:]
    if max(height, width) <= largest:
        return patches
    scale = largest / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    there = (~patches.isnan()).to(patches)
    weight = F.interpolate(there, size=size, mode="area")
    sums = F.interpolate(patches.nan_to_num(0), size=size, mode="area")
    return torch.where(weight >= 0.5, sums / weight, torch.nan)


def _to_pixels(inputs: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    if preprocessing is not None:
        return preprocessing.denormalise(inputs)
    low, high = inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True)
    return (inputs - low) / (high - low).clamp_min(1e-12)


def _none(kind: Strongest) -> Patches:
    nothing = torch.empty(0)
    return Patches(nothing, nothing, kind.values[0, :0], kind.images[0, :0])


_TOGETHER = 16  # filters in a part: few enough for the memory, many enough for the disk
_PATCHES = ("pixels", "heatmaps", "values", "images")
Make = Callable[[LayerProfile, Sequence[int]], Iterable[FilterPictures]]


def parts_of(layer: LayerProfile) -> list[range]:
    """Divide the filters of a layer into parts that are drawn, and kept, together."""
    return [range(len(layer))[i : i + _TOGETHER] for i in range(0, len(layer), _TOGETHER)]


def draw_pictures(
    kept: Run,
    parts: Sequence[tuple[LayerProfile, range]],
    make: Make,
    description: str | None = None,
) -> None:
    """Make and keep the pictures of parts of layers that are not finished; see `kept_pictures`.

    Processes that work together take turns with the parts, and all get all pictures.

    Parameters
    ----------
    kept, make
        As for `kept_pictures`.
    parts : sequence of pair of LayerProfile and range
        Layers with some of their filters, of `parts_of`.
    description : str, optional
        Title of a progress bar; none if not given.
    """

    def compute(place: int) -> dict[str, Tensor]:
        return _tensors(list(make(*parts[place])))

    names = [_name(layer, units) for layer, units in parts]
    deque(each_once(kept, names, compute, description), maxlen=0)


def kept_pictures(
    kept: Run, layer: LayerProfile, make: Make, parts: Sequence[range] | None = None
) -> Iterator[FilterPictures]:
    """Yield the pictures of a layer's filters: read those that are finished, make and keep others.

    Processes that work together take turns with a few filters each, and all get all pictures.

    Parameters
    ----------
    kept : Run
        A run of the same network, data and options.
    layer : LayerProfile
        One of the profile's.
    make : callable
        From the layer and the numbers of some of its filters to their pictures, in order.
    parts : sequence of range, optional
        Some of its `parts_of`; default: all.
    """
    units = parts_of(layer) if parts is None else parts

    def compute(place: int) -> dict[str, Tensor]:
        return _tensors(list(make(layer, units[place])))

    names = [_name(layer, some) for some in units]
    for some, tensors in zip(units, each_once(kept, names, compute), strict=True):
        yield from _read(tensors, len(some))


def _name(layer: LayerProfile, units: range) -> str:
    return f"{layer.name}/{units.start}"


def _tensors(filters: list[FilterPictures]) -> dict[str, Tensor]:
    found: dict[str, Tensor | None] = {}
    for place, shown in enumerate(filters):
        found |= {f"{place}/visualisation": shown.visualisation, f"{place}/weights": shown.weights}
        for kind in ("by_activation", "by_relevance"):
            patches = getattr(shown, kind)
            found |= {f"{place}/{kind}/{what}": getattr(patches, what) for what in _PATCHES}
    return {name: value for name, value in found.items() if value is not None}


def _read(tensors: dict[str, Tensor], count: int) -> Iterator[FilterPictures]:
    for place in range(count):
        by_activation, by_relevance = (
            Patches(*(tensors[f"{place}/{kind}/{what}"] for what in _PATCHES))
            for kind in ("by_activation", "by_relevance")
        )
        visualisation, weights = (
            tensors.get(f"{place}/{what}") for what in ("visualisation", "weights")
        )
        yield FilterPictures(by_activation, by_relevance, visualisation, weights)
