"""Trainings that are killed at random moments and go on, against the same training left alone."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs.errors import UserError
from experiments.runs import Checkpoints
from experiments.runs.checkpoints import FILES
from experiments.soak.recorder import records
from kp3d_rl.storage.files import TENSOR_LIMIT, DamagedError, read_checked
from kp3d_rl.storage.steps import LATEST

ROOT = Path(__file__).parents[2]

_SMALL = (
    "--image-size 24 --encoder.keypoints 4 --encoder.width 4 --encoder.decoder-width 8 --auxiliary.warmup-steps 4 "
    "--auxiliary.steps-per-rollout 2 --auxiliary.buffer-frames 300 --log.evaluation-episodes 1 "
    "--log.evaluate-every 400 --log.picture-every 0 --log.wandb off --threads 1 --auxiliary.warmup-frames 64 "
)
_PPO = (
    "--total-steps 1088 --log.checkpoint-every 60 "
    "--ppo.envs 4 --ppo.steps 16 --ppo.batch-size 32 --ppo.epochs 2 --ppo.hidden 16 "
)
_SAC = (
    "--total-steps 480 --log.checkpoint-every 20 --sac.envs 4 --sac.batch-size 16 --sac.hidden 16 "
    "--sac.learning-starts 80 --sac.buffer-size 200 --sac.gradient-steps 2 "
)
_ALL_KEPT = "--render.workers 1 --log.checkpoints-kept 0 "
_PRUNED = "--render.workers 2 --log.checkpoints-kept 1 --log.checkpoints-kept-every 300 "
TRAININGS = {
    "ppo": f"{_SMALL} {_PPO} {_ALL_KEPT}".split(),
    "sac": f"{_SMALL} {_SAC} {_ALL_KEPT} --algorithm sac --action-repeat 2".split(),
    "ppo in workers": f"{_SMALL} {_PPO} {_PRUNED}".split(),
    "tqc": f"{_SMALL} {_SAC} {_PRUNED} --algorithm tqc".split(),
    "ppo on pixels": f"{_SMALL} {_PPO} {_PRUNED} --encoder.kind pixels --image-size 36".split(),
}
"""Short trainings by name. They write checkpoints all the time, so that many kills hit the middle of a write."""
PROGRAM = (sys.executable, "-m", "experiments.soak.recorder")
"""What trains and resumes."""
AT_WORK = 0.8
"""Share of the kills that come when a process has begun to train; the others hit all of its life, imports too."""
PATIENCE = 300.0
"""Seconds after which a process that neither trains nor ends counts as hanging."""
MOST = 8
"""Names in a line that says what differs."""
_GOES_ON = "goes on at step"
"""What a process says when it has put everything back and trains on."""


@dataclass(frozen=True)
class Alone:
    """A training that nobody disturbed.

    :param run: its folder.
    :param arguments: of ``experiments.train``.
    :param seconds: that it took.
    :param begun: seconds of them until its first checkpoint: imports and building.
    """

    run: Path
    arguments: tuple[str, ...]
    seconds: float
    begun: float


@dataclass(frozen=True)
class Outcome:
    """What became of trainings that were killed.

    :param kills: by SIGKILL, of processes that lived.
    :param in_a_write: how many of them left a half-written checkpoint or segment.
    :param resumes: how many processes went on from a checkpoint before they were killed, or came to their end.
    :param states: how many checkpoints were recorded of those that went on from one.
    :param lost: how many kills left an older newest checkpoint than there had been, or one that is not whole.
    :param finished: run folders of the trainings, all at their end.
    """

    kills: int
    in_a_write: int
    resumes: int
    states: int
    lost: int
    finished: tuple[Path, ...]


class Training:
    """A process that begins a run or, where there is one, goes on with it; its checkpoints are recorded.

    :param run: the run's folder, in ``runs/<env>/`` of the folder to work in.
    :param arguments: of ``experiments.train``.
    """

    def __init__(self, run: Path, arguments: Sequence[str]) -> None:
        self.run, self.begins = run, not (run / "config.yaml").is_file()
        self.is_new = not self._first.is_file()
        folder = run.parents[2]
        self.output = folder / f"{run.name}.txt"
        program = ("train", "--run", run.name, *arguments) if self.begins else ("resume", "--run", str(run))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(self.output, "wb") as file:
            output = {"stdout": file, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen([*PROGRAM, *program], cwd=folder, env=environment, **output)

    @property
    def _first(self) -> Path:
        return self.run / "checkpoints" / LATEST

    def went_on(self) -> bool:
        """Whether it has said so."""
        return _GOES_ON in self.output.read_text(errors="replace")

    def wait_for_work(self) -> bool:
        """Wait until it trains: it has gone on, or written its first checkpoint; False where it ends before that."""
        deadline = time.monotonic() + PATIENCE
        while not (self.went_on() or (self.is_new and self._first.is_file())):
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"it neither trains nor ends: {self.output.read_text(errors='replace')}")
            time.sleep(0.01)
        return True

    def killed(self, at_work: bool, seconds: float) -> bool:
        """Kill it by SIGKILL, unless it ends before that.

        :param at_work: count the seconds from when it trains, not from its start.
        :param seconds: after which it is killed.
        :return: whether the signal came in time.
        """
        if at_work and not self.wait_for_work():
            return False
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self.process.wait() == -signal.SIGKILL

    def finish(self) -> None:
        """Wait for its end.

        :raises AssertionError: where that is not a good one, with what it said.
        """
        assert self.process.wait(PATIENCE) == 0, self.output.read_text(errors="replace")


def train(folder: Path, what: str) -> Alone:
    """A training that is left alone.

    :param folder: to work in; runs go to ``runs/`` there.
    :param what: of :data:`TRAININGS`.
    """
    started, arguments = time.monotonic(), tuple(TRAININGS[what])
    run = _run(folder, f"{what.replace(' ', '-')}-alone")
    training = Training(run, arguments)
    training.wait_for_work()
    begun = time.monotonic() - started
    training.finish()
    return Alone(run, arguments, time.monotonic() - started, begun)


def kill_again_and_again(folder: Path, name: str, alone: Alone, kills: int, seed: int) -> Outcome:
    """The same training, killed at moments spread evenly over the time that it takes alone, mostly while it trains.

    When one is finished, the next one begins, until there were enough kills; the last one then goes on to its end.

    :param folder: to work in; runs go to ``runs/`` there.
    :param name: of the runs, a number is added.
    :param alone: the training.
    :param kills: how many.
    :param seed: of the moments.
    :raises AssertionError: where a process does not go on, with what it said.
    """
    draw, count, runs = random.Random(seed), Counter(), []
    while count["kills"] < kills:
        runs.append(_run(folder, f"{name}-{len(runs)}"))
        _kill_until_finished(runs[-1], alone, kills, draw, count)
    counts = {what: count[what] for what in ("kills", "in_a_write", "resumes", "states", "lost")}
    return Outcome(**counts, finished=tuple(runs))


def _kill_until_finished(run: Path, alone: Alone, kills: int, draw: random.Random, count: Counter) -> None:
    """One run from its beginning to its end; what happens is added to the count."""
    newest, ended = -1, False
    while not ended:
        before = len(records(run))
        training = Training(run, alone.arguments)
        ended = count["kills"] == kills or not training.killed(*moment(draw, alone))
        if ended:
            training.finish()
        went_on = training.went_on()
        count["resumes"] += not training.begins and (went_on or ended)
        count["states"] += went_on * (len(records(run)) - before)
        if not ended:
            count["kills"] += 1
            count["in_a_write"] += any(_half_written(run))
            before, newest = newest, _newest(run)
            count["lost"] += newest < before


def moment(draw: random.Random, alone: Alone) -> tuple[bool, float]:
    """When to kill, drawn at random.

    :param draw: two numbers are taken from it.
    :param alone: the same training, left alone.
    :return: whether seconds count from when a process trains, and how many; see :meth:`Training.killed`.
    """
    at_work, share = draw.random() < AT_WORK, draw.random()
    return at_work, share * (alone.seconds - alone.begun if at_work else alone.seconds)


def _run(folder: Path, name: str) -> Path:
    return folder / "runs" / "reach-multiview" / name


def _newest(run: Path) -> int:
    """Step of the newest checkpoint that is whole, with its frames; -1 where there is none."""
    try:
        checkpoint = Checkpoints(run).read()
        for segment in checkpoint.segments:
            read_checked(run / "segments" / segment.name, {segment.name: segment.sha256}, TENSOR_LIMIT)
    except (UserError, DamagedError):
        return -1
    return checkpoint.step


def _half_written(run: Path) -> Iterator[Path]:
    yield from run.glob("checkpoints/.*.partial")
    yield from run.glob("segments/.*.partial")
    yield from run.glob(".*.partial")


# -- comparing -------------------------------------------------------------------------------------------------------


def differences(run: Path, other: Path) -> list[str]:
    """What differs between two runs whose checkpoints were recorded: all of these, and what the finished runs hold.

    :param run: a run at its end, whose training may have been killed.
    :param other: the same training, left alone.
    :return: a line for each difference, none where all is the same byte by byte.
    """
    return [*differing_states(run, other), *differing_ends(run, other)]


def differing_states(run: Path, other: Path) -> list[str]:
    """What differs between checkpoints as they were written (:mod:`experiments.soak.recorder`).

    Beside weights and optimisers they hold random states, environments, the observations that come next, callbacks,
    logs, and the names and checksums of all files of frames. Left out is what tells of the process: places in files
    whose names hold a time, and the commit.

    :param run, other: as for :func:`differences`; all records of the run are compared with the other's of that step.
    """
    differ = [f"no checkpoint of {path.name} was recorded" for path in (run, other) if not records(path)]
    expected = {path.stem: path for path in records(other)}
    for path in records(run):
        if path.stem in expected:
            differ += [f"record {path.name}: {what}" for what in _differing_files(path, expected[path.stem])]
        else:
            differ.append(f"record {path.name} has none to be compared with")
    return differ


def differing_ends(run: Path, other: Path) -> list[str]:
    """What differs between finished runs: weights, optimisers, rows of numbers and TensorBoard's points, times aside.

    :param run, other: as for :func:`differences`.
    """
    found, expected = ({path.name: path for path in (r / "checkpoints").glob("[0-9]*")} for r in (run, other))
    differ = [f"checkpoint {name} is there in one of them alone" for name in sorted(found.keys() ^ expected.keys())]
    for name in sorted(found.keys() & expected.keys()):
        differ += [f"checkpoint {name}: {what}" for what in _differing_files(found[name], expected[name])]
    differ += [] if logged(run) == logged(other) else ["metrics.csv"]
    return [*differ, *_differing_points(points(run), points(other))]


def _differing_files(folder: Path, other: Path) -> Iterator[str]:
    """The files of two checkpoints that differ, and in what."""
    for file in FILES:
        first, second = ((path / file).read_bytes() for path in (folder, other))
        names = _differing(_parts(file, first), _parts(file, second))
        if names or (first != second and file != "state.json"):
            yield f"{file} ({_few(names)})" if names else file


def _parts(file: str, data: bytes) -> dict[str, Any]:
    """What stands in a file, by name: tensors, or values; nothing where it cannot be read."""
    try:
        if file != "state.json":
            return dict(deserialize(data))
        values = _flat(json.loads(data))
    except (SafetensorError, ValueError):
        return {}
    files, process = "state.log.tensorboard.files.", ("state.log.wandb", "state.circumstances.code")
    return {name: value for name, value in values.items() if not name.startswith(files) and name not in process}


def _flat(tree: Any, name: str = "") -> dict[str, str]:
    """The leaves of JSON as text, by dotted names; NaN is the same as NaN."""
    entries = dict(enumerate(tree)) if isinstance(tree, list) else tree
    if not isinstance(entries, dict) or not entries:
        return {name: json.dumps(tree)}
    parts = [_flat(part, f"{name}.{key}" if name else str(key)) for key, part in entries.items()]
    return {place: leaf for part in parts for place, leaf in part.items()}


def _differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def _few(names: Sequence[str]) -> str:
    more = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {more} more" if more > 0 else "")


_TIMES = {"time/fps", "time/time_elapsed"}


def logged(run: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``, times aside."""
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in sorted(row.items()) if key not in _TIMES} for row in rows]


def points(run: Path) -> dict[str, list[tuple[int, str]]]:
    """TensorBoard's points, by name: steps and values, of times the steps alone.

    All that stand in the files count, also those that TensorBoard would hide because a later process wrote them again.

    :param run: its folder.
    """
    files = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    files.Reload()
    return {
        name: [(point.step, "" if name in _TIMES else repr(point.value)) for point in files.Scalars(name)]
        for name in files.Tags()["scalars"]
    }


def _differing_points(
    found: dict[str, list[tuple[int, str]]], expected: dict[str, list[tuple[int, str]]]
) -> Iterator[str]:
    """Points that are not the same, missing, or there twice."""
    for name in _differing(found, expected):
        one, two = Counter(found.get(name, ())), Counter(expected.get(name, ()))
        steps = sorted({step for step, _ in (one - two) + (two - one)})
        yield f"TensorBoard: {name} at step {_few([str(step) for step in steps])}" if steps else f"TensorBoard: {name}"
