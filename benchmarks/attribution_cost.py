"""What an explanation costs: time and peak memory against the plain input gradient.

Run it from a checkout with zennit and captum installed (they are in the group `test`)::

    python benchmarks/attribution_cost.py
    python benchmarks/attribution_cost.py --networks resnet18 --repeats 9 --json cost.json

Every method explains the same batch of random images for class 0 of the same torchvision network
with random weights. *Time*: the methods take turns within each repetition, after one warm-up
repetition, so that whatever else the machine does hits all of them alike; median and minimum are
reported, with the ratio of each: under load, the ratio of the minima is the steadier one. *Peak
memory*: each method runs once in a fresh process, after the model and the inputs are built and a
plain gradient of one image has loaded the kernels. The kernel's high-water mark of resident memory
is reset then (5 to ``/proc/self/clear_refs``, Linux only) and read afterwards; the peak is what it
rose by. In these processes glibc is told to map each block above 64 KiB on its own and to give
freed memory back at once (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``), so that a
tensor that is gone is not counted; without that, the mark depends on the heap's history. Ratios
are to the plain gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from niwaki import attribution, criteria

SEED = 0
STEPS = 4
NETWORKS = ("vgg16", "resnet18", "resnet50")
Method = Callable[[], object]


def one_hot(output: Tensor) -> Tensor:
    """Return 1 for class 0 of each image."""
    start = torch.zeros_like(output)
    start[:, 0] = 1
    return start


def methods(network: str, model: nn.Module, x: Tensor) -> dict[str, Method]:
    """Return what is compared, by name; the first is what the others are measured against."""
    labels = torch.zeros(len(x), dtype=torch.long)

    def plain() -> object:
        leaf = x.clone().requires_grad_()
        output = model(leaf)
        return torch.autograd.grad(output, leaf, one_hot(output))

    def niwaki(name: str, **options: Any) -> Method:
        return lambda: attribution.create(name, model, **options).attribute(x, 0)

    def zennit(name: str, **options: Any) -> Method:
        def run() -> object:
            from zennit import composites
            from zennit.canonizers import SequentialMergeBatchNorm
            from zennit.torchvision import ResNetCanonizer

            canonizer = (
                ResNetCanonizer() if network.startswith("res") else SequentialMergeBatchNorm()
            )
            composite = getattr(composites, name)(canonizers=[canonizer], **options)
            leaf = x.clone().requires_grad_()
            with composite.context(model) as modified:
                output = modified(leaf)
                return torch.autograd.grad(output, leaf, one_hot(output))

        return run

    def captum() -> object:
        from captum.attr import LRP  # type: ignore[import-untyped,unused-ignore]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it makes the inputs require gradients
            return LRP(model).attribute(x.clone(), target=0)

    box = {"low": torch.full((1, 3, 1, 1), -3.0), "high": torch.full((1, 3, 1, 1), 3.0)}
    loss = {"max_loss": None}  # random weights say nothing about what gets lost
    average = {"internal_batch_size": len(x)}
    return {
        "plain gradient": plain,
        "niwaki gradient": niwaki("gradient"),
        "niwaki LRP filter scores": lambda: criteria.create("lrp").batch(model, x, labels),
        "niwaki EpsilonPlus": niwaki("EpsilonPlus", **loss),
        "zennit EpsilonPlus": zennit("EpsilonPlus"),
        "captum LRP": captum,
        "niwaki EpsilonAlpha2Beta1": niwaki("EpsilonAlpha2Beta1", **loss),
        "niwaki lrp.sequential_preset_b": niwaki("lrp.sequential_preset_b", **loss),
        "zennit EpsilonAlpha2Beta1": zennit("EpsilonAlpha2Beta1"),
        "niwaki EpsilonGammaBox": niwaki("EpsilonGammaBox", **loss),
        "zennit EpsilonGammaBox": zennit("EpsilonGammaBox", **box),
        f"niwaki integrated_gradients, {STEPS} steps": niwaki(
            "integrated_gradients", steps=STEPS, refinements=0, **average
        ),
        f"niwaki smoothgrad, {STEPS} samples": niwaki("smoothgrad", samples=STEPS, **average),
    }


def prepared(network: str, batch: int, size: int, threads: int) -> tuple[nn.Module, Tensor]:
    """Build the network and the images from the seed."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    model = torchvision.models.get_model(network, weights=None).eval()
    return model, torch.randn(batch, 3, size, size)


