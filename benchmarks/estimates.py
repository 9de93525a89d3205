"""How near `niwaki estimate` comes to jobs that are then run: seconds, and memory of a process.

Run it from a checkout, with the folders of weights and images named on the command line::

    python benchmarks/estimates.py --weights WEIGHTS_FOLDER --images IMAGES_FOLDER
    python benchmarks/estimates.py ... --jobs prune audit --json estimates.json
    python benchmarks/estimates.py ... --json estimates.json --write docs/scale.md

Each job is estimated, and then run with the same command line; both have one thread. The time is
compared twice: from start to end, to which all that runs on the machine adds, and that of a
processor, to which it adds little. All jobs are in the table, also those that were missed. What was
measured before is read from the JSON file and kept, unless its job is named. `--processes 2` adds
the time on two processes of `torchrun`, estimated and measured, and the curve up to 512. `--write`
puts the tables into a page, between the lines that begin with ``% estimates``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IMAGENETTE = "0,217,482,491,497,566,569,571,574,701"


def jobs(weights: Path, images: Path) -> dict[str, list[str]]:
    """Return the command line of each job."""
    squeezenet = ["--weights", str(weights / "squeezenet1_1_imagenet.safetensors")]
    imagenet = ["torchvision:squeezenet1_1", str(images / "imagenette"), *squeezenet]
    imagenet += ["--outputs", IMAGENETTE]
    cifar = ["niwaki.models.zoo:resnet20", str(images / "cifar10")]
    cifar += ["--weights", str(weights / "resnet20_cifar10_jpeg.safetensors")]
    vgg = ["niwaki.models.zoo:vgglike", str(images / "cifar10")]
    vgg += ["--weights", str(weights / "vgglike_cifar10.safetensors")]
    slide = [str(images / "slides" / "cmu-1-small-region.svs"), "torchvision:squeezenet1_1"]
    methods = ["--method", "lrp.epsilon_plus", "--method", "gradient"]
    return {
        "explain": ["explain", *imagenet, "--limit", "200"],
        "compare": ["compare", *imagenet, "--limit", "60", *methods],
        "evaluate": ["evaluate", *imagenet, "--limit", "48", *methods],
        "prune": ["prune", *cifar, "--keep", "0.5"],
        "prune-weights": ["prune-weights", *cifar, "--keep", "0.2", "--steps", "6"],
        "car": ["car", *cifar, "--per-class", "40"],
        "audit": ["audit", *cifar, "--limit", "1000"],
        "filters": ["filters", *vgg, "--limit", "200", "--steps", "16", "--no-car"],
        "slide": ["slide", *slide, *squeezenet, "--target", "0"],
    }


def environment() -> dict[str, str]:
    """Return the environment of what is estimated and run: one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def estimate(job: list[str], *options: str) -> dict[str, Any]:
    """Return what `niwaki estimate` says, and the seconds that it took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "niwaki", "estimate", *job, "--json", *options]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment()).stdout
    return {**json.loads(said), "took": time.perf_counter() - began}


def run(job: list[str], processes: int = 1) -> tuple[float, float, int]:
    """Run a job; return its seconds, those of processors, and the bytes of its largest process."""
    launcher = ["-m", "niwaki"]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        launcher += [str(processes), "-m", "niwaki"]
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, *launcher, *job, "--out", f"{folder}/out"]
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment())
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words} ended with {process.returncode}")
    return seconds, used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss


def measured(name: str, job: list[str], processes: int) -> dict[str, Any]:
    """Estimate a job, and run it."""
    said = estimate(job)
    seconds, busy, memory = run(job)
    row = {"job": name, "estimate": said, "seconds": seconds, "busy": busy, "memory": memory}
    if processes > 1 and job[0] in ("evaluate", "prune", "prune-weights", "car", "audit"):
        row["several"] = run(job, processes)[0]
        row["processes"] = processes
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return a line for each job."""
    lines = [
        "| | took | estimated | off by | of a processor | estimated | off by | memory | estimated "
        "| off by |",
        "| --- |" + " ---: |" * 9,
    ]
    for row in rows:
        said, cells = row["estimate"], [f"`{row['job']}`"]
        for key in ("seconds", "busy", "memory"):
            for value in (row[key], said[key]):
                cells.append(f"{value / 2**20:,.0f} MB" if key == "memory" else f"{value:.0f} s")
            cells.append(off(said[key], row[key]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(rows: list[dict[str, Any]]) -> str:
    """Return the time on one, two and more processes, and where more of them stop helping."""
    several = [row for row in rows if "several" in row]
    if not several:
        return ""
    counts = (1, 2, 8, 32, 128, 512)
    head = " | ".join(str(count) for count in counts[2:])
    lines = [
        f"| | 1: took (estimated) | 2 | {head} | saved by none | stops helping |",
        "| --- |" + " ---: |" * (len(counts) + 2),
    ]
    for row in several:
        said = row["estimate"]
        found = {point["processes"]: point["seconds"] for point in said["curve"]}
        lines.append(
            f"| `{row['job']}` | {row['seconds']:.0f} s ({found[1]:.0f}) | "
            f"{row['several']:.0f} s ({found[2]:.0f}) | "
            + " | ".join(f"{found[count]:.0f} s" for count in counts[2:])
            + f" | {said['serial']:.0%} | at {said['stops_helping']} |"
        )
    return "\n".join(lines)


def off(estimated: float, found: float) -> str:
    """Say by what factor an estimate is off, whichever is larger."""
    return f"{max(estimated / found, found / estimated):.2f}"


def write(page: Path, rows: list[dict[str, Any]]) -> None:
    """Put the tables into a page, between the lines that begin with ``% estimates``."""
    text = page.read_text(encoding="utf-8")
    for name, content in (("jobs", table(rows)), ("curves", curves(rows))):
        begin, end = f"% estimates: {name}\n", f"% estimates: end of {name}\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{page} has no lines {begin.strip()!r} and {end.strip()!r}")
        text = f"{before}{begin}\n{content}\n\n{end}{after}"
    page.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--jobs", nargs="*", help="jobs to measure; default: those not in the JSON")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    every = jobs(args.weights, args.images)
    kept: dict[str, Any] = {}
    if args.json and args.json.exists():
        kept = {row["job"]: row for row in json.loads(args.json.read_text())}
    names = [name for name in every if name not in kept] if args.jobs is None else args.jobs
    for name in names:
        kept[name] = measured(name, every[name], args.processes)
        print(table([kept[name]]).splitlines()[-1], flush=True)
        if args.json:
            args.json.write_text(json.dumps(list(kept.values()), indent=1))
    rows = [kept[name] for name in every if name in kept]
    print(table(rows), curves(rows), sep="\n\n")
    if args.write:
        write(args.write, rows)


if __name__ == "__main__":
    main()
