"""What is missing: are there images of a class unlike any that the network learned from, on which
it fails?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from niwaki import models
from niwaki.audit._beyond import FEWEST, RARE, SMALLEST, chance_of, lean_of, share_beyond
from niwaki.audit._causal import Cause
from niwaki.audit._chance import Exchange, group_test
from niwaki.audit._finding import Finding
from niwaki.audit._material import Material, check_groups, sample
from niwaki.audit._rows import blocks
from niwaki.criteria import hidden_layers
from niwaki.data import batches, check_labels
from niwaki.errors import DataError, NothingToPruneError
from niwaki.ranges import SEED, SOME, checked
from niwaki.runs import Folder, digest, open_run

__all__ = ["Training", "ask_training", "layers_of", "look_of", "look_over"]

Array = NDArray[Any]
_LAYERS = 8  # whose activations tell images apart, spread over the depth
_DIMENSIONS = 10
_ROUNDING = 1e-6
_MORE_ERRORS = 0.05  # share of the unlike images, above that of the others, that is worth an alarm


@dataclass(frozen=True, eq=False)
class Training:
    """How images look to a network that it learned from.

    Attributes
    ----------
    looks : ndarray
        See `look_of`, shape (N, features).
    labels : ndarray
        Shape (N,).
    right : ndarray
        Whether the network is right, shape (N,).
    layers : tuple of str
        Whose activations the looks are.
    groups : ndarray
        Of each image the group it belongs to, such as its slide, shape (N,); numbered together with
        those of the audit's images.
    audited : ndarray
        The groups of the audit's images, in the same numbers.
    """

    looks: Array
    labels: Array
    right: Array
    layers: tuple[str, ...]
    groups: Array
    audited: Array


@checked(limit=SOME, seed=SEED)
def look_over(
    material: Material,
    data: Dataset[Any],
    *,
    limit: int | None = 1000,
    seed: int = 0,
    groups: Sequence[Any] | Array | None = None,
    audited: Sequence[Any] | Array | None = None,
    folder: Folder = None,
) -> Training:
    """Look at a class-balanced sample of the images that a network learned from.

    Parameters
    ----------
    material : Material
        The audit's.
    data : Dataset
        Of pairs (input, label), prepared as the audit's images are.
    limit : int, optional
        Largest number of images; None: all.
    seed : int
        Of the sample.
    groups : sequence, optional
        Of each image of `data` its group, such as its slide. Default: each is its own.
    audited : sequence, optional
        The same for all images of the audited data set.
    folder : str or Path, optional
        Keeps finished batches; the same call goes on from there.

    Raises
    ------
    DataError
        Groups of one of both only, or of another number of images; inputs of another size.
    """
    if (groups is None) != (audited is None):
        raise DataError(
            "groups= and training_groups= go together: images of a slide are alike, and those of "
            "another slide would seem unlike all of them for that alone"
        )
    chosen = sample(data, limit, seed)
    if groups is None or audited is None:
        together = np.arange(len(chosen) + len(material))
    else:
        of_training = check_groups(groups, len(data))[chosen]  # type: ignore[arg-type]
        names = np.concatenate([of_training, np.asarray(audited)[material.indices]])
        together = np.unique(names, return_inverse=True)[1].reshape(-1)
    device = next((p.device for p in material.model.parameters()), torch.device("cpu"))
    layers = layers_of(material.model, material.inputs[:1].to(device))
    subset, size = Subset(data, chosen), material.batch_size

    def identity() -> dict[str, Any]:
        return {
            "looked over": layers,
            "model": models.fingerprint(material.model),
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
        found, outputs = look_of(material.model, batch, layers)
        return {"looks": torch.from_numpy(found), "said": torch.from_numpy(outputs.argmax(1))}

    parts: list[dict[str, Tensor]] = []
    labels: list[Tensor] = []
    with open_run(folder, identity) as kept:
        for batch, truth in batches(subset, size, models.home(material.model), "training"):
            parts.append(kept.once(f"batch-{len(parts):05}", partial(look, batch, truth)))
            labels.append(truth.cpu())
    known = torch.cat(labels)
    count = len(chosen)
    return Training(
        torch.cat([part["looks"] for part in parts]).numpy(),
        known.numpy(),
        (torch.cat([part["said"] for part in parts]) == known).numpy(),
        layers,
        together[:count],
        together[count:],
    )


def look_of(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> tuple[Array, Array]:
    """Describe images by what a network's hidden layers make of them, not by what it says of them.

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
    looks : ndarray
        Mean and standard deviation over space of each of the layers' channels, shape
        (N, features); of the inputs, where there is no layer.
    outputs : ndarray
        Of the network, shape (N, classes).
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
            outputs = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    # A layer whose weight is used by a function, as in attention, is not called itself.
    parts = [kept[name] for name in layers if name in kept]
    looks = torch.cat(parts or [_summary(inputs.movedim(1, -1))], 1)
    return looks.numpy(), outputs.cpu().numpy()


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


