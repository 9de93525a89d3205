"""The command line: commands are listed here, and errors become one line and exit code 2."""

from __future__ import annotations

import json
import sys
import warnings
from itertools import pairwise
from typing import Any

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
    """Run the command line; a wrong input ends with a message and exit code 2.

    With ``--json``, the message is on stdout too, as ``{"error": ..., "kind": ...}``.
    """
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except _WrongUsage as error:
        if not isinstance(error, _UsageError) or type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            _tell(f"{error.format_message()}{_given(error)}", "UsageError")
        sys.exit(error.exit_code)
    except (ValueError, OSError) as error:  # NiwakiError is a ValueError
        _tell(str(error), type(error).__name__)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


# Typer brings its own copy of click in some versions.
_UsageError: Any = typer.BadParameter.__base__
_WrongUsage: Any = _UsageError.__base__


def _given(error: Exception) -> str:
    """Say what an option was given, which click leaves out."""
    words = [*sys.argv[1:], ""]
    for flag in getattr(getattr(error, "param", None), "opts", []):
        for word, following in pairwise(words):
            if word == flag or word.startswith(f"{flag}="):
                value = following if word == flag else word.partition("=")[2]
                return "" if f"'{value}'" in str(error) else f" (it was given {value!r})"
    return ""


def _tell(message: str, kind: str) -> None:
    if "--json" in sys.argv[1:]:
        typer.echo(json.dumps({"error": message, "kind": kind}, ensure_ascii=False))
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[bold red]error:[/] {_escape(message)}"
    )


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
