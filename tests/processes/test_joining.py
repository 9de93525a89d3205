"""Processes that do not all come do not leave the others waiting; once joined, they may be slow."""

import os
import socket
import subprocess
import sys

import pytest

JOINING = """
import sys, time
from datetime import timedelta
from niwaki import processes
from niwaki.errors import LostProcessError
processes._TO_JOIN = timedelta(seconds=float(sys.argv[1]))
try:
    with processes.joined():
        if processes.is_first():
            time.sleep(2 * float(sys.argv[1]))  # works alone for longer than joining may take
        found = processes.gathered(processes.rank())
        print("together", found, file=sys.stderr)
except LostProcessError as error:
    print("lost:", error, file=sys.stderr)
"""


def start(ranks, seconds):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", JOINING, str(seconds)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    return [run.communicate(timeout=120)[1] for run in runs]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_one_that_comes_does_not_wait_for_the_one_that_does_not(rank):
    [said] = start([rank], 2)
    assert f"lost: process {rank} of 2 cannot reach the others, of which one may have ended" in said
    assert "together" not in said


@pytest.mark.slow
def test_once_all_have_joined_they_have_more_patience():
    said = start([0, 1], 15)
    assert all("together [0, 1]" in one for one in said), said
