"""``niwaki report``: several runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from niwaki.cli import _options as o
from niwaki.cli._json import say
from niwaki.cli._outputs import check_output
from niwaki.errors import NiwakiError

__all__ = ["report"]


@o.spread
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders that other commands have written."),
    ],
    out: Annotated[Path, o.Written(), typer.Option(help="HTML file to write.")] = Path(
        "report.html"
    ),
    heading: Annotated[
        str | None,
        typer.Option(
            help="Heading of the page. Default: the title of the run.", show_default=False
        ),
    ] = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Join several runs into one page with a table of contents.

    The page contains everything that it shows, so that it opens offline. Nothing is computed.
    """
    from niwaki.report import write_report

    if out.suffix.lower() not in (".html", ".htm"):
        raise NiwakiError(f"{out}: a report is a page; give --out a name that ends in .html")
    if out.is_dir():
        raise NiwakiError(f"--out {out} is a folder; give the path of an HTML file")
    check_output(out, force=force, files=runs)
    write_report(runs, out, heading=heading or "")
    size = out.stat().st_size
    if as_json:
        about = {"file": str(out), "runs": [str(run) for run in runs], "bytes": size}
        say(about)
        return
    o.console().print(f"open {out} ({size / 1e6:.1f} MB, {len(runs)} runs)")
