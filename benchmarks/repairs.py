"""What repairs without training bring, for several criteria.

Run it from a checkout, with a folder of CIFAR-10 images (``train`` and ``test``, a folder per class
in each) and weights for the networks of `niwaki.models.zoo`::

    python benchmarks/repairs.py CIFAR --weights resnet20=FILE --weights vgglike=FILE

Each network is pruned without fine-tuning to a share of its MACs, in steps that remove the same
amount, with the units scored anew in each; reference images are drawn per seed, and the repairs see
the same ones as the criterion. What is printed is the mean test accuracy at some shares of the MACs
kept (at the step that first falls to it), and the mean over all steps, with its standard deviation
over the seeds; "gain" is the difference of that mean to no repair on the same draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from niwaki import criteria, pruning
from niwaki.data import in_memory, open_data, references
from niwaki.models import load_weights, zoo

REPAIRS = {
    "none": None,
    "compensate": "compensate",
    "recalibrate": "recalibrate",
    "rebuild": "rebuild",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", action="append", required=True, help="NETWORK=FILE")
    parser.add_argument(
        "--criteria",
        nargs="+",
        default=["lrp", "lrp.epsilon_plus", "weight", "taylor", "random"],
    )
    parser.add_argument("--references", type=int, default=10, help="per class")
    parser.add_argument("--images", type=int, default=100, help="test images per class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--per-cost", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [row for spec in given.weights for row in measure(*spec.split("=", 1), given)]
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def measure(network: str, weights: str, given: argparse.Namespace) -> list[dict[str, object]]:
    """Measure all repairs and criteria on one network."""
    build = getattr(zoo, network)
    model = build().eval()
    load_weights(model, weights)
    train, test = (
        open_data(given.data, build.preprocessing, split=split) for split in ("train", "test")
    )
    seen = in_memory(references(test, given.images, 0))
    draws = [in_memory(references(train, given.references, s)) for s in range(given.seeds)]
    norms = any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    rows = []
    for name in given.criteria:
        plain: list[float] = []
        for name_of_repair, repair in REPAIRS.items():
            if repair == "recalibrate" and not norms:
                continue
            curves = []
            for seed, few in enumerate(draws):
                made = criteria.create(name, **({"seed": seed} if name == "random" else {}))
                pruned = pruning.prune(
                    model,
                    few,
                    made,
                    keep=given.keep,
                    test=seen,
                    repair=repair,
                    schedule=pruning.Schedule(steps=given.steps, per_cost=given.per_cost),
                    run=pruning.Run(batch_size=100),
                )
                curves.append([step.accuracy for step in pruned.trajectory])
            means = [statistics.fmean(curve[1:]) for curve in curves]
            plain = plain or means
            row = {
                "network": network,
                "criterion": name,
                "repair": name_of_repair,
                "accuracy": [statistics.fmean(column) for column in zip(*curves, strict=True)],
                "mean": statistics.fmean(means),
                "std": statistics.stdev(means) if len(means) > 1 else 0.0,
                "gain": statistics.fmean(m - p for m, p in zip(means, plain, strict=True)),
            }
            rows.append(row)
            curve = " ".join(f"{value:6.1%}" for value in row["accuracy"])
            print(
                f"{network:10} {name:10} {name_of_repair:12} {curve} | {row['mean']:6.1%} "
                f"± {row['std']:5.1%}  gain {row['gain']:+6.1%}",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    main()
