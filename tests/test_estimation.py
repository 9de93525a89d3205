"""From trials to an estimate: against costs that are known, a clock that is set, and formulas."""

import time
from itertools import pairwise

import pytest

from niwaki import processes, stages
from niwaki.estimation import Estimate, Link, Trial, Work, estimated, solved, told, value_of
from niwaki.stages import Stage


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when it is told to."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_each_second_is_charged_to_one_stage(clock):
    with stages.recorded() as kept:
        clock(1)
        with stages.stage("outer"):
            clock(2)
            with stages.stage("inner"):
                clock(4)
            with stages.shared():
                clock(8)
                with stages.stage("inner"):
                    clock(16)
        clock(32)
    found = {name: (stage.seconds, stage.shared) for name, stage in kept.stages.items()}
    assert found == {"everything else": (33, 0), "outer": (10, 8), "inner": (20, 16)}


def test_what_processes_share_and_tell_is_seen_in_one_process(clock):
    with stages.recorded() as kept:
        with processes.agreed():
            mine = [number for number in range(5) if processes.is_mine(number)]
            clock(3)
        with processes.alone(), processes.agreed():
            clock(7)
        processes.gathered("told to all")
    (found,) = kept.stages.values()
    assert (len(mine), found.loops, found.turns) == (5, 1, 5)
    assert (found.seconds, found.shared) == (10, 3)
    assert found.messages == 1
    assert found.sent > len("told to all")


def test_without_a_ledger_nothing_is_limited_or_noted():
    with stages.stage("unseen"), stages.shared():
        assert stages.allowed("images", 7) == 7
    with stages.recorded({"images": 2, "steps": 3}) as kept:
        assert stages.allowed("images", 100, of=8) == 16
        assert stages.allowed("images", 5, of=8) == 5
        assert stages.allowed("steps", 9) == 3
        assert stages.allowed("tiles", 9) == 9
    assert kept.counts == {"images": 5, "steps": 9, "tiles": 9}
    assert kept.done == {"images": 5, "steps": 3, "tiles": 9}


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("1", 1),
        ("images", 90),
        ("images<64", 64),
        ("steps+1 * images", 360),
        ("steps+3 * images", 540),
        ("missing", 0),
    ],
)
def test_terms(term, value):
    assert value_of(term, {"images": 90, "steps": 3}) == value


def test_factors_are_found_and_none_is_below_zero():
    rows = [[1, 8], [1, 24], [1, 64]]
    assert solved(rows, [3 + 2 * n for _, n in rows]) == pytest.approx([3, 2])
    assert solved(rows, [100, 60, 20])[1] == 0


COUNTS = {"images": 5000, "steps": 12}
WORK = Work(
    {"images": (1, 3), "steps": (2, 3)},
    {"scoring": ("steps", "steps * images")},
    other=("1",),
    memory=("1", "images"),
    disk=("1", "steps"),
)


def trial(images, steps):
    """What a job takes whose costs are known."""
    scoring = Stage(
        seconds=steps * (0.5 + 0.01 * images),
        shared=steps * 0.01 * images,
        loops=steps,
        turns=steps * images / 10,
        sent=1e6 * steps,
        messages=steps,
    )
    rest = {"everything else": Stage(seconds=4)}
    memory, disk = 3e8 + 1e5 * images, 1e6 * steps
    done = {"images": images, "steps": steps}
    return Trial(COUNTS, done, {"scoring": scoring, **rest}, 2, 1, int(memory), 0, int(disk))


def test_known_costs_are_found_from_two_trials():
    found = estimated(WORK, [trial(10, 2), trial(30, 3)])
    assert found.seconds() == pytest.approx(2 + 4 + 12 * (0.5 + 50))
    assert found.memory == pytest.approx(3e8 + 5e8)
    assert found.disk == pytest.approx(12e6)
    assert found.serial == pytest.approx((2 + 4 + 6) / 612)


def test_a_trial_of_all_the_work_is_the_answer():
    whole = trial(5000, 12)
    found = estimated(WORK, [trial(10, 2), whole])
    assert found.seconds() == pytest.approx(whole.seconds)
    assert found.memory == whole.memory


@pytest.mark.parametrize("processes", [1, 2, 7, 64, 512])
def test_the_time_on_many_processes_is_amdahls_and_that_of_a_ring(processes):
    found = estimated(WORK, [trial(10, 2), trial(30, 3)])
    link = Link(bandwidth=1e8, latency=1e-3)
    batches = 500  # of which the busiest process has so many
    share = -(-batches // processes) / batches
    ring = 2 * (processes - 1) * (12e6 / processes / 1e8 + 12 * 1e-3)
    expected = 12 + 600 * share + ring * (processes > 1)
    assert found.seconds(processes, link) == pytest.approx(expected)


def test_more_processes_than_batches_do_not_help():
    few = Stage(seconds=80, shared=80, loops=1, turns=8)
    found = Estimate({"scoring": few, "everything else": Stage(seconds=1)}, 0, 0, 0)
    times = [row["seconds"] for row in told(found, 1, Link())["curve"]]
    assert times[:4] == pytest.approx([81, 41, 21, 11])
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(times[3:]))
    assert found.helpful() == 8
