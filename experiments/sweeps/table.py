"""What a sweep shows while it runs: a table that is redrawn on a terminal, a line for every change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from experiments.sweeps.state import Entry, count

ROWS = 30
"""Rows of the table at most; what runs and what failed comes first."""
ORDER = ("running", "failed", "waiting", "done")


class SweepView:
    """Shows how far a sweep is.

    :param name: of the sweep.
    :param seconds: between plain lines where nothing changes.
    """

    def __init__(self, name: str, seconds: float = 60.0) -> None:
        self.name, self.seconds = name, seconds
        self.console = Console(file=sys.stdout)
        self.live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None
        self.printed = time.monotonic()

    def __enter__(self) -> SweepView:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, entries: Sequence[Entry], left: float | None) -> None:
        """Show how far it is.

        :param entries: all runs.
        :param left: seconds; None where that is not known yet.
        """
        if self.live is not None:
            self.live.update(table(self.name, entries, left))
        elif time.monotonic() - self.printed > self.seconds:
            self.printed = time.monotonic()
            self.say(summary(entries, left))


def table(name: str, entries: Sequence[Entry], left: float | None) -> Table:
    """Runs with what they are at.

    :param name: of the sweep.
    :param entries: all runs.
    :param left: seconds; None where that is not known yet.
    """
    found = Table(title=f"{name}: {summary(entries, left)}", title_justify="left")
    for column in ("environment", "method", "seed", "is", "steps", "where", "attempts"):
        found.add_column(column, justify="right" if column in ("seed", "steps", "attempts") else "left")
    ordered = sorted(entries, key=lambda entry: ORDER.index(entry.status))
    for entry in ordered[:ROWS]:
        steps = f"{entry.steps:,} / {entry.total:,}"
        found.add_row(entry.run.env, entry.run.method, str(entry.run.seed), entry.status, steps, entry.place,
                      str(len(entry.attempts)))  # fmt: skip
    if len(ordered) > ROWS:
        found.add_row(f"… {len(ordered) - ROWS} more", "", "", "", "", "", "")
    return found


def summary(entries: Sequence[Entry], left: float | None) -> str:
    """How far it is, in one line."""
    counts = ", ".join(f"{number} {status}" for status, number in count(entries).items())
    return f"{counts}; {'no estimate yet' if left is None else f'about {duration(left)} left'}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
