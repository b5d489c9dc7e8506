"""The logger of a run, and what its state must look like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.logger import (
    KVWriter,
    Logger,
)

from envs.errors import UserError
from experiments.logs.metrics import MetricsFile
from experiments.logs.tensorboard_events import EVENT_FILE, EventFiles
from experiments.logs.values import TOO_LARGE, one_line
from experiments.logs.weights_and_biases import RUN_ID, WandbOutputFormat, lacks_rows, open_wandb, require_login
from experiments.options.config import LogConfig
from experiments.runs import Run
from kp3d_rl.storage.files import DamagedError
from kp3d_rl.storage.trees import Tree, describe, require_like


@contextmanager
def metrics_logger(run: Run, log: LogConfig, state: Mapping[str, Tree] | None = None) -> Iterator[RunLogger]:
    """SB3's logger, writing ``metrics.csv``, TensorBoard events and, unless off, Weights & Biases.

    :param run: whose folder they go to.
    :param log: says what becomes of Weights & Biases.
    :param state: what :meth:`RunLogger.state` gave at a checkpoint, to go on from there; None starts anew.
    :raises UserError: for a state of another form, or logs that do not reach as far as it says.
    """
    if state is not None:
        require_state(state)  # all of it before any file is touched
    saved = state or {"metrics": None, "tensorboard": None, "wandb": None, "pending": None}
    metrics = MetricsFile(run.path / "metrics.csv", saved["metrics"])
    outputs: list[KVWriter] = [metrics, EventFiles(run.path / "tensorboard", saved["tensorboard"])]
    if log.wandb != "off":
        wandb = open_wandb(run, log, saved["wandb"], metrics)
        outputs += [wandb] if wandb is not None else []
    logger = RunLogger(str(run.path), outputs)
    if saved["pending"] is not None:
        logger.restore(saved["pending"])
    try:
        yield logger
    finally:
        logger.close()


def complete_record(run: Run, state: Tree) -> None:
    """Send Weights & Biases what a process that was killed at its very end had not; nothing else needs it.

    :param run: that is finished.
    :param state: what :meth:`RunLogger.state` gave at its end; None of a checkpoint before that.
    :raises UserError: for a state of another form, or where ``metrics.csv`` is not as long any more.
    """
    log: LogConfig = run.config.log
    if state is None or log.wandb == "off":
        return
    require_state(state)
    if state["wandb"] is None:
        return
    metrics = MetricsFile(run.path / "metrics.csv", state["metrics"])
    if log.wandb == "online" or lacks_rows(run.path / "wandb", state["wandb"], list(metrics.numbers())):
        require_login(log)
        record = open_wandb(run, log, state["wandb"], metrics)
        if record is not None:
            record.close()


class RunLogger(Logger):
    """SB3's logger, which can be continued: with the values that were recorded and not yet written, as well.

    :param folder: of the run.
    :param output_formats: the logs.
    """

    def state(self) -> dict[str, Tree]:
        """Where the logs stand; what they say up to here is on the disk when this returns."""
        found = {type(output): output for output in self.output_formats}
        wandb = found.get(WandbOutputFormat)
        return {
            "pending": self._pending(),
            "metrics": found[MetricsFile].state(),
            "tensorboard": found[EventFiles].state(),
            "wandb": None if wandb is None else wandb.id,
        }

    def flush(self) -> None:
        """Hand all rows on: to the disk, and to Weights & Biases."""
        self.state()
        for output in self.output_formats:
            if isinstance(output, WandbOutputFormat):
                output.flush()

    def restore(self, pending: Mapping[str, Tree]) -> None:
        """Take over the values that were recorded and not yet written.

        :param pending: of a state that was checked.
        """
        values = pending["values"].items()
        # A mean goes on in the type that it had: in single precision it would come out otherwise in double.
        self.name_to_value.update({k: v[()] if isinstance(v, np.ndarray) else v for k, v in values})
        self.name_to_count.update(pending["counts"])
        self.name_to_excluded.update({k: tuple(v) for k, v in pending["excluded"].items()})

    def _pending(self) -> dict[str, Tree]:
        values = {}
        for name, value in self.name_to_value.items():
            if name in self.name_to_excluded and (kept := _to_tree(value)) is not _LEFT_OUT:
                values[name] = kept
        counts = {k: v for k, v in self.name_to_count.items() if k in values and _is_number(values[k])}
        return {"values": values, "counts": counts, "excluded": {k: list(self.name_to_excluded[k]) for k in values}}


_LEFT_OUT = object()


def _to_tree(value: Any) -> Any:
    """A recorded value as a checkpoint keeps it: NumPy's scalars as arrays without dimensions.

    Figures, videos, images and tensors are left out. They are large, tied to libraries, possibly on a GPU, and this
    project logs none; whoever records one and dumps it in the same rollout loses nothing.
    """
    if isinstance(value, np.generic) and not isinstance(value, (str, bytes)):
        return np.array(value) if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8 else _LEFT_OUT
    if isinstance(value, str):
        return str(value)  # NumPy has a type of its own
    return value if value is None or type(value) in (bool, int, float) else _LEFT_OUT


def _is_number(tree: Tree) -> bool:
    return isinstance(tree, (bool, int, float, np.ndarray))


def require_state(state: Tree) -> None:
    """Refuse what :meth:`RunLogger.state` cannot have given: it may come from a stranger's checkpoint.

    :raises UserError: naming the place.
    """
    pattern = {
        "pending": {"values": _require_values, "counts": _require_sizes, "excluded": _require_mapping},
        "metrics": {"rows": _require_size, "columns": [_require_text]},
        "tensorboard": {"files": _require_files, "step": _require_step},
        "wandb": _require_id,
    }
    try:
        require_like(state, pattern, "logs")
        values, counts, excluded = (state["pending"][part] for part in ("values", "counts", "excluded"))
        if excluded.keys() != values.keys() or not all(_is_number(values.get(k)) and n > 0 for k, n in counts.items()):
            raise DamagedError("the parts of 'logs.pending' do not fit each other")
        for name, formats in excluded.items():
            require_like(formats, [_require_text], f"logs.pending.excluded.{name[:80]}")
        rows, columns = state["metrics"]["rows"], state["metrics"]["columns"]
        if len(set(columns)) != len(columns) or (rows and not columns):
            raise DamagedError(f"'logs.metrics' cannot have {rows} rows of these {len(columns)} columns")
    except DamagedError as error:
        raise UserError(f"the checkpoint is damaged: {one_line(error)}") from None


def _require_text(tree: Tree, name: str) -> None:
    if type(tree) is not str:
        raise DamagedError(f"'{name}' is {describe(tree)} where a text is expected")
    try:
        tree.encode()
    except UnicodeEncodeError:
        raise DamagedError(f"'{name}' is no Unicode text") from None


def _require_mapping(tree: Tree, name: str) -> None:
    if type(tree) is not dict:
        raise DamagedError(f"'{name}' is {describe(tree)} where a mapping is expected")
    for key in tree:
        _require_text(key, f"a name in {name}")


def _require_size(tree: Tree, name: str) -> None:
    if type(tree) is not int or not 0 <= tree < TOO_LARGE:
        raise DamagedError(f"'{name}' is no count")


def _require_sizes(tree: Tree, name: str) -> None:
    _require_mapping(tree, name)
    for key, size in tree.items():
        _require_size(size, f"{name}.{key[:80]}")


def _require_files(tree: Tree, name: str) -> None:
    _require_sizes(tree, name)
    for file in tree:
        if not EVENT_FILE.fullmatch(file):
            raise DamagedError(f"'{name}' names '{file[:80]}', which is no plain name of an event file")


def _require_step(tree: Tree, name: str) -> None:
    if tree is not None:
        _require_size(tree, name)


def _require_id(tree: Tree, name: str) -> None:
    if tree is not None and (type(tree) is not str or not RUN_ID.fullmatch(tree)):
        raise DamagedError(f"'{name}' is no id of a Weights & Biases run")


def _require_values(tree: Tree, name: str) -> None:
    _require_mapping(tree, name)
    for key, value in tree.items():
        whole = type(value) is int and abs(value) < 1 << 63
        scalar = isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "biuf"
        if type(value) is str:
            _require_text(value, f"{name}.{key[:80]}")
        elif value is not None and type(value) not in (bool, float) and not whole and not scalar:
            raise DamagedError(f"'{name}.{key[:80]}' is {describe(value)} where a value of a metric is expected")
