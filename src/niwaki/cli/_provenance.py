"""How a run was made, for its page: the command, versions, the network, the machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from niwaki import __version__
from niwaki.cli._command_line import given_command, today

if TYPE_CHECKING:
    from torch import nn

__all__ = ["provenance"]


def provenance(
    context: typer.Context,
    title: str,
    *,
    network: nn.Module | None = None,
    model: str | None = None,
    data: str | None = None,
    seed: int | None = None,
    device: str = "cpu",
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what goes into ``run.json``, see `niwaki.report.write_report`.

    Parameters
    ----------
    context : typer.Context
        Context of the command.
    title : str
        What stands above its page.
    network : nn.Module, optional
        Whose weights the fingerprint is of.
    model, data : str, optional
        As the user named them.
    seed : int, optional
        Seed of everything that was drawn.
    device : str
        Where was computed.
    remarks : sequence of str
        Sentences that stand below the title.
    """
    import torch

    from niwaki.models import fingerprint

    return {
        "command": context.info_name,
        "line": given_command(context),
        "title": title,
        "date": today(),
        "model": model,
        "data": data,
        "fingerprint": None if network is None else fingerprint(network),
        "seed": seed,
        "versions": {
            "niwaki": __version__,
            "torch": torch.__version__,
            "Python": sys.version.split()[0],
        },
        "machine": _machine(device),
        "remarks": list(remarks),
    }


def _machine(device: str) -> str:
    import torch

    told = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    told += f", {torch.get_num_threads()} threads in use, computed on {device}"
    place = torch.device(device)
    if place.type == "cuda":
        told += f" ({torch.cuda.get_device_name(place)})"
    return told
