"""Choose LRP's rules, and everyone's exponent of the cost, by training images kept aside.

    python experiments/scarce/rules.py vgglike --data CIFAR10 --weights vgglike_cifar10.safetensors
    python experiments/scarce/run.py vgglike --rules results/vgglike-rules ...

The second command compares what was chosen with everything else, on test images. Beside the rules,
the exponent by which the cost counts is chosen in the same way for the criteria that are compared
per cost, so that LRP is not the only one that is tuned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from contenders import COSTLY
from run import HERE, NETWORKS, load

import niwaki
from niwaki import data, models
from niwaki.files import write_json
from niwaki.pruning import area, choose_rules

EXPONENTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def main() -> None:
    """Search, on one draw of references."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("network", choices=[name for name in NETWORKS if name != "squeezenet"])
    ask.add_argument("--data", required=True, type=Path)
    ask.add_argument("--weights", required=True, type=Path)
    ask.add_argument("--references", type=int, default=10, help="per class")
    ask.add_argument("--validation", type=int, default=500, help="other training images")
    ask.add_argument("--trials", type=int, default=40)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--out", type=Path)
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    spec, preprocessing = NETWORKS[asked.network]
    images, labels = load(asked.data, "train", preprocessing)
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(asked.seed))
    held, rest = mixed[: asked.validation], mixed[asked.validation :]
    model = models.build(spec, weights=asked.weights)
    few = data.in_memory(
        data.references((images[rest], labels[rest]), asked.references, asked.seed)
    )
    validation = images[held], labels[held]
    out = asked.out or HERE / "results" / f"{asked.network}-rules"
    found = choose_rules(
        model,
        few,
        validation=validation,
        trials=asked.trials,
        per_cost=(0.0, 1.0),
        seed=asked.seed,
        run=niwaki.pruning.Run(
            folder=out, batch_size=50, callback=lambda trial: print(trial, flush=True)
        ),
    )
    print(found)
    areas: dict[str, dict[float, float]] = {}
    for name in COSTLY:
        areas[name] = {}
        for exponent in EXPONENTS:
            pruned = niwaki.prune(
                model,
                few,
                name,
                keep=0.3,
                schedule=niwaki.pruning.Schedule(steps=7, per_cost=exponent),
                test=validation,
                run=niwaki.pruning.Run(batch_size=50),
            )
            areas[name][exponent] = area(pruned.trajectory, "macs", (0.3, 1.0))
            print(f"{name} per cost {exponent}: {areas[name][exponent]:.4f}", flush=True)
    write_json(out / "exponents.json", areas)


if __name__ == "__main__":
    main()
