"""Tables for people: rows as HTML, whatever the names in them are, and cells in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["html_table", "readable"]


def html_table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Return rows as a table; numbers are aligned to the right, and all text is escaped.

    Parameters
    ----------
    rows : sequence of mapping
        The same keys in each, which are the columns' titles. None is an empty cell.
    caption : str
        The caption above the table.
    """
    titles = list(rows[0]) if rows else []
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(_cell(row[title]) for title in titles)}</tr>" for row in rows)
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f'<td style="text-align: right">{text}</td>'
    return f"<td>{escape(str(value))}</td>"


def readable(row: Mapping[str, Any]) -> dict[str, str]:
    """Write the cells of a row of judged methods as a person reads them."""
    cells = {}
    for name, value in row.items():
        if isinstance(value, dict):
            error = "" if value["error"] is None else f" ± {value['error']:.3f}"
            cells[name] = f"{value['mean']:.3f}{error}"
        elif name == "lost":
            cells[name] = f"{value:.1%}" if value else ""
        elif value is None:
            cells[name] = ""
        else:
            cells[name] = f"{value:.1f}" if isinstance(value, float) else str(value)
    return {("ms/image" if name == "ms" else name): value for name, value in cells.items()}
