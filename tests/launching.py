"""A launcher like torchrun, which starts in no time: its processes are forks of a warm one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
"""

# What is measured with a clock is the same each time, so that results can be compared.
SERVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
import torch.distributed, accelerate, matplotlib.pyplot
import niwaki.auditing, niwaki.car, niwaki.evaluation, niwaki.filters, niwaki.pruning, niwaki.report
from niwaki.cli import main
niwaki.evaluation.seconds_per_mac = lambda model, example: {
    name: 1e-9 * (1 + place) for place, (name, m) in enumerate(model.named_modules())
    if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))}
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        _, status, used = os.wait4(asked["wait"], 0)
        print(status, used.ru_maxrss, flush=True)
        continue
    child = os.fork()
    if child == 0:
        said = os.open(asked["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(asked["env"])
        sys.argv = ["niwaki", *asked["command"]]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
"""


class Launcher:
    """Starts a command in several processes, and ends all when one has failed, as torchrun does."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "tiny.py").write_text(NETWORK)
        weights(place / "weights.safetensors")
        self._logs = place.parent / f"{place.name}-said"
        self._logs.mkdir()
        self._commands = 0
        self.peaks: list[int] = []
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, command: Iterable[str], count: int) -> list[int]:
        """Start a command; return the numbers of its processes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        found = []
        self._commands += 1
        for rank in range(count):
            env = {} if count == 1 else {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            said = str(self._logs / f"{self._commands}-{rank}.txt")
            found += self._ask({"command": list(command), "env": env, "said": said})
        return found

    def ended(self, children: list[int]) -> list[int]:
        """Wait for them, return how each has ended: an exit code, or minus the signal.

        `peaks` then says how much memory each has had at the most, in KiB.
        """
        told = [self._ask({"wait": child}) for child in children]
        self.peaks = [peak for _, peak in told]
        return [os.waitstatus_to_exitcode(status) for status, _ in told]

    def run(self, command: Iterable[str], count: int) -> list[int]:
        """Start a command, and wait for it."""
        return self.ended(self.start(command, count))

    def said(self, rank: int = 0) -> str:
        """Return what a process of the last command has printed."""
        return (self._logs / f"{self._commands}-{rank}.txt").read_text()

    def stop(self) -> None:
        """End the server."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def _ask(self, asked: dict[str, object]) -> list[int]:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return [int(number) for number in self._server.stdout.readline().split()]


def kill(child: int) -> None:
    """Kill a process, if it has not ended."""
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def weights(path: Path) -> None:
    """Save weights with which the network tells images apart."""
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    model = scope["build"]()  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    save_file(model.state_dict(), path)
