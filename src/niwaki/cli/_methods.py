"""``niwaki methods``: the catalogues."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from niwaki.cli._options import AsJson, console, spread

__all__ = ["methods"]


@spread
def methods(as_json: AsJson = False) -> None:
    """List the attribution methods and the pruning criteria, of units and of single weights."""
    from niwaki import attribution, criteria

    catalogue = {
        "methods": {name: attribution.describe(name) for name in attribution.names()},
        "criteria": {name: criteria.describe(name) for name in criteria.names()},
        "criteria of weights": {
            name: criteria.describe_weight_criterion(name) for name in criteria.weight_criteria()
        },
    }
    if as_json:
        typer.echo(json.dumps(catalogue, indent=2))
        return
    for title, entries in catalogue.items():
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("name", style="bold")
        table.add_column("what it is")
        for name, description in entries.items():
            table.add_row(name, description)
        console().print(table)
