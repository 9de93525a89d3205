"""Echoes: several questions answered by yes because of one and the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from niwaki.auditing._finding import Finding

PIXELS = 0.5  # share of the smaller place that lies in the other, on average over examples
IMAGES = 0.5  # share of the images of both findings that have both


def with_echoes(findings: Sequence[Finding]) -> list[Finding]:
    """Say of each finding which stronger one it is an echo of.

    Two findings are of one cause if they are about the same pixels, whatever the class, or about
    the same images of a class. Answers do not change, nor does their order.

    Parameters
    ----------
    findings : sequence of Finding
        As `decide` returns them: the flagged first, strongest first.
    """
    heads: list[Finding] = []
    found = []
    for finding in findings:
        head = next((one for one in heads if _is_one_cause(one, finding)), None)
        if finding.flagged and head is None:
            heads.append(finding)
        found.append(replace(finding, echo_of=head.key if finding.flagged and head else ""))
    return found


def _is_one_cause(one: Finding, other: Finding) -> bool:
    return _same_pixels(one, other) or (one.label == other.label and _same_images(one, other))


def _same_pixels(one: Finding, other: Finding) -> bool:
    """Whether the places of both lie in each other, on the images that show them."""
    overlaps = []
    for first, second in ((one, other), (other, one)):
        for place, position in enumerate(first.examples):
            here = first.outline(place)
            if second.region is not None:
                there = second.region
            elif second.outlines is not None and position in second.examples:
                there = second.outlines[second.examples.index(position)]
            else:
                continue
            if here is not None and here.any() and there.any():
                overlaps.append((here & there).sum() / min(here.sum(), there.sum()))
    return bool(overlaps) and float(np.mean(overlaps)) >= PIXELS


def _same_images(one: Finding, other: Finding) -> bool:
    """Whether it is the same images that have both, as far as that is a part of the class."""
    first, second = set(one.having), set(other.having)
    both = first | second
    return bool(first and second) and len(first & second) >= IMAGES * len(both)
