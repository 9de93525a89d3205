"""A scanner that goes with the label: how far, what it costs, and whether the audit names it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from biases import Row
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sources import Learner, Set, Source
from torch import nn

from niwaki.auditing import auc, audit
from niwaki.data import Described

Array = NDArray[Any]
#: Optical densities are multiplied, and images blurred, by the second scanner.
STRENGTHS = {
    "strong": ((1.18, 1.0, 0.80), 0.7),
    "weak": ((1.09, 1.0, 0.90), 0.45),
    "none": ((1.0, 1.0, 1.0), 0.0),
}
#: Strength, and the share of the scans of a class that are from its own scanner: at .5 labels are
#: independent of it.
CASES = tuple(
    (strength, agreement) for strength in ("strong", "weak") for agreement in (1.0, 0.8, 0.6, 0.5)
)


def scanner(source: Source, learner: Learner, seed: int, strength: str, agreement: float) -> Row:
    """Train where the scanner agrees with the label as often as said, and audit on such a test."""
    train, test = source.split(seed)
    learned = scanned(train, scanners(train, agreement, seed), strength)
    of_test = scanners(test, agreement, seed + 1)
    biased = scanned(test, of_test, strength)
    model = learner.train(learner.tensors(learned), seed)
    swapped = scanned(test, 1 - of_test, strength)
    by_chance = scanned(test, scanners(test, 0.5, seed + 2), strength)
    right = {
        name: accuracy(learner, model, data)
        for name, data in (("biased", biased), ("swapped", swapped), ("by chance", by_chance))
    }
    return {
        "auc test": learner.auc(model, biased),
        "auc swapped": auc(learner.outputs(model, swapped), test.labels),
        "accuracy": right,
        "cost": right["biased"] - right["by chance"],
        "audit": asked(learner, model, biased, of_test, seed),
    }


def scanners(data: Set, agreement: float, seed: int) -> Array:
    """Return the scanner, 0 or 1, of each patch: of a slide, all of one class are scanned at once.

    Exactly the said share of the scans of a class is from its own scanner.
    """
    rng = np.random.default_rng(seed + 3000)
    found = np.zeros(len(data), np.int64)
    for label in (0, 1):
        slides = rng.permutation(np.unique(data.image[data.labels == label]))
        own = slides[: round(agreement * len(slides))]
        members = data.labels == label
        found[members] = np.where(np.isin(data.image[members], own), label, 1 - label)
    return found


def scanned(data: Set, scanner_of: Array, strength: str) -> Set:
    """Return patches as the scanners show them: the first one as they are."""
    factors, sigma = STRENGTHS[strength]
    pixels = data.pixels.copy()
    for index in np.flatnonzero(scanner_of == 1):
        density = -np.log(np.maximum(pixels[index], 1) / 245.0) * np.array(factors)
        image = (245 * np.exp(-density)).clip(0, 255)
        soft = gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
        pixels[index] = soft.round().astype(np.uint8)
    return replace(data, pixels=pixels)


def accuracy(learner: Learner, model: nn.Module, data: Set) -> float:
    """Return the share of the patches that are right."""
    return float((learner.outputs(model, data).argmax(1) == data.labels).mean())


def asked(learner: Learner, model: nn.Module, data: Set, scanner_of: Array, seed: int) -> Row:
    """Audit a network that knows slides, as scans, and scanners."""
    scans = [
        f"{image:05d} {label} {number}"
        for image, label, number in zip(data.image, data.labels, scanner_of, strict=True)
    ]
    centres = np.array(["first", "second"])[scanner_of]
    described = Described(learner.images(data), groups=scans, centres=centres)
    found = audit(model, described, seed=seed, limit=400)
    return {
        "questions": len(found.findings),
        "flagged": [f.key for f in found.flagged],
        "answers": {f.key: f.answer for f in found.findings if f.key.startswith("centre/")},
        "effects": {f.key: (f.effect, f.p_seen) for f in found.findings if "centre/" in f.key},
        "causes": {
            f.key: {"p": f.p, **f.cause.to_json()}
            for f in found.findings
            if f.key.startswith("centre/") and f.cause
        },
        "detectable": {f.key: f.detectable for f in found.findings if "centre/" in f.key},
    }
