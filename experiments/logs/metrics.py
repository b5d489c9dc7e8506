"""``metrics.csv``: a row for each time that numbers are logged."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    Figure,
    FormatUnsupportedError,
    HParam,
    Image,
    KVWriter,
    Video,
    filter_excluded_keys,
)

from envs.errors import UserError
from experiments.logs.values import STEP, TOO_LARGE, Excluded, one_line, to_python
from kp3d_rl.storage.files import DamagedError, read_whole, write_whole
from kp3d_rl.storage.trees import Tree

METRICS_LIMIT = 1 << 30
"""Bytes of the largest ``metrics.csv`` that is continued."""


class MetricsFile(KVWriter):
    """``metrics.csv``: rows of numbers, in columns that stand in the order in which they first appeared.

    A row is appended in one write. A new column has the whole file written again under another name first, so a kill
    at any moment leaves all rows that were there.

    :param path: the file.
    :param state: what :meth:`state` gave, to drop all later rows and columns; None starts with an empty file.
    :raises UserError: where the file holds fewer rows, or something else.
    """

    def __init__(self, path: Path, state: Mapping[str, Tree] | None = None) -> None:
        self.path = path
        self.rows, self.columns = (0, []) if state is None else (state["rows"], list(state["columns"]))
        if state is None:
            path.write_bytes(b"")
            return
        before, after = read_back(path, state)
        if after != before:
            write_whole(path, after)

    def write(self, key_values: dict[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        """Append a row.

        :raises OSError: where the disk is full or the file gone; the rows that were there are still.
        """
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        new = sorted(values.keys() - set(self.columns))
        columns = [*self.columns, *new]
        row = _join(_cell(values.get(name)) for name in columns)
        if not columns:
            return
        if new:
            header, rows = _join(map(_quoted, columns)), _records(self.path.read_bytes().decode())[1:]
            text = "\n".join([header, *(before + "," * len(new) for before in rows), row, ""])
            write_whole(self.path, text.encode())
        else:
            _append(self.path, f"{row}\n".encode())
        self.columns, self.rows = columns, self.rows + 1

    def state(self) -> dict[str, Tree]:
        """How many rows and which columns there are; they are on the disk when this returns."""
        _sync(self.path)
        return {"rows": self.rows, "columns": list(self.columns)}

    def numbers(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and numbers of all rows that say their step."""
        for record in _records(self.path.read_bytes().decode())[1:]:
            row = {name: _number(cell) for name, cell in zip(self.columns, _split(record), strict=True)}
            found = {name: number for name, number in row.items() if number is not None}
            if 0 <= found.get(STEP, -1) < TOO_LARGE:
                yield int(found[STEP]), found

    def close(self) -> None:
        """Every row is written already."""


def read_back(path: Path, state: Mapping[str, Tree]) -> tuple[bytes | None, bytes]:
    """What stands in ``metrics.csv``, None where there is none, and what stood there at a checkpoint.

    :param path: of the file.
    :param state: what :meth:`MetricsFile.state` gave.
    :raises UserError: where it never held that.
    """
    try:
        before = read_whole(path, METRICS_LIMIT) if state["rows"] or path.exists() else None
        return before, _cut(before or b"", state["rows"], list(state["columns"]))
    except ValueError as error:  # also of text that is none
        cannot = "" if isinstance(error, DamagedError) else f"{path} cannot be continued: "
        raise UserError(one_line(f"{cannot}{error}")) from None


def _cut(data: bytes, count: int, columns: list[str]) -> bytes:
    """The first rows and columns of a file."""
    records = _records(data.decode())
    header = [_unquoted(cell) for cell in _split(records[0])] if records else []
    if header[: len(columns)] != columns:
        raise ValueError("its columns are not those of the checkpoint")
    rows = records[1:]
    if len(rows) < count:
        raise ValueError(f"it has {len(rows)} rows, at the checkpoint it had {count}")
    kept = [_cut_record(row, len(columns), len(header)) for row in rows[:count]]
    lines = [_join(map(_quoted, columns)), *kept] if columns else []
    return "".join(f"{line}\n" for line in lines).encode()


def _append(path: Path, data: bytes) -> None:
    """Append all of it or, where that fails, nothing."""
    with open(path, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)  # else the next row would go on in the middle of this one
            raise


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


_CELL = re.compile(r'("(?:[^"]|"")*"|[^",]*)(,|\Z)')


def _records(text: str) -> list[str]:
    """The rows of a CSV file, header first; a last one without an end was being written at a kill, and is dropped."""
    found, parts, quotes = [], [], 0
    for line in text.split("\n")[:-1]:
        parts.append(line)
        quotes += line.count('"')
        if quotes % 2 == 0:  # else the line ends within a text
            found.append("\n".join(parts))
            parts, quotes = [], 0
    return found


def _split(record: str) -> list[str]:
    """The cells of a row as they are written.

    :raises ValueError: where it is none.
    """
    cells, at = [], 0
    while match := _CELL.match(record, at):
        cells.append(match[1])
        at = match.end()
        if not match[2]:
            return cells
    raise ValueError(f"a row is damaged: {record[:40]!r}")


def _cut_record(record: str, columns: int, header: int) -> str:
    """A row without its empty cells of later columns.

    :raises ValueError: where they are not empty, or too few.
    """
    cells = _split(record)
    if len(cells) != header or any(cells[columns:]):
        raise ValueError(f"a row does not fit the columns: {record[:40]!r}")
    return _join(cells[:columns])


def _join(cells: Iterable[str]) -> str:
    """A row of cells; never an empty line, which readers skip."""
    return ",".join(cells) or '""'


def _cell(value: Any) -> str:
    """A value as SB3 writes it into a CSV file, but NumPy's numbers like Python's.

    Single precision then reads back as exactly the number that it was, and it does not show whether it went through a
    checkpoint.
    """
    for kind in (Video, Figure, Image, HParam):
        if isinstance(value, kind):
            raise FormatUnsupportedError(["csv"], kind.__name__.lower())
    value = to_python(value)
    if isinstance(value, str):
        return _quoted(value, always=True)
    return "" if value is None else _quoted(str(value))


def _quoted(text: str, always: bool = False) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"' if always or not set(text).isdisjoint('",\r\n') else text


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def _number(cell: str) -> float | None:
    """The number in a cell; None where it is empty or a text."""
    if cell in ("True", "False"):
        return float(cell == "True")
    try:
        return float(cell)  # never of a text, which is quoted
    except ValueError:
        return None
