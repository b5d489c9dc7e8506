"""Weights & Biases, online or offline, of which a continued run lacks nothing and repeats nothing."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from stable_baselines3.common.logger import (
    KVWriter,
)

from envs.errors import UserError
from experiments.logs.metrics import MetricsFile
from experiments.logs.values import Excluded, one_line, to_python, warn
from experiments.options.config import LogConfig
from experiments.runs import Run
from kp3d_rl.storage.files import read_whole

FILE_LIMIT = 1 << 30
"""Bytes of the largest file of W&B's that is read."""
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def import_wandb() -> ModuleType:
    """The W&B client, imported on demand because the import is slow and the service optional."""
    # Our package `agents` has the name of an LLM library, for which W&B would advertise another product.
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
    import wandb

    return wandb


def require_login(log: LogConfig) -> None:
    """Log in to W&B where its server is asked for, before anything is written.

    :raises UserError: where that fails.
    """
    if log.wandb != "online":
        return
    wandb = import_wandb()
    try:
        wandb.login()
    except wandb.errors.Error as error:
        raise UserError(f"--log.wandb online: {one_line(error)} Without an account: --log.wandb offline") from error


def open_wandb(run: Run, log: LogConfig, id: str | None, metrics: MetricsFile) -> WandbOutputFormat | None:
    """The run's record at W&B; where its client cannot work offline, a warning and none.

    :param run: of which.
    :param log: online or offline, and the project.
    :param id: of the record that is continued; None begins one.
    :param metrics: what was logged up to here, of which W&B gets what it lacks.
    :raises UserError: where the client cannot work online.
    """
    wandb = import_wandb()
    make_cache(wandb, run.path / "wandb" / "cache")
    try:
        return WandbOutputFormat(run, log.wandb, log.wandb_project, id, list(metrics.numbers()))
    except (wandb.errors.Error, OSError) as error:
        if log.wandb == "online":
            raise UserError(f"--log.wandb online: {one_line(error)} Without: --log.wandb offline") from error
        warn(f"Weights & Biases is off: {one_line(error)}")
        return None


