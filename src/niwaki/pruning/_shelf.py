"""The folder of a comparison: what is finished is not done again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from niwaki.errors import NiwakiError
from niwaki.files import write_json
from niwaki.pruning._outcome import Outcome

__all__ = ["Shelf"]


class Shelf:
    """A folder of finished runs: one JSON each, which appears complete or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "runs"

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> Shelf:
        """Start or go on; a comparison with other settings is refused."""
        file = folder / "settings.json"
        if file.exists():
            try:
                saved = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise NiwakiError(f"{file} is no JSON ({error}); choose another folder") from error
            now = json.loads(json.dumps(settings))
            other = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
            if other:
                raise NiwakiError(
                    f"{folder} holds another comparison: "
                    + "; ".join(f"{n} was {saved.get(n)}, is {now.get(n)}" for n in other)
                    + ". Choose another folder"
                )
        else:
            write_json(file, dict(settings))
        return cls(folder)

    def read(self, run: Outcome) -> Outcome | None:
        """Return a run that is finished; one that is damaged counts as none."""
        file = self._file(run)
        try:
            found = Outcome.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        for name, now in run.about.items():
            if found.about.get(name) != now:
                raise NiwakiError(
                    f"{file} was made by another contender {run.label!r}: its {name} was "
                    f"{found.about.get(name)}, is {now}. Choose another label or folder"
                )
        return found

    def write(self, run: Outcome) -> None:
        """Keep a run."""
        write_json(self._file(run), run.to_json())

    def _file(self, run: Outcome) -> Path:
        name = re.sub(r"[^A-Za-z0-9._+-]", "_", run.label)
        if name != run.label or name.startswith("."):
            name += "~" + hashlib.sha256(run.label.encode()).hexdigest()[:8]
        draw = ["any" if part is None else str(part) for part in (run.references, run.seed)]
        return self._folder / f"{name}--{draw[0]}--{draw[1]}.json"
