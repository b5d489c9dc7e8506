"""When checkpoints are written, what is in them, and how a training goes on from one as if nothing had happened."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.buffers import Stream
from agents.callbacks import AuxiliaryCallback
from agents.training_state import (
    expect_replay,
    load_random_state,
    load_training_state,
    load_weights,
    optimizers,
    replay_streams,
    save_random_state,
    save_training_state,
)
from envs.errors import UserError
from experiments.provenance import circumstances
from experiments.runs import Checkpoint, Run
from experiments.training.building import within_memory
from experiments.training.recording import StopRequest
from kp3d_rl.storage.files import DamagedError, printable
from kp3d_rl.storage.trees import Tree, anything, require_like, require_mapping, require_size

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What the system says when a file cannot grow."""
LONGEST = 600.0
"""Seconds after which a checkpoint is written though its steps are not done; about what a kill costs at most. SAC on
a large scene takes half an hour for as many steps as PPO on a small one does in half a minute."""


class Part(Protocol):
    """A callback that must know something of what happened before."""

    def state(self) -> dict[str, Tree]:
        """Plain values and arrays, at a rollout's start."""

    def load_state(self, state: dict[str, Tree]) -> None:
        """Undo :meth:`state`, after training has started."""


class Stopped(Exception):
    """A signal asked training to stop, and it stands where it can go on."""


