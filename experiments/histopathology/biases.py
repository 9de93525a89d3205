"""The cases: a bias that is planted, what test AUC and audit say of it, and what remedies do."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from retrieval import overlap, retrieval
from scipy.ndimage import gaussian_filter
from sources import Learner, Set, Source
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from niwaki.auditing import (
    Audit,
    Relabelled,
    Shifted,
    Spread,
    auc,
    audit,
    balanced,
    filled,
    foreign,
    project_out,
    prune_artefact,
    right_reasons,
)
from niwaki.data import Data, Described
from niwaki.datasets import Planted, plant

Array = NDArray[Any]
Row = dict[str, Any]
ARTEFACTS = ("square", "pen", "blur", "jpeg", "stain")
LOCAL = ("square", "pen")
OFF_CENTRE = 12.0  # pixels: two radii of a nucleus
SHIFT = 24  # pixels: a cell at the centre of 64 stays inside
DRAWS = 500


def asked(
    learner: Learner, model: nn.Module, data: Set, seed: int, training: Set | None = None
) -> Row:
    """Audit a network and keep the answers."""
    return answers(audited(learner, model, data, seed, training))


def audited(
    learner: Learner, model: nn.Module, data: Set, seed: int, training: Set | None = None
) -> Audit:
    """Audit a network, which is told the image that each patch was cut from."""

    def grouped(patches: Set, name: str) -> Described:
        groups = [f"{name} {image:05d}" for image in patches.image]
        return Described(learner.images(patches), groups=groups)

    learned = None if training is None else grouped(training, "training")
    return audit(model, grouped(data, "test"), seed=seed, limit=400, training=learned)


def answers(found: Audit) -> Row:
    """Keep what an audit says."""
    return {
        "questions": len(found.findings),
        "flagged": [f.key for f in found.flagged],
        "effects": {f.key: f.effect for f in found.findings},
        "moved": {f.key: f.cause.drop - f.cause.control for f in found.findings if f.cause},
        "changed": {f.key: f.changed for f in found.findings if f.cause},
    }


def control(source: Source, learner: Learner, seed: int) -> Row:
    """No bias: how often a question is answered by yes, and what artefacts do to such a network."""
    train, test = source.draw("train", seed), source.draw("test", seed)
    model = learner.train(learner.tensors(train), seed)
    return {
        "auc test": learner.auc(model, test),
        "audit": asked(learner, model, test, seed),
        "harm": {
            kind: harm(learner, model, test, marked(test, kind, 0.0, seed + 60, elsewhere=1.0))
            for kind in ARTEFACTS
        },
    }


def centre(source: Source, learner: Learner, seed: int) -> Row:
    """Bias 1: the label is that of the cell at the centre.

    Repaired by shifting the patches with their labels, by labels of what is anywhere in them as
    well, and by patches cut anew with such labels. Shifted test patches are those of the unbiased
    test in which no epithelial nucleus is near the centre.
    """
    train, biased = source.draw("train", seed, True), source.draw("test", seed, True)
    test = source.draw("test", seed)
    shifted = test.select((test.labels == 0) | test.off_centre(OFF_CENTRE))
    pair = learner.tensors(train)
    model = learner.train(pair, seed)
    content = train.content()
    known = content >= 0
    whole = Relabelled(TensorDataset(pair[0][known], pair[1][known]), content[known].tolist())
    # Most of these tiles have tumour somewhere; both classes are drawn as often.
    sampler = balanced(content[known].tolist(), [0] * int(known.sum()), seed, len(train))
    learned: dict[str, Data] = {
        "shifted": Shifted(TensorDataset(*pair), SHIFT, seed),
        "labels of content, shifted": DataLoader(
            Shifted(whole, SHIFT, seed),
            batch_size=learner.settings.batch_size,
            sampler=sampler,
        ),
        "cut anew, labels of content": learner.tensors(source.draw("train", seed)),
    }
    before = learner.outputs(model, shifted)
    row: Row = {
        "auc test": learner.auc(model, biased),
        "auc clean": learner.auc(model, test),
        "auc shifted": auc(before, shifted.labels),
        "shifted patches": [int((shifted.labels == k).sum()) for k in (1, 0)],
        "audit": asked(learner, model, biased, seed),
        "audit clean": asked(learner, model, test, seed),
        "repaired": {},
    }
    for name, data in learned.items():
        again = learner.train(data, seed)
        after = learner.outputs(again, shifted)
        row["repaired"][name] = {
            "auc test": learner.auc(again, biased),
            "auc clean": learner.auc(again, test),
            "auc shifted": auc(after, shifted.labels),
            "gain": auc(after, shifted.labels) - row["auc shifted"],
            "gain draws": gains(before, after, shifted),
            "audit": asked(learner, again, test, seed),
        }
    return row


def gains(before: Array, after: Array, data: Set) -> list[float]:
    """Differences of AUC in resamples of the images; the same resamples for the same images."""
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(data.image == image) for image in np.unique(data.image)]
    found: list[float] = []
    while len(found) < DRAWS:
        drawn = rng.integers(0, len(groups), len(groups))
        chosen = np.concatenate([groups[index] for index in drawn])
        labels = data.labels[chosen]
        if 0 < labels.sum() < len(labels):
            found.append(round(auc(after[chosen], labels) - auc(before[chosen], labels), 5))
    return found


def artefact(
    source: Source, learner: Learner, seed: int, kind: str, share: float, repair: bool
) -> Row:
    """Bias 2: an artefact on a share of the tumour images."""
    train, test = source.draw("train", seed), source.draw("test", seed)
    plantings = planted(train, kind, share, seed)
    learned = replace(train, pixels=plantings.pixels)
    found = planted(test, kind, share, seed + 50)
    biased = replace(test, pixels=found.pixels)
    attacked = marked(test, kind, 0.0, seed + 60, elsewhere=1.0)
    pair = learner.tensors(learned)
    model = learner.train(pair, seed)
    said = audited(learner, model, biased, seed)
    row = {
        "auc test": learner.auc(model, biased),
        **harm(learner, model, test, attacked),
        "audit": answers(said),
        "retrieved": retrieval(said, found.chosen, seed),
    }
    if kind in LOCAL:
        row["overlap"] = overlap(said, found.chosen, found.mask)
    if repair:
        if kind in LOCAL:
            repaired = remedies(learner, model, learned, seed)
        else:
            repaired = remedies_everywhere(learner, model, learned, plantings.chosen, kind, seed)
        row["repaired"] = {
            name: {
                **harm(learner, network, test, attacked),
                "audit": asked(learner, network, biased, seed),
            }
            for name, network in repaired.items()
        }
    return row


def marked(data: Set, artefact: str, share: float, seed: int, elsewhere: float = 0.0) -> Set:
    """Put an artefact on a share of the tumour patches, and of the normal ones."""
    return replace(data, pixels=planted(data, artefact, share, seed, elsewhere).pixels)


def planted(data: Set, artefact: str, share: float, seed: int, elsewhere: float = 0.0) -> Planted:
    """Put an artefact on patches, and say on which and where."""
    return plant(
        data.pixels, data.labels, artefact, on=1, share=share, elsewhere=elsewhere, seed=seed
    )


def harm(learner: Learner, model: nn.Module, test: Set, attacked: Set) -> Row:
    """AUC without the artefact and with it on normal patches, and how far it moves these: the mean
    rise of the margin, in standard deviations of the margins without it.
    """
    clean, changed = (learner.outputs(model, data) for data in (test, attacked))
    margin = clean[:, 1] - clean[:, 0]
    rise = (changed[:, 1] - changed[:, 0] - margin)[test.labels == 0]
    return {
        "accuracy clean": float((clean.argmax(1) == test.labels).mean()),
        "accuracy attacked": float((changed.argmax(1) == test.labels).mean()),
        "auc clean": auc(clean, test.labels),
        "auc attacked": auc(changed, test.labels),
        "artefact moves": float(rise.mean() / margin.std()),
    }


def remedies(learner: Learner, model: nn.Module, learned: Set, seed: int) -> dict[str, nn.Module]:
    """Repair by what an audit can see of a mark: the pixels of foreign colours."""
    inputs, labels = learner.tensors(learned)
    pixels = torch.from_numpy(learned.pixels).permute(0, 3, 1, 2).float() / 255
    masks = np.zeros(learned.pixels.shape[:3], bool)
    masks[learned.labels == 1] = foreign(pixels, learned.labels, 1)
    masks[masks.mean((1, 2)) < 0.003] = False
    has = masks.any((1, 2))
    if has.sum() < 5:
        return {}
    chosen = torch.as_tensor(has)
    repaired = filled(inputs, masks)
    donors, where = inputs[chosen][:128], masks[has][:128]
    spread = Spread(TensorDataset(repaired, labels), donors, where, 0.5, seed)
    augmented = torch.stack([spread[i][0] for i in range(len(spread))])
    clean = repaired[:300], labels[:300]
    pruned, rebuilt = (
        prune_artefact(
            model,
            (donors, labels[chosen][:128], where),
            repaired[chosen][:128],
            clean,
            rebuilt=again,
        )
        for again in (False, True)
    )
    told = copy.deepcopy(model)
    right_reasons(told, (inputs, labels), masks, replace(learner.settings, epochs=2, seed=seed))
    return {
        "inpainted, trained again": learner.train((repaired, labels), seed),
        "spread, trained again": learner.train((augmented, labels), seed),
        "filters pruned": pruned.model,
        "filters pruned, rebuilt": rebuilt.model,
        "told where not to look": told,
        **projected(model, (donors, where), repaired[:300]),
    }


def remedies_everywhere(
    learner: Learner, model: nn.Module, learned: Set, has: Array, kind: str, seed: int
) -> dict[str, nn.Module]:
    """Repair what is all over an image by the property's name and the images that have it.

    Training again needs the name alone. The others look at tumour patches without the artefact, as
    they are and with the property varied at random; the strength that was planted is not used.
    """
    varied = varied_at_random(learned.pixels, kind, seed)
    retrained = learner.train(learner.tensors(replace(learned, pixels=varied)), seed)
    inputs, labels = learner.tensors(learned)
    changed, _ = learner.tensors(replace(learned, pixels=varied))
    lacks = torch.as_tensor(~has)
    shown = (lacks & (labels == 1)).nonzero()[:128, 0]
    clean = inputs[lacks][:300], labels[lacks][:300]
    everywhere = np.ones((len(shown), *learned.pixels.shape[1:3]), bool)
    pruned, rebuilt = (
        prune_artefact(
            model,
            (changed[shown], labels[shown], everywhere),
            inputs[shown],
            clean,
            rebuilt=again,
        )
        for again in (False, True)
    )
    return {
        "varied at random, trained again": retrained,
        "filters pruned": pruned.model,
        "filters pruned, rebuilt": rebuilt.model,
        **projected(model, (changed[shown], everywhere), inputs[shown]),
    }


def projected(
    model: nn.Module, artefact: tuple[Tensor, Array], clean: Tensor
) -> dict[str, nn.Module]:
    """Project the artefact's direction out, at an early and at a late layer."""
    return {
        f"{name} at {layer}": project_out(model, layer, artefact, clean, reactive=reactive)
        for name, reactive in (("reactive P-ClArC", True), ("P-ClArC", False))
        for layer in ("relu2", "relu4")
    }