def times(network: str, options: argparse.Namespace) -> dict[str, list[float] | str]:
    """Seconds per repetition and method, or the error of a method that does not run."""
    model, x = prepared(network, options.batch, options.size, options.threads)
    found: dict[str, list[float] | str] = {}
    for repetition in range(options.repeats + 1):
        for name, method in methods(network, model, x).items():
            if options.methods and not any(part in name for part in options.methods):
                continue
            seconds = found.setdefault(name, [])
            if isinstance(seconds, str):
                continue
            begin = time.perf_counter()
            try:
                method()
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
                model, x = prepared(network, options.batch, options.size, options.threads)
                continue
            if repetition:  # the first warms up
                seconds.append(time.perf_counter() - begin)
    return found


def high_water_mark() -> int:
    """Peak resident memory of this process since it was last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak_here(network: str, name: str, options: argparse.Namespace) -> int:
    """Run one method and return by how many bytes resident memory rose."""
    model, x = prepared(network, options.batch, options.size, options.threads)
    methods(network, model, x[:1])["plain gradient"]()
    method = methods(network, model, x)[name]
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mark()
    method()
    return high_water_mark() - before


def peak(network: str, name: str, options: argparse.Namespace) -> int | None:
    """Peak memory of a method in a process of its own; None where it does not run."""
    command = [sys.executable, __file__, "--peak-of", network, name]
    for option in ("batch", "size", "threads"):
        command += [f"--{option}", str(getattr(options, option))]
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        command, env={**os.environ, **allocator}, capture_output=True, text=True, check=False
    )
    return int(done.stdout) if done.returncode == 0 else None


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown table: a row per network and method."""
    lines = [
        "| network | method | median s | ratio | min s | ratio | peak MiB | ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for network, rows in results.items():
        base = rows["plain gradient"]
        for name, row in rows.items():
            if "error" in row:
                lines.append(f"| {network} | {name} | {row['error']} | | | | | |")
                continue
            memory = "| |"
            if row["peak"] and base["peak"]:
                memory = f"| {row['peak'] / 2**20:.0f} | {row['peak'] / base['peak']:.2f} |"
            ratio = row["median"] / base["median"]
            least = row["min"] / base["min"]
            lines.append(
                f"| {network} | {name} | {row['median']:.2f} | {ratio:.2f} | {row['min']:.2f} "
                f"| {least:.2f} {memory}"
            )
    return "\n".join(lines)


def machine(options: argparse.Namespace) -> str:
    """One line that says where and with what this was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((n.split(":")[1].strip() for n in lines if "model name" in n), platform.processor())
    versions = []
    for package in ("torch", "torchvision", "zennit", "captum"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    return (
        f"{cpu}, {options.threads} threads, {', '.join(versions)}; batch {options.batch}, "
        f"{options.size} px, seed {SEED}, {options.repeats} repetitions"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", help="parts of the names of those wanted")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, and print the table."""
    options = arguments()
    if options.peak_of:
        network, name = options.peak_of
        print(peak_here(network, name, options))
        return
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for network in options.networks:
        rows = results[network] = {}
        for name, seconds in times(network, options).items():
            if isinstance(seconds, str):
                rows[name] = {"error": seconds}
                continue
            rows[name] = {
                "seconds": seconds,
                "median": statistics.median(seconds),
                "min": min(seconds),
                "peak": None if options.no_memory else peak(network, name, options),
            }
        print(table({network: rows}), file=sys.stderr)  # the rest may take long
    print(machine(options), table(results), sep="\n\n")
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine(options), "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
