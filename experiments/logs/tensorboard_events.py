"""TensorBoard's event files, which can be continued."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    TensorBoardOutputFormat,
)
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from envs.errors import UserError
from experiments.logs.metrics import _sync
from experiments.logs.values import Excluded
from kp3d_rl.storage.files import printable
from kp3d_rl.storage.trees import Tree

EVENT_FILE = re.compile(r"events\.out\.tfevents\.[^/\\\x00]+")
"""Names of the files that TensorBoard reads."""


class EventFiles(TensorBoardOutputFormat):
    """TensorBoard's events. Each process writes a file of its own; the earlier ones are cut where the checkpoint was.

    :param folder: of the files.
    :param state: what :meth:`state` gave; None starts anew.
    :raises UserError: where the folder is a link: it may lead to another run's files.
    """

    def __init__(self, folder: Path, state: Mapping[str, Tree] | None = None) -> None:
        if folder.is_symlink():
            raise UserError(f"{folder} is a link: files in it might be another run's")
        self.folder = folder
        self.step: int | None = None if state is None else state["step"]
        self._cut({} if state is None else state["files"])
        super().__init__(str(folder))
        if state is not None:
            # A TensorBoard that is open has read what was cut off; this has it forget all from this step on.
            after = 0 if self.step is None else self.step + 1
            self.writer.file_writer.add_event(Event(step=after, session_log=SessionLog(status=SessionLog.START)))
            self.writer.flush()

    def _cut(self, sizes: Mapping[str, int]) -> None:
        """Drop what was written after the checkpoint. Events are a copy of numbers: a lack of them stops nobody."""
        found = {path.name: path for path in self._paths()}
        for name, path in found.items():
            if name not in sizes:
                path.unlink()
            elif path.stat().st_size > sizes[name]:
                os.truncate(path, sizes[name])
        short = [name for name, size in sizes.items() if name not in found or found[name].stat().st_size < size]
        if short:
            path = printable(self.folder / short[0])
            more = f" (and {len(short) - 1} more)" if len(short) > 1 else ""
            print(f"note: {path}{more} lacks events that were in it: TensorBoard has a gap", file=sys.stderr)

    def write(self, key_values: dict[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        """Write what TensorBoard can show."""
        super().write(key_values, key_excluded, step)
        self.step = int(step)

    def state(self) -> dict[str, Tree]:
        """Sizes of the files, which are on the disk up to there when this returns, and the last step in them."""
        self.writer.flush()
        for path in self._paths():
            _sync(path)
        return {"files": {path.name: path.stat().st_size for path in self._paths()}, "step": self.step}

    def _paths(self) -> list[Path]:
        """The event files: nothing else in the folder is ever touched, nor what a link leads to."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if EVENT_FILE.fullmatch(path.name)]
        return sorted(path for path in found if path.is_file() and not path.is_symlink())
