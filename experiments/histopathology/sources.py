"""Patches to learn from and to test on, of drawn or of real tissue, and networks that learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import models
from niwaki.auditing import auc
from niwaki.data import Data, Images, Preprocessing, cut_patches
from niwaki.datasets import NUCLEI, TISSUE, draw_tissue
from niwaki.datasets import Tissue as Drawn
from niwaki.models import zoo
from niwaki.pruning import FineTune, fine_tune

Array = NDArray[Any]
LEAST = 3  # epithelial nuclei of a tumour patch
CRC = Preprocessing(64, mean=(0.82, 0.69, 0.85), std=(0.16, 0.21, 0.12))
IMAGENET = Preprocessing(96, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass
class Set:
    """Patches with their labels, the image each is from, and its cells: places and types."""

    pixels: Array
    labels: Array
    image: Array
    points: list[Array]
    types: list[list[str]]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, chosen: Array) -> Set:
        """Return some of the patches, by position or by a mask."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return Set(
            self.pixels[index],
            self.labels[index],
            self.image[index],
            [self.points[i] for i in index],
            [self.types[i] for i in index],
        )

    def count(self, kind: str) -> Array:
        """Count the cells of a type in each patch."""
        return np.array([types.count(kind) for types in self.types])

    def content(self) -> Array:
        """Return labels of what is anywhere in a patch: 1, 0, or -1 for what is between."""
        count = self.count("epithelial")
        return np.where(count >= LEAST, 1, np.where(count == 0, 0, -1))

    def off_centre(self, radius: float) -> Array:
        """Say which patches have no epithelial nucleus within a radius of their centre."""
        middle = self.pixels.shape[1] / 2
        free = []
        for points, types in zip(self.points, self.types, strict=True):
            is_kind = np.array([name == "epithelial" for name in types], bool)
            distance = np.linalg.norm(points.reshape(-1, 2) - middle, axis=1)
            free.append(not (distance[is_kind] < radius).any())
        return np.array(free)


