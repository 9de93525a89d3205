"""A trial of a command for ``niwaki estimate``: a part of its work, in a process of its own.

Run as ``python -m niwaki.cli._trial '{"report": FILE, "limits": {"images": 2}}' COMMAND ...``, with
a pipe to read from that the other process keeps open as long as it wants the trial to go on.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from threading import Thread

from niwaki.cli._app import main
from niwaki.files import write_json
from niwaki.machine import peak_memory
from niwaki.stages import processor_seconds, recorded


def trial() -> None:
    """Do a part of a command, and write what it took."""
    Thread(target=_end_with_parent, daemon=True).start()
    about = json.loads(sys.argv[1])
    sys.argv = ["niwaki", *sys.argv[2:]]
    with recorded(about["limits"]) as kept:
        try:
            main()
        except SystemExit as end:
            code = end.code
    if code in (0, 1):  # 1 is the answer of an audit that has found something
        torch = sys.modules.get("torch")
        on_device = torch is not None and torch.cuda.is_initialized()
        report = {
            "counts": kept.counts,
            "done": kept.done,
            "stages": {name: asdict(stage) for name, stage in kept.stages.items()},
            "seconds": sum(stage.seconds for stage in kept.stages.values()),
            "busy": processor_seconds(),
            "memory": peak_memory(),
            "device_memory": torch.cuda.max_memory_reserved() if torch and on_device else 0,
        }
        write_json(Path(about["report"]), report)
    sys.exit(code)


def _end_with_parent() -> None:
    """Wait until nobody holds the other end of the pipe, and end at once."""
    os.read(0, 1)
    os._exit(2)


if __name__ == "__main__":
    trial()