def varied_at_random(pixels: Array, kind: str, seed: int) -> Array:
    """Do what the audit advises: vary sharpness, compression or colour of every image."""
    rng = np.random.default_rng(seed)
    varied = np.empty_like(pixels)
    for index, image in enumerate(pixels):
        if kind == "blur":
            sigma = rng.uniform(0, 1.5)
            varied[index] = gaussian_filter(image.astype(float), (sigma, sigma, 0)).round()
        elif kind == "jpeg":
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(10, 90)))
            varied[index] = np.asarray(Image.open(buffer).convert("RGB"))
        else:
            density = -np.log(np.maximum(image, 1) / 255.0) * np.exp(rng.normal(0, 0.15, 3))
            varied[index] = (255 * np.exp(-density)).round()
    return varied


def missing(source: Source, learner: Learner, seed: int) -> Row:
    """Bias 3: a group is missing from training: necrosis, or normal patches with inflammation.

    The audit looks at test patches as they come, some of which have the group, and at those that
    the network learned from. At last, training lacks nothing, and a fifth of the test patches comes
    from a scanner with other colours.
    """
    without, mixed, has, test, with_it = source.group(seed)
    few = _few(mixed, has, 0.03)
    sampler = balanced(mixed.labels[few].tolist(), has[few].tolist(), seed, len(mixed))
    some = mixed.select(few)
    rare: tuple[Tensor, Tensor] = learner.tensors(some)
    size = learner.settings.batch_size
    often = DataLoader(TensorDataset(*rare), size, sampler=sampler)
    learned: dict[str, tuple[Set, Data]] = {
        "without": (without, learner.tensors(without)),
        "a few, as they are": (some, rare),
        "a few, drawn more often": (some, often),
        "with": (mixed, learner.tensors(mixed)),
    }
    natural = source.draw("test", seed)
    row: Row = {"patches with it": {"few": int(has[few].sum()), "with": int(has.sum())}}
    for name, (patches, data) in learned.items():
        model = learner.train(data, seed)
        row[name] = {
            "auc without": learner.auc(model, test),
            "auc with": learner.auc(model, with_it),
            "errors without": _errors(learner, model, test),
            "errors with": _errors(learner, model, with_it),
            "audit": asked(learner, model, natural, seed, patches),
        }
    scanned = marked(natural, "stain", 0.2, seed + 70, elsewhere=0.2)
    foreign_only = marked(natural, "stain", 1.0, seed + 70, elsewhere=1.0)
    row["with; a fifth of the tests by another scanner"] = {
        "auc without": learner.auc(model, natural),
        "auc with": learner.auc(model, foreign_only),
        "errors without": _errors(learner, model, natural),
        "errors with": _errors(learner, model, foreign_only),
        "audit": asked(learner, model, scanned, seed, mixed),
    }
    return row


def _errors(learner: Learner, model: nn.Module, data: Set) -> float:
    """Return the share of the normal patches that a network takes for tumour."""
    said = learner.outputs(model, data.select(data.labels == 0)).argmax(1)
    return float(said.mean())


def _few(data: Set, has: Array, share: float) -> Array:
    """Keep all patches without the group and so many of it that they are a share of all."""
    rare = np.flatnonzero(has)
    kept = max(5, round(share * len(data)))
    return np.sort(np.concatenate([np.flatnonzero(~has), rare[:kept]]))
