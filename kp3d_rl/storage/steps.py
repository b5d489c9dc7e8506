"""Which checkpoints a run has: folders ``checkpoints/<step>/``, and ``checkpoints/latest``, which names the newest."""

from __future__ import annotations

import re
from pathlib import Path

from kp3d_rl.storage.files import DamagedError, read_whole

LATEST = "latest"
"""Name of the file that says which checkpoint is the newest; it is written last."""
_STEP = re.compile(r"[0-9]{9,15}")


def folder_of(checkpoints: Path, step: int) -> Path:
    """Folder of a checkpoint."""
    return checkpoints / f"{step:09d}"


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps at which complete checkpoints stand, ascending."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return sorted(int(p.name) for p in found if _STEP.fullmatch(p.name) and (p / "state.json").is_file())


def latest_step(checkpoints: Path) -> int | None:
    """Step of the newest checkpoint; None where there is none."""
    steps = complete_steps(checkpoints)
    try:
        named = read_whole(checkpoints / LATEST, 100).decode(errors="replace").strip()
    except DamagedError:
        named = ""
    if _STEP.fullmatch(named) and int(named) in steps:
        return int(named)
    return steps[-1] if steps else None
