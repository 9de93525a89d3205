"""What an audit found: an answer with its words, its evidence and what to draw of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niwaki.auditing._interventions import Cause
from niwaki.auditing._statistics import holm

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Finding:
    """One question, its evidence and its answer.

    A question is answered by yes when chance does not explain what the heatmaps or images show
    (`p_seen`), nor what happens when the thing is changed (`p_cause`), both after Holm's correction
    for the number of questions, and when both effects are as large as is worth an alarm. What does
    not look suspicious is not tried, and its `p_cause` is 1.

    Attributes
    ----------
    key : str
        The question's name, the class and the thing, such as ``"position/tumour/centre"``.
    title : str
        The thing and the class in words, such as ``"centre (class tumour)"``.
    question : str
        In words.
    label : int
        The class it is about.
    effect : float
        How many times what chance gives; see `effect_name`.
    effect_name : str
        What the effect is, in words.
    smallest : float
        The effect that is worth an alarm.
    p_seen : float
        That chance gives as much.
    cause : Cause or None
        What happens when the thing is changed, or that the network fails where it is; None where
        it was not tried.
    smallest_cause : float
        How many times the control's effect is worth an alarm.
    smallest_drop : float
        The fall of the margin that is worth an alarm.
    sentence : str
        What a person reads when the answer is yes.
    advice : str
        What to do then.
    examples : tuple of int
        Positions of images in the audit's sample, the clearest first.
    ordinary : tuple of int
        Positions of images of the class that do not have it, to compare.
    region : ndarray or None
        Where, shape (H, W), bool, if it is the same place on all images.
    outlines : ndarray or None
        Where on each example, shape (examples, H, W), bool, if it is not.
    numbers : dict
        More evidence, plain numbers.
    note : str
        Why a thing that looks suspicious was not tried, or is no reason for an alarm.
    p : float
        The larger of both p-values, corrected; set by `decide`.
    """

    key: str
    title: str
    question: str
    label: int
    effect: float
    effect_name: str
    smallest: float
    p_seen: float
    cause: Cause | None = None
    smallest_cause: float = 1.5
    smallest_drop: float = 0.0
    sentence: str = ""
    advice: str = ""
    examples: tuple[int, ...] = ()
    ordinary: tuple[int, ...] = ()
    region: NDArray[Any] | None = None
    outlines: NDArray[Any] | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    note: str = ""
    p: float = 1.0

    @property
    def p_both(self) -> float:
        """The larger of both p-values: that of a claim that needs both (intersection-union)."""
        return 1.0 if self.cause is None else max(self.p_seen, self.cause.p)

    @property
    def flagged(self) -> bool:
        """Whether the answer is yes."""
        return (
            self.p < ALPHA
            and self.effect >= self.smallest
            and self.cause is not None
            and self.cause.drop > self.smallest_drop
            and self.cause.ratio >= self.smallest_cause
        )

    def evidence(self) -> list[tuple[str, str]]:
        """Return what speaks for the answer, in words: what was measured, and how it came out."""
        effect = f"{self.effect:.2f} (worth an alarm from {self.smallest:g})"
        return [
            (self.effect_name[:1].upper() + self.effect_name[1:], effect),
            ("Probability by chance, corrected for all questions", f"{self.p:.2g}"),
            *(self.cause.evidence(self.smallest_drop) if self.cause else ()),
        ]

    def outline(self, example: int) -> NDArray[Any] | None:
        """Return where the thing is on an example, shape (H, W), bool, if it is a place."""
        return self.region if self.outlines is None else self.outlines[example]

    def suspicious(self) -> bool:
        """Whether the thing is worth a try."""
        return self.p_seen < ALPHA and self.effect >= self.smallest

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "key": self.key,
            "title": self.title,
            "question": self.question,
            "flagged": self.flagged,
            "effect": self.effect,
            "effect_name": self.effect_name,
            "smallest": self.smallest,
            "p": self.p,
            "p_seen": self.p_seen,
            "cause": None if self.cause is None else self.cause.to_json(),
            "sentence": self.sentence if self.flagged else "",
            "advice": self.advice if self.flagged else "",
            "examples": [int(index) for index in self.examples],
            "ordinary": [int(index) for index in self.ordinary],
            "note": "" if self.flagged else self.note,
            "numbers": {name: _plain(value) for name, value in self.numbers.items()},
        }

    def __repr__(self) -> str:
        answer = "yes" if self.flagged else "no"
        return f"Finding({self.key}: {answer}, {self.effect:.2f} times chance, p = {self.p:.3g})"


def decide(findings: list[Finding]) -> list[Finding]:
    """Correct the p-values for the number of questions; the flagged first, strongest first."""
    adjusted = holm([finding.p_both for finding in findings])
    done = [replace(f, p=p) for f, p in zip(findings, adjusted, strict=True)]
    return sorted(done, key=lambda f: (not f.flagged, f.p, -_weight(f)))


def _weight(finding: Finding) -> float:
    return finding.cause.drop if finding.cause else -np.inf


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