def ask_training(
    material: Material, training: Training | None, rng: np.random.Generator
) -> list[Finding]:
    """Ask for each class whether a part of its images is unlike the training images of the class.

    Seen: so many images are farther from the nearest training images than 98 % of the training
    images are from each other, more than if images for training were drawn from all of them. Of
    slides, whole ones are drawn. What follows: the network is wrong on them more often than on the
    class's other images or, where hardly any others are left, than on those of training.
    """
    if training is None:
        return []
    parts = [material.inputs[block] for block in blocks(len(material), material.batch_size)]
    device = next((p.device for p in material.model.parameters()), torch.device("cpu"))
    looks = np.concatenate(
        [look_of(material.model, part.to(device), training.layers)[0] for part in parts]
    )
    return [_ask(material, training, looks, label, rng) for label in material.classes()]


def _ask(
    material: Material, training: Training, looks: Array, label: int, rng: np.random.Generator
) -> Finding:
    mine, learned = material.members(label), np.flatnonzero(training.labels == label)
    is_new = np.arange(len(learned) + len(mine)) >= len(learned)
    groups = np.concatenate([training.groups[learned], training.audited[mine]])
    who = material.class_names[label]
    finding = Finding(
        key=f"training/{who}/unlike",
        question=f"Are there images of class {who!r} unlike any that the network learned from, on "
        "which it fails?",
        label=label,
        effect=0.0,
        effect_name="images as far from those of training as the farthest 2 % of training are "
        "from each other, in multiples of these 2 %",
        smallest=SMALLEST,
        p_seen=1.0,
        compared=True,
    )
    if min(len(mine), len(learned)) <= _DIMENSIONS:
        return replace(finding, note="Of so few images it cannot be told.")
    if len(set(training.groups[learned].tolist())) < 2:
        return replace(finding, note="Of training images of one slide it cannot be told.")
    lean = lean_of(_plane(np.concatenate([training.looks[learned], looks[mine]])), groups)
    share, beyond = share_beyond(lean, is_new)
    effect = share / RARE
    large = effect >= SMALLEST and beyond.sum() >= FEWEST
    unlike = beyond[is_new]
    far = lean(~is_new)[is_new]
    wrong = ~material.right[mine]
    ordered = mine[np.lexsort((-far, ~wrong, ~unlike))]
    finding = replace(
        finding,
        effect=effect,
        p_seen=chance_of(lean, 1, share, Exchange(is_new.astype(int), groups), rng, large),
        examples=tuple(ordered[: min(8, unlike.sum())].tolist()),
        ordinary=tuple(mine[np.argsort(far, kind="stable")][: min(8, (~unlike).sum())].tolist()),
        numbers={"images_unlike": float(unlike.sum()), "share_of_class": share},
    )
    if not (large and finding.suspicious()):
        return finding
    # Where a whole data set is of another kind, there are no others to compare with.
    are_left = (~unlike).sum() >= FEWEST
    others = wrong[~unlike] if are_left else ~training.right[learned]
    here, elsewhere = float(wrong[unlike].mean()), float(others.mean())
    together = np.concatenate([wrong[unlike], others]).astype(float)
    p = group_test(together, np.arange(len(together)) < unlike.sum(), rng)
    whose = "of the class's other images" if are_left else "of the class's training images"
    return replace(
        finding,
        cause=Cause(here, elsewhere, here, elsewhere, p, len(together)),
        smallest_drop=elsewhere + _MORE_ERRORS,
        note=f"There are such images, {share:.0%} of the class, but it does not fail on them "
        f"clearly more often: {here:.0%} are wrong, {whose} {elsewhere:.0%}.",
        sentence=f"{share:.0%} of the images of class {who!r} are unlike any that the network "
        f"learned from. It gets {here:.0%} of them wrong; {whose}, {elsewhere:.0%}.",
        advice="See what they have in common: it is a kind of image that training lacks. Add such "
        "images to training (`niwaki.audit.balanced` draws few of them more often) and audit "
        "again; until then the network's answers to them cannot be trusted.",
    )


def _plane(looks: Array) -> Array:
    """Return the first principal components of standardised features, all of variance 1."""
    spread = looks.std(0)
    standard = ((looks - looks.mean(0)) / np.where(spread > 0, spread, 1)).astype(float)
    values, vectors = np.linalg.eigh(standard @ standard.T)
    # Of few features there are few components; the rest is rounding.
    kept = vectors[:, -_DIMENSIONS:][:, values[-_DIMENSIONS:] > _ROUNDING * values[-1]]
    found: Array = kept * len(looks) ** 0.5
    return found
