"""Does a heatmap depend on what the network has learnt? Randomise it and see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from niwaki.attribution import ClassChoice, Method
from niwaki.contexts import undisturbed
from niwaki.data import Data, OnDisk
from niwaki.errors import ModelError
from niwaki.evaluation._curves import Estimate, estimate
from niwaki.evaluation._explainers import (
    Methods,
    factories,
    tolerant,
    with_classes,
)
from niwaki.models import deep_copy
from niwaki.processes import agreed, gathered, is_mine
from niwaki.progress import bar
from niwaki.ranges import BATCH, SEED, SOME, checked
from niwaki.stages import stage

_WINDOW = 7  # of scikit-image


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of maps, shape (N,); 0 where a map is constant.

    Parameters
    ----------
    first, second : Tensor
        Shape (N, ...).
    """
    a, b = (_mean_ranks(maps.flatten(1)) for maps in (first, second))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    product = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(product > 0, (a * b).sum(1) / product.clamp_min(1e-12), 0.0)


def structural_similarity(first: Tensor, second: Tensor) -> Tensor | None:
    """SSIM of each pair of maps, shape (N,), or None without scikit-image.

    Each map is divided by its largest absolute value (Adebayo et al. 2018).

    Parameters
    ----------
    first, second : Tensor
        Shape (N, H, W); None is returned also for maps of less than 3 pixels.
    """
    side = min(_WINDOW, *first.shape[1:])
    window = side - (side + 1) % 2  # odd
    if window < 3 or find_spec("skimage") is None:
        return None
    from skimage import metrics

    a, b = (_to_unit(maps).permute(1, 2, 0).double().cpu().numpy() for maps in (first, second))
    ssim: Any = metrics.structural_similarity
    _, local = ssim(a, b, win_size=window, channel_axis=-1, data_range=2, full=True)
    edge = window // 2
    return torch.from_numpy(local[edge:-edge, edge:-edge].mean((0, 1)))


def _mean_ranks(values: Tensor) -> Tensor:
    """Rank each row from 0; ties share their mean rank."""
    values = values.contiguous()
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - 1).double() / 2


def _to_unit(maps: Tensor) -> Tensor:
    largest = maps.abs().amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)


Mode = Literal["cascading", "independent"]


@dataclass(frozen=True)
class Randomisation:
    """How alike heatmaps of the trained and of a partly randomised network are.

    Attributes
    ----------
    method : str
        What made the heatmaps.
    layers : tuple of str
        From the output down: the layer that was randomised, in mode "cascading" together with all
        above it.
    spearman : Tensor
        Rank correlation over the pixels, shape (layers, images).
    ssim : Tensor or None
        Structural similarity, of the same shape; None without scikit-image or for small images.
    settings : mapping
        How it was made.
    """

    method: str
    layers: tuple[str, ...]
    spearman: Tensor
    ssim: Tensor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def by_layer(self) -> list[Estimate]:
        """Mean rank correlation over the images and its standard error, for each layer."""
        return [estimate(values) for values in self.spearman]

    def similarity(self) -> Estimate:
        """Mean rank correlation over layers and images; the closer to 0 the better.

        A heatmap that is constant, so that it shows nothing at all, counts as 0.
        """
        return estimate(self.spearman.mean(0))

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "method": self.method,
            "layers": list(self.layers),
            "spearman": self.spearman.tolist(),
            "ssim": None if self.ssim is None else self.ssim.tolist(),
            "settings": dict(self.settings),
        }

    def __repr__(self) -> str:
        count = f"{len(self.layers)} layers, {self.spearman.shape[1]} images"
        return f"Randomisation({self.method}, {count}: rank correlation {self.similarity()})"