class WandbOutputFormat(KVWriter):
    """Scalars to Weights & Biases under the run's own step; offline unless asked.

    W&B takes each step once and only forwards. A step is sent when it is complete, which is when the next one begins;
    what is not sent at a kill is in ``metrics.csv``, and the process that continues sends it.

    :param run: gives name and configuration.
    :param mode: "online" or "offline".
    :param project: that it is filed under.
    :param id: of the record that is continued; None begins one.
    :param rows: step and numbers of all that was logged up to here.
    """

    def __init__(
        self,
        run: Run,
        mode: str,
        project: str,
        id: str | None = None,
        rows: Sequence[tuple[int, dict[str, float]]] = (),
    ) -> None:
        wandb = import_wandb()
        self.id = id or secrets.token_hex(4)
        self._step, self._numbers = -1, {}
        if id is not None:
            wandb.teardown()  # an earlier record in this process is still being written after its end
        self._sent = Sent() if id is None or mode == "online" else find_sent(run.path / "wandb", id, rows)
        self._run = wandb.init(
            project=project,
            name=run.path.name,
            dir=str(run.path),
            mode=mode,
            id=self.id,
            # Offline each process writes a folder of its own; this has `wandb sync` append it to the one before.
            resume=None if id is None else "allow",
            config=dataclasses.asdict(run.config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        if id is not None and mode == "online":
            self._sent = Sent(self._run.step - 1)
        for step, numbers in rows:
            self._add(step, numbers)

    def write(self, key_values: dict[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        """Log what is a number."""
        values = {name: to_python(value) for name, value in key_values.items()}
        self._add(step, {name: float(value) for name, value in values.items() if isinstance(value, (int, float))})

    def flush(self) -> None:
        """Send what has been held back: no more will come of this step."""
        self._send()

    def close(self) -> None:
        """Finish the run's record."""
        self._send()
        self._run.finish()

    def _add(self, step: int, numbers: dict[str, float]) -> None:
        if step != self._step:
            self._send()
        self._step, self._numbers = step, self._numbers | numbers

    def _send(self) -> None:
        numbers = {name: number for name, number in self._numbers.items() if not self._sent.has(self._step, name)}
        if numbers:
            self._run.log(numbers, step=self._step, commit=True)
        self._numbers = {}


@dataclasses.dataclass(frozen=True)
class Sent:
    """How far a record at W&B reaches.

    :param step: last step in it.
    :param names: the numbers that it has of this step; None: all.
    """

    step: int = -1
    names: frozenset[str] | None = None

    def has(self, step: int, name: str) -> bool:
        """Whether a number of a step is in it."""
        return step < self.step or (step == self.step and (self.names is None or name in self.names))


def find_sent(folder: Path, id: str, rows: Sequence[tuple[int, Any]]) -> Sent:
    """How much of an offline record reached its files: of a process that is killed, all but the last seconds.

    :param folder: W&B's own in the run folder.
    :param id: of the record.
    :param rows: what was logged up to the checkpoint: taken as sent, with a warning, where the files cannot be read.
    """
    last, names = -1, frozenset()
    try:
        for path in sorted(folder.glob(f"*run-*-{id}*/run-{id}.wandb")):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{path} leads out of the run")
            for step, found in read_history(path):
                if step >= last:
                    last, names = step, names | found if step == last else found
    except (ImportError, ValueError, OSError) as error:
        warn(f"Weights & Biases: earlier offline files cannot be read, so rows may be missing: {one_line(error)}")
        return Sent(max((step for step, _ in rows), default=-1))
    return Sent(last, names)


def lacks_rows(folder: Path, id: str, rows: Sequence[tuple[int, dict[str, float]]]) -> bool:
    """Whether anything that was logged is not in an offline record.

    :param folder, id, rows: as of :func:`find_sent`.
    """
    sent = find_sent(folder, id, rows)
    return any(not sent.has(step, name) for step, numbers in rows for name in numbers)


_BLOCK = 1 << 15
_WANDB_HEADER = struct.Struct("<4sHB")
_CHUNK_HEADER = struct.Struct("<IHB")


def read_history(path: Path) -> Iterator[tuple[int, frozenset[str]]]:
    """Steps in a ``.wandb`` file, with the names of their numbers, as far as it is whole.

    :param path: LevelDB's log format, which W&B's own readers came and went for, with one protocol buffer per record.
    :raises ImportError, ValueError: where this version of W&B, or the file, has another format.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _wandb_records(read_whole(path, FILE_LIMIT)):
        record = Record()
        try:
            record.ParseFromString(data)
        except DecodeError as error:
            raise ValueError(f"{path}: {error}") from None
        if record.HasField("history"):
            items = record.history.item
            yield record.history.step.num, frozenset(item.key or ".".join(item.nested_key) for item in items)


def _wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: chunks with checksum, length and place in their record, none across blocks."""
    if len(data) < _WANDB_HEADER.size:
        return  # killed at once
    if _WANDB_HEADER.unpack_from(data) != (b":W&B", 0xBEE1, 0):
        raise ValueError("not a file of a known version of Weights & Biases")
    at, parts = _WANDB_HEADER.size, []
    while True:
        if _BLOCK - at % _BLOCK < _CHUNK_HEADER.size:
            at += _BLOCK - at % _BLOCK
        if at + _CHUNK_HEADER.size > len(data):
            return
        checksum, length, place = _CHUNK_HEADER.unpack_from(data, at)
        at += _CHUNK_HEADER.size
        chunk = data[at : at + length]
        at += length
        if len(chunk) < length or zlib.crc32(bytes([place]) + chunk) != checksum:
            return  # a kill tore it
        parts.append(chunk)
        if place in (1, 4):  # a record as a whole, or its last part
            yield b"".join(parts)
            parts = []


def make_cache(wandb: ModuleType, instead: Path) -> None:
    """Give W&B's logs of itself another place where the home folder takes none: it would write them to the terminal."""
    if "WANDB_CACHE_DIR" in os.environ:
        return
    try:
        cache = Path(wandb.env.get_cache_dir())
        cache.mkdir(parents=True, exist_ok=True)
        usable = os.access(cache, os.W_OK)
    except (OSError, RuntimeError):
        usable = False
    if not usable:
        os.environ["WANDB_CACHE_DIR"] = str(instead.absolute())
