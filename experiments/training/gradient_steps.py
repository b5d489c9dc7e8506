"""A training's gradient steps with a progress line, saved now and then, so that a stopped or killed one goes on."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from envs.errors import UserError
from experiments.options.cli import parse
from experiments.options.presets import expanded_by
from experiments.runs.plain import PlainRun, read_tensors, resumed
from experiments.training.building import choose_device
from experiments.training.progress import Progress
from experiments.training.recording import StopRequest
from kp3d_rl.gradient_training import GradientTraining
from kp3d_rl.storage.files import write_tensors

SAVE_EVERY = 60.0
"""Seconds between savings."""


class Stopped(Exception):
    """A signal asked to stop; what was done so far is on the disk."""


Run = TypeVar("Run", bound=PlainRun)


def open_run(kind: type[Run], presets: Mapping[str, Mapping[str, str | None]], argv: Sequence[str]) -> Run:
    """A new run, or the one that is to be gone on with.

    :param kind: of the run.
    :param presets: options and their values by name (:func:`experiments.options.presets.expanded_by`).
    :param argv: options of a new run, or ``--resume`` and a folder.
    :raises UserError: where it cannot be.
    """
    path = resumed(argv)
    if path is not None:
        return kind.open(path)
    config = parse(kind.CONFIG, expanded_by(presets, argv))
    choose_device(config.device)
    return kind.create(config)


def carry_out(run: PlainRun, work: Callable[[StopRequest], None]) -> int:
    """Do a run's work while nobody else does, and say how to go on where it was stopped.

    :param run: whose work it is.
    :param work: is given what a signal sets.
    :return: the program's exit code.
    :raises UserError: where the run cannot be written to.
    """
    again = f"make {run.PROGRAM} RESUME={run.path}"
    with run.locked(), StopRequest().listening() as stop:
        try:
            work(stop)
        except Stopped:
            print(f"stopped: {run.path}\nnext: {again}", file=sys.stderr)
            return stop.exit_code
        except OSError as error:
            problem = f"{run.path} cannot be written to: {error.strerror or error}"
            raise UserError(f"{problem}; make room, then go on with `{again}`") from error
    print(f"done: {run.path}\nnext: make evaluate RUN={run.path}   make video RUN={run.path}")
    return 0


def make_steps(training: GradientTraining, path: Path, what: str, stop: StopRequest, until: int | None = None) -> None:
    """Make the steps that are left; what is needed to go on is saved now and then, and when a signal asks to stop.

    :param training: as it was begun; what was saved of it is taken up where it has made no step yet.
    :param path: of the file that it is saved in.
    :param what: is trained, for the progress line.
    :param stop: set by a signal.
    :param until: step to stop at; None makes all.
    :raises Stopped: for a signal.
    :raises UserError: where the file is damaged, or the training diverges.
    """
    if path.is_file() and not training.step:
        take_up(training, path, what)
    show, saved = Progress(f"{what}, learning", "steps"), time.monotonic()
    until = training.steps if until is None else min(until, training.steps)
    while training.step < until:
        if stop or time.monotonic() - saved > SAVE_EVERY:
            save(training, path, what)
            saved = time.monotonic()
        if stop:
            raise Stopped
        require_finite(training, training.advance(), path, what)
        show(training.step, training.steps, f"loss {training.loss:.3f}")
    save(training, path, what)  # before what was learnt is judged, which takes a while


def save(training: GradientTraining, path: Path, what: str) -> None:
    """Write all that the coming steps depend on.

    :raises UserError: where the last step broke the weights, which only the next one's loss would have shown; what was
        saved before stays.
    """
    if not all(bool(value.isfinite().all()) for value in training.network.parameters()):
        require_finite(training, math.nan, path, what)
    write_tensors(path, training.state())


def require_finite(training: GradientTraining, loss: float, path: Path, what: str) -> None:
    """Refuse to go on from a loss that is none, before anything is learnt from it or kept.

    :raises UserError: naming step and learning rate.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"{what}: the loss is {loss} at step {training.step} of {training.steps}, nothing of it is kept in "
            f"{path.parent}: try a smaller learning rate than {training.learning_rate:g}"
        )


def take_up(training: GradientTraining, path: Path, what: str) -> None:
    """Go on with what was saved.

    :raises UserError: where the file is damaged.
    """
    try:
        training.load_state(read_tensors(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; without it {what} begins anew") from None
    print(f"{what} goes on at step {training.step} of {training.steps}", flush=True)
