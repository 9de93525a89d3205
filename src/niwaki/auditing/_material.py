"""What an audit looks at: a sample of a data set, the network's outputs, and its heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from niwaki import models
from niwaki.arrays import Array
from niwaki.attribution import told_apart
from niwaki.auditing._explaining import (
    class_names_of,
    explaining,
    groups_of,
    kept_batches,
    names_of,
    preprocessing_of,
    sample,
)
from niwaki.auditing._on_disk import Maps, Tensors, blocks
from niwaki.auditing._statistics import DRAWS, enough_draws
from niwaki.data import Preprocessing, known_of
from niwaki.errors import ModelError
from niwaki.ranges import BATCH, INDEX, SEED, SOME, checked
from niwaki.runs import Folder, described, digest, identified
from niwaki.stages import stage

Regions = Mapping[str, Array | Sequence[Array]]


@dataclass(frozen=True, eq=False)
class Material:
    """Images with heatmaps, as all questions of an audit need them.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode; never changed.
    inputs : Tensor or Tensors
        Shape (N, C, H, W), on the CPU; of a data set they lie on disk, and are read by position.
    pixels : Tensor or Tensors
        The images as a person sees them, shape (N, C, H, W), from 0 to 1; likewise.
    labels : ndarray
        True classes, shape (N,).
    outputs : ndarray
        Outputs of the network, shape (N, classes).
    relevance : ndarray or Maps
        Heatmaps summed over channels, shape (N, H, W); likewise.
    indices : ndarray
        Index of each image in the data set, shape (N,).
    class_names : tuple of str
        One per output.
    method : str
        Name of the attribution method.
    preprocessing : Preprocessing
        Between pixels and inputs.
    groups : ndarray
        The group of each image, such as its slide, shape (N,): a number or a name; all different,
        if it is not known which belong together.
    grouped : bool
        Whether it is known which belong together.
    regions : mapping of str to sequence
        Regions that were marked on the images of the *data set*, by name; see
        `niwaki.data.Described`.
    batch_size : int
        For the network.
    names : sequence of str
        Names of the files of the *data set*, if there are any.
    draws : int
        Random arrangements of each test.
    centres : ndarray or None
        The hospital, laboratory or scanner that each image comes from, shape (N,), if known.
    """

    model: nn.Module
    inputs: Tensor | Tensors
    pixels: Tensor | Tensors
    labels: Array
    outputs: Array
    relevance: Array | Maps
    indices: Array
    class_names: tuple[str, ...]
    method: str
    preprocessing: Preprocessing
    groups: Array
    grouped: bool = False
    regions: Regions = field(default_factory=dict)
    batch_size: int = 64
    names: Sequence[str] = ()
    draws: int = DRAWS
    centres: Array | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return models.device_of(self.model)

    @property
    def right(self) -> Array:
        """Whether the network is right, shape (N,)."""
        found: Array = self.outputs.argmax(1) == self.labels
        return found

    @checked(position=INDEX)
    def describe(self, position: int) -> dict[str, Any]:
        """Return the name, the index, the slide, the class and the prediction of an image."""
        index = int(self.indices[position])
        predicted = int(self.outputs[position].argmax())
        slide = {"slide": str(self.groups[position])} if self.grouped else {}
        return {
            "name": self.names[index] if self.names else f"image {index}",
            "index": index,
            **slide,
            "class": self.class_names[int(self.labels[position])],
            "prediction": self.class_names[predicted],
        }

    def strength(self, positions: Any = slice(None)) -> Array:
        """Return how much each pixel matters, as a share of its image: (N, H, W), sums of 1.

        Parameters
        ----------
        positions : ndarray, optional
            Which images; default: all, which takes as much memory as their heatmaps do.
        """
        size = np.abs(self.relevance[positions])
        total = size.sum((1, 2), keepdims=True)
        shares: Array = size / np.where(total > 0, total, 1)
        return shares

    def classes(self) -> list[int]:
        """Return the classes that occur."""
        return sorted(set(self.labels.tolist()))

    def members(self, label: int) -> Array:
        """Return the positions of a class's images."""
        return np.flatnonzero(self.labels == label)

    def mean_maps(self) -> dict[int, Array]:
        """Return each class's mean map of relevance, in multiples of an even distribution."""
        height, width = self.relevance.shape[1:]
        maps = {}
        for label in self.classes():
            members = self.members(label)
            total = sum(self.strength(block).sum(0) for block in blocks(members))
            maps[label] = total * (height * width / len(members))
        return maps

    def ask(self, pixels: Tensor) -> Array:
        """Return the outputs of the network for other pixels, shape (N, classes)."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        home = models.home(self.model)
        place = torch.empty(0, device=self.device) if home is None else home
        with torch.no_grad():
            parts = [
                self.model(((part - mean) / std).to(place)).cpu()
                for part in torch.split(pixels.float(), self.batch_size)
            ]
        found: Array = torch.cat(parts).double().numpy()
        return found

    def select(self, positions: Array) -> Material:
        """Return some of the images."""
        chosen = torch.as_tensor(positions)
        return replace(
            self,
            centres=None if self.centres is None else self.centres[positions],
            **{name: getattr(self, name)[chosen] for name in ("inputs", "pixels")},
            **{
                name: getattr(self, name)[positions]
                for name in ("labels", "outputs", "relevance", "indices", "groups")
            },
        )


def margins(outputs: Array, labels: Array | int) -> Array:
    """Return how far a class's output is above the best other one, shape (N,)."""
    rows = np.arange(len(outputs))
    own = outputs[rows, labels]
    others = outputs.copy()
    others[rows, labels] = -np.inf
    found: Array = own - others.max(1)
    return found


