"""How a run was made, for its page: the command, versions, the network, the machine."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from niwaki import __version__

if TYPE_CHECKING:
    from torch import nn

__all__ = ["given_command", "machine", "provenance", "short_name", "today"]

_NO_PART = frozenset({"out", "force", "as_json", "threads"})  # they do not change the result


def provenance(
    context: typer.Context,
    title: str,
    network: nn.Module | None = None,
    *,
    data: str | None = None,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what goes into ``run.json``, see `niwaki.report.write_report`.

    The model, the data, the seed and the device are those that the command was given.

    Parameters
    ----------
    context : typer.Context
        Context of the command.
    title : str
        What stands above its page.
    network : nn.Module, optional
        The network whose weights get a fingerprint.
    data : str, optional
        The data of a command that takes none.
    remarks : sequence of str
        Sentences that stand below the title.
    """
    import torch

    from niwaki.models import fingerprint

    given = context.params
    named = (given.get(name) for name in ("data", "images", "slide"))
    return {
        "command": context.info_name,
        "line": given_command(context),
        "title": title,
        "date": today(),
        "model": given.get("model"),
        "data": data or next((str(one) for one in named if one is not None), None),
        "fingerprint": None if network is None else fingerprint(network),
        "seed": given.get("seed"),
        "versions": {
            "niwaki": __version__,
            "torch": torch.__version__,
            "Python": sys.version.split()[0],
        },
        "machine": machine(given.get("device", "cpu")),
        "remarks": list(remarks),
    }


def short_name(model: str) -> str:
    """Return the last part of what a model is named by, for a title."""
    return Path(model).name.rpartition(":")[2]


def given_command(context: typer.Context) -> str:
    """Return the running command with the arguments and options that were given to it."""
    words, options = [context.command_path], []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        source = context.get_parameter_source(name)
        if name in _NO_PART or value is None or source is None or source.name != "COMMANDLINE":
            continue
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif getattr(parameter, "is_flag", False):
            options.append(parameter.opts[0])
        else:
            many = value if isinstance(value, (list, tuple)) else [value]
            options += [word for one in many for word in (parameter.opts[0], str(one))]
    return " ".join([words[0], shlex.join([*words[1:], *options])]).strip()


def today() -> str:
    """Return the date, as ``SOURCE_DATE_EPOCH`` gives it where a build has to be reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc).date().isoformat()
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def machine(device: str) -> str:
    """Say on what numbers are computed, as far as it makes them quicker or slower."""
    import torch

    told = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    threads = torch.get_num_threads()
    told += f", {threads} thread{'s' if threads > 1 else ''} in use, computed on {device}"
    place = torch.device(device)
    if place.type == "cuda":
        told += f" ({torch.cuda.get_device_name(place)})"
    return told
