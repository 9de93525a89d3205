r"""Pruning without an image of the task: images of something else, or noise, as references.

    python experiments/scarce/foreign.py resnet20 --data CIFAR10 --weights resnet20.safetensors \
        --foreign IMAGENETTE --json foreign.json

References have no labels here: the network's own answers take their place. Everything else is as in
run.py: the default's choice and repair, seven steps down to 30 % of the MACs. Prints the accuracy
at 90, 80, ... 30 % of the MACs; with ``--json``, what is found there already is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from contenders import STEPS
from recipes import BATCH, SHARES
from run import NETWORKS, load, subset
from torch import Tensor, nn

import niwaki
from niwaki import models
from niwaki.files import write_json
from niwaki.pruning import Run, Schedule, accuracy_at

#: Draws so many references.
Draw = Callable[[int, torch.Generator], Tensor]


def main() -> None:
    """Prune with references of each kind, from each draw."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("network", choices=[name for name in NETWORKS if name != "squeezenet"])
    ask.add_argument("--data", required=True, type=Path)
    ask.add_argument("--weights", required=True, type=Path)
    ask.add_argument("--foreign", required=True, type=Path, help="a folder with train")
    ask.add_argument("--json", type=Path, help="the accuracies, by network, kind and draw")
    ask.add_argument("--references", type=int, default=100, help="in all")
    ask.add_argument("--seeds", type=int, nargs="+", default=[100])
    ask.add_argument("--test", type=int, default=1000, help="test images")
    ask.add_argument("--threads", type=int, default=1)
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    spec, preprocessing = NETWORKS[asked.network]
    model = models.build(spec, weights=asked.weights)
    own, _ = load(asked.data, "train", preprocessing)
    other, _ = load(asked.foreign, "train", preprocessing)
    test = subset(load(asked.data, "test", preprocessing), asked.test)
    found = json.loads(asked.json.read_text()) if asked.json and asked.json.exists() else {}
    here = found.setdefault(asked.network, {})
    for seed, (kind, draw) in product(asked.seeds, kinds(own, other).items()):
        known = here.setdefault(kind, {})
        if str(seed) not in known:
            references = draw(asked.references, torch.Generator().manual_seed(seed))
            known[str(seed)] = pruned(model, references, test)
        print(
            f"{kind:24} {seed} " + " ".join(f"{100 * a:.1f}" for a in known[str(seed)]), flush=True
        )
        if asked.json:
            write_json(asked.json, found)
    print(table(found))


def kinds(own: Tensor, other: Tensor) -> Mapping[str, Draw]:
    """List what references can be; noise has the mean and deviation of the channels of `own`."""
    size = own.shape[1:]
    mean, std = (f(own, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))

    def some(images: Tensor) -> Draw:
        return lambda count, g: images[torch.randperm(len(images), generator=g)[:count]]

    def smooth(count: int, g: torch.Generator) -> Tensor:
        """Noise whose amplitude falls with frequency, as that of photographs does."""
        spectrum = torch.fft.rfft2(torch.randn(count, *size, generator=g))
        rows, columns = torch.fft.fftfreq(size[1]), torch.fft.rfftfreq(size[2])
        frequency = (rows[:, None].square() + columns.square()).sqrt()
        spectrum /= frequency.clamp(min=1 / max(size[1:]))
        noise = torch.fft.irfft2(spectrum, s=size[1:])
        return noise / noise.std() * std + mean

    return {
        "images of the task": some(own),
        "images of something else": some(other),
        "noise like photographs": smooth,
        "white noise": lambda count, g: torch.randn(count, *size, generator=g) * std + mean,
    }


def pruned(model: nn.Module, references: Tensor, test: tuple[Tensor, Tensor]) -> list[float]:
    """Return the accuracies at the shares of the MACs."""
    with torch.no_grad():
        answers = torch.cat([model(some).argmax(1) for some in references.split(BATCH)])
    result = niwaki.prune(
        model,
        (references, answers),
        "lrp.rebuilt",
        keep=SHARES[-1],
        schedule=Schedule(STEPS),
        test=test,
        run=Run(batch_size=BATCH),
    )
    return [accuracy_at(result.trajectory, share) for share in (1.0, *SHARES)]


def table(found: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> str:
    """Markdown: a row for each network and kind, the mean over the draws."""
    head = " | ".join(f"{100 * share:.0f} %" for share in (1.0, *SHARES))
    lines = [
        f"| network | references | draws | {head} | mean from 90 to 30 % |",
        "| --- | --- |" + " ---: |" * (len(SHARES) + 3),
    ]
    for network, rows in found.items():
        for kind, runs in rows.items():
            steps = [fmean(step) for step in zip(*runs.values(), strict=True)]
            cells = [f"{100 * accuracy:.1f}" for accuracy in (*steps, fmean(steps[1:]))]
            lines.append(f"| {network} | {kind} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
