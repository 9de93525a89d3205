"""A crew of real processes, which form a group of any size over gloo for one job after another."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed

MOST = 4


class Crew:
    """Up to four processes; ``crew(3, job, *args)`` returns what ``job(*args)`` gave in each."""

    def __init__(self, folder: Path) -> None:
        context = mp.get_context("spawn")
        self._folder, self._jobs = folder, 0
        pairs = [context.Pipe() for _ in range(MOST)]
        self._ends = [ours for ours, _ in pairs]
        self._workers = [context.Process(target=_work, args=(end,)) for _, end in pairs]
        for worker in self._workers:
            worker.start()

    def __call__(self, count: int, job: Callable[..., Any], *args: Any) -> list[Any]:
        self._jobs += 1
        store = str(self._folder / f"store-{self._jobs}")
        for number, end in enumerate(self._ends[:count]):
            end.send((store, number, count, job, args))
        answers = []
        for end in self._ends[:count]:
            assert end.poll(1800), "a process hangs"
            answers.append(end.recv())
        for end in self._ends[:count]:
            end.send("all have answered")
        for _, told, _ in answers:
            print(told, end="")
        return [error if error is not None else value for error, _, value in answers]

    def stop(self) -> None:
        for end, worker in zip(self._ends, self._workers, strict=True):
            end.send(None)
            worker.join(10)
            worker.kill()


def _work(end: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    while (job := end.recv()) is not None:
        store, number, count, function, args = job
        try:
            distributed.init_process_group(
                "gloo",
                store=distributed.FileStore(store, count),
                rank=number,
                world_size=count,
                timeout=timedelta(seconds=200),
            )
            answer = (None, "", function(*args))
        except Exception as error:
            answer = (error, traceback.format_exc(), None)
        end.send(answer)
        # A process that left the group at once would fail those that are still about to join it.
        end.recv()
        if distributed.is_initialized():
            distributed.destroy_process_group()
