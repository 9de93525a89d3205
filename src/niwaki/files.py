"""Writing files and folders so that a half-written one is never seen."""

import csv
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from niwaki.errors import DataError, NiwakiError
from niwaki.hashing import content
from niwaki.ownership import check_replaceable, sign
from niwaki.schema import Form, ListOf, Record, Text, parse_json

__all__ = [
    "clear_leftovers",
    "is_dead",
    "new_folder",
    "read_layers",
    "replace_folder",
    "seal",
    "sibling",
    "together",
    "told_plainly",
    "write_atomically",
    "write_csv",
    "write_json",
    "write_layers",
    "write_text",
]

Made = TypeVar("Made")


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    Parameters
    ----------
    path
        Path of the file. Missing folders are made; an existing file is replaced.
    write
        Called with the path of the temporary file, which has the same suffix.

    Raises
    ------
    Exception
        Whatever `write` raises; the temporary file is then deleted, and `path` is as it was.
    """
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target.parent, target.name)
    aside = sibling(target)
    try:
        with told_plainly(target):
            aside.touch()
            mode = aside.stat().st_mode
            write(aside)
        aside.chmod(mode)  # some writers, such as safetensors', leave files that none but we read
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically."""
    # Names of files need not be proper text. In JSON such letters are written as escapes anyway.
    content = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda file: file.write_bytes(content))


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON to `path`, atomically; NaN and infinity are refused."""

    def write(file: Path) -> None:
        with file.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as text:
            json.dump(obj, text, indent=2, ensure_ascii=False, allow_nan=False)
            text.write("\n")

    write_atomically(path, write)  # piece by piece: tables may have a row for each image


def write_csv(
    path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None
) -> None:
    """Write rows as CSV to `path`, atomically.

    A text that a spreadsheet would run as a formula gets an apostrophe before it; numbers stay
    numbers. The columns are those of the first row, unless they are given.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(rows[0] if columns is None else columns)
    writer.writerow(map(_inert, names))
    writer.writerows([_inert(row.get(name)) for name in names] for row in rows)
    write_text(path, text.getvalue())


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")


def write_layers(path: str | Path, by_layer: Mapping[str, Tensor], **about: Any) -> None:
    """Write a tensor per layer, and what is to be known about them, to a safetensors file.

    Parameters
    ----------
    path
        Path of the file; it is written atomically.
    by_layer
        Layer name to tensor. The order is kept.
    **about
        Plain data.

    Raises
    ------
    OSError
        If it cannot be written, as on a full disk.
    """
    # Copies of those that lie in each other's memory, which the format does not have.
    values = {name: value.detach().contiguous().clone() for name, value in by_layer.items()}
    text = json.dumps({"about": about, "layers": list(by_layer)})
    # One entry: several would stand in another order each time, and equal files would differ.
    metadata = {"niwaki": f"{_checksum(text, values)}\n{text}"}

    write_atomically(path, lambda file: save_file(values, file, metadata=metadata))


def read_layers(
    path: str | Path, make: Callable[..., Made], what: str, about: Mapping[str, Form] | None = None
) -> Made:
    """Read what `write_layers` wrote and return ``make(by_layer, **about)``.

    The plain data must have the forms `about`, where these are given.

    Raises
    ------
    DataError
        If the file is missing, was not written so, or has changed since; `what` says what it
        should hold.
    """
    try:
        with safe_open(path, framework="pt") as file:
            checksum, _, text = (file.metadata() or {})["niwaki"].partition("\n")
            told = Record(about or {}, open=about is None)
            head = parse_json(text, Record({"layers": ListOf(Text()), "about": told}), "its head")
            values = {name: file.get_tensor(name) for name in head["layers"]}
        if checksum != _checksum(text, values):
            raise ValueError("it is damaged: its content has changed since it was written")
        return make(values, **head["about"])
    except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
        raise DataError(f"{path} holds no {what}: {type(error).__name__}: {error}") from error


