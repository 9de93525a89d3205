"""The command line: commands are listed here, and errors become one line and exit code 2."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from niwaki import __version__
from niwaki.cli import (
    _audit,
    _car,
    _choose_rules,
    _compare,
    _compare_criteria,
    _demo,
    _doctor,
    _estimate,
    _evaluate,
    _explain,
    _export,
    _filters,
    _info,
    _methods,
    _prune,
    _prune_weights,
    _report,
    _slide,
    _tiles,
)
from niwaki.cli._json import begin, headed_json
from niwaki.errors import ModelError
from niwaki.machine import check_alone
from niwaki.processes import is_first, joined, may_speak
from niwaki.terminal import Terminal, clean, headed

__all__ = ["app", "main"]

app = typer.Typer(
    name="niwaki",
    help="Explain, prune and audit convolutional networks with one engine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _add(name: str, command: Callable[..., None], *, shared: bool = False, **settings: Any) -> None:
    """Add a command; one that is `shared` may run in several processes of a launcher."""

    @functools.wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        begin(name)
        if not shared:
            check_alone(f"niwaki {name}")
        try:
            with joined():
                command(*args, **options)
        except (Exception, KeyboardInterrupt):
            raise
        # Code of the user's, such as a network's forward pass, must not end the program as if all
        # were well.
        except BaseException as error:
            raise ModelError(
                f"the code of the model has ended the program: {type(error).__name__}({error})"
            ) from error

    app.command(name, help=_flowing(command), **settings)(guarded)


def _flowing(command: Callable[..., None]) -> str:
    """Return the docstring with paragraphs that a terminal of any width breaks into lines."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(text.split()) for text in paragraphs)


_add("explain", _explain.explain)
_add("compare", _compare.compare)
_add("evaluate", _evaluate.evaluate, shared=True)
_add("compare-criteria", _compare_criteria.compare_criteria)
_add("prune", _prune.prune, shared=True)
_add("prune-weights", _prune_weights.prune_weights, shared=True)
_add("choose-rules", _choose_rules.choose_rules)
_add("car", _car.car, shared=True)
_add("filters", _filters.filters, shared=True)
_add("audit", _audit.audit_command, shared=True)
_add("slide", _slide.slide, shared=True)
_add("tiles", _tiles.tiles)
_add("estimate", _estimate.estimate, context_settings={"ignore_unknown_options": True})
_add("report", _report.report)
_add("info", _info.info)
_add("export", _export.export)
_add("methods", _methods.methods)
_add("demo", _demo.demo)
_add("doctor", _doctor.doctor)


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

    With ``--json``, the message is on stdout too, as ``{"error": ..., "kind": ...}`` below
    the head that all output for machines has.
    """
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except _WrongUsage as error:
        if not isinstance(error, _UsageError) or type(error).__name__ == "NoArgsIsHelpError":
            if may_speak():
                error.show()
        else:
            _tell(f"{error.format_message()}{_given(error)}", "UsageError")
        sys.exit(error.exit_code)
    except (ValueError, OSError) as error:  # NiwakiError is a ValueError
        _tell(str(error), type(error).__name__)
        sys.exit(2)
    except Exception as error:
        place = _place_outside(error)
        if place is None:  # our own mistake: all of the traceback is needed
            raise
        _tell(f"{place} has failed: {type(error).__name__}: {error}", type(error).__name__)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _place_outside(error: Exception) -> str | None:
    """Return the line of the user's own code in which an error arose; None if in ours."""
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_relative_to(Path(__file__).parents[1]):
            return None
        if file.is_file() and not any(file.is_relative_to(place) for place in libraries):
            return f"{file}, line {frame.lineno},"
    return None


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
    if not may_speak():  # another process has told of it, or of what it follows from
        return
    if "--json" in sys.argv[1:]:
        typer.echo(json.dumps(headed_json({"error": message, "kind": kind})))
    Terminal(stderr=True, soft_wrap=True).print(headed("error:", message, "bold red"))


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, UserWarning) and is_first():
        print(f"warning: {clean(str(message))}", file=sys.stderr)
