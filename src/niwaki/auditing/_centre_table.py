"""What an audit knows about centres besides its questions: errors, and how they are told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from niwaki.auditing._centres import accuracy_of_telling, robustness_index
from niwaki.auditing._question import Evidence
from niwaki.auditing._statistics import finite


@dataclass(frozen=True)
class Centres:
    """Centres, and what a network makes of them.

    Attributes
    ----------
    errors : dict
        By class and centre the number of images and the share of them that is wrong.
    from_features, from_relevance : float
        Balanced accuracy of a linear model that tells the centre of images on slides it has not
        seen, from the activity of the last hidden layer and from the relevance of all channels;
        what differs between classes is taken off. NaN where there are too few slides.
    chance : float
        The same by guessing.
    robustness : float
        See `niwaki.auditing.robustness_index`, of the activity of the last hidden layer.
    """

    errors: dict[str, dict[str, tuple[int, float]]]
    from_features: float
    from_relevance: float
    chance: float
    robustness: float

    def told(self) -> str:
        """Return this in words."""
        parts = [
            f"{who}: "
            + ", ".join(f"{centre} {wrong:.0%} of {n}" for centre, (n, wrong) in row.items())
            for who, row in self.errors.items()
        ]
        said = [f"Errors by class and centre: {'; '.join(parts)}."]
        if np.isfinite(self.from_features):
            said.append(
                "A linear model tells the centre of images from unseen slides in "
                f"{self.from_features:.0%} of cases from the features of the last hidden layer, "
                f"and in {self.from_relevance:.0%} from the channels that carry the prediction (by "
                f"guessing {self.chance:.0%})."
            )
        if np.isfinite(self.robustness):
            said.append(
                f"Robustness index: {self.robustness:.2f} (1: the nearest images share the class, "
                "0: they share the centre)."
            )
        return " ".join(said)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "errors": {
                who: {name: {"images": n, "wrong": wrong} for name, (n, wrong) in row.items()}
                for who, row in self.errors.items()
            },
            "told_from_features": finite(self.from_features),
            "told_from_relevance": finite(self.from_relevance),
            "by_guessing": self.chance,
            "robustness_index": finite(self.robustness),
        }


def centres_of(evidence: Evidence) -> Centres | None:
    """Return what is known of centres; None where they are not, or there is only one."""
    material = evidence.material
    if material.centres is None or len(np.unique(material.centres)) < 2:
        return None
    names, labels, centres = np.unique(material.centres), material.labels, material.centres
    errors = {
        material.class_names[label]: {
            str(name): (int(cell.sum()), float(1 - material.right[cell].mean()))
            for name in names
            if (cell := (labels == label) & (centres == name)).any()
        }
        for label in material.classes()
    }
    inside = evidence.latent
    relevance = np.concatenate(list(inside.relevance.values()), 1)
    known = labels, centres, material.groups
    return Centres(
        errors,
        accuracy_of_telling(inside.embedding, *known),
        accuracy_of_telling(relevance, *known),
        1 / len(names),
        robustness_index(inside.embedding, *known),
    )
