"""Work that survives an interruption: run folders, their locks, and digests of what they belong to.

A run has an identity (model, data, settings, as plain data) and finished parts. `open_run` opens
its folder for one process alone; what is damaged counts as unfinished, and a run of another
identity is refused. `accumulate` adds up over data, and keeps the sums as they grow; `grow` does
so with anything that can be merged; `each_once` computes parts that do not depend on each other.
Several processes may share all three. A command works in a `workplace` beside its output, which
appears at once. `digest` tells data sets apart by every sample, `identified` tells networks apart,
and `described` tells settings apart.
"""

from niwaki.runs._described import described, identified
from niwaki.runs._digest import digest
from niwaki.runs._lock import locked
from niwaki.runs._run import Folder, Part, Run, discard, open_run, within
from niwaki.runs._sums import accumulate, each_once, grow
from niwaki.runs._workplace import Workplace, clear_beside, is_finished, workplace

__all__ = [
    "Folder",
    "Part",
    "Run",
    "Workplace",
    "accumulate",
    "clear_beside",
    "described",
    "digest",
    "discard",
    "each_once",
    "grow",
    "identified",
    "is_finished",
    "locked",
    "open_run",
    "within",
    "workplace",
]
