"""From what short trials of a command took to what all of it will take, on any number of processes.

A command falls into stages (see `niwaki.stages`). What each took in the trials is fitted by the few
terms that it can depend on, such as the number of images, with no factor below zero. Then the
counts of the whole job are put in. Of a stage's seconds, those that processes share are divided by
batches; all others stay as they are, as Amdahl's law has it, and what processes tell each other is
added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import ceil, prod
from typing import Any

from niwaki.stages import REST, Stage

__all__ = ["Estimate", "Link", "Trial", "Work", "estimated"]

Term = str  # such as "1", "images", "images<64" (at most 64), "steps+1 * test images"
_HELPS = 1.1  # times as fast: what doubling the processes has to bring to be worth it
START = "starting"


@dataclass(frozen=True)
class Work:
    """What the work of a command consists of.

    Attributes
    ----------
    limits : mapping of str to sequence of float
        How much each trial does, from the shortest to the longest; see `niwaki.stages.allowed`.
    stages : mapping of str to sequence of str
        The terms that the seconds of a stage depend on, at the most as many as there are trials.
    other : sequence of str
        The terms of all other stages.
    memory, disk : sequence of str
        The terms of the largest memory of a process and of the room on the disk.
    """

    limits: Mapping[str, Sequence[float]]
    stages: Mapping[str, Sequence[Term]] = field(default_factory=dict)
    other: Sequence[Term] = ("1",)
    memory: Sequence[Term] = ("1",)
    disk: Sequence[Term] = ("1",)

    def trials(self) -> int:
        """Return how many trials there can be."""
        return max(map(len, self.limits.values()))

    def limited(self, trial: int) -> dict[str, float]:
        """Return how much a trial may do."""
        return {name: given[min(trial, len(given) - 1)] for name, given in self.limits.items()}


@dataclass(frozen=True)
class Trial:
    """What a part of a command took.

    Attributes
    ----------
    counts, done : dict of str to int
        How much there is of images, steps and the like, and how much of it the trial did.
    stages : dict of str to Stage
        By name.
    start, start_busy : float
        Seconds before and after all stages: starting Python, mostly; and those of a processor.
    memory, device_memory, disk : int
        The most bytes in memory, in that of a GPU, and on the disk.
    """

    counts: Mapping[str, int]
    done: Mapping[str, int]
    stages: Mapping[str, Stage]
    start: float = 0.0
    start_busy: float = 0.0
    memory: int = 0
    device_memory: int = 0
    disk: int = 0

    @property
    def seconds(self) -> float:
        """All of the time."""
        return self.start + sum(stage.seconds for stage in self.stages.values())

    @property
    def is_whole(self) -> bool:
        """Whether it was all that there is to do."""
        return all(self.done[name] == count for name, count in self.counts.items())


@dataclass(frozen=True)
class Link:
    """How fast processes tell each other something.

    Attributes
    ----------
    bandwidth : float
        Bytes per second.
    latency : float
        Seconds until the first of them arrives.
    """

    bandwidth: float = 1e9
    latency: float = 1e-4

    def seconds(self, size: float, messages: float, processes: int) -> float:
        """Return the seconds to add up so many bytes in a ring, in so many messages."""
        if processes == 1:
            return 0.0
        steps = 2 * (processes - 1)
        return steps * (size / processes / self.bandwidth + messages * self.latency)


@dataclass(frozen=True)
class Estimate:
    """What a command will take.

    Attributes
    ----------
    stages : dict of str to Stage
        What each stage takes on one process, the start among them.
    memory, device_memory, disk : float
        Bytes: in the memory of each process, in that of a GPU, and on the disk.
    """

    stages: Mapping[str, Stage]
    memory: float
    device_memory: float
    disk: float

    def seconds(self, processes: int = 1, link: Link = Link()) -> float:
        """Return the seconds from start to end on so many processes."""
        return sum(
            stage.seconds
            - stage.shared * (1 - _share(stage, processes))
            + link.seconds(stage.sent, stage.messages, processes)
            for stage in self.stages.values()
        )

    @property
    def busy(self) -> float:
        """The seconds for which processors have to work, whatever else they do."""
        return sum(stage.busy for stage in self.stages.values())

    @property
    def serial(self) -> float:
        """The share of the time of one process that no other process saves."""
        return 1 - sum(stage.shared for stage in self.stages.values()) / self.seconds()

    def helpful(self, most: int = 512, link: Link = Link()) -> int:
        """Return the number of processes of which twice as many gain less than a tenth."""
        count = 1
        while count < most and self.seconds(count, link) > _HELPS * self.seconds(2 * count, link):
            count *= 2
        return count


def _share(stage: Stage, processes: int) -> float:
    """Return the largest share of a stage's parts that falls to one process."""
    parts = round(stage.turns / stage.loops) if stage.loops else 1
    return ceil(parts / processes) / max(1, parts)


