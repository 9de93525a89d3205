"""Which images belong together, from a column of a table or from the names of files."""

from __future__ import annotations

import csv
import re
from io import StringIO
from pathlib import Path
from unicodedata import normalize

from niwaki.data._beside import groups_by_name
from niwaki.data._images import Images
from niwaki.errors import DataError

_TABLE = re.compile(r"^(.+\.[ct]sv):([^:]+)$", re.IGNORECASE)


def groups_named(images: Images, said: str) -> list[str]:
    """Return the group of each image, by a pattern or by a table's column.

    Parameters
    ----------
    images : Images
        From files.
    said : str
        A regular expression, see `groups_by_name`; or ``FILE.csv:COLUMN``, see
        `groups_from_table`.

    Examples
    --------
    >>> niwaki.data.groups_named(images, "slides.csv:scanner")
    """
    table = _TABLE.match(said)
    if table is None:
        return groups_by_name(images, said)
    return groups_from_table(images, Path(table.group(1)), table.group(2))


def groups_from_table(images: Images, table: Path, column: str) -> list[str]:
    """Return the group of each image, such as its hospital, from a column of a table.

    Parameters
    ----------
    images : Images
        From files.
    table : Path
        Values separated by commas, or by tabs if its name ends in ``.tsv``, with a header. The
        first column names the files: with or without folders, with or without their suffix.
    column : str
        Name of the column that says which group an image belongs to.

    Raises
    ------
    DataError
        Images without files, a table that cannot be read or lacks the column, an image without a
        row, one that two rows put into different groups, or a row that two images are named like.
    """
    if images.paths is None:
        raise DataError("these images do not come from files, and a table lists files")
    known, groups = _rows(table, column), []
    taken: dict[str, Path] = {}
    for path in images.paths:
        row = next((name for name in _names(path) if name in known), None)
        if row is None:
            raise DataError(
                f"{table} has no row for {path.name}; its first column must list every image"
            )
        if (other := taken.setdefault(row, path)) != path:
            raise DataError(
                f"the row {row!r} of {table} may be of {other} or of {path}: name the files with "
                "their folders and suffixes"
            )
        groups.append(known[row])
    return groups


def _rows(table: Path, column: str) -> dict[str, str]:
    """Return the value of a column by what is in the first one."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as a table: {error}") from error
    separator = "\t" if table.suffix.lower() == ".tsv" else ","
    plain = StringIO(normalize("NFC", text), newline="")
    rows = [row for row in csv.reader(plain, delimiter=separator) if row]
    head = rows[0] if rows else []
    if head[1:].count(column) > 1:
        raise DataError(f"{table} has the column {column!r} {head[1:].count(column)} times")
    if column not in head[1:]:
        raise DataError(
            f"{table} has no column {column!r} beside the first; its columns: {', '.join(head)}"
        )
    place = head.index(column, 1)
    known: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) <= place or not row[place].strip():
            raise DataError(f"{table}, row {number}: there is nothing in the column {column!r}")
        name, value = row[0].strip().replace("\\", "/"), row[place].strip()
        if known.setdefault(name, value) != value:
            raise DataError(
                f"{table} puts {name!r} into {known[name]!r} and into {value!r}; keep one row"
            )
    return known


def _names(path: Path) -> list[str]:
    """Return how a table may name a file, with most folders first."""
    parts = path.parts
    whole = ["/".join(parts[start:]) for start in range(len(parts))]
    bare = [str(Path(name).with_suffix("").as_posix()) for name in whole]
    pairs = zip(whole, bare, strict=True)
    return [normalize("NFC", name) for pair in pairs for name in pair]
