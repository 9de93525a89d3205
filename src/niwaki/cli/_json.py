"""What a machine reads with ``--json``: one object for each command, with the same head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import typer

from niwaki import __version__

__all__ = ["begin", "headed_json", "say"]

SCHEMA = 1  # grows when a key changes its meaning or goes; new keys may come at any time
_RUNNING = ContextVar("command", default="")


def begin(command: str) -> None:
    """Note which command runs, for the head of what it says."""
    _RUNNING.set(command)


def headed_json(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data below the head that all commands write: schema, version, command."""
    head = {"schema": SCHEMA, "niwaki": __version__, "command": _RUNNING.get()}
    return {**head, **about}


def say(about: Mapping[str, Any]) -> None:
    """Print an object for machines."""
    typer.echo(json.dumps(headed_json(about), indent=2))
