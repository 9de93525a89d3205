"""How much faster several processes are, against one process, each with one thread.

Run it from a checkout, with the weights and images named on the command line::

    python benchmarks/processes.py --weights WEIGHTS_FOLDER --images IMAGES_FOLDER
    chrt -r 1 python benchmarks/processes.py ... --jobs scoring --rounds 5 --json processes.json

*Scoring*: every filter of ResNet-56 by ``lrp``. *CAR*: the index of all its units. *Audit*: what
an audit collects of its images, heatmaps included. *Slide*: the maps of a synthetic slide of 64
tiles of 224 pixels by a ResNet-18, as long as nothing is written. The processes stand ready, with
network and images in memory; each is bound to a processor of its own. One and several take turns,
round after round, so that what else the machine does meets both. Wall-clock seconds; the medians
are compared. The results of both are compared as well. *Serial* is what did not get shorter, as a
share of the time of one process, by Amdahl's law from the two medians. ``chrt -r 1`` puts the
processes before what else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
import torchvision
from PIL import Image
from torch import Tensor, distributed, nn
from torch.utils.data import TensorDataset

from niwaki import auditing, car, criteria, evaluation
from niwaki.data import Preprocessing, batches, open_data, references
from niwaki.models import load_weights, zoo
from niwaki.slides import Tiling, explain_slide, open_slide


class Images(TensorDataset):
    """Images in memory, prepared as the network was trained."""

    preprocessing = zoo.resnet56.preprocessing


def load(weights: Path, images: Path, count: int) -> tuple[nn.Module, Images]:
    """Return the trained network and so many test images, as many of each class."""
    model = zoo.resnet56().eval()
    load_weights(model, weights / "resnet56_cifar10.safetensors")
    data = open_data(str(images / "cifar10"), zoo.resnet56.preprocessing, split="test")
    inputs, labels = next(iter(batches(references(data, count // 10, 0), count)))
    return model, Images(inputs, labels)


def some(data: Images, count: int) -> Images:
    """Return every so manieth image."""
    step = max(1, len(data) // count)
    return Images(*(tensor[::step][:count] for tensor in data.tensors))


def scoring(model: nn.Module, data: Images) -> Tensor:
    """Score all filters by relevance."""
    return criteria.score(model, data, "lrp", batch_size=32).flat()


def index(model: nn.Module, data: Images) -> Tensor:
    """Count what each filter carries, on a part of the images."""
    found = car.index(model, some(data, 24), batch_size=2)
    return torch.cat([layer.lost.double() for layer in found.values()])


def audit(model: nn.Module, data: Images) -> Tensor:
    """Collect what an audit asks questions about, on a part of the images."""
    found = auditing.gather(model, some(data, 400), batch_size=25, limit=None)
    return torch.from_numpy(found.relevance[::50])


def slide(_: nn.Module, __: Images) -> Tensor:
    """Map a slide whose tissue is noise."""
    known = Preprocessing(224, mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.manual_seed(0)
    large = torchvision.models.resnet18(num_classes=2).eval()
    pixels = np.random.default_rng(0).integers(60, 256, (1400, 1400, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(pixels).save(Path(folder) / "slide.png")
        with explain_slide(
            large, open_slide(Path(folder) / "slide.png", 0.5), known, classes={1: "tumour"},
            tiling=Tiling(whole=True), batch_size=4, folder=Path(folder) / "run",
        ) as found:  # fmt: skip
            return torch.tensor(
                [[v for v in r.values() if isinstance(v, float)] for r in found.rows]
            )


def accuracy(model: nn.Module, data: Images) -> Tensor:
    """Measure the accuracy."""
    return torch.tensor(evaluation.accuracy(model, data, batch_size=32))


JOBS: dict[str, Callable[[nn.Module, Images], Tensor]] = {
    "scoring": scoring,
    "car": index,
    "audit": audit,
    "slide": slide,
    "accuracy": accuracy,
}


class Workers:
    """Processes that stand ready; some of them do a job together."""

    def __init__(self, count: int, args: argparse.Namespace) -> None:
        context = mp.get_context("spawn")
        self._folder, self._jobs = tempfile.mkdtemp(), 0
        pairs = [context.Pipe() for _ in range(count)]
        self._ends = [ours for ours, _ in pairs]
        given = (args.weights, args.images, args.count)
        for number, (_, end) in enumerate(pairs):
            context.Process(target=_work, args=(end, number, *given), daemon=True).start()
        for end in self._ends:
            end.recv()

    def do(self, job: str, count: int) -> tuple[float, Tensor]:
        """Return the seconds that the last of them took, and the result."""
        self._jobs += 1
        for end in self._ends[:count]:
            end.send((job, count, f"{self._folder}/{self._jobs}"))
        answers = [end.recv() for end in self._ends[:count]]
        return max(seconds for seconds, _ in answers), answers[0][1]

    def stop(self) -> None:
        """Let them go."""
        for end in self._ends:
            end.send(None)


def _work(end: Connection, number: int, weights: Path, images: Path, total: int) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {mine[number % len(mine)]})
    model, data = load(weights, images, total)
    end.send("ready")
    while (asked := end.recv()) is not None:
        job, count, store = asked
        distributed.init_process_group(
            "gloo", store=distributed.FileStore(store, count), rank=number, world_size=count
        )
        distributed.barrier()
        began = time.perf_counter()
        found = JOBS[job](model, data)
        seconds = time.perf_counter() - began
        distributed.barrier()
        distributed.destroy_process_group()
        end.send((seconds, found if number == 0 else None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=2000, help="images")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    workers, rows = Workers(args.processes, args), []
    several_of = f"{args.processes} processes"
    print(f"{'job':10} {'1 process':>10} {several_of:>14} {'times':>6} {'serial':>7}  differ")
    for job in args.jobs:
        pairs: list[Any] = []
        for _ in range(args.rounds):
            pairs.append([workers.do(job, count) for count in (1, args.processes)])
        columns = zip(*pairs, strict=True)
        one, several = (median(seconds for seconds, _ in column) for column in columns)
        expected, found = pairs[0][0][1], pairs[0][1][1]
        apart = float((found - expected).abs().max() / expected.abs().max())
        serial = max(0.0, (args.processes * several / one - 1) / (args.processes - 1))
        print(
            f"{job:10} {one:>8.2f} s {several:>12.2f} s {one / several:>6.2f} {serial:>7.1%}  "
            f"{apart:.1e}",
            flush=True,
        )
        rows.append({"job": job, "one": one, "several": several, "rounds": args.rounds})
    workers.stop()
    if args.json:
        args.json.write_text(json.dumps({"processes": args.processes, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
