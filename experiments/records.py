"""What was measured, as JSON files of rows that name their commit and machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.provenance import origin


def record(path: Path, rows: Sequence[dict[str, Any]], same: Sequence[str] = ("section",)) -> list[dict[str, Any]]:
    """Write rows, with commit and machine, in place of earlier ones of the same kind; others stay as they were.

    :param path: of the JSON file; its name is the study's.
    :param rows: what was measured.
    :param same: entries in which two rows of a kind agree.
    :return: all rows that are in the file now.
    """
    measured = {tuple(row[name] for name in same) for row in rows}
    before = json.loads(path.read_text())["runs"] if path.is_file() else []
    made = origin()
    kept = [row for row in before if tuple(row[name] for name in same) not in measured]
    records = [*kept, *({**row, **made} for row in rows)]
    path.write_text(json.dumps({"study": path.stem, "runs": records}, indent=1) + "\n")
    return records
