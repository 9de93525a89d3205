"""Biases planted in tumour classification: what the test AUC, the audit and the remedies say.

    OMP_NUM_THREADS=1 python experiments/histopathology/run.py --out results
    OMP_NUM_THREADS=1 python experiments/histopathology/run.py --real crc_histology --out results

Each case is one network or a few, trained from scratch; results are kept as they come, so that a
run that was cut off goes on. Parts of the cases (`--only`) may run side by side into folders of
their own. `tables.py` turns them into the tables of the README.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from biases import ARTEFACTS, Row, artefact, centre, control, missing
from heatmaps import cells, squeezenet
from scanners import CASES, scanner
from sources import Annotated, Drawing, Learner, Source, default_learner
from sources import squeezenet as fine_tuned

from niwaki.files import write_json

Case = tuple[str, Callable[[], Row]]


def cases(
    source: Source, learner: Learner, weights: Path | None, seeds: int, shares: Sequence[float]
) -> Iterator[Case]:
    """List all cases, the most telling first."""
    for seed in range(seeds):
        yield f"control/{seed}", partial(control, source, learner, seed)
        yield f"centre/{seed}", partial(centre, source, learner, seed)
        if isinstance(source, Annotated):
            yield f"cells/{seed}", partial(cells, source, learner, seed)
        yield f"missing/{seed}", partial(missing, source, learner, seed)
        for strength, agreement in (*CASES, ("none", 1.0)):
            name = f"scanner/{strength}/{agreement}/{seed}"
            yield name, partial(scanner, source, learner, seed, strength, agreement)
    for share, seed, kind in itertools.product(shares, range(seeds), ARTEFACTS):
        name = f"{kind}/{share}/{seed}"
        yield name, partial(artefact, source, learner, seed, kind, share, share == 0.5)
    if isinstance(source, Annotated) and weights is not None:
        large = fine_tuned(weights, 8)
        for seed in range(seeds):
            yield f"squeezenet/{seed}", partial(squeezenet, source, large, seed)


def wanted(name: str, only: Sequence[str]) -> bool:
    """Say whether a case is one of those asked for, by the beginning of its name."""
    return not only or any(name == part or name.startswith(f"{part}/") for part in only)


def main() -> None:
    """Run the cases that are not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--real", type=Path, help="folder with train and val, of NAME.png and NAME.csv"
    )
    parser.add_argument("--squeezenet", type=Path, help="weights of ImageNet, as safetensors")
    parser.add_argument("--out", type=Path, default=Path("histopathology"))
    parser.add_argument("--only", nargs="+", default=[], help="such as control square/0.5 cells/0")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.1, 1.0])
    parser.add_argument("--tiles", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = Annotated(options.real) if options.real else Drawing(options.tiles)
    learner = default_learner(source, options.epochs)
    file = options.out / ("real.json" if options.real else "tissue.json")
    done = json.loads(file.read_text()) if file.exists() else {}
    for name, run in cases(source, learner, options.squeezenet, options.seeds, options.shares):
        if name in done or not wanted(name, options.only):
            continue
        started = time.process_time()
        done[name] = {**run(), "seconds": round(time.process_time() - started, 1)}
        write_json(file, done)
        said = done[name].get("audit", {}).get("flagged")
        print(name, f"{done[name]['seconds']} s", done[name].get("auc test"), said, flush=True)


if __name__ == "__main__":
    main()
