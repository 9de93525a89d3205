"""What cleanlab's Datalab says of the same planted artefacts.

    pip install "cleanlab[image]"
    OMP_NUM_THREADS=1 python experiments/histopathology/beside_datalab.py --real crc_histology \
        --out results/datalab.json
    python experiments/histopathology/beside_datalab.py --table results/datalab.json

The networks and patches are those of `run.py`. Datalab gets the test patches and their labels for
its `spurious_correlations`, which need no network, and the network's last features and its
probabilities for its outliers and label issues. A property of images counts as flagged below
Datalab's own limit. Images are ranked by its score of outliers, and by the one property of images
that ranks best in hindsight.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from biases import ARTEFACTS, harm, marked, planted
from cleanlab import Datalab
from datasets import ClassLabel, Dataset, Features, Image
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from sources import Annotated, Learner, Set, default_learner
from tables import interval
from torch import nn

from niwaki.files import write_json

Array = NDArray[Any]
Row = dict[str, Any]
FEATURES = "relu4"  # the last activations of the network, averaged over the image


def features(learner: Learner, model: nn.Module, data: Set) -> Array:
    """Return the last activations, averaged over each patch, shape (N, C)."""
    kept: list[torch.Tensor] = []
    hook = model.get_submodule(FEATURES).register_forward_hook(
        lambda module, inputs, output: kept.append(output.mean((2, 3)))
    )
    try:
        learner.outputs(model, data)
    finally:
        hook.remove()
    return torch.cat(kept).double().numpy()


def datalab(learner: Learner, model: nn.Module, data: Set) -> Datalab:
    """Run Datalab with all that it can use."""
    described = Dataset.from_dict(
        {
            "image": [_png(patch) for patch in data.pixels],
            "label": data.labels.tolist(),
        },
        features=Features({"image": Image(), "label": ClassLabel(names=["normal", "tumour"])}),
    )
    outputs = torch.from_numpy(learner.outputs(model, data))
    lab = Datalab(described, label_name="label", image_key="image", verbosity=0)
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        lab.find_issues(
            features=features(learner, model, data), pred_probs=outputs.softmax(1).numpy()
        )
    return lab


def _png(patch: Array) -> dict[str, bytes]:
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(patch).save(buffer, "PNG")
    return {"bytes": buffer.getvalue()}


def flagged(lab: Datalab) -> Row:
    """Return the properties that go with the label by Datalab's own limit, and all scores."""
    said = lab.get_info("spurious_correlations")
    scores = dict(said["correlations_df"].itertuples(index=False, name=None))
    return {
        "flagged": [name for name, score in scores.items() if score < said["threshold"]],
        "scores": {name: round(float(score), 4) for name, score in scores.items()},
    }


def ranked(lab: Datalab, labels: Array, has: Array) -> Row:
    """Rank the tumour patches by Datalab's scores: AUROC and average precision."""
    members = np.flatnonzero(labels == 1)
    truth = has[members]
    issues = lab.get_issues()
    by_property = {}
    for name in issues.columns:
        if not name.endswith("_score"):
            continue
        low = -issues[name].to_numpy(float)[members]
        if np.isfinite(low).all() and np.ptp(low) > 0:
            by_property[name.removesuffix("_score")] = [
                round(float(roc_auc_score(truth, low)), 4),
                round(float(average_precision_score(truth, low)), 4),
            ]
    return by_property


def case(source: Annotated, learner: Learner, kind: str, share: float, seed: int) -> Row:
    """Plant an artefact, train as `run.py` does, and ask Datalab."""
    train, test = source.draw("train", seed), source.draw("test", seed)
    learned = train if kind == "control" else marked(train, kind, share, seed)
    model = learner.train(learner.tensors(learned), seed)
    if kind == "control":
        return flagged(datalab(learner, model, test))
    found = planted(test, kind, share, seed + 50)
    biased = replace(test, pixels=found.pixels)
    attacked = marked(test, kind, 0.0, seed + 60, elsewhere=1.0)
    lab = datalab(learner, model, biased)
    return {
        **flagged(lab),
        "ranked": ranked(lab, biased.labels, found.chosen),
        **harm(learner, model, test, attacked),
    }


def table(rows: Row) -> None:
    """Print what is flagged, and how well images are ranked."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for name, row in rows.items():
        groups[name.rpartition("/")[0]].append(row)
    print(
        "| bias | networks | flagged in | properties flagged | outliers: AUROC, AP "
        "| best score in hindsight: AUROC, AP |"
    )
    print("|" + " --- |" * 6)
    for name, members in groups.items():
        properties = sorted({p.removesuffix("_score") for row in members for p in row["flagged"]})
        some = sum(bool(row["flagged"]) for row in members)
        cells = [name, str(len(members)), f"{some} of {len(members)}", ", ".join(properties) or "-"]
        if "ranked" not in members[0]:
            print(f"| {' | '.join([*cells, '-', '-'])} |")
            continue
        means = {
            score: np.mean([row["ranked"][score] for row in members], 0)
            for score in members[0]["ranked"]
            if all(score in row["ranked"] for row in members)
        }
        best = max(means, key=lambda score: float(means[score][0]))
        cells += [_pair(members, "outlier"), f"{best}: {_pair(members, best)}"]
        print(f"| {' | '.join(cells)} |")


def _pair(rows: list[Row], score: str) -> str:
    """Write AUROC and average precision with the intervals of their means over networks."""
    values = [row["ranked"][score] for row in rows]
    return ", ".join(interval(value[place] for value in values) for place in (0, 1))


def main() -> None:
    """Run the cases that are not done yet, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", type=Path, help="folder with train and val")
    parser.add_argument("--out", type=Path, default=Path("datalab.json"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.1])
    parser.add_argument("--table", type=Path, help="print the table of a file of results")
    options = parser.parse_args()
    if options.table:
        table(json.loads(options.table.read_text()))
        return
    torch.set_num_threads(1)
    source = Annotated(options.real)
    learner = default_learner(source, 5)
    done = json.loads(options.out.read_text()) if options.out.exists() else {}
    cases = [("control", 0.0), *itertools.product(ARTEFACTS, options.shares)]
    for seed, (kind, share) in itertools.product(range(options.seeds), cases):
        name = f"{kind}/{share}/{seed}" if share else f"{kind}/{seed}"
        if name not in done:
            done[name] = case(source, learner, kind, share, seed)
            write_json(options.out, done)
            print(name, done[name]["flagged"], done[name].get("ranked"), flush=True)


if __name__ == "__main__":
    main()
