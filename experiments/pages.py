"""Pages of the documentation whose tables are made from the data beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from experiments import task_table
from experiments.bench import tables
from experiments.bootstrapping import study_report as bootstrapping
from experiments.geometry_aware import study_report as geometry_aware
from experiments.keypointnet import study_report as keypointnet
from experiments.soak import tables as soak_tables
from experiments.studies import report

TABLES = (
    report.TABLES
    | tables.TABLES
    | soak_tables.TABLES
    | task_table.TABLES
    | bootstrapping.TABLES
    | keypointnet.TABLES
    | geometry_aware.TABLES
)
"""Kinds of tables that a page may ask for."""


def fill_pages(docs: Path) -> None:
    """Make the tables of all pages anew.

    :param docs: folder of pages and data; the README lies beside it.
    """
    for page in [*sorted(docs.glob("*.md")), docs.parent / "README.md"]:
        if page.is_file():
            page.write_text(filled(page.read_text(), docs))


def filled(text: str, docs: Path) -> str:
    """A page with its tables made anew from the data beside it.

    A table stands between ``<!-- table <study> <kind> -->`` and ``<!-- end -->``; kinds are those of :data:`TABLES`.

    :param text: of the page.
    :param docs: folder of the data.
    """

    def table(match: re.Match[str]) -> str:
        if not (docs / f"{match['study']}.json").is_file():
            return match[0]  # that study has not been run yet
        records = json.loads((docs / f"{match['study']}.json").read_text())["runs"]
        rows = TABLES[match["kind"]](records)
        return "\n".join([f"<!-- table {match['study']} {match['kind']} -->", *rows, "<!-- end -->"])

    return re.sub(r"<!-- table (?P<study>\S+) (?P<kind>\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)
