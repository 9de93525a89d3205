"""The result of an audit: all questions with their answers, and what is shown beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from niwaki import models
from niwaki.auditing._candidates import Candidate
from niwaki.auditing._centre_table import Centres
from niwaki.auditing._finding import ALPHA, MATTERS, Finding
from niwaki.auditing._material import Material
from niwaki.auditing._power import POWER
from niwaki.auditing._spray import Strategies
from niwaki.display import html_table
from niwaki.evaluation import near_chance
from niwaki.files import write_json


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes
    ----------
    findings : tuple of Finding
        All questions with their answers; the flagged come first.
    strategies : tuple of Strategies
        Clusters of heatmaps, by class and kind of features.
    maps : dict of int to ndarray
        Each class's mean map of relevance, (H, W), 1 where it is as strong as on average.
    stains : dict
        By class and stain, the share of area and of relevance; empty unless the images are H&E.
    accuracy, auc : float
        How good the network is on the audit's images; the AUC is the mean over classes, each
        against all others.
    material : Material
        The images and heatmaps, for pictures.
    seconds : float
        How long it took.
    seed : int
        Seed of everything that was drawn.
    centres : Centres or None
        What is known of centres, if they are.
    candidates : tuple of Candidate
        Groups of images that are unlike the rest inside the network, for a person to judge.
    """

    findings: tuple[Finding, ...]
    strategies: tuple[Strategies, ...]
    maps: dict[int, NDArray[Any]]
    stains: dict[str, dict[str, dict[str, float]]]
    accuracy: float
    auc: float
    material: Material
    seconds: float
    seed: int = 0
    centres: Centres | None = None
    candidates: tuple[Candidate, ...] = ()

    @property
    def caution(self) -> str | None:
        """What makes all answers doubtful: a network that is hardly better than guessing."""
        return near_chance(self.material.outputs.argmax(1), self.material.labels)

    @property
    def flagged(self) -> tuple[Finding, ...]:
        """The questions answered with yes, strongest first."""
        return tuple(finding for finding in self.findings if finding.flagged)

    @property
    def distinct(self) -> tuple[Finding, ...]:
        """The flagged without echoes: one for each cause."""
        return tuple(finding for finding in self.flagged if not finding.echo_of)

    @property
    def too_few(self) -> tuple[Finding, ...]:
        """The questions for which there are too few images."""
        return tuple(finding for finding in self.findings if finding.answer == "too few images")

    @property
    def verdict(self) -> Literal["unreliable", "found", "too few images", "nothing found"]:
        """All answers in one: nothing was found only if no question has too few images."""
        if self.caution:
            return "unreliable"
        if self.flagged:
            return "found"
        return "too few images" if self.too_few else "nothing found"

    def echoes(self, finding: Finding) -> tuple[Finding, ...]:
        """Return the findings that are of the same cause as one of `distinct`."""
        return tuple(other for other in self.flagged if other.echo_of == finding.key)

    def limits(self) -> str:
        """Say in words what the audit would have found where the answer is no."""
        told = []
        no = [finding for finding in self.findings if finding.answer == "no"]
        if no:
            worst = max((finding.detectable or 0.0 for finding in no), default=0.0)
            told.append(
                f"{_questions(len(no))} answered with no: there, a thing that decides {worst:.0%} "
                f"or more of the images of its class would have been found in {POWER:.0%} of such "
                "samples; smaller ones may be there."
            )
            if silent := sum(finding.power is None for finding in no):
                told.append(f"Of {silent} of these it is not known how small a thing would show.")
        if self.too_few:
            told.append(
                f"Too few images for {_questions(len(self.too_few))}: even a thing that decides "
                f"{MATTERS:.0%} of a class's images could have gone unnoticed."
            )
            if seen := [finding.title for finding in self.too_few if finding.suspicious()]:
                told.append(f"Suspicious, and worth more images: {'; '.join(seen)}.")
        return " ".join(told)

    def made(self) -> dict[str, Any]:
        """Return what is needed to repeat this audit: versions, the network, the seed."""
        import niwaki

        return {
            "niwaki": niwaki.__version__,
            "torch": torch.__version__,
            "fingerprint": models.fingerprint(self.material.model),
            "seed": self.seed,
        }

    def get(self, key: str) -> Finding:
        """Return the question of that key; KeyError names those there are."""
        for finding in self.findings:
            if finding.key == key:
                return finding
        raise KeyError(f"no question {key!r}; there are {[f.key for f in self.findings]}")

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without images."""
        return {
            "made": self.made(),
            "verdict": self.verdict,
            "images": len(self.material),
            "groups": len(set(self.material.groups.tolist())),
            "classes": list(self.material.class_names),
            "method": self.material.method,
            "accuracy": self.accuracy,
            "auc": self.auc,
            "caution": self.caution,
            "alpha": ALPHA,
            "correction": "Holm",
            "questions": len(self.findings),
            "matters": MATTERS,
            "power": POWER,
            "limits": self.limits(),
            "flagged": [finding.key for finding in self.flagged],
            "distinct": [finding.key for finding in self.distinct],
            "too_few": [finding.key for finding in self.too_few],
            "findings": [self._told(finding) for finding in self.findings],
            "stains": self.stains,
            "centres": None if self.centres is None else self.centres.to_json(),
            "candidates": [found.to_json(self.material) for found in self.candidates],
            "strategies": [found.to_json(self.material.class_names) for found in self.strategies],
            "seconds": round(self.seconds, 1),
        }

    def _told(self, finding: Finding) -> dict[str, Any]:
        """Return a finding as plain data, its examples by name as well."""
        named = {
            f"{kind}_images": [self.material.describe(int(place)) for place in places]
            for kind, places in (("example", finding.examples), ("ordinary", finding.ordinary))
        }
        return {**finding.to_json(), **named}

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        write_json(path, self.to_json())

    def __str__(self) -> str:
        head = (
            f"{len(self.findings)} questions to {len(self.material)} images (accuracy "
            f"{self.accuracy:.1%}, AUC {self.auc:.3f}): {len(self.flagged)} answered with yes"
        )
        doubt = [f"CAUTION: {self.caution}."] if self.caution else []
        lines = [*doubt, head]
        for finding in self.distinct:
            lines.append(f"* {finding.sentence} (p = {finding.p:.2g})")
            if echoes := self.echoes(finding):
                lines.append(f"  of the same cause: {'; '.join(echo.title for echo in echoes)}")
        return "\n".join([*lines, *([self.limits()] if self.limits() else [])])

    def _repr_html_(self) -> str:
        rows = [
            {
                "question": finding.question,
                "answer": finding.answer,
                "effect": finding.effect,
                "p": finding.p,
                "could show": finding.could_show(),
            }
            for finding in self.findings
        ]
        lines = str(self).splitlines()
        return html_table(rows, " ".join([lines[0], *([self.limits()] if self.limits() else [])]))

    def __repr__(self) -> str:
        return f"Audit({len(self.flagged)} of {len(self.findings)} questions flagged)"


def _questions(count: int) -> str:
    return f"{count} question{'' if count == 1 else 's'}"
