"""What may be replaced: only what niwaki wrote, and never what a person works in or reads from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from niwaki.errors import NiwakiError

__all__ = ["MARKER", "SIGNATURE", "check_apart", "check_replaceable", "foreign", "sign"]

MARKER = ".niwaki"  # in each folder that niwaki wrote; lists what it wrote there
SIGNATURE = "written by niwaki"  # near the beginning or the end of each single file
_NEAR = 2**16  # bytes
_LARGEST = 2**26  # bytes of a marker: a million files


def sign(folder: Path, also: Iterable[str] = ()) -> None:
    """Mark a folder, with all that is in it now, as written by niwaki.

    Parameters
    ----------
    folder
        Where the marker is written.
    also
        Relative paths of what is still to be written there.
    """
    content = {"written by": "niwaki", "files": sorted({*_files(folder), *also})}
    text = json.dumps(content, indent=1)
    (folder / MARKER).write_text(text + "\n", encoding="utf-8", newline="\n")


def foreign(folder: Path) -> list[str]:
    """List what is in a folder and was not written by niwaki, as relative paths."""
    return sorted(set(_files(folder)) - _signed(folder))


def check_replaceable(target: Path) -> None:
    """Refuse to replace a file that niwaki did not write, or a folder with anything such in it.

    Parameters
    ----------
    target
        Resolved; it need not exist.

    Raises
    ------
    NiwakiError
        For the working directory, the home folder, the root, or a folder above one of them; and
        for anything that niwaki did not write.
    """
    if target.is_file() and not _is_signed(target):
        raise NiwakiError(
            f"{target} is not replaced: niwaki did not write it; choose another name, or move the "
            "file away"
        )
    for place, name in _places():
        if _is_in(place, target):
            raise NiwakiError(
                f"{target} {'is' if _same(place, target) else 'contains'} {name}, which is never "
                "replaced; choose another folder"
            )
    if target.is_dir() and (others := foreign(target)):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise NiwakiError(
            f"{target} is not replaced: niwaki did not write {others[0]!r}{more} in it; choose "
            "another folder, or move away what is to be kept and delete the rest yourself"
        )


def check_apart(out: Path, inputs: Iterable[Path], data: Iterable[Path] = ()) -> None:
    """Refuse an output that is or contains something that is read, or lies among the data.

    Parameters
    ----------
    out
        The file or folder to write.
    inputs
        Files and folders; links are followed. Those that do not exist are passed over.
    data
        Likewise; nothing may be written into these, as it would be read the next time.

    Raises
    ------
    NiwakiError
        Naming both.
    """
    inside = list(data)
    for given in (*inputs, *inside):
        if not os.path.lexists(given):
            continue
        for place in (given.absolute(), given.resolve()):
            if _is_in(place, out):
                how = "is" if _same(place, out) else "contains"
                raise NiwakiError(
                    f"the output {out} {how} {given}, which is read and never replaced; choose "
                    "another with --out"
                )
    for given in inside:
        if given.is_dir() and _is_in(out.resolve(), given):
            raise NiwakiError(
                f"the output {out} lies inside {given}, which is read: it would be taken for "
                "data the next time; choose another with --out"
            )


def _places() -> Iterator[tuple[Path, str]]:
    with suppress(OSError):  # it is deleted
        yield Path.cwd(), "the working directory"
    with suppress(RuntimeError):  # nobody's
        yield Path.home().resolve(), "your home folder"


def _is_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or in it; by identity, as names differ in case and by links."""
    return any(_same(place, folder) for place in (path, *path.parents))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one is still to be made
        return one == other.absolute()


def _files(folder: Path) -> Iterator[str]:
    """All that is no folder, links to folders included; the marker left out."""
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in (*files, *links):
            path = (Path(place) / name).relative_to(folder).as_posix()
            if path != MARKER:
                yield path


def _is_signed(file: Path) -> bool:
    with file.open("rb") as opened:
        beginning = opened.read(_NEAR)
        opened.seek(max(0, file.stat().st_size - _NEAR))
        return any(SIGNATURE.encode() in part for part in (beginning, opened.read()))


def _unreadable(error: OSError) -> None:
    raise NiwakiError(f"{error.filename} cannot be read ({error.strerror}), hence not replaced")


def _signed(folder: Path) -> set[str]:
    try:
        marker = folder / MARKER
        if marker.is_symlink() or marker.stat().st_size > _LARGEST:
            return set()
        content = json.loads(marker.read_text(encoding="utf-8"))
        return {name for name in content["files"] if isinstance(name, str)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()
