"""Position: does relevance gather in one part of the image, whatever the image shows there?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from niwaki.arrays import Array
from niwaki.auditing._finding import Finding
from niwaki.auditing._interventions import TRIED, compare_regions
from niwaki.auditing._power import of_place
from niwaki.auditing._question import Evidence, question
from niwaki.auditing._statistics import shifted
from niwaki.ranges import SIDE, checked

SMALLEST = 1.5
_ADVICE = {
    "centre": "Cut the patches anew around random points, or shift them, and train again; check "
    "how labels were given to patches.",
    "border": "Look for frames, padding or scanner edges; crop the border away and train again.",
    "corner": "Look at the corners of these images for marks, labels or stamps; mask them and "
    "train again.",
}


@checked(height=SIDE, width=SIDE)
def zones(height: int, width: int) -> dict[str, Array]:
    """Return the places that are asked about, as masks of shape (height, width).

    The centre is the middle third of both sides, the border a ring of a twelfth of the side, a
    corner a square of a quarter of the side.
    """
    rows = (np.arange(height) + 0.5)[:, None] / height
    columns = (np.arange(width) + 0.5)[None] / width
    middle = (np.abs(rows - 0.5) < 1 / 6) & (np.abs(columns - 0.5) < 1 / 6)
    ring = (np.minimum(rows, 1 - rows) < 1 / 12) | (np.minimum(columns, 1 - columns) < 1 / 12)
    found = {"centre": middle, "border": ring}
    for vertical, is_row in (("upper", rows < 0.25), ("lower", rows > 0.75)):
        for side, is_column in (("left", columns < 0.25), ("right", columns > 0.75)):
            found[f"{vertical} {side} corner"] = is_row & is_column
    return found


@question(
    "position", "Does relevance gather at the centre, the border or a corner, whatever is there?"
)
def find_positions(evidence: Evidence, rng: np.random.Generator) -> Iterator[Finding]:
    """Ask for each class and each place whether relevance gathers there.

    Position alone gives a place its share of the area: every heatmap is moved around at random. A
    suspicion is tried by replacing the place's content with that of images of other classes,
    against the same shape at random places.
    """
    material = evidence.material
    for label in material.classes():
        who, members = material.class_names[label], material.members(label)
        strength = material.strength(members)
        for name, zone in zones(*strength.shape[1:]).items():
            shifts = shifted(strength, zone, rng, material.draws)
            share, expected = shifts.share, shifts.expected
            inside = np.einsum("nhw,hw->n", strength, zone)
            finding = Finding(
                key=f"position/{who}/{name}",
                title=f"{name} (class {who})",
                question=f"Does the network look at the {name} of images of class {who!r} rather "
                "than at what they show?",
                label=label,
                effect=share / expected,
                effect_name="relevance there, in multiples of the place's share of the area",
                smallest=SMALLEST,
                p_seen=shifts.p,
                examples=tuple(members[np.argsort(-inside)][:8]),
                region=zone,
                numbers={"share": share, "expected": expected},
                power=of_place(shifts, SMALLEST, evidence.tries[label], TRIED),
            )
            if finding.suspicious():
                cause = compare_regions(material, members, zone, "transplant", rng)
                finding = replace(
                    finding,
                    cause=cause,
                    sentence=f"For class {who!r} the network looks at the {name} of the image: "
                    f"{share:.0%} of the relevance lies there, on {expected:.0%} of the area. With "
                    f"the {name} taken from an image of another class, {cause.flips:.0%} of the "
                    "images become wrong; with an equally large region at a random place, "
                    f"{cause.control_flips:.0%}.",
                    advice=_ADVICE[name.split()[-1]],
                )
            yield finding