class CheckpointCallback(BaseCallback):
    """Writes checkpoints at rollouts' starts, goes on from one, and stops there when a signal asks for it.

    To be listed before all other callbacks: what they do at a rollout's start comes after the checkpoint.

    :param run: whose ``log`` options say how often, and how many are kept. One is written before anything else, and
        one when the warm-up is over. Where they are written at intervals, two are at most :data:`LONGEST` apart.
    :param parts: callbacks that have a state, by name.
    :param stop: asked at every rollout's start.
    :param checkpoint: to go on from, after :func:`load_checkpoint`; None starts anew.
    """

    def __init__(
        self, run: Run, parts: Mapping[str, Part], stop: StopRequest, checkpoint: Checkpoint | None = None
    ) -> None:
        super().__init__()
        self.run, self.parts, self.stop, self.checkpoint = run, dict(parts), stop, checkpoint
        self.rollouts, self.due = 0, 0
        self.written = time.monotonic()

    @property
    def step(self) -> int:
        """Environment steps done; SB3 tells callbacks only after a step."""
        return self.model.num_timesteps

    def _on_training_start(self) -> None:
        if self.checkpoint is None:
            self.save(started=False)
        elif self.checkpoint.step == 0:
            self._go_on(started=False)

    def _on_rollout_start(self) -> None:
        interval = self.run.config.log.checkpoint_every
        if self.checkpoint is not None and self.checkpoint.step:
            self._go_on()
        else:
            warmed_up = self.rollouts == 0 and self.step > 0
            due = interval and (self.step >= self.due or time.monotonic() - self.written >= LONGEST)
            if self.step and (self.stop or warmed_up or due):
                self.save()
        self.rollouts += 1
        self.due = (self.step // interval + 1) * interval if interval else 0
        if self.stop:
            raise Stopped

    def _on_step(self) -> bool:
        return True

    # -- saving ------------------------------------------------------------------------------------------------------

    def save(self, started: bool = True) -> None:
        """Write a checkpoint of everything.

        :param started: whether the other callbacks have seen the training start.
        :raises UserError: where the disk is full.
        """
        state = {
            "finished": False,
            "circumstances": circumstances(self.run.config),
            "training": save_training_state(self.model),
            "parts": {name: part.state() for name, part in self.parts.items()} if started else None,
            "rollouts": self.rollouts,
            "due": self.due,
            "log": self.logger.state(),
            "random": save_random_state(self.model),
        }
        write_checkpoint(self.run, self.model, state, self._streams() if started else [])
        self.written = time.monotonic()

    def _streams(self) -> list[Stream]:
        found = replay_streams(self.model)
        for part in self.parts.values():
            if isinstance(part, AuxiliaryCallback):
                found += part.streams()
        return found

    # -- going on ----------------------------------------------------------------------------------------------------

    def _go_on(self, started: bool = True) -> None:
        """Put back what could not be before the callbacks had started, random numbers last."""
        checkpoint, self.checkpoint, self.written = self.checkpoint, None, time.monotonic()
        state = checkpoint.state
        try:
            if started:
                with within_memory("what the checkpoint holds"):
                    self._load_parts(checkpoint)
                self.rollouts, self.due = state["rollouts"], state["due"]
            load_random_state(self.model, state["random"])
        except DamagedError as error:
            folder = self.run.checkpoints.path(checkpoint.step)
            raise UserError(f"checkpoint {folder} is damaged: {error}") from None

    def _load_parts(self, checkpoint: Checkpoint) -> None:
        states = checkpoint.state["parts"]
        if not isinstance(states, dict) or states.keys() != self.parts.keys():
            raise DamagedError("its 'parts' are not those of the run")
        streams = expect_replay(self.model, checkpoint.state["training"])
        for name, part in self.parts.items():
            part.load_state(states[name])
            if isinstance(part, AuxiliaryCallback):
                streams += part.expected_streams(states[name])
        self.run.checkpoints.store.fill(streams, checkpoint.segments)
        require_whole_replay(self.model)


def require_whole_replay(model: BaseAlgorithm) -> None:
    """Refuse a replay whose transitions lack frames; on-policy there is none."""
    if replay_streams(model):
        try:
            model.replay_buffer.require_whole()
        except ValueError as error:
            raise DamagedError(str(error)) from None


def write_checkpoint(run: Run, model: BaseAlgorithm, state: dict[str, Tree], streams: list[Stream]) -> None:
    """Write a checkpoint, then delete older ones as the run's options say.

    :raises UserError: where the disk is full; what stood there before still stands.
    """
    log = run.config.log
    try:
        run.checkpoints.write(model.num_timesteps, model.policy, optimizers(model), state, streams)
    except OSError as error:
        raise disk_error(run, model.num_timesteps, error) from error
    run.checkpoints.prune(log.checkpoints_kept, log.checkpoints_kept_every)


def disk_error(run: Run, step: int, error: OSError, next_time: str | None = None) -> UserError:
    """What to say where the disk is full, or gone, or something in the run's folder is in the way.

    :param run: whose files could not be written.
    :param step: that had been reached.
    :param error: the system's.
    :param next_time: what to do when there is room again; by default to go on.
    :raises OSError: the error itself, if it is another.
    """
    in_the_way = isinstance(error.filename, str) and Path(error.filename).absolute().is_relative_to(run.path.absolute())
    if error.errno not in DISK_FULL and not in_the_way:
        raise error
    where = f" of {error.filename}" if error.filename else ""
    return UserError(
        f"training stopped at step {step}: writing{where} failed: {error.strerror}; last good checkpoint: "
        f"{run.last_good()}; when there is room again: {next_time or run.command('resume')}"
    )


def save_finished(run: Run, model: BaseAlgorithm, log: Tree) -> None:
    """The last checkpoint of a run that is finished: nothing goes on from it, so it needs no frames.

    :param run: whose segments are deleted.
    :param model: as trained.
    :param log: state of its logs.
    :raises OSError, UserError: where the disk is full.
    """
    write_checkpoint(run, model, FINISHED | {"log": log}, [])
    run.checkpoints.give_up_frames(FINISHED)


FINISHED = {"finished": True}
"""State of checkpoints that nothing goes on from; the last one has that of the logs beside it."""
_STATE = {
    "finished": False, "circumstances": require_mapping, "training": require_mapping, "parts": anything,
    "rollouts": require_size, "due": require_size, "log": require_mapping, "random": require_mapping,
}  # fmt: skip


def is_finished(checkpoint: Checkpoint) -> bool:
    """Whether the run was finished when this was written."""
    return checkpoint.state.get("finished") is True


def load_checkpoint(run: Run, model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Put weights, optimisers, environments and counters back, before ``learn(..., reset_num_timesteps=False)``.

    :param run: that goes on.
    :param model: built as the run's configuration says.
    :param checkpoint: of the run.
    :raises UserError: where it does not fit.
    """
    try:
        require_like(checkpoint.state, _STATE, "state")
        with within_memory("what the checkpoint holds"):
            load_weights(model, checkpoint.policy, checkpoint.optimizers)
            restarted, same = load_training_state(model, checkpoint.state["training"])
        if model.num_timesteps != checkpoint.step:
            raise DamagedError(f"its state is of step {model.num_timesteps}")
    except DamagedError as error:
        raise UserError(f"checkpoint {run.checkpoints.path(checkpoint.step)} is damaged: {error}") from None
    if restarted.any():
        print(f"note: {restarted.sum()} environments begin a new episode, so the run does not go on bit for bit")
    elif not same:
        print("note: views look different here than where the checkpoint was written: not bit for bit the same run")


def recorded_circumstances(checkpoint: Checkpoint) -> dict[str, str | int]:
    """What a checkpoint says of where it was written; empty where it says nothing.

    :raises UserError: where that is no list of texts and numbers.
    """
    found = checkpoint.state.get("circumstances")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(type(value) in (str, int) for value in found.values()):
        raise UserError(f"checkpoint {checkpoint.step} is damaged: 'circumstances' are no texts and numbers")
    return found


def report_circumstances(run: Run, checkpoint: Checkpoint) -> None:
    """Say what is different here from where a checkpoint was written."""
    then, now = recorded_circumstances(checkpoint), circumstances(run.config)
    changes = [f"{name} {printable(then.get(name), 80)} -> {new}" for name, new in now.items() if then.get(name) != new]
    if then and changes:
        print(f"note: the run goes on, but maybe not bit for bit: {'; '.join(changes)}", file=sys.stderr)
