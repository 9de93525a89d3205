"""``niwaki estimate``: time, memory and disk of a command, before it is run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from niwaki import ranges as r
from niwaki.cli._json import say
from niwaki.cli._options import AsJson, console, spread
from niwaki.cli._spread import Bytes
from niwaki.cli._works import WORKS
from niwaki.errors import NiwakiError
from niwaki.estimation import Estimate, Link, Trial, Work, estimated, told
from niwaki.machine import parse_bytes, physical, shown
from niwaki.stages import Stage
from niwaki.terminal import headed

__all__ = ["estimate"]

_PROCESSES = r.Range(1, 4096, whole=True)
_SECONDS = r.Range(1, 86400, why="trials take at least the seconds that Python takes to start")
_CALM = 0.7  # share of the time in which a processor works for a job that has it to itself
_OFTEN = 0.05  # seconds from one look at the disk to the next
_UNKNOWN = (
    "Trials run on this machine, beside whatever else runs on it. Each process is assumed to have "
    "processors, or a GPU, like this one to itself.",
    "The disk is as fast as it is now; images that the trials have read may come from memory.",
    "What an audit will find is not known, and the pictures of each finding take time.",
    "A job that may stop early (--floor, --patience) is estimated to its end.",
)


@spread
def estimate(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help="The command with all its arguments, such as prune MODEL DATA.",
        ),
    ],
    processes: Annotated[
        int, _PROCESSES, typer.Option(help="Processes, or GPUs, that torchrun would start.")
    ] = 1,
    budget: Annotated[
        float,
        _SECONDS,
        typer.Option(help="Seconds that trials may take, not counting the first two."),
    ] = 120,
    bandwidth: Annotated[
        str, Bytes(), typer.Option(help="Bytes per second between two processes, such as 1GB.")
    ] = "1GB",
    as_json: AsJson = False,
) -> None:
    """Estimate the time, memory and disk that a command takes, without running all of it.

    Runs the command on a few images at least twice, in a temporary folder, and extrapolates from
    what each stage takes. It also says how much time more processes would save.
    """
    work = _work(command)
    link = Link(bandwidth=parse_bytes(bandwidth, "--bandwidth"))
    with _cleaning_up():
        trials = _trials(command, work, processes, budget, console(as_json))
    found = estimated(work, trials)
    if as_json:
        tried = [{**one.done, "seconds": one.seconds, "memory": one.memory} for one in trials]
        about = {
            "estimated": command,
            "counts": dict(trials[-1].counts),
            "trials": tried,
            "bandwidth": link.bandwidth,
            "latency": link.latency,
            "limits": list(_UNKNOWN),
        }
        say({**about, **told(found, processes, link)})
        return
    _report(found, processes, link)


def _work(command: Sequence[str]) -> Work:
    name = command[0]
    if name not in WORKS:
        raise NiwakiError(
            f"{name!r}: it is not known what the work of this command consists of; known are "
            f"{', '.join(WORKS)}"
        )
    return WORKS[name]


def _trials(
    command: Sequence[str], work: Work, processes: int, budget: float, show: Any
) -> list[Trial]:
    """Run trials, each with more to do, until the time is up or there is no more to do."""
    trials: list[Trial] = []
    for number in range(work.trials()):
        trials.append(_tried(command, work.limited(number), processes))
        spent = sum(trial.seconds for trial in trials)
        done = ", ".join(f"{count:,} {what}" for what, count in trials[-1].done.items())
        show.print(f"tried {done or 'all of it'}: {trials[-1].seconds:.1f} s")
        if trials[-1].is_whole or (number > 0 and spent + _next(work, trials) > budget):
            break
    return trials


def _next(work: Work, trials: Sequence[Trial]) -> float:
    """Return the seconds that the next trial may take, as those before it say."""
    now, then = work.limited(len(trials) - 1), work.limited(len(trials))
    last = trials[-1]
    more = {
        name: min(count, round(last.done[name] * then.get(name, 1) / now.get(name, 1)))
        for name, count in last.counts.items()
    }
    return estimated(work, [replace(trial, counts=more) for trial in trials]).seconds()


def _tried(command: Sequence[str], limits: dict[str, float], processes: int) -> Trial:
    """Run a part of a command in a process of its own, in a folder that is gone afterwards."""
    with _scratch() as folder:
        place, report = folder / "written", folder / "report.json"
        place.mkdir()
        words = [*command, "--out", str(place / "out")]
        words += ["--log", str(place / "log")] if "--log" in " ".join(command) else []
        about = json.dumps({"report": str(report), "limits": limits})
        began = time.perf_counter()
        disk = 0
        errors = folder / "errors.txt"
        with _started(about, words, processes, errors) as run:
            while run.poll() is None:
                disk = max(disk, _size(place))
                time.sleep(_OFTEN)
        seconds, disk = time.perf_counter() - began, max(disk, _size(place))
        if not report.exists():
            said = errors.read_text(encoding="utf-8", errors="replace").strip()
            reason = said.rpartition("\n")[2].removeprefix("error: ") or f"exit {run.returncode}"
            raise NiwakiError(f"niwaki {shlex.join(command)} does not run: {reason}")
        found = json.loads(report.read_text(encoding="utf-8"))
    return Trial(
        found["counts"],
        found["done"],
        {name: Stage(**stage) for name, stage in found["stages"].items()},
        max(0.0, seconds - found["seconds"]),
        max(0.0, found["busy"] - sum(stage["busy"] for stage in found["stages"].values())),
        found["memory"],
        found["device_memory"],
        disk,
    )


@contextmanager
def _scratch() -> Iterator[Path]:
    """Make a folder for temporary files, which is deleted with all that is in it.

    Those of processes that were killed before they could do so are deleted first.
    """
    from niwaki.files import clear_leftovers, sibling

    folder = sibling(Path(tempfile.gettempdir(), "niwaki-estimate"))
    clear_leftovers(folder.parent, "niwaki-estimate")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Terminated(KeyboardInterrupt):
    """SIGTERM has arrived."""


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does, by an error, and then this process."""

    def stop(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)  # so that whoever sent it sees what ended us
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _started(
    about: str, words: Sequence[str], processes: int, errors: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a trial, which ends with the block at the latest.

    It reads from a pipe that ends with this process, however that ends.
    """
    environment = {**os.environ}
    if processes > 1:  # as torchrun does
        environment.setdefault("OMP_NUM_THREADS", "1")
    with errors.open("wb") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "niwaki.cli._trial", about, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env=environment,
        )
        try:
            yield run
        finally:
            run.kill()  # all that it may leave lies in a folder that is deleted
            run.wait()
            if run.stdin is not None:
                run.stdin.close()


def _size(folder: Path) -> int:
    """Return the bytes of all files in a folder, while others write there."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # it was moved just now
                continue
    return total


def _report(found: Estimate, processes: int, link: Link) -> None:
    show = console().print
    seconds = found.seconds(processes, link)
    many = "one process" if processes == 1 else f"{processes} processes"
    show(headed(_time(seconds), f"on {many}"))
    if found.busy < _CALM * found.seconds():
        show(headed(_time(found.busy), "of work for a processor: the machine is busy with others"))
    show(
        headed(
            shown(found.memory), f"of memory in each process (this machine: {shown(physical())})"
        )
    )
    if found.device_memory:
        show(headed(shown(found.device_memory), "of memory on each GPU"))
    show(headed(shown(found.disk), "on the disk at the most"))
    stages = Table("stage", "one process", "of it shared", box=None, pad_edge=False)
    for name, stage in sorted(found.stages.items(), key=lambda item: -item[1].seconds):
        if stage.seconds >= 0.001 * found.seconds():
            stages.add_row(name, _time(stage.seconds), f"{stage.shared / stage.seconds:.0%}")
    show(stages)
    curve = Table("processes", "time", "times as fast", box=None, pad_edge=False)
    for row in told(found, processes, link)["curve"]:
        curve.add_row(str(row["processes"]), _time(row["seconds"]), f"{row['times']:.1f}")
    show(curve)
    show(
        f"{found.serial:.1%} of the time of one process cannot be shared; more than "
        f"{found.helpful(link=link)} processes gain little. They tell each other "
        f"{shown(sum(stage.sent for stage in found.stages.values()))} at {shown(link.bandwidth)} "
        "per second, as --bandwidth says."
    )
    for sentence in _UNKNOWN:
        show(sentence)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
