"""The command that is running, as it was given, so that a page can say how it was made."""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Container

import typer

_NO_PART = frozenset({"out", "force", "as_json", "threads"})  # they do not change the result


def given_command(context: typer.Context, leave_out: Container[str] = _NO_PART) -> str:
    """Return the running command with the arguments and options that were given to it.

    Parameters
    ----------
    context : typer.Context
        Context of the command.
    leave_out : container of str
        Names of parameters that are not shown.
    """
    words, options = [context.command_path], []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        source = context.get_parameter_source(name)
        if name in leave_out or value is None or source is None or source.name != "COMMANDLINE":
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
