"""One page of one or several runs: ``index.html``, which needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from niwaki.errors import DataError
from niwaki.report import sections as _sections  # noqa: F401  registers them
from niwaki.report._page import write_page
from niwaki.report._pictures import MAPS, filters, ramp
from niwaki.report._section import RunFolder, Section, sections_of
from niwaki.stages import stage

__all__ = ["write_report"]


@stage("writing the page")
def write_report(
    runs: str | Path | Sequence[str | Path], path: str | Path | None = None, *, heading: str = ""
) -> Path:
    """Write the page of a run, or one page of several runs with a table of contents.

    Nothing is computed: the page shows what the commands have written into their folders.

    Parameters
    ----------
    runs : str, Path or sequence of them
        Folders that commands, or the functions of this package, have written.
    path : str or Path, optional
        Where the page goes; by default ``index.html`` in the folder of a single run.
    heading : str
        Heading of the page; by default the title of the run.

    Returns
    -------
    Path
        Path of the page.

    Raises
    ------
    DataError
        For a folder that holds nothing that a page could show, or a file that is damaged.

    Examples
    --------
    >>> niwaki.prune(model, (images, labels), keep=0.8).save("pruned")
    >>> page = niwaki.report.write_report("pruned")
    """
    many = [runs] if isinstance(runs, str | Path) else list(runs)
    if not many:
        raise DataError("a report needs the folder of a run")
    if path is None and len(many) > 1:
        raise DataError("several runs are joined into one page: say where it goes")
    target = Path(many[0]) / "index.html" if path is None else Path(path)
    folders = [RunFolder(Path(folder), target) for folder in many]
    chapters = [_chapter(number, folder) for number, folder in enumerate(folders, 1)]
    write_page(
        target,
        "page.html.j2",
        heading=heading or (folders[0].title if len(folders) == 1 else "Report"),
        chapters=chapters,
        several=len(chapters) > 1,
        maps=MAPS,
        colour_filters=filters(),
        ramp=ramp(),
    )
    return target


def _chapter(number: int, run: RunFolder) -> dict[str, Any]:
    found = list(sections_of(run))
    if not found:
        raise DataError(f"{run.path} holds nothing that a report could show")
    return {
        "title": run.title,
        "anchor": f"run-{number}",
        "remarks": [str(remark) for remark in run.made.get("remarks", ())],
        "made": _made(run),
        "command": str(run.made.get("line", "")),
        "facts": _facts(found),
        "cautions": [caution for one in found for caution in one.cautions],
        "sections": [
            {"section": one, "anchor": f"run-{number}-{place}"}
            for place, one in enumerate(found, 1)
        ],
    }


def _facts(found: Sequence[Section]) -> dict[str, list[tuple[str, ...]]]:
    """Sort the facts of all sections: those with a before and a now, and single ones."""
    facts = [fact for one in found for fact in one.facts]
    return {
        "compared": [fact for fact in facts if len(fact) == 3],
        "single": [fact for fact in facts if len(fact) == 2],
    }


_NAMES = {
    "line": "Command",
    "date": "Date",
    "model": "Model",
    "data": "Data",
    "fingerprint": "Fingerprint of the network and its weights",
    "seed": "Seed",
    "versions": "Versions",
    "machine": "Machine",
    "settings": "Settings",
}


def _made(run: RunFolder) -> list[tuple[str, str]]:
    """Return the provenance in words."""
    rows = [(words, _told(run.made[key])) for key, words in _NAMES.items() if run.made.get(key)]
    if "seed" in run.made and not run.made["seed"]:
        rows.append(("Seed", "0"))
    return rows


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items() if one is not None)
    return str(value)
