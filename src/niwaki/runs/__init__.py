"""Work that survives an interruption: run folders, their locks, and digests of what they belong to.

A run has an identity (model, data, settings, as plain data) and finished parts. `open_run` opens
its folder for one process alone; what is damaged counts as unfinished, and a run of another
identity is refused. `digest` tells data sets apart by every sample, and `described` tells settings
apart.
"""

from niwaki.runs._described import described
from niwaki.runs._digest import digest
from niwaki.runs._lock import locked
from niwaki.runs._run import Folder, Part, Run, discard, open_run

__all__ = [
    "Folder",
    "Part",
    "Run",
    "described",
    "digest",
    "discard",
    "locked",
    "open_run",
]
