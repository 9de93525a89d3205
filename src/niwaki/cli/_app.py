"""The command line: commands are listed here, and errors become one line and exit code 2."""

from __future__ import annotations

import sys
import warnings

import typer
from rich.console import Console

from niwaki import __version__
from niwaki.cli import (
    _audit,
    _car,
    _choose_rules,
    _compare,
    _compare_criteria,
    _demo,
    _evaluate,
    _explain,
    _export,
    _filters,
    _methods,
    _prune,
    _prune_weights,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="niwaki",
    help="Explain, prune and audit convolutional networks with one engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("explain")(_explain.explain)
app.command("compare")(_compare.compare)
app.command("evaluate")(_evaluate.evaluate)
app.command("compare-criteria")(_compare_criteria.compare_criteria)
app.command("prune")(_prune.prune)
app.command("prune-weights")(_prune_weights.prune_weights)
app.command("choose-rules")(_choose_rules.choose_rules)
app.command("car")(_car.car)
app.command("filters")(_filters.filters)
app.command("audit")(_audit.audit_command)
app.command("export")(_export.export)
app.command("methods")(_methods.methods)
app.command("demo")(_demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"niwaki {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Explain, prune and audit convolutional networks with one engine."""


def main() -> None:
    """Run the command line; a wrong input ends with a message and exit code 2."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app()
    except (ValueError, OSError) as error:  # NiwakiError is a ValueError
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[bold red]error:[/] {_escape(str(error))}"
        )
        sys.exit(2)


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
