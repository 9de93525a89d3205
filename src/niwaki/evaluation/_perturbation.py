"""Does the network's confidence fall when what a heatmap calls relevant is destroyed?"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from niwaki.attribution import ClassChoice, Method
from niwaki.contexts import undisturbed
from niwaki.data import Data, count
from niwaki.errors import DataError
from niwaki.evaluation._curves import PerturbationCurves
from niwaki.evaluation._explainers import (
    Methods,
    factories,
    tolerant,
    with_classes,
)
from niwaki.evaluation._regions import Grid, Pooling, Replacement, ranks, replaced
from niwaki.processes import agreed, gathered, is_mine
from niwaki.progress import track
from niwaki.ranges import BATCH, SEED, SIDE, SOME, STEPS, checked
from niwaki.stages import stage

__all__ = ["Order", "Perturbation", "Score", "perturbation_curves"]

Order = Literal["most", "least", "random"]
Score = Literal["probability", "output"]
MOST_STEPS = 100
_Measured: TypeAlias = "tuple[int, str | None, Order, Tensor]"


@checked(regions=SIDE, steps=STEPS, regions_per_step=SOME)
@dataclass(frozen=True)
class Perturbation:
    """How images are perturbed, region by region.

    Parameters
    ----------
    regions : tuple of int
        Height and width of a region in pixels. A grid that does not fit the image is centred, and
        the regions at the border are smaller.
    steps : int, optional
        Number of steps; by default as many as there are, 100 at the most.
    regions_per_step : int
        Regions that are replaced in each step.
    orders : sequence of {"most", "least", "random"}
        Which region is replaced first; the random one is the same for all methods.
    replacement : {"zero", "gaussian", "mean", "invert"}
        What replaces a perturbed region, in the space of the network's inputs: 0 (for normalised
        inputs the mean of the data); noise of mean 0 and standard deviation 0.3, drawn once per
        image; the mean of the region per channel; the negative of the input.
    pooling : {"sum", "mean_absolute"}
        Relevance of a region: the sum over its pixels and channels, or the mean of the absolute
        values. Equal ones are ordered at random.

    Raises
    ------
    ValueError
        For an option out of its range.
    """

    regions: tuple[int, int] = (9, 9)
    steps: int | None = None
    regions_per_step: int = 1
    orders: Sequence[Order] = ("most", "least", "random")
    replacement: Replacement = "zero"
    pooling: Pooling = "sum"

    def __post_init__(self) -> None:
        orders = self.orders
        if len(self.regions) != 2:
            raise ValueError(f"regions={self.regions}; give height and width, at least 1")
        if not orders or len(set(orders)) < len(orders) or set(orders) - set(get_args(Order)):
            raise ValueError(
                f"orders={orders!r}; choose among {', '.join(get_args(Order))}, each once"
            )

    def count(self, grid: Grid) -> int:
        """Return how many steps there are on a grid.

        Raises
        ------
        ValueError
            If the grid has fewer regions.
        """
        possible = ceil(grid.count / self.regions_per_step)
        if self.steps is not None and self.steps > possible:
            raise ValueError(
                f"steps={self.steps} of {self.regions_per_step} regions: images of {grid.height} x "
                f"{grid.width} pixels have {grid.count} regions of {self.regions[0]} x "
                f"{self.regions[1]}, which are all replaced after {possible}"
            )
        return min(possible, MOST_STEPS) if self.steps is None else self.steps


@undisturbed
@stage("perturbing")
@checked(seed=SEED, batch_size=BATCH)
def perturbation_curves(
    model: nn.Module,
    data: Data,
    methods: Methods,
    perturbation: Perturbation | None = None,
    *,
    score: Score = "probability",
    target: ClassChoice = None,
    seed: int = 0,
    batch_size: int = 32,
    description: str | None = None,
) -> dict[str, PerturbationCurves]:
    """Perturb images region by region in the order of their heatmaps (Samek et al. 2017).

    The heatmap is computed once per image; regions then stay as they were replaced.
    That relevance is lost on the way is no error here: what is left of it is judged.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). Not changed.
    data : DataLoader, Dataset or pair of tensors
        Images of shape (N, C, H, W) and labels.
    methods : str, sequence of str, or mapping of str to callable
        Names of the catalogue, or titles with functions that make the method for a model.
    perturbation : Perturbation, optional
        How images are perturbed; by default in regions of 9 x 9 pixels that are set to 0.
    score : {"probability", "output"}
        What is followed: the class's probability (softmax), or the output itself.
    target : None, int, "predicted" or "true"
        The class that is explained and followed: the one predicted for the unperturbed image, this
        one, or the true one.
    seed : int
        Seed of the random order, the order of ties, and the noise. Results do not depend on
        `batch_size` or the device.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    dict of str to PerturbationCurves
        For each method; see `PerturbationCurves.normalised` for scores as shares of the first.

    Raises
    ------
    ValueError
        For an option out of its range or a method that does not exist.
    ModelError, DataError
        For a network or data that cannot be used.

    Examples
    --------
    >>> methods = ["gradient", "lrp.epsilon_plus"]
    >>> curves = niwaki.evaluation.perturbation_curves(model, test_set, methods)
    >>> curves["lrp.epsilon_plus"].gap().mean > curves["gradient"].gap().mean
    """
    if score not in get_args(Score):
        raise ValueError(f"score {score!r} is none of {', '.join(get_args(Score))}")
    how = perturbation or Perturbation()
    run = _Run(how, score, target, seed)
    model, images = with_classes(model, data, target, batch_size)
    made = {name: tolerant(make(model)) for name, make in factories(methods).items()}
    found: dict[str, dict[Order, _Scores]] = {
        name: {order: _Scores() for order in how.orders} for name in made
    }
    measured = run.measure(model, images, made)
    samples = None if isinstance(data, torch.utils.data.DataLoader) else count(data)
    curves = len(made) * len(set(how.orders) - {"random"}) + ("random" in how.orders)
    total = None if samples is None else ceil(samples / batch_size) * curves
    if description is not None:
        measured = track(measured, description, total)
    with agreed():
        for number, name, order, scores in measured:
            for row in [name] if name is not None else list(made):
                found[row][order].add(number, scores)
    everywhere = gathered(found)
    settings = {**run.settings(), "normalise": False}
    return {
        name: PerturbationCurves(
            name,
            run.share(),
            {order: _in_order([some[name][order] for some in everywhere]) for order in how.orders},
            settings,
        )
        for name in found
    }


@dataclass
class _Scores:
    """Scores of batches, in one piece: many small tensors would leave holes in the memory."""

    shapes: list[tuple[int, int, int]] = field(default_factory=list)  # number, images, scores
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, number: int, scores: Tensor) -> None:
        """Keep those of a batch, shape (B, steps + 1)."""
        self.shapes.append((number, *scores.shape))
        self.values.extend(scores.flatten().tolist())

    def batches(self) -> dict[int, Tensor]:
        """Return those of each batch, by its number."""
        sizes = [images * each for _, images, each in self.shapes]
        parts = torch.split(torch.tensor(self.values, dtype=torch.float64), sizes)
        pairs = zip(self.shapes, parts, strict=True)
        return {number: part.view(images, each) for (number, images, each), part in pairs}


def _in_order(parts: Sequence[_Scores]) -> Tensor:
    """Put together what several processes have found of batches, by their numbers."""
    numbered = {number: scores for part in parts for number, scores in part.batches().items()}
    return torch.cat([numbered[number] for number in sorted(numbered)])


class _Run:
    """One analysis: its options, its random numbers, and the grid once the image size is known."""

    def __init__(self, how: Perturbation, score: Score, target: ClassChoice, seed: int) -> None:
        self.how, self.score, self.target, self.seed = how, score, target, seed
        self.noise = torch.Generator().manual_seed(seed)
        self.chance = torch.Generator().manual_seed(seed)
        self.grid: Grid | None = None

    def measure(
        self,
        model: nn.Module,
        images: Iterator[tuple[Tensor, Tensor]],
        methods: dict[str, Method],
    ) -> Iterator[_Measured]:
        """Yield number, method (None: all), order and scores (B, steps + 1), batch by batch.

        Several processes take turns with the batches. Random numbers are drawn for all of them, so
        that those of an image do not depend on who looks at it.
        """
        for number, (inputs, classes) in enumerate(images):
            grid = self._grid(inputs)
            other = replaced(inputs, grid, self.how.replacement, self.noise)
            drawn = (len(inputs), 2, grid.count)
            chance = torch.rand(drawn, generator=self.chance, dtype=torch.float64).to(inputs.device)
            if not is_mine(number):
                continue
            order, ties = chance.unbind(1)
            if "random" in self.how.orders:
                places = ranks(order, ties, descending=True)
                yield number, None, "random", self._follow(model, inputs, other, classes, places)
            directed: list[Order] = [name for name in self.how.orders if name != "random"]
            for name, method in methods.items() if directed else ():
                relevance = grid.relevance(method.attribute(inputs, classes), self.how.pooling)
                for name_of_order in directed:
                    places = ranks(relevance, ties, descending=name_of_order == "most")
                    scores = self._follow(model, inputs, other, classes, places)
                    yield number, name, name_of_order, scores

    def share(self) -> Tensor:
        """Share of the regions that is perturbed before the first and after each step."""
        assert self.grid is not None
        gone = torch.arange(self.how.count(self.grid) + 1, dtype=torch.float64)
        gone = gone * self.how.regions_per_step
        return gone.clamp_max(self.grid.count) / self.grid.count

    def settings(self) -> dict[str, object]:
        """Return the options as plain data."""
        assert self.grid is not None
        return {
            "regions": list(self.how.regions),
            "steps": self.how.count(self.grid),
            "regions_per_step": self.how.regions_per_step,
            "replacement": self.how.replacement,
            "pooling": self.how.pooling,
            "score": self.score,
            "target": self.target,
            "seed": self.seed,
        }

    @torch.no_grad()
    def _follow(
        self, model: nn.Module, inputs: Tensor, other: Tensor, classes: Tensor, places: Tensor
    ) -> Tensor:
        """Score of the classes before the first and after each step, shape (B, steps + 1)."""
        assert self.grid is not None
        place = places[:, self.grid.index(inputs.device)].unsqueeze(1)  # of each pixel
        scores = []
        for step in range(self.how.count(self.grid) + 1):
            output = model(
                torch.where(place < step * self.how.regions_per_step, other, inputs)
            ).double()
            values = output.softmax(1) if self.score == "probability" else output
            scores.append(values.gather(1, classes[:, None]))
        return torch.cat(scores, 1).cpu()

    def _grid(self, inputs: Tensor) -> Grid:
        if inputs.dim() != 4:
            raise DataError(f"images have the shape (N, C, H, W), not {tuple(inputs.shape)}")
        height, width = inputs.shape[2:]
        if self.grid is None:
            self.grid = Grid(height, width, self.how.regions)
            self.how.count(self.grid)  # or it is too many
        if (height, width) != (self.grid.height, self.grid.width):
            raise DataError(
                f"images of {height} x {width} pixels follow on {self.grid.height} x "
                f"{self.grid.width}; curves need images of one size"
            )
        return self.grid
