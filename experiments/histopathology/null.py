"""Null runs: audits of data in which there is nothing to find.

    OMP_NUM_THREADS=1 python experiments/histopathology/null.py centres --runs 200 --out null.json
    OMP_NUM_THREADS=1 python experiments/histopathology/null.py labels --out labels.json

Every run draws new tiles of synthetic tissue. `centres`: the slides vary in stain, each is given
one of two centres at random, and the question of centres is asked. `labels`: the labels of the
tiles are exchanged at random, and all questions are asked; that the network is then near chance,
which an audit says before anything else, is passed over. At most 5 % of the runs may flag anything,
and the p-values of what is seen must be even. The network is one for every 20 runs.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sources import Drawing, Learner, default_learner
from torch import nn

from niwaki.auditing import Audit, audit
from niwaki.data import Described
from niwaki.files import write_json

FIRST_SEED = 5000  # apart from those of the tables (0 to 4) and of the development (100 to 102)
SLIDES, TILES = 24, 240


Row = dict[str, Any]


def centres(learner: Learner, model: nn.Module, seed: int) -> Row:
    """Ask about centres that slides were given at random."""
    rng = np.random.default_rng(seed)
    data = Drawing(2 * TILES).draw("test", seed)
    slides = rng.integers(0, SLIDES, len(data))
    stains = np.exp(rng.normal(0, 0.06, (SLIDES, 3)))
    density = -np.log(np.maximum(data.pixels, 1) / 245.0) * stains[slides][:, None, None]
    data.pixels = (245 * np.exp(-density)).clip(0, 255).round().astype(np.uint8)
    given = rng.permutation(np.repeat(["left", "right"], SLIDES // 2))[slides]
    described = Described(learner.images(data), groups=slides, centres=given)
    return kept(audit(model, described, seed=seed, questions=["centre"], limit=None))


def labels(learner: Learner, model: nn.Module, seed: int) -> Row:
    """Ask everything about tiles whose labels were exchanged."""
    data = Drawing(2 * TILES).draw("test", seed)
    data.labels = np.random.default_rng(seed).permutation(data.labels)
    return kept(audit(model, learner.images(data), seed=seed, limit=None))


def kept(found: Audit) -> Row:
    """Keep the p-values, and what is flagged even where the network is near chance."""
    findings = [replace(finding, reliable=True) for finding in found.findings]
    return {
        "flagged": [finding.key for finding in findings if finding.flagged],
        "seen": {finding.key: finding.p_seen for finding in findings},
    }


KINDS: Mapping[str, Callable[[Learner, nn.Module, int], Row]] = {
    "centres": centres,
    "labels": labels,
}


def main() -> None:
    """Run, and print the share of runs with a finding and the distribution of p-values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("null.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    done = json.loads(options.out.read_text()) if options.out.exists() else []
    source = Drawing(600)
    learner = default_learner(source, 3)
    model = None
    for number in range(len(done), options.runs):
        if model is None or number % 20 == 0:
            seed = FIRST_SEED + number // 20
            model = learner.train(learner.tensors(source.draw("train", seed)), seed)
        done.append(KINDS[options.kind](learner, model, FIRST_SEED + 1000 + number))
        write_json(options.out, done)
    flagged = sum(bool(one["flagged"]) for one in done)
    print(f"{flagged} of {len(done)} runs flag something")
    print(table(done, by_end=options.kind == "centres"))


def table(done: Sequence[Row], *, by_end: bool) -> str:
    """Markdown: the p-values in tenths, by the end of the question's key, or by its beginning."""
    values: dict[str, list[float]] = {}
    for one in done:
        for key, p in one["seen"].items():
            values.setdefault(key.split("/")[-1 if by_end else 0], []).append(p)
    lines = ["| question | 0 | .1 | .2 | .3 | .4 | .5 | .6 | .7 | .8 | .9 |", "|" + " --- |" * 11]
    for question, ps in values.items():
        counts = np.histogram(ps, np.linspace(0, 1, 11))[0]
        lines.append(f"| {question} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
