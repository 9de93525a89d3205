"""The page of an audit that is told what a network learned from: tiles without necrosis.

    OMP_NUM_THREADS=1 python experiments/histopathology/missing.py --out missing

Writes OUT/index.html with its pictures: a network that has not seen necrosis, and one that has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sources import Drawing, default_learner

from niwaki import audit
from niwaki.auditing import before_and_after
from niwaki.report import write_audit


def main() -> None:
    """Train both networks, audit them on tiles as they come."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("missing"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = Drawing(1000)
    learner = default_learner(source, 5)
    without, mixed, *_ = source.group(options.seed)
    tests = learner.images(source.draw("test", options.seed))
    audits = {}
    for name, learned in (("Without necrosis in training", without), ("With it", mixed)):
        model = learner.train(learner.tensors(learned), options.seed)
        images = learner.images(learned)
        audits[name] = audit(model, tests, seed=options.seed, limit=400, training=images)
        print(f"{name}: {audits[name]}")
    options.out.mkdir(parents=True, exist_ok=True)
    table = before_and_after(audits)
    write_audit(options.out, audits, heading="A group that training lacks", table=table)


if __name__ == "__main__":
    main()