@dataclass(frozen=True)
class Learner:
    """How a network is made, what it reads and how it learns."""

    build: Callable[[], nn.Module]
    preprocessing: Preprocessing
    settings: FineTune = field(default_factory=FineTune)

    def inputs(self, pixels: Array) -> Tensor:
        """Turn patches (N, H, W, 3) into inputs."""
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        if values.shape[-1] != self.preprocessing.size:
            side = self.preprocessing.size
            values = F.interpolate(values, (side, side), mode="bilinear", align_corners=False)
        mean, std = (
            torch.tensor(v)[:, None, None]
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (values - mean) / std

    def tensors(self, data: Set) -> tuple[Tensor, Tensor]:
        """Turn patches into inputs and labels."""
        return self.inputs(data.pixels), torch.from_numpy(data.labels)

    def images(self, data: Set) -> Images:
        """Return a data set that the audit reads."""
        labels, classes = data.labels.tolist(), ["normal", "tumour"]
        return Images.of_pixels(data.pixels, labels, classes, self.preprocessing)

    def train(self, data: Data, seed: int) -> nn.Module:
        """Make a network and let it learn."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build().eval()
        fine_tune(model, data, replace(self.settings, seed=seed))
        return model

    def outputs(self, model: nn.Module, data: Set) -> Array:
        """Return what a network says of patches, shape (N, 2)."""
        with torch.no_grad():
            parts = [model(part) for part in torch.split(self.inputs(data.pixels), 128)]
        return torch.cat(parts).double().numpy()

    def auc(self, model: nn.Module, data: Set) -> float:
        """Return the area under the ROC curve."""
        return auc(self.outputs(model, data), data.labels)


def small(preprocessing: Preprocessing, epochs: int) -> Learner:
    """The small network, from scratch."""
    settings = FineTune(epochs=epochs, optimizer="adamw", lr=3e-3, weight_decay=0.02, batch_size=32)
    return Learner(zoo.tissue_net, preprocessing, settings)


def squeezenet(weights: Path, epochs: int) -> Learner:
    """SqueezeNet 1.1 with weights of ImageNet and a new last layer, to be fine-tuned."""

    def build() -> nn.Module:
        model = models.build("torchvision:squeezenet1_1", weights=weights)
        model.set_submodule("classifier.1", nn.Conv2d(512, 2, 1))
        # With a ReLU behind them, two new outputs both fall silent for good in some networks.
        model.set_submodule("classifier.2", nn.Identity())
        return model

    settings = FineTune(epochs=epochs, optimizer="adamw", lr=1e-4, weight_decay=0.01, batch_size=32)
    return Learner(build, IMAGENET, settings)


class Drawing:
    """Synthetic tissue, drawn by seed."""

    real = None

    def __init__(self, tiles: int) -> None:
        self.tiles = tiles

    def draw(self, split: str, seed: int, centred: bool = False) -> Set:
        """Unbiased tiles, or tiles that are labelled by their centre."""
        count = self.tiles if split == "train" else self.tiles // 2
        where = 2 * seed + (split != "train") + 1000
        return _tiles(draw_tissue(count, seed=where, centred=float(centred)))

    def split(self, seed: int) -> tuple[Set, Set]:
        """To learn from, and to test on, with many slides in both."""
        return self.draw("train", seed), self.draw("test", seed)

    def group(self, seed: int) -> tuple[Set, Set, Array, Set, Set]:
        """To learn from: without and with necrosis, and which have it; tests without and with."""
        learn = draw_tissue(self.tiles, seed=2 * seed + 1000)
        tests = [
            draw_tissue(self.tiles // 2, seed=2 * seed + start, necrosis=share)
            for start, share in ((7001, 0.0), (5001, 1.0))
        ]
        without = _tiles(draw_tissue(self.tiles, seed=2 * seed + 1000, necrosis=0))
        has: Array = np.asarray(learn.necrosis.any((1, 2)))
        return without, _tiles(learn), has, _tiles(tests[0]), _tiles(tests[1])


class Annotated:
    """Real patches around annotated nuclei, split by image."""

    def __init__(self, folder: Path) -> None:
        self.real = folder

    def draw(self, split: str, seed: int, centred: bool = False) -> Set:
        """Unbiased patches, or patches that are labelled by their centre."""
        cut = self._cut(split, seed, centred, 16 if split == "train" else 40)
        return cut.select(even(cut.labels, seed))

    def split(self, seed: int) -> tuple[Set, Set]:
        """Deal all images, 3 of 5 to learn from, as ten to test on are few to exchange."""
        parts = [self._cut(name, seed, False, 32) for name in ("train", "test")]
        parts[1].image = parts[1].image + 1000
        rng = np.random.default_rng(seed)
        images = rng.permutation(np.unique(np.concatenate([part.image for part in parts])))
        learned = images[: round(0.6 * len(images))]
        dealt = []
        for is_learned in (True, False):
            some = [part.select(np.isin(part.image, learned) == is_learned) for part in parts]
            dealt.append(joined(some))
        train, test = (data.select(even(data.labels, seed)) for data in dealt)
        return train, test

    def group(self, seed: int) -> tuple[Set, Set, Array, Set, Set]:
        """To learn from: without inflammatory cells among the normal patches, and with, and which
        have them; tests without and with, both against the same tumour patches.
        """
        rng = np.random.default_rng(seed)
        cut = self._cut("train", seed, False, 60)
        has = (cut.count("inflammatory") > 0) & (cut.labels == 0)
        normal, plain = np.flatnonzero(cut.labels == 0), np.flatnonzero((cut.labels == 0) & ~has)
        size = min(len(plain), int((cut.labels == 1).sum()))
        tumour = rng.permutation(np.flatnonzero(cut.labels == 1))[:size]
        without = np.concatenate([tumour, rng.permutation(plain)[:size]])
        mixed = np.concatenate([tumour, rng.permutation(normal)[:size]])
        test = self._cut("test", seed, False, 40)
        inflamed = (test.count("inflammatory") > 0) & (test.labels == 0)
        return (
            cut.select(without),
            cut.select(mixed),
            has[mixed],
            test.select(~inflamed),
            test.select(inflamed | (test.labels == 1)),
        )

    def _cut(self, split: str, seed: int, centred: bool, per_image: int) -> Set:
        folder = self.real / ("train" if split == "train" else "val")
        cut = cut_patches(
            folder,
            per_image=per_image,
            label="centre" if centred else "content",
            least=LEAST,
            seed=seed,
        )
        return Set(cut.pixels, cut.labels, cut.sources, cut.points, cut.types)


Source = Drawing | Annotated


def default_learner(source: Source, epochs: int) -> Learner:
    """The small network, with the colours of the patches it reads."""
    return small(CRC if source.real else TISSUE, epochs)


def joined(parts: list[Set]) -> Set:
    """Return several sets as one."""
    return Set(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.image for part in parts]),
        [points for part in parts for points in part.points],
        [types for part in parts for types in part.types],
    )


def even(labels: Array, seed: int) -> Array:
    """Choose as many of each class."""
    rng = np.random.default_rng(seed)
    fewest = min((labels == 0).sum(), (labels == 1).sum())
    chosen = [rng.permutation(np.flatnonzero(labels == k))[:fewest] for k in (0, 1)]
    return np.sort(np.concatenate(chosen))


def _tiles(drawn: Drawn) -> Set:
    seen = drawn.types > 0
    return Set(
        drawn.pixels,
        drawn.labels,
        np.arange(len(drawn)),
        [places[kept] for places, kept in zip(drawn.centres, seen, strict=True)],
        [[NUCLEI[kind] for kind in row[kept]] for row, kept in zip(drawn.types, seen, strict=True)],
    )
