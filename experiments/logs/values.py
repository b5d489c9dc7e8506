"""What all logs share: how values are told, and how a fault is told in one line."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

STEP = "time/total_timesteps"
"""Column of ``metrics.csv`` that says at which step a row was logged."""

TOO_LARGE = 1 << 62
"""No count or step reaches it, and the formats below hold it."""

Excluded = dict[str, tuple[str, ...]]


def to_python(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def one_line(error: BaseException) -> str:
    """A message without the line breaks that it, or a name in it, may have."""
    return " ".join(str(error).split())[:300]


def warn(message: str) -> None:
    """Say something on stderr that the user should know, and go on."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
