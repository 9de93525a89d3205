"""``niwaki methods``: the catalogues."""

from __future__ import annotations

from rich.table import Table

from niwaki.cli._json import say
from niwaki.cli._options import AsJson, console, spread

__all__ = ["methods"]


@spread
def methods(as_json: AsJson = False) -> None:
    """List attribution methods, pruning criteria of units and of weights, questions of audits."""
    from niwaki import attribution, auditing, criteria

    catalogue = {
        "methods": {name: attribution.describe(name) for name in attribution.names()},
        "criteria": {name: criteria.describe(name) for name in criteria.names()},
        "criteria of weights": {
            name: criteria.describe(name, "weight") for name in criteria.names("weight")
        },
        "questions": {name: auditing.describe_question(name) for name in auditing.question_names()},
    }
    if as_json:
        say(catalogue)
        return
    for title, entries in catalogue.items():
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("name", style="bold")
        table.add_column("what it is")
        for name, description in entries.items():
            table.add_row(name, description)
        console().print(table)
