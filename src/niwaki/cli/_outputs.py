"""What a command writes must not destroy what it reads: checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from niwaki.errors import NiwakiError
from niwaki.ownership import MARKER, check_apart, check_replaceable, sign
from niwaki.processes import decided

__all__ = ["check_output", "signed"]

_SCHEMES = ("torchvision", "timm")


def check_output(
    out: Path,
    *,
    force: bool,
    model: str | None = None,
    data: Iterable[str | None] = (),
    files: Iterable[str | Path | None] = (),
    goes_on: bool = False,
) -> None:
    """Refuse an output that exists, or that would destroy what is read or is not niwaki's.

    Parameters
    ----------
    out
        File or folder to write.
    force
        Whether one that exists may be replaced.
    model
        As the user named it.
    data
        Data sets as the user named them.
    files
        Further files and folders that are read.
    goes_on
        Whether it is known to be unfinished and ours, to be gone on with.
    """
    named = [Path(path).expanduser() for path in files if path is not None]
    read, inside = [*_model(model), *named], [path for spec in data for path in _data(spec)]
    decided(lambda: _check(out, read, inside, force=force, goes_on=goes_on))


def _check(out: Path, read: list[Path], inside: list[Path], *, force: bool, goes_on: bool) -> None:
    from niwaki.runs import clear_beside, is_finished

    check_apart(out, read, inside)
    if goes_on:
        return
    clear_beside(out)
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not force and not is_finished(out):
        raise NiwakiError(f"{out} exists; choose another with --out, or replace it: --force")
    check_replaceable(out.resolve())


@contextmanager
def signed(out: Path, files: Iterable[str]) -> Iterator[None]:
    """Mark a folder as ours while it is filled bit by bit; if that fails, it is deleted."""
    made = [place for place in (out, *out.parents) if not place.exists()]
    out.mkdir(parents=True, exist_ok=True)
    sign(out, files)
    try:
        yield
    except BaseException:
        if made and {path.name for path in out.iterdir()} <= {MARKER}:
            (out / MARKER).unlink(missing_ok=True)
            for place in made:
                place.rmdir()
        raise


def _model(spec: str | None) -> list[Path]:
    if not spec or spec.partition(":")[0] in _SCHEMES:
        return []
    source, _, _ = spec.rpartition(":")
    return [Path(source if source.endswith(".py") else spec).expanduser()]


def _data(spec: str | None) -> list[Path]:
    from niwaki.data import read_places

    return read_places(spec) if spec else []