def estimated(work: Work, trials: Sequence[Trial]) -> Estimate:
    """Return what a whole command takes, from trials of parts of it.

    Parameters
    ----------
    work
        What it consists of.
    trials
        At least one, with less work than there is; or one with all of it.
    """
    counts = trials[-1].counts
    if trials[-1].is_whole:
        trials = trials[-1:]

    def fitted(values: Sequence[float], terms: Sequence[Term]) -> float:
        if trials[-1].is_whole:
            return values[-1]
        rows = [[value_of(term, trial.done) for term in terms] for trial in trials]
        return dot(solved(rows, values), [value_of(term, counts) for term in terms])

    names = dict.fromkeys(name for trial in trials for name in trial.stages)
    start = [trial.start for trial in trials], [trial.start_busy for trial in trials]
    found = {START: Stage(*(fitted(values, ("1",)) for values in start))}
    for name in names:
        terms = work.stages.get(name, work.other)
        seen = [asdict(trial.stages.get(name, Stage())) for trial in trials]
        for one in seen:  # both are fitted by themselves, and cannot fall below zero
            one["seconds"] -= one["shared"]
        kept = {f.name: fitted([one[f.name] for one in seen], terms) for f in fields(Stage)}
        kept["seconds"] += kept["shared"]
        found[name] = Stage(**kept)
    return Estimate(
        found,
        fitted([trial.memory for trial in trials], work.memory),
        fitted([trial.device_memory for trial in trials], work.memory),
        fitted([trial.disk for trial in trials], work.disk),
    )


def value_of(term: Term, counts: Mapping[str, int]) -> float:
    """Return a term's value: a product of counts, each with such as ``+1`` or ``<64``, or not."""
    return prod(_factor(part.strip(), counts) for part in term.split("*"))


def _factor(text: str, counts: Mapping[str, int]) -> float:
    if "+" in text:
        name, _, more = text.partition("+")
        return _factor(name, counts) + int(more)
    if "<" in text:
        name, _, most = text.partition("<")
        return min(_factor(name, counts), int(most))
    return 1 if text == "1" else counts.get(text, 0)


def solved(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Return the factors, none below zero, by which terms come closest to values."""
    import numpy as np
    from scipy.optimize import nnls

    table = np.asarray(rows, dtype=float)
    scale = np.where(table.max(0) > 0, table.max(0), 1.0)
    found, _ = nnls(table / scale, np.asarray(values, dtype=float))
    return [float(factor) for factor in found / scale]


def dot(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the sum of products."""
    return sum(a * b for a, b in zip(first, second, strict=True))


def told(found: Estimate, processes: int, link: Link) -> dict[str, Any]:
    """Return an estimate as plain data, with the curve up to 512 processes."""
    alone = found.seconds()
    curve = {n: found.seconds(n, link) for n in sorted({*(2**k for k in range(10)), processes})}
    return {
        "processes": processes,
        "seconds": found.seconds(processes, link),
        "busy": found.busy,
        "memory": round(found.memory),
        "device_memory": round(found.device_memory),
        "disk": round(found.disk),
        "serial": found.serial,
        "stops_helping": found.helpful(link=link),
        "stages": [
            {"stage": name, "seconds": stage.seconds, "shared": stage.shared, "sent": stage.sent}
            for name, stage in found.stages.items()
            if name != REST or stage.seconds
        ],
        "curve": [
            {"processes": n, "seconds": seconds, "times": alone / seconds}
            for n, seconds in curve.items()
        ],
    }
