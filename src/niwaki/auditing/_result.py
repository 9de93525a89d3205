"""The result of an audit: all questions with their answers, and what is shown beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from niwaki.auditing._finding import ALPHA, Finding
from niwaki.auditing._material import Material
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
        Of the network on the audit's images; the AUC is the mean over classes, one against all.
    material : Material
        The images and heatmaps, for pictures.
    seconds : float
        How long it took.
    """

    findings: tuple[Finding, ...]
    strategies: tuple[Strategies, ...]
    maps: dict[int, NDArray[Any]]
    stains: dict[str, dict[str, dict[str, float]]]
    accuracy: float
    auc: float
    material: Material
    seconds: float

    @property
    def caution(self) -> str | None:
        """What makes all answers doubtful: a network that is hardly better than guessing."""
        return near_chance(self.material.outputs.argmax(1), self.material.labels)

    @property
    def flagged(self) -> tuple[Finding, ...]:
        """The questions answered by yes, strongest first."""
        return tuple(finding for finding in self.findings if finding.flagged)

    def get(self, key: str) -> Finding:
        """Return the question of that key; KeyError names those there are."""
        for finding in self.findings:
            if finding.key == key:
                return finding
        raise KeyError(f"no question {key!r}; there are {[f.key for f in self.findings]}")

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without images."""
        return {
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
            "flagged": [finding.key for finding in self.flagged],
            "findings": [finding.to_json() for finding in self.findings],
            "stains": self.stains,
            "strategies": [found.to_json(self.material.class_names) for found in self.strategies],
            "seconds": round(self.seconds, 1),
        }

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        write_json(path, self.to_json())

    def __str__(self) -> str:
        head = (
            f"{len(self.findings)} questions to {len(self.material)} images (accuracy "
            f"{self.accuracy:.1%}, AUC {self.auc:.3f}): {len(self.flagged)} answered by yes"
        )
        doubt = [f"CAUTION: {self.caution}."] if self.caution else []
        return "\n".join([*doubt, head, *(f"* {f.sentence} (p = {f.p:.2g})" for f in self.flagged)])

    def _repr_html_(self) -> str:
        rows = [
            {
                "question": finding.question,
                "answer": "yes" if finding.flagged else "no",
                "effect": finding.effect,
                "p": finding.p,
            }
            for finding in self.findings
        ]
        return html_table(rows, str(self).partition("\n")[0])

    def __repr__(self) -> str:
        return f"Audit({len(self.flagged)} of {len(self.findings)} questions flagged)"
