r"""How much faster a pruned network is as an ONNX file: onnxruntime before and after.

Run it from a checkout with onnx, onnxruntime and onnxscript installed (the extra `onnx`)::

    python benchmarks/export_latency.py --cifar10 FOLDER --resnet56 WEIGHTS \
        --imagenette FOLDER --squeezenet WEIGHTS --efficientnet WEIGHTS

ResNet-56 (32 pixels), SqueezeNet 1.1 and EfficientNet-Lite0 (224 pixels) lose filters by the
criterion lrp until half of their multiply-accumulates are left, and are written as ONNX, which
checks the file against the network. They are not repaired, which would change no shape. Whole and
pruned network then take turns on the same random images, in onnxruntime and in torch, both with the
same number of threads, so that whatever else the machine does hits both alike: medians, and the
median of the ratios within each turn. A network without weights or images given gets random ones,
and says so: its timing is of another shape than a trained network's.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import niwaki
from niwaki import data, models

IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
KEEP = 0.5
Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A network, where its weights and images are, and how large they are."""

    name: str
    spec: str
    size: int
    weights: Path | None
    images: Path | None
    outputs: tuple[int, ...] | None

    def build(self) -> nn.Module:
        """Build the network."""
        torch.manual_seed(0)
        return models.build(self.spec, weights=str(self.weights) if self.weights else "random")

    def references(self, per_class: int) -> tuple[Tensor, Tensor]:
        """Draw the reference samples."""
        if self.images is None:
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(10, 3, self.size, self.size, generator=generator)
            return images, torch.arange(10)
        prepared = models.preprocessing(self.spec)
        folder = data.open_data(self.images, prepared, split="train", outputs=self.outputs)
        return data.in_memory(data.references(folder, per_class, 0))


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open a file with that many threads and nothing beside them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_turns(first: Run, second: Run, repeats: int) -> dict[str, float]:
    """Median milliseconds of both, and the median ratio within a turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repeats + 3):
        for run, found in zip((first, second), seconds, strict=True):
            before = time.perf_counter()
            run()
            if repetition >= 3:  # the first turns warm up
                found.append(time.perf_counter() - before)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    whole, pruned = (1000 * statistics.median(found) for found in seconds)
    return {"whole": whole, "pruned": pruned, "ratio": statistics.median(ratios)}


def measure(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prune, export, and time."""
    whole = case.build()
    few = case.references(options.references)
    pruned = niwaki.prune(
        whole,
        few,
        "lrp",
        keep=KEEP,
        of="macs",
        schedule=niwaki.pruning.Schedule(steps=options.steps),
        limits=niwaki.pruning.Limits(round_to=options.round_to),
        repair=None,
    )
    files = folder / "whole.onnx", folder / "pruned.onnx"
    models.export(whole, files[0], pruned.input_shape)
    pruned.export(files[1])
    sessions = [session(path, options.threads) for path in files]
    found: dict[str, Any] = {
        "kept": pruned.trajectory.kept("macs")[-1],
        "kept_params": pruned.trajectory.kept("params")[-1],
        "trained": bool(case.weights and case.images),
        "bytes": [path.stat().st_size for path in files],
    }
    for batch in options.batches:
        x = torch.randn(batch, *pruned.input_shape)
        feed = {"inputs": x.numpy()}

        def onnx(which: int, feed: dict[str, Any] = feed) -> Run:
            return lambda: sessions[which].run(None, feed)

        def plain(model: nn.Module, x: Tensor = x) -> Run:
            return lambda: model(x)

        with torch.no_grad():
            found[f"onnxruntime, batch {batch}"] = in_turns(onnx(0), onnx(1), options.repeats)
            found[f"torch, batch {batch}"] = in_turns(
                plain(whole), plain(pruned.model), options.repeats
            )
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown table: a row per network, runtime and batch."""
    lines = [
        "| network | MACs left | parameters left | run by | whole, ms | pruned, ms | faster |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for name, found in results.items():
        shown = name if found["trained"] else f"{name} (random weights)"
        for runtime, times in found.items():
            if isinstance(times, dict):
                lines.append(
                    f"| {shown} | {found['kept']:.1%} | {found['kept_params']:.1%} | {runtime} "
                    f"| {times['whole']:.1f} | {times['pruned']:.1f} | {times['ratio']:.2f}x |"
                )
    return "\n".join(lines)


def machine(options: argparse.Namespace) -> str:
    """One line that says where and with what this was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((n.split(":")[1].strip() for n in lines if "model name" in n), platform.processor())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime"))
    return f"{cpu}, {options.threads} threads, {versions}; median of {options.repeats} turns"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cifar10", type=Path, help="folder of CIFAR-10's images, by class")
    parser.add_argument("--resnet56", type=Path, help="weights of zoo.resnet56")
    parser.add_argument("--imagenette", type=Path, help="folder of Imagenette's images, by class")
    parser.add_argument("--squeezenet", type=Path, help="weights of torchvision's squeezenet1_1")
    parser.add_argument("--efficientnet", type=Path, help="weights of timm's efficientnet_lite0")
    parser.add_argument("--references", type=int, default=10, help="reference images per class")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--round-to", type=int, default=8, help="widths are multiples of this")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.parse_args()


def main() -> None:
    """Measure, and print the table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    cases = [
        Case(
            "ResNet-56", "niwaki.models.zoo:resnet56", 32, options.resnet56, options.cifar10, None
        ),
        Case(
            "SqueezeNet 1.1",
            "torchvision:squeezenet1_1",
            224,
            options.squeezenet,
            options.imagenette,
            IMAGENETTE if options.imagenette else None,
        ),
        Case(
            "EfficientNet-Lite0",
            "timm:efficientnet_lite0",
            224,
            options.efficientnet,
            options.imagenette,
            IMAGENETTE if options.imagenette else None,
        ),
    ]
    results = {}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            results[case.name] = measure(case, options, Path(folder))
        print(table({case.name: results[case.name]}), flush=True)
    print("", machine(options), "", table(results), sep="\n")
    if options.json:
        niwaki.files.write_json(options.json, {"machine": machine(options), "results": results})


if __name__ == "__main__":
    main()