@undisturbed
@stage("randomising")
@checked(layers=SOME, seed=SEED, batch_size=BATCH)
def randomisation_test(
    model: nn.Module,
    data: Data,
    methods: Methods,
    *,
    mode: Mode = "cascading",
    layers: int | Sequence[str] | None = None,
    absolute: bool = False,
    target: ClassChoice = None,
    seed: int = 0,
    batch_size: int = 32,
    description: str | None = None,
) -> dict[str, Randomisation]:
    """Compare heatmaps before and after layers are randomised (Adebayo et al. 2018).

    A method whose heatmaps hardly change shows the image, not what the network has learnt. Every
    parameter of a layer is drawn anew from a normal distribution with the mean and the standard
    deviation it had, so that signals keep their size; running statistics stay. A batch norm goes
    with the layer before it. All this happens on a copy.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). Not changed.
    data : DataLoader, Dataset or pair of tensors
        Images and labels: a few are enough. Images and heatmaps are held on disk.
    methods : str, sequence of str, or mapping of str to callable
        Names of the catalogue, or titles with functions that make the method for a model.
    mode : {"cascading", "independent"}
        Randomise from the output down to each layer, or each layer alone.
    layers : int, sequence of str, optional
        The layers to randomise; an int takes that many, evenly from the output to the input;
        default: all.
    absolute : bool
        Compare absolute values. Without it, a heatmap that merely changes its sign, as where the
        randomised network's output is negative and relevance starts from it, counts as opposite.
    target : None, int, "predicted" or "true"
        The class explained in all networks: the one the trained network predicts, this one, or the
        true one.
    seed : int
        Seed of the random weights; a layer gets the same ones in both modes.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    dict of str to Randomisation
        For each method.

    Raises
    ------
    ValueError
        For an option out of its range or a method that does not exist.
    ModelError, DataError
        For a network or data that cannot be used, or a layer that does not exist.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r} is none of {', '.join(get_args(Mode))}")
    model, images = with_classes(model, data, target, batch_size)
    made = factories(methods)
    with agreed():
        held = _Held(images)
    twin = deep_copy(model)
    groups = _layers(twin, held.example)
    wanted = _selected(list(groups), layers)
    found: dict[str, list[tuple[Tensor, Tensor | None]]] = {name: [] for name in made}
    stages = _randomised(model, twin, groups, wanted, mode == "cascading", seed)
    show = None if description else False
    with bar(description or "", len(made) * (len(wanted) + 1), show) as advance:
        before: dict[str, OnDisk] = {}
        for name, make in made.items():
            before[name] = OnDisk()
            with agreed():
                for _, maps in held.heatmaps(make(model), absolute):
                    before[name].append(maps)
            advance(1)
        for _ in stages:
            for name, make in made.items():
                found[name].append(_alike(before[name], held.heatmaps(make(twin), absolute)))
                advance(1)
    settings = {"mode": mode, "absolute": absolute, "target": target, "seed": seed}
    return {
        name: Randomisation(
            name,
            tuple(wanted),
            torch.stack([spearman for spearman, _ in pairs]),
            _stacked([ssim for _, ssim in pairs]),
            settings,
        )
        for name, pairs in found.items()
    }


def _layers(twin: nn.Module, example: Tensor) -> dict[str, list[nn.Parameter]]:
    """Parameters by layer from the output down; norms and scales belong to the layer before."""
    owners = {name: m for name, m in twin.named_modules() if m._parameters}
    called: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.setdefault(name)

    handles = [module.register_forward_hook(note(name)) for name, module in owners.items()]
    try:
        with torch.no_grad():
            twin(example)
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[str, list[nn.Parameter]] = {}
    for name in [*called, *(name for name in owners if name not in called)]:
        parameters = [p for p in owners[name]._parameters.values() if p is not None]
        if not groups or any(p.dim() > 1 for p in parameters):
            groups[name] = []
        groups[next(reversed(groups))] += parameters
    if not groups:
        raise ModelError("the network has no parameters that could be randomised")
    return dict(reversed(groups.items()))


def _selected(names: list[str], layers: int | Sequence[str] | None) -> list[str]:
    if layers is None:
        return names
    if isinstance(layers, int):
        places = torch.linspace(0, len(names) - 1, min(layers, len(names))).round().int()
        return [names[place] for place in places.tolist()]
    if unknown := [name for name in layers if name not in names]:
        raise ModelError(
            f"the network has no layer {unknown[0]!r} with parameters of its own; it has, from the "
            f"output down, {', '.join(names)}"
        )
    return [name for name in names if name in layers]


@torch.no_grad()
def _randomised(
    model: nn.Module,
    twin: nn.Module,
    groups: Mapping[str, list[nn.Parameter]],
    wanted: Sequence[str],
    cascading: bool,
    seed: int,
) -> Iterator[str]:
    """Randomise the twin and yield, layer by layer."""
    waiting = list(wanted)
    for place, (name, parameters) in enumerate(groups.items()):
        if cascading or name in waiting:
            generator = torch.Generator().manual_seed(1000 * seed + place)
            for parameter in parameters:
                _draw(parameter, generator)
        if name in waiting:
            yield name
            waiting.remove(name)
            if not cascading:
                for own, original in zip(twin.parameters(), model.parameters(), strict=True):
                    own.copy_(original)
        if not waiting:
            return


def _draw(parameter: nn.Parameter, generator: torch.Generator) -> None:
    if parameter.numel() < 2 or not parameter.is_floating_point():
        return  # one number has no spread
    drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter)
    parameter.copy_(parameter.mean() + parameter.std() * drawn)


class _Held:
    """The batches that fall to this process, with the class of each image, on disk."""

    def __init__(self, images: Iterator[tuple[Tensor, Tensor]]) -> None:
        self._numbers: list[int] = []
        self._inputs, self._classes = OnDisk(), OnDisk()
        for number, (inputs, classes) in enumerate(images):
            if number == 0:
                self.example = inputs[:1]
            if is_mine(number):
                self._numbers.append(number)
                self._inputs.append(inputs)
                self._classes.append(classes)

    def heatmaps(self, method: Method, absolute: bool) -> Iterator[tuple[int, Tensor]]:
        """Yield number and heatmaps, channels summed, shape (B, H, W), on the CPU, by batch."""
        tolerant(method)
        for place, number in enumerate(self._numbers):
            inputs, classes = (
                held[place].to(self.example.device) for held in (self._inputs, self._classes)
            )
            maps = method.attribute(inputs, classes).cpu()
            maps = maps.abs() if absolute else maps
            yield number, maps.sum(1) if maps.dim() == 4 else maps


def _alike(before: OnDisk, after: Iterator[tuple[int, Tensor]]) -> tuple[Tensor, Tensor | None]:
    """Compare the heatmaps of all images, of which each process has its own batches."""
    mine: dict[int, tuple[list[float], list[float]]] = {}  # plain numbers leave no holes in memory
    with agreed():
        for place, (number, maps) in enumerate(after):
            pair = before[place], maps
            ssim = structural_similarity(*pair)
            mine[number] = rank_correlation(*pair).tolist(), [] if ssim is None else ssim.tolist()
    numbered = {number: alike for part in gathered(mine) for number, alike in part.items()}
    every = [numbered[number] for number in sorted(numbered)]
    spearman, ssim = (
        torch.tensor([value for pair in every for value in pair[kind]], dtype=torch.float64)
        for kind in (0, 1)
    )
    return spearman, ssim if len(ssim) == len(spearman) else None


def _stacked(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.stack(known) if len(known) == len(parts) else None
