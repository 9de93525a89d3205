"""What choosing units within layers and rebuilding cost, beside scoring, for the same images.

    python benchmarks/rebuild_cost.py
    python benchmarks/rebuild_cost.py --images 50 --threads 2

A tenth of the multiply-accumulates is removed by the weights alone; then the smaller network is
scored with `lrp` and rebuilt, layer by layer and jointly, in turns. Choosing is what a step by
`lrp.rebuilt` takes beyond one by `lrp`; how long that is depends on how many units go. Times are
those of the processor, which others on the machine disturb less. Images are noise and weights are
random. Each network is measured in a process of its own, for its peak memory.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings

import torch
from torch import nn

import niwaki
from niwaki import models
from niwaki.errors import KeptWarning, NearChanceWarning

NETWORKS = {
    "ResNet-56": ("niwaki.models.zoo:resnet56", 32),
    "SqueezeNet 1.1": ("torchvision:squeezenet1_1", 224),
    "EfficientNet-Lite0": ("timm:efficientnet_lite0", 224),
    "ResNet-50": ("torchvision:resnet50", 224),
}


def main() -> None:
    """Measure all networks, and print the table."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    ask.add_argument("--images", type=int, default=100)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--alone", help=argparse.SUPPRESS)
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.alone:
        print(json.dumps(measure(asked.alone, asked.images, asked.rounds)))
        return
    print(f"{asked.images} images, {asked.threads} threads, {platform.machine()}, ", end="")
    print(f"torch {torch.__version__}, medians of {asked.rounds}\n")
    print(
        "| network | scoring, s | choosing, s | rebuilding, s | jointly, s | peak GB, scoring "
        "| peak GB, all |"
    )
    print("| --- |" + " ---: |" * 6)
    for name in asked.networks:
        given = ["--images", asked.images, "--rounds", asked.rounds, "--threads", asked.threads]
        command = [sys.executable, __file__, "--alone", name, *map(str, given)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(
            f"| {name} | {found['scoring']:.1f} | {found['choosing']:.1f} "
            f"| {found['rebuilding']:.1f} | {found['jointly']:.1f} "
            f"| {found['memory'][0]:.1f} | {found['memory'][1]:.1f} |",
            flush=True,
        )


def measure(name: str, images: int, rounds: int) -> dict[str, object]:
    """Score and rebuild one network in turns."""
    warnings.simplefilter("ignore", KeptWarning)
    warnings.simplefilter("ignore", NearChanceWarning)
    spec, size = NETWORKS[name]
    torch.manual_seed(0)
    model = models.build(spec, weights="random")
    given = torch.randn(images, 3, size, size), torch.arange(images) % 10
    few = given[0][:8], given[1][:8]
    pruned = niwaki.prune(
        model, few, "weight", keep=0.9, repair=None, schedule=niwaki.pruning.Schedule(steps=1)
    )
    kinds = ("scoring", "choosing", "rebuilding", "jointly")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory = []
    for _ in range(rounds):
        smaller: nn.Module = copy.deepcopy(pruned.model)
        started = time.process_time()
        niwaki.score(smaller, given, "lrp")
        seconds["scoring"].append(time.process_time() - started)
        memory.append(_peak())
        for kind in ("rebuilding", "jointly"):
            rebuilt = copy.deepcopy(smaller)
            started = time.process_time()
            niwaki.pruning.rebuild(rebuilt, model, given, pruned.plan, jointly=kind == "jointly")
            seconds[kind].append(time.process_time() - started)
        steps = [_step(model, given, criterion) for criterion in ("lrp", "lrp.rebuilt")]
        seconds["choosing"].append(steps[1] - steps[0])
        memory.append(_peak())
    medians = {what: statistics.median(values) for what, values in seconds.items()}
    return {**medians, "memory": [memory[0], memory[-1]]}


def _step(model: nn.Module, given: tuple[torch.Tensor, torch.Tensor], criterion: str) -> float:
    """Take a step without a repair; return the seconds."""
    started = time.process_time()
    niwaki.prune(
        model, given, criterion, keep=0.9, repair=None, schedule=niwaki.pruning.Schedule(steps=1)
    )
    return time.process_time() - started


def _peak() -> float:
    """GB that this process has held at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
