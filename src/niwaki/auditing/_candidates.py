"""Candidates: groups of images that are unlike the rest inside the network, for a person to judge.

They are not findings: most classes contain several kinds of images. A person says which of the
images show something that should not decide, and the audit then asks about those.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from niwaki.arrays import Array
from niwaki.auditing._concepts import FEWEST, concept_of
from niwaki.auditing._latent import Latent
from niwaki.auditing._material import Material
from niwaki.auditing._on_disk import blocks
from niwaki.auditing._spray import NEIGHBOURS, clustered
from niwaki.errors import DataError
from niwaki.files import write_text

STRIP = 20  # images of a candidate that are shown
_OF_CLASS = 3
_MOST = 0.6  # share of a class that a group of it may have
_SAME = 0.5  # share of the images of two groups that makes them one
_OUTLIERS = 0.05
_YES = ("yes", "y", "1", "true", "x")
_NO = ("no", "n", "0", "false", "")


@dataclass(frozen=True, eq=False)
class Candidate:
    """Images of a class whose prediction is carried by other channels than that of the rest.

    Attributes
    ----------
    name : str
        Such as ``"tumour 1"``.
    label : int
        The class.
    layer : str
        The layer that the channels are of.
    kind : {"group", "outliers"}
        A cluster, or the images that are farthest from all others.
    positions : tuple of int
        In the audit's sample: the most of what they have in common first, then others of the class
        that seem to have it.
    count : int
        How many of these are of the group itself.
    oddness : float
        What groups are ranked by.
    """

    name: str
    label: int
    layer: str
    kind: str
    positions: tuple[int, ...]
    count: int
    oddness: float

    def to_json(self, material: Material) -> dict[str, Any]:
        """Return plain data, with the names of the images that are shown."""
        return {
            "name": self.name,
            "class": material.class_names[self.label],
            "layer": self.layer,
            "kind": self.kind,
            "images": self.count,
            "oddness": self.oddness,
            "strip": [material.describe(place) for place in self.positions[:STRIP]],
        }


def find_candidates(material: Material, latent: Latent, seed: int = 0) -> tuple[Candidate, ...]:
    """Cluster the images of each class by the relevance of each layer's channels.

    The analysis is that of SpRAy (Lapuschkin et al. 2019), of relevance inside the network instead
    of pixels, layer by layer. Of groups that several layers give, the oddest is kept. The images
    whose fifth nearest neighbour is farthest off are a candidate too.

    Parameters
    ----------
    material : Material
        The audit's.
    latent : Latent
        The latent relevance of the same images.
    seed : int
        Seed of k-means.
    """
    found: list[Candidate] = []
    for label in material.classes():
        if len(material.members(label)) < 3 * NEIGHBOURS:
            continue
        groups = sorted(_groups(material, latent, label, seed), key=lambda group: -group[2])
        kept: list[tuple[str, Array, float]] = []
        for group in groups:
            if len(kept) < _OF_CLASS and not any(_overlap(group[1], k[1]) >= _SAME for k in kept):
                kept.append(group)
        who = material.class_names[label]
        for number, (layer, members, oddness) in enumerate(kept, 1):
            name = f"{who} {number}"
            found.append(_ranked(material, latent, name, label, layer, "group", members, oddness))
        layer, members = _outliers(material, latent, label)
        if len(members):
            name = f"{who} outliers"
            found.append(_ranked(material, latent, name, label, layer, "outliers", members, 0.0))
    return tuple(found)


def _groups(
    material: Material, latent: Latent, label: int, seed: int
) -> Iterator[tuple[str, Array, float]]:
    most = _MOST * len(material.members(label))
    for layer in latent.layers:
        features = _unit(latent.relevance[layer])
        for cluster in clustered(features, material.labels, label, seed)[0]:
            if 5 <= len(cluster) <= most:
                yield layer, np.array(cluster.positions), cluster.oddness


def _outliers(material: Material, latent: Latent, label: int) -> tuple[str, Array]:
    """Return the images farthest from the others of the class, in the layer where they are most.

    None, where no channel carries anything.
    """
    from scipy.spatial.distance import cdist

    members, best = material.members(label), (0.0, "", np.zeros(0, int))
    for layer in latent.layers:
        own = _unit(latent.relevance[layer][members])
        parts = [np.partition(cdist(own[rows], own), 5, axis=1)[:, 5] for rows in blocks(len(own))]
        fifth = np.concatenate(parts)
        count = max(5, round(_OUTLIERS * len(members)))
        farthest = np.argsort(-fifth)[:count]
        ratio = float(fifth[farthest].mean() / max(np.median(fifth), 1e-12))
        if ratio > best[0]:
            best = (ratio, layer, members[farthest])
    return best[1], best[2]


def _ranked(
    material: Material,
    latent: Latent,
    name: str,
    label: int,
    layer: str,
    kind: str,
    members: Array,
    oddness: float,
) -> Candidate:
    scores = concept_of(latent, material.labels, members).scores
    rest = np.setdiff1d(material.members(label), members)
    ordered = [part[np.argsort(-scores[part], kind="stable")] for part in (members, rest)]
    positions = tuple(int(place) for part in ordered for place in part)
    return Candidate(name, label, layer, kind, positions, len(members), oddness)


def _unit(values: Array) -> Array:
    found: Array = values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)
    return found


def _overlap(one: Array, other: Array) -> float:
    return len(np.intersect1d(one, other)) / len(np.union1d(one, other))


def write_candidates(path: str | Path, candidates: Sequence[Candidate], material: Material) -> None:
    """Write a table to fill in: the images of each candidate, and an empty column ``accept``.

    Parameters
    ----------
    path : str or Path
        Path of the CSV file.
    candidates : sequence of Candidate
        Candidates of an audit.
    material : Material
        The audit's.
    """
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["candidate", "image", "accept"])
    for candidate in candidates:
        for place in candidate.positions[:STRIP]:
            table.writerow([candidate.name, _name(material, place), ""])
    write_text(Path(path), lines.getvalue())


def read_confirmed(path: str | Path) -> dict[str, list[str]]:
    """Read which images a person accepted, by candidate; see `write_candidates`.

    Parameters
    ----------
    path : str or Path
        A table with the columns ``candidate``, ``image`` and ``accept``: yes, or no, or nothing.
        Names of candidates may be changed, and rows be added.

    Raises
    ------
    DataError
        A table without these columns, an answer that is neither, or no image that is accepted.
    """
    try:
        rows = list(csv.DictReader(Path(path).read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    confirmed: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 2):
        if not {"candidate", "image", "accept"} <= set(row):
            raise DataError(f"{path} lacks one of the columns candidate, image, accept")
        said = (row["accept"] or "").strip().lower()
        if said not in (*_YES, *_NO):
            raise DataError(f"{path}, row {number}: accept is {row['accept']!r}, not yes or no")
        if said in _YES:
            confirmed.setdefault(row["candidate"].strip(), []).append(row["image"].strip())
    if not confirmed:
        raise DataError(f"{path} accepts no image; write yes into the column 'accept' of some")
    return confirmed


def places_of(material: Material, confirmed: Mapping[str, Sequence[Any]]) -> dict[str, Array]:
    """Return the positions in the audit's sample of images that are given by name or number.

    Parameters
    ----------
    material : Material
        The audit's.
    confirmed : mapping of str to sequence
        By candidate the names of image files, or their numbers in the data set.

    Raises
    ------
    DataError
        Fewer than three of the images are in the sample.
    """
    known = {_name(material, place): place for place in range(len(material))}
    found = {}
    for name, images in confirmed.items():
        places = sorted({known[str(image)] for image in images if str(image) in known})
        if len(places) < FEWEST:
            raise DataError(
                f"of the {len(images)} images accepted as {name!r}, {len(places)} are among those "
                f"that this audit looks at, which is too few to go by ({FEWEST}); accept more, or "
                "raise the limit of images"
            )
        found[name] = np.array(places)
    return found


def _name(material: Material, place: int) -> str:
    number = int(material.indices[place])
    return str(material.names[number]) if len(material.names) else str(number)
