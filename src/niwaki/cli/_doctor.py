"""``niwaki doctor``: versions, devices, and what is missing."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Any

import typer
from rich.table import Table

from niwaki import __version__
from niwaki.cli._json import say
from niwaki.cli._options import AsJson, console, spread
from niwaki.errors import NiwakiError
from niwaki.machine import physical, shown

__all__ = ["doctor"]


@spread
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices and extras, which a problem report should include.

    The exit code is 1 if a package that niwaki needs is missing.
    """
    packages = _packages()
    missing = [name for name, (found, extra) in packages.items() if found is None and not extra]
    about: dict[str, Any] = {
        "niwaki": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cores": _cores(),
        "memory": shown(physical()),
        "devices": _devices() if "torch" not in missing else [],
        "packages": {name: found for name, (found, _) in packages.items()},
        "missing": missing,
    }
    if as_json:
        say(about)
    else:
        _show(about, packages)
    if missing:
        raise typer.Exit(1)


def _packages() -> dict[str, tuple[str | None, str]]:
    """Return the version of each package that niwaki names, and the extra that it belongs to."""
    found: dict[str, tuple[str | None, str]] = {}
    try:
        needed = metadata("niwaki").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        raise NiwakiError(
            "niwaki runs from its source and is not installed, so that nobody knows what it needs: "
            "pip install ."
        ) from None
    for requirement in needed:
        text, _, marker = requirement.partition(";")
        name = "".join(c if c.isalnum() or c in "-_." else " " for c in text).split()[0]
        extra = marker.partition("extra ==")[2].strip(" '\"")
        try:
            found[name] = version(name), extra
        except PackageNotFoundError:
            found[name] = None, extra
    return found


def _cores() -> int | None:
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return os.cpu_count() if allowed is None else len(allowed(0))


def _devices() -> list[str]:
    import torch

    count = torch.get_num_threads()
    names = [f"cpu ({count} thread{'s' if count > 1 else ''})"]
    names += [
        f"cuda:{number} ({torch.cuda.get_device_name(number)})"
        for number in range(torch.cuda.device_count())
    ]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def _show(about: dict[str, Any], packages: dict[str, tuple[str | None, str]]) -> None:
    terminal = console()
    for name in ("niwaki", "python", "system", "cores", "memory"):
        terminal.print(f"{name}: {about[name]}")
    terminal.print(f"devices: {', '.join(about['devices']) or 'none: torch is missing'}")
    table = Table(box=None, pad_edge=False)
    for title in ("package", "version", "needed for"):
        table.add_column(title)
    for name, (found, extra) in packages.items():
        use = f"the extra {extra}" if extra else "everything"
        table.add_row(name, found or "missing", use)
    terminal.print(table)
    extras = sorted({extra for found, extra in packages.values() if found is None and extra})
    for extra in extras:
        terminal.print(f"pip install 'niwaki[{extra}]' adds what the extra {extra} needs")
    for name in about["missing"]:
        terminal.print(f"{name} is missing: pip install {name}")