@stage("explaining")
@checked(limit=SOME, batch_size=BATCH, seed=SEED)
def gather(
    model: nn.Module,
    data: Dataset[Any],
    *,
    method: str = "lrp.epsilon_plus",
    target: Literal["predicted", "true"] = "predicted",
    limit: int | None = 1000,
    batch_size: int = 64,
    seed: int = 0,
    folder: Folder = None,
    **options: Any,
) -> Material:
    """Explain a class-balanced sample of a data set and keep all that questions need.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes).
    data : Dataset
        A data set of pairs (input of shape (C, H, W), label). What else is known of it, and at
        least its preprocessing, is an attribute of it or of the `niwaki.data.Described` around it.
    method : str
        One of `niwaki.attribution.names`.
    target : {"predicted", "true"}
        The class that is explained.
    limit : int, optional
        Largest number of images; None: all.
    batch_size : int
        Images in a batch.
    seed : int
        Seed of the sample.
    folder : str or Path, optional
        Keeps finished batches; the same call resumes from there.
    **options
        Options of the method.

    Raises
    ------
    DataError
        Data without labels, or whose pixels cannot be had.
    ModelError
        A network that is not ready.
    """
    models.check(model)
    home = models.home(model)
    if home is not None and home.dtype == torch.bfloat16:
        raise ModelError(
            "the network has weights of bfloat16, in which an audit's images cannot be kept: pass "
            "it in single precision, copy.deepcopy(model).float()"
        )
    known = preprocessing_of(data)
    chosen = sample(data, limit, seed)
    subset = Subset(data, chosen)
    judged, explain = explaining(model, subset, method, target, options)

    def identity() -> dict[str, Any]:
        return {
            "explained by": told_apart(method),
            "model": identified(model),
            "data": digest(subset, ordered=True),
            "target": target,
            "batch_size": batch_size,
            "options": described(options),
        }

    def compute(batch: Tensor, truth: Tensor) -> dict[str, Tensor]:
        output, heat = explain(batch, truth)
        return {"inputs": batch, "outputs": output, "relevance": heat.sum(1)}

    inputs, pixels, relevance = Tensors(), Tensors(), Maps()
    labels: list[Tensor] = []
    outputs: list[Tensor] = []
    for part in kept_batches(
        subset,
        compute,
        identity,
        folder,
        batch_size=batch_size,
        place=models.home(model),
        description="explaining",
    ):
        shown = part["inputs"]
        inputs.append(shown.numpy())
        pixels.append(known.denormalise(shown).numpy())
        relevance.append(part["relevance"].numpy())
        outputs.append(part["outputs"])
        labels.append(part["labels"])
    logits = torch.cat(outputs)
    groups, regions = groups_of(data), known_of(data, "regions") or {}
    centres = groups_of(data, "centres")
    true = torch.cat(labels).numpy()
    return Material(
        judged,
        inputs,
        pixels,
        true,
        logits.double().numpy(),
        relevance,
        np.asarray(chosen),
        class_names_of(data, logits.shape[1]),
        method,
        known,
        np.asarray(chosen) if groups is None else groups[chosen],
        groups is not None,
        regions,
        batch_size,
        names_of(data),
        enough_draws(len(np.unique(true)), len(regions)),
        None if centres is None else centres[chosen],
    )
