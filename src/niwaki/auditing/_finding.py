"""What an audit found: an answer in words, its evidence, and the pictures to draw of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from niwaki.auditing._interventions import Cause
from niwaki.auditing._power import ANSWERS, POWER, RATIO, Power
from niwaki.auditing._statistics import finite, holm

ALPHA = 0.05
MATTERS = 0.5  # share of a class's images: what is on so many has to be found, or it is too few

Answer = Literal["yes", "no", "too few images", "unreliable"]


@dataclass(frozen=True, eq=False)
class Finding:
    """One question, its evidence and its answer.

    A question is answered with yes when chance does not explain what the heatmaps or images show
    (`p_seen`), nor what happens when the thing is changed (`p_cause`), both after Holm's correction
    for the number of questions, when both effects are large enough to be worth an alarm, and when
    predictions of the network change with the thing. What does not look suspicious is not tried,
    and its `p_cause` is 1. A no says what could have been found; see `answer`.

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
        The probability that chance gives as much.
    cause : Cause or None
        What happens when the thing is changed, or that the network fails where it is; None where
        it was not tried.
    spread : Cause or None
        What happens to images of other classes when the thing is put on them; None where it was
        not tried.
    smallest_cause : float
        How many times the control's effect is worth an alarm.
    smallest_drop : float
        The fall of the margin that is worth an alarm.
    smallest_flips : float
        The share of images whose prediction has to change, beyond that of the control.
    sentence : str
        What a person reads when the answer is yes.
    advice : str
        What to do then.
    examples : tuple of int
        Positions of images in the audit's sample, the clearest first.
    having : tuple of int
        Positions of all images that have it; none where that is all of the class or unknown.
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
    power : Power or None
        What could have been found; None where the question does not say.
    p : float
        The larger of both p-values, corrected; set by `decide`.
    detectable : float or None
        The smallest share of the class's images, judged by the thing alone, that would have been
        found in 8 of 10 such samples; None where not even all of them would; set by `decide`.
    reliable : bool
        Whether the network is better than guessing; set by `decide`.
    echo_of : str
        The key of a stronger finding about the same pixels or images; set by `decide`.
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
    spread: Cause | None = None
    smallest_cause: float = RATIO
    smallest_drop: float = 0.0
    smallest_flips: float = ANSWERS
    sentence: str = ""
    advice: str = ""
    examples: tuple[int, ...] = ()
    having: tuple[int, ...] = ()
    ordinary: tuple[int, ...] = ()
    region: NDArray[Any] | None = None
    outlines: NDArray[Any] | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    note: str = ""
    power: Power | None = None
    p: float = 1.0
    detectable: float | None = None
    reliable: bool = True
    echo_of: str = ""

    @property
    def p_both(self) -> float:
        """The larger of both p-values: that of a claim that needs both (intersection-union)."""
        return 1.0 if self.cause is None else max(self.p_seen, self.cause.p)

    @property
    def changed(self) -> float:
        """Share of images whose prediction changes with the thing, beyond that of other changes.

        Images that have it may keep their class without it, as it is right for other reasons too.
        So this is the share of these or, if that is larger and not by chance, the share of the
        images of other classes that it was put on.
        """
        tried = [c for c in (self.cause, self.spread) if c is not None and c.p < ALPHA]
        return max((cause.changed for cause in tried), default=0.0)

    @property
    def flagged(self) -> bool:
        """Whether the answer is yes."""
        return (
            self.reliable
            and self.p < ALPHA
            and self.effect >= self.smallest
            and self.cause is not None
            and self.cause.drop > self.smallest_drop
            and self.cause.ratio >= self.smallest_cause
            and self.changed >= self.smallest_flips
        )

    @property
    def answer(self) -> Answer:
        """Yes, no, or what keeps the question from being answered.

        There are too few images where a thing that decides half of the class's images, or even all
        of them, would not have been found with 80 % power. Nothing is reliable of a network that is
        hardly better than guessing.
        """
        if not self.reliable:
            return "unreliable"
        if self.flagged:
            return "yes"
        if self.power is not None and (self.detectable is None or self.detectable > MATTERS):
            return "too few images"
        return "no"

    def could_show(self) -> str:
        """Return in words what would have been found, had it been there."""
        if self.power is None:
            return "The question does not say how small a thing it could have found."
        if self.power.images == 0:
            return "No image of the class has what is asked about."
        count = f"{self.power.images} images"
        if self.detectable is None:
            return f"Of {count}, not even a thing that decides all of them would be found reliably."
        return (
            f"Of {count}, a thing that decides {self.detectable:.0%} of them or more would be "
            f"found in {POWER:.0%} of such samples."
        )

    def evidence(self) -> list[tuple[str, str]]:
        """Return what speaks for the answer, in words: what was measured, and how it came out."""
        effect = f"{self.effect:.2f} (worth an alarm from {self.smallest:g})"
        return [
            (self.effect_name[:1].upper() + self.effect_name[1:], effect),
            ("p-value, corrected for all questions", f"{self.p:.2g}"),
            *(self.cause.evidence(self.smallest_drop) if self.cause else ()),
            *(_spread_evidence(self.spread) if self.spread else ()),
            ("What so many images can show", self.could_show()),
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
            "answer": self.answer,
            "flagged": self.flagged,
            "detectable": self.detectable,
            "could_show": self.could_show(),
            "images": None if self.power is None else self.power.images,
            "echo_of": self.echo_of or None,
            "effect": self.effect,
            "effect_name": self.effect_name,
            "smallest": self.smallest,
            "p": self.p,
            "p_seen": self.p_seen,
            "cause": None if self.cause is None else self.cause.to_json(),
            "spread": None if self.spread is None else self.spread.to_json(),
            "sentence": self.sentence if self.flagged else "",
            "advice": self.advice if self.flagged else "",
            "examples": [int(index) for index in self.examples],
            "ordinary": [int(index) for index in self.ordinary],
            "note": "" if self.flagged else self.note,
            "numbers": {name: finite(value) for name, value in self.numbers.items()},
        }

    def __repr__(self) -> str:
        return (
            f"Finding({self.key}: {self.answer}, {self.effect:.2f} times chance, p = {self.p:.3g})"
        )


def decide(findings: list[Finding], reliable: bool = True) -> list[Finding]:
    """Correct the p-values for the number of questions; the flagged first, strongest first.

    Parameters
    ----------
    findings : list of Finding
        All that was asked, also where nothing was seen.
    reliable : bool
        Whether the network is better than guessing; of one that is not, nothing is flagged.
    """
    adjusted = holm([finding.p_both for finding in findings])
    level = ALPHA / max(len(findings), 1)
    done = [
        replace(
            finding,
            p=p,
            reliable=reliable,
            detectable=None if finding.power is None else finding.power.smallest(level),
        )
        for finding, p in zip(findings, adjusted, strict=True)
    ]
    return sorted(done, key=lambda f: (not f.flagged, f.p, -_weight(f)))


def _spread_evidence(spread: Cause) -> list[tuple[str, str]]:
    return [
        (
            "Images of other classes whose prediction changes when the thing is put on them",
            f"{spread.flips:.1%}; by other parts of the same images {spread.control_flips:.1%} "
            f"({spread.count} images, p = {spread.p:.2g} before correction)",
        )
    ]


def _weight(finding: Finding) -> float:
    return finding.cause.drop if finding.cause else -np.inf
