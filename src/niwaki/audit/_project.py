"""The files that make a folder of heatmaps a project of ViRelAy (Anders et al. 2021)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py

from niwaki.audit._material import Material
from niwaki.audit._strategies import Strategies
from niwaki.files import write_atomically, write_json, write_text

__all__ = ["write_analysis", "write_label_map", "write_project"]


def write_label_map(folder: Path, names: Sequence[str]) -> None:
    """Write ``label-map.json``: index, key and name of each class."""
    rows = [
        {"index": index, "word_net_id": f"{index:08d}", "name": name}
        for index, name in enumerate(names)
    ]
    write_json(folder / "label-map.json", rows)


def write_project(
    folder: Path, *, method: str, target: str, model: str, name: str = "audit"
) -> None:
    """Write ``project.yaml``; it names ``analysis.h5`` if the folder has it."""
    strategy = "true_label" if target == "true" else "predicted_label"
    quoted = {key: json.dumps(value) for key, value in (("name", name), ("model", model))}
    lines = [
        "project:",
        f"  name: {quoted['name']}",
        f"  model: {quoted['model']}",
        "  label_map: label-map.json",
        "  dataset:",
        f"    name: {quoted['name']}",
        "    type: hdf5",
        "    path: data.h5",
        "  attributions:",
        f"    attribution_method: {json.dumps(method)}",
        f"    attribution_strategy: {strategy}",
        "    sources:",
        "      - attribution.h5",
    ]
    if (folder / "analysis.h5").exists():
        lines += [
            "  analyses:",
            "    - analysis_method: spectral",
            "      sources:",
            "        - analysis.h5",
        ]
    write_text(folder / "project.yaml", "\n".join([*lines, ""]))


def write_analysis(folder: Path, material: Material, strategies: Sequence[Strategies]) -> None:
    """Write ``analysis.h5``: for each class its images, embeddings and clusterings.

    A group per class, named as in the label map, with ``index`` (n,), ``embedding/spectral-KIND``
    (n, k) with the attribute ``eigenvalue``, ``embedding/tsne-KIND`` (n, 2) and
    ``cluster/spectral-KIND`` (n,), for each kind of features.
    """

    def write(aside: Path) -> None:
        with h5py.File(aside, "w") as file:
            for found in strategies:
                group = file.require_group(f"{found.label:08d}")
                if "index" not in group:
                    group["index"] = material.indices[found.positions]
                kind = found.features
                group[f"embedding/spectral-{kind}"] = found.spectral
                group[f"embedding/spectral-{kind}"].attrs["eigenvalue"] = found.eigenvalues
                group[f"embedding/tsne-{kind}"] = found.plane
                group[f"embedding/tsne-{kind}"].attrs["embedding"] = f"spectral-{kind}"
                group[f"cluster/spectral-{kind}"] = found.assigned

    write_atomically(folder / "analysis.h5", write)
