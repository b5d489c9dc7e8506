"""Damage of kinds: a folder where a file should be, a link that leads out, a pipe, nothing, or something new."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

EXTRA = (
    "checkpoints", "checkpoints/latest", "checkpoints/.latest.partial", "checkpoints/{next:09d}",
    "checkpoints/.{next:09d}.partial", "checkpoints/.{next:09d}.old", "checkpoints/.{newest:09d}.old",
    "checkpoints/999999999", "checkpoints/{newest:09d}/extra", "checkpoints/{newest:09d}/SHA256SUMS", "segments",
    "segments/extra.safetensors", "tensorboard", "tensorboard/events.out.tfevents.9999999999.host.1.0", "pictures",
    "videos", "wandb", "lock", "eval.json", "eval.partial", "probe.json", "probe.partial", "probe.png", "metrics.csv",
    ".metrics.csv.partial", "policy.onnx", "config.yaml", "rig.json", "cameras.yaml", "origin.json",
    "a\nb\x1b[2J", "a" * 200,
)  # fmt: skip
"""What may stand in a run folder, or be about to; ``next`` is the step of the next checkpoint."""


def change_kind(run: Path, outside: Path, random: Random, newest: int, coming: int) -> str:
    """Make one or two things in a run folder something else.

    :param run: the folder.
    :param outside: folder beside it with a ``file``, which nothing may read or change.
    :param random: decides.
    :param newest, coming: steps of the newest checkpoint and of the next one.
    :return: what was done.
    """
    done = []
    for _ in range(random.choice((1, 1, 1, 2))):
        there = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
        extra = [name.format(newest=newest, next=coming) for name in EXTRA]
        name = random.choice(random.choice((there, extra)) or extra)
        kind = random.choice(sorted(_KINDS))
        if _is_free(run, name):
            _remove(run / name)
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            _KINDS[kind](run / name, run, outside)
            done.append(f"{name!r} is {kind}")
    return " and ".join(done) or "nothing changed"


def _is_free(run: Path, name: str) -> bool:
    """Whether the way to a place leads over folders alone; else what was done before stands in it."""
    above = [run / parent for parent in Path(name).parents if parent != Path()]
    return all(not path.is_symlink() and (path.is_dir() or not os.path.lexists(path)) for path in above)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _full_folder(path: Path, run: Path, outside: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_bytes(b"a")
    (path / "state.json").write_bytes(b"{}")


_KINDS: dict[str, Callable[[Path, Path, Path], None]] = {
    "gone": lambda path, run, outside: None,
    "an empty file": lambda path, run, outside: path.touch(),
    "a file": lambda path, run, outside: _write(path, b"\x00\xff\n"),
    "a folder": lambda path, run, outside: path.mkdir(),
    "a full folder": _full_folder,
    "a link to a file outside": lambda path, run, outside: path.symlink_to(outside / "file"),
    "a link to a folder outside": lambda path, run, outside: path.symlink_to(outside),
    "a link to what is not there outside": lambda path, run, outside: path.symlink_to(outside / "new"),
    "a link to itself": lambda path, run, outside: path.symlink_to(path.name),
    "a link to the configuration": lambda path, run, outside: path.symlink_to(run / "config.yaml"),
    "a link to the run": lambda path, run, outside: path.symlink_to(run),
    "a pipe": lambda path, run, outside: os.mkfifo(path),
}


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
