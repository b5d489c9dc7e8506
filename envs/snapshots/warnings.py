"""What MuJoCo warns about. Left alone, it appends that to ``MUJOCO_LOG.TXT`` in whatever folder is the current one."""

from __future__ import annotations

import contextlib
import re
import sys

import mujoco

_MOST_KINDS = 20
_said: set[str] = set()


def take_over_warnings() -> None:
    """Have MuJoCo's warnings in this process said on stderr, one line for each kind, and never written to a file.

    To be called where an environment is made. Whoever listens to them already goes on doing so.
    """
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_say)


def _say(message: str) -> None:
    """Called by MuJoCo in the middle of a step: raises nothing."""
    with contextlib.suppress(Exception):
        text = " ".join(str(message).split())[:200]
        kind = re.sub(r"\d+", "", text.split(" Time =")[0])
        if kind not in _said and len(_said) < _MOST_KINDS:
            _said.add(kind)
            print(f"warning: MuJoCo: {text} (said once)", file=sys.stderr)
