"""Null runs: centres are given to slides at random, and the network has never heard of them.

    OMP_NUM_THREADS=1 python experiments/histopathology/null.py --runs 200 --out null.json

Every run draws new tiles of synthetic tissue on slides whose stain varies, gives each slide one of
two centres at random, and asks the question of centres. At most 5 % of the runs may flag anything,
and the p-values of what is seen must be even. The network is one for every 20 runs.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from sources import Drawing, Learner, default_learner
from torch import nn

from niwaki.auditing import audit
from niwaki.data import Described
from niwaki.files import write_json

FIRST_SEED = 5000  # apart from those of the tables (0 to 4) and of the development (100 to 102)
SLIDES, TILES = 24, 240


def run(learner: Learner, model: nn.Module, seed: int) -> dict[str, object]:
    """Audit once, and keep the p-values and what was flagged."""
    rng = np.random.default_rng(seed)
    data = Drawing(2 * TILES).draw("test", seed)
    slides = rng.integers(0, SLIDES, len(data))
    stains = np.exp(rng.normal(0, 0.06, (SLIDES, 3)))
    density = -np.log(np.maximum(data.pixels, 1) / 245.0) * stains[slides][:, None, None]
    data.pixels = (245 * np.exp(-density)).clip(0, 255).round().astype(np.uint8)
    centres = rng.permutation(np.repeat(["left", "right"], SLIDES // 2))[slides]
    described = Described(learner.images(data), groups=slides, centres=centres)
    found = audit(model, described, seed=seed, questions=["centre"], limit=None)
    seen = {finding.key: finding.p_seen for finding in found.findings}
    return {"flagged": [finding.key for finding in found.flagged], "seen": seen}


def main() -> None:
    """Run, and print the share of runs with a finding and the distribution of p-values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
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
        done.append(run(learner, model, FIRST_SEED + 1000 + number))
        write_json(options.out, done)
    flagged = sum(bool(one["flagged"]) for one in done)
    print(f"{flagged} of {len(done)} runs flag something")
    for kind in ("look", "errors"):
        ps = [p for one in done for key, p in one["seen"].items() if key.endswith(kind)]
        counts = np.histogram(ps, np.linspace(0, 1, 11))[0]
        print(f"p-values of {kind}, in tenths: {' '.join(map(str, counts))}")


if __name__ == "__main__":
    main()