def _checksum(about: str, values: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256(about.encode())
    for name, value in values.items():
        sha.update(f"{name}{value.dtype}{tuple(value.shape)}".encode() + content(value))
    return sha.hexdigest()


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` that becomes `path` when the block succeeds.

    Parameters
    ----------
    path
        Path of the folder. An empty folder may exist there already.
    overwrite
        Replace a folder that has content, if niwaki wrote all of it; until the block succeeds it
        stays untouched. What niwaki wrote is listed in a marker file, ``.niwaki``.

    Yields
    ------
    Path
        The temporary folder to write into.

    Raises
    ------
    NiwakiError
        `path` is a file, a folder with content and `overwrite` is False, a folder with content
        that niwaki did not write, or the working directory, the home folder or one above them.
    """
    target = Path(path).resolve()
    clear_leftovers(target.parent, target.name)
    _check_free(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = sibling(target)
    try:
        with told_plainly(target):
            aside.mkdir()
            yield aside
            seal(aside)
        replace_folder(aside, target, overwrite=overwrite)  # checked again: hours may have passed
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def together(folder: Path) -> Iterator[Path]:
    """Give a temporary folder whose files move into `folder` when the block succeeds.

    Files of the same names are replaced, all others stay. What a killed process leaves of it,
    `clear_leftovers` takes away.

    Parameters
    ----------
    folder
        It must exist.

    Yields
    ------
    Path
        The temporary folder to write into, without folders of its own.
    """
    aside = sibling(folder.resolve() / "result")
    try:
        with told_plainly(folder):
            aside.mkdir()
            yield aside
        _give_usual_modes(aside)
        for file in sorted(aside.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def told_plainly(target: Path) -> Iterator[None]:
    """Let what writers raise on a full disk, each in its own way, be one error that says so.

    Raises
    ------
    OSError
        In place of any error of a disk that is full or cannot be written.
    """
    try:
        yield
    except NiwakiError:
        raise
    except Exception as error:
        reason = _reason(error, target)
        if reason is None:
            raise
        raise OSError(f"{target} cannot be written: {reason}") from error


_REASONS = {
    "no space left": "no space is left on the disk",
    "no space is left": "no space is left on the disk",
    "os error 28": "no space is left on the disk",
    "disk quota": "the quota of the disk is used up",
    "file too large": "a file would be larger than is allowed",
}
_FULL = 2**12  # bytes that are free on a full disk, at the most


def _reason(error: Exception, target: Path) -> str | None:
    """Say what is wrong with the disk, if that is what is wrong."""
    text = str(error).lower()
    for words, reason in _REASONS.items():
        if words in text:
            return reason
    # Some writers say nothing of the reason.
    silent = isinstance(error, SafetensorError) or "unexpected pos" in text
    silent |= isinstance(error, (OSError, RuntimeError)) and "unable to" in text  # HDF5
    there = next(place for place in target.parents if place.exists())
    if silent and shutil.disk_usage(there).free <= _FULL:
        return "no space is left on the disk"
    return None


def seal(folder: Path) -> None:
    """Finish a folder: the usual modes, and the marker that lists what niwaki wrote."""
    _give_usual_modes(folder)
    sign(folder)


def replace_folder(aside: Path, target: Path, *, overwrite: bool) -> None:
    """Move a finished folder to its place, which may be empty or, with `overwrite`, niwaki's own.

    Raises
    ------
    NiwakiError
        If something stands there that may not be replaced.
    """
    _check_free(target, overwrite)
    _swap(aside, target)


def _give_usual_modes(folder: Path) -> None:
    mode = folder.stat().st_mode & 0o666  # as the umask has it, without reading the umask
    for place, _, files in os.walk(folder):
        for name in files:
            if not (file := Path(place) / name).is_symlink():
                file.chmod(mode)


def clear_leftovers(folder: str | Path, name: str | None = None) -> None:
    """Clear away what writers that were killed have left in a folder.

    A folder that was about to be replaced, and whose successor never came, is put back.

    Parameters
    ----------
    folder
        Where to look; it may be missing.
    name
        Name of the file or folder that was to be written; None: whatever it was.
    """
    try:
        found = [(path, _LEFT.fullmatch(path.name)) for path in Path(folder).iterdir()]
    except OSError:
        return
    for path, left in sorted(found):
        if left is None or left["host"] != _host() or not is_dead(int(left["pid"])):
            continue
        target = path.with_name(left["name"] + (left["suffix"] or ""))
        if name not in (None, target.name):
            continue
        if left["old"] and not target.exists():
            path.rename(target)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # it is gone, or somebody else's
                path.unlink()


# A name says whose it is, so that what the dead have left can be told from what is being written.
_LEFT = re.compile(
    r"\.(?P<name>.*)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}(?P<old>-old)?(?P<suffix>\..*)?"
)


def sibling(target: Path, old: str = "") -> Path:
    """Return a path for something that will replace `target`, in the same folder."""
    # A sibling, because a rename is atomic only within one file system. The suffix stays,
    # because many writers choose the format by it.
    whose = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}{old}"
    return target.with_name(f".{target.stem}.{whose}{target.suffix}")


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def is_dead(pid: int) -> bool:
    """Whether no process of this machine has that number."""
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is somebody else's
        return False
    return False


def _check_free(target: Path, overwrite: bool) -> None:
    """Refuse a place that is a file, or a folder that may not be replaced."""
    if target.exists() and not target.is_dir():
        raise NiwakiError(f"{target} is a file; give the path of a folder")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise NiwakiError(
            f"the folder {target} exists and is not empty; choose another, or allow overwriting it"
        )
    check_replaceable(target)


def _swap(aside: Path, target: Path) -> None:
    if not target.exists():
        aside.rename(target)
        return
    old = sibling(target, "-old")
    target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
