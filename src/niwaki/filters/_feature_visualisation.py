"""Feature visualisation by activation maximisation: the picture that activates a filter most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.contexts import undisturbed
from niwaki.data import Preprocessing
from niwaki.errors import DataError, PropagationError
from niwaki.filters._fields import Field, receptive_fields
from niwaki.filters._partial_pass import Places, Responses, reach
from niwaki.filters._strongest import to_inputs
from niwaki.progress import track
from niwaki.ranges import BATCH, INDEX, SEED, SIDE, STEPS, checked

_RATE = 0.05  # Adam's, in units of the spectrum
_FALL = 1.5  # power of the frequency by which coefficients are weighted down
_START = 0.01  # standard deviation of the spectrum at the start


@undisturbed
@checked(filters=INDEX, steps=STEPS, jitter=SIDE.but(low=0), batch_size=BATCH, seed=SEED)
def feature_visualisation(
    model: nn.Module,
    layer: str,
    preprocessing: Preprocessing,
    *,
    filters: Sequence[int] | None = None,
    steps: int = 48,
    jitter: int = 2,
    batch_size: int = 64,
    seed: int = 0,
    description: str | None = None,
) -> Tensor:
    """Visualise filters of a layer: the content of their receptive field that activates them most.

    Gradient ascent (Adam) on the filter's output at one position, before its activation, on the
    Fourier coefficients of the picture, weighted by one over the frequency to the power of 1.5 (one
    over the frequency in Olah et al. 2017, which leaves deep layers noisy): so that smooth pictures
    come before noise. All pictures have the same contrast. In each step the
    picture is shifted at random. The forward pass ends at the layer, and the picture is only as
    large as its field asks for, where the network lets it be smaller than its usual input.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    layer : str
        A convolution or linear layer.
    preprocessing : Preprocessing
        How pixels become inputs.
    filters : sequence of int, optional
        Which; default: all of the layer.
    steps : int
        Steps of gradient ascent.
    jitter : int
        Largest shift, in pixels, to each side; no more than an eighth of the field, so that it
        blurs no detail that the filter looks for.
    batch_size : int
        Filters that are visualised side by side.
    seed : int
        Seed of the start and the shifts. What a filter gets does not depend on the others.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    Tensor
        Pixels from 0 to 1, shape (filters, C, height and width of the field).

    Raises
    ------
    ValueError
        For options out of range.
    DataError
        For a layer or filter that does not exist.
    """
    models.check(model)
    device = models.device_of(model)
    stage = _Stage.find(model, layer, preprocessing, jitter)
    if filters is None:
        filters = range(stage.units)
    if wrong := [unit for unit in filters if not 0 <= unit < stage.units]:
        raise DataError(f"{layer!r} has no filter {wrong[0]}; it has {stage.units}")
    chosen = [list(filters[i : i + batch_size]) for i in range(0, len(filters), batch_size)]
    visualised = []
    for units in track(chosen, description or "", show=None if description else False):
        visualised.append(
            stage.visualise(model, torch.tensor(units, device=device), steps, jitter, seed).cpu()
        )
    return torch.cat(visualised)


class _Stage:
    """How large the picture is, and which position of the layer looks at it."""

    def __init__(
        self, layer: str, units: int, side: int, field: Field, preprocessing: Preprocessing
    ) -> None:
        self.layer, self.units, self.side = layer, units, side
        self.preprocessing = preprocessing
        self.position = _central(field, side)
        self.box = _box(field.at(self.position), side)

    @classmethod
    def find(
        cls, model: nn.Module, layer: str, preprocessing: Preprocessing, jitter: int
    ) -> _Stage:
        size, channels = preprocessing.size, preprocessing.channels
        small = _small(model, layer, preprocessing, jitter)
        for side in (small, size) if small < size else (size,):
            try:
                field = receptive_fields(model, (channels, side, side), [layer])[layer]
                return cls(layer, _units(model, layer, channels, side), side, field, preprocessing)
            except (DataError, PropagationError):
                raise
            except RuntimeError:  # the network takes no smaller inputs
                if side == size:
                    raise
        raise AssertionError

    def visualise(
        self, model: nn.Module, units: Tensor, steps: int, jitter: int, seed: int
    ) -> Tensor:
        """Maximise the activations of some units, each in a picture of its own."""
        spectrum = torch.stack([self._start(int(unit), seed) for unit in units])
        spectrum = spectrum.to(units.device).requires_grad_()
        scale = _smooth(self.side).to(units.device)
        optimiser = torch.optim.Adam([spectrum], lr=_RATE)
        generator = torch.Generator().manual_seed(seed)
        jitter = min(jitter, max(self.box[1] - self.box[0], self.box[3] - self.box[2]) // 8)
        for _ in range(steps):
            shift = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
            with torch.enable_grad():
                pixels = _pixels(spectrum, scale, self.side, self.box)
                moved = torch.roll(pixels, shift, (2, 3))
                observer = Places(self.layer, units, torch.full_like(units, self.position))
                reach(model, to_inputs(moved, self.preprocessing), [self.layer], [observer])
                # Each picture has its own spectrum, so that the sum climbs for each alone.
                (spectrum.grad,) = torch.autograd.grad(-observer.taken().sum(), spectrum)
            optimiser.step()
        top, bottom, left, right = self.box
        visualised = _pixels(spectrum.detach(), scale, self.side, self.box)
        return visualised[:, :, top:bottom, left:right]

    def _start(self, unit: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + unit)
        shape = (self.preprocessing.channels, self.side, self.side // 2 + 1, 2)
        return torch.randn(shape, generator=generator, dtype=torch.float32) * _START


def _smooth(side: int) -> Tensor:
    """Weight of each Fourier coefficient, the smaller the higher its frequency."""
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    radius = (rows.square() + columns.square()).sqrt()
    scale: Tensor = (radius.clamp_min(1 / side) * side).pow(-_FALL)
    return scale


def _pixels(spectrum: Tensor, scale: Tensor, side: int, box: tuple[int, int, int, int]) -> Tensor:
    """Turn coefficients into pixels from 0 to 1, of one contrast within the box.

    Otherwise the activation, which grows with the contrast, would drive all pixels to 0 or 1.
    """
    coefficients = torch.view_as_complex(spectrum) * scale
    waves = torch.fft.irfft2(coefficients, s=(side, side), norm="ortho")
    top, bottom, left, right = box
    seen = waves[:, :, top:bottom, left:right].flatten(1)
    size = seen.square().mean(1).sqrt().clamp_min(1e-12)
    pixels: Tensor = torch.sigmoid(waves / size[:, None, None, None])
    return pixels


def _small(model: nn.Module, layer: str, preprocessing: Preprocessing, jitter: int) -> int:
    """Side of a picture that holds the whole field of one position, with room around it."""
    size = preprocessing.size
    if size <= 2 * _WORTH:
        return size
    # A first guess is enough to see the field, which is then known in full.
    try:
        guess = receptive_fields(model, (preprocessing.channels, _WORTH, _WORTH), [layer])[layer]
    except RuntimeError:
        return size
    room = max(guess.size) + 2 * max(*guess.stride, jitter)
    return min(size, room) if max(guess.size) < _WORTH else size


_WORTH = 64  # pixels; smaller inputs are not worth the search


def _units(model: nn.Module, layer: str, channels: int, side: int) -> int:
    parameter = next(iter(model.parameters()))
    inputs = torch.zeros(1, channels, side, side, device=parameter.device, dtype=parameter.dtype)
    responses = Responses([layer])
    reach(model, inputs.requires_grad_(), [layer], [responses])
    return responses.activations[layer].shape[1]


def _central(field: Field, side: int) -> int:
    """Choose the position whose field lies whole in the picture, nearest to its middle."""

    def nearest(spans: tuple[tuple[int, int], ...]) -> int:
        def badness(index: int) -> tuple[int, float]:
            start, stop = spans[index]
            return max(0, -start) + max(0, stop - side), abs((start + stop) / 2 - side / 2)

        return min(range(len(spans)), key=badness)

    return nearest(field.rows) * len(field.columns) + nearest(field.columns)


def _box(place: tuple[int, int, int, int], side: int) -> tuple[int, int, int, int]:
    top, bottom, left, right = (min(max(edge, 0), side) for edge in place)
    return top, bottom, left, right
