"""Run folders that were damaged by chance or on purpose, and what becomes of them: one line, or what the files say.

A run that was stopped half way is damaged one place at a time, with and without checksums that fit, and loaded as
``resume`` does it: configuration, cameras, weights, optimisers, random states, environments, callbacks, logs, frames.
What is accepted is compared with the files and trained on; now and then another program is let at the folder.

All of it happens in processes of their own with little memory: one that dies or hangs is reported, and the next one
goes on behind the file that it had before it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import kp3d_rl
from envs.errors import UserError
from experiments import evaluate, export, probe, video
from experiments.soak.judge import wrong
from experiments.soak.kinds import change_kind
from experiments.soak.mutators import CANARY, STRUCTURED, mutate
from experiments.soak.patient import Patient
from experiments.soak.states import change_state
from experiments.soak.watch import Hangs, limit_memory, quiet, time_limit, watched
from experiments.training.building import cores, use_threads
from experiments.training.progress import Progress

Result = TypeVar("Result")

TRAININGS = ("ppo", "sac", "tqc", "ppo on pixels")
"""What is damaged, of :data:`~experiments.soak.kills.TRAININGS`."""
PATIENCE = 120.0
"""Seconds after which a load, or what follows it, counts as hanging."""
START = 300.0
"""Seconds that a process has to get ready."""
MEMORY = 4 << 30
"""Bytes that a process may have beyond what it has when it is ready."""
FILES = 400
"""Files that a process damages: what libraries keep of each load must not be taken for what a file asked for."""
KINDS, STATES, MEANT, PROGRAM, GO_ON = 0.1, 0.15, 0.5, 0.01, 0.5
"""Shares: of things that become something else, of changes of the state in both of its files, of what a file says, of
folders for another program, of accepted loads that are trained on."""


def _encoder(argv: list[str]) -> None:
    """The library's own reader, whose errors are of Python's kinds."""
    try:
        kp3d_rl.load(argv[1])
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None


PROGRAMS: dict[str, tuple[Callable[[list[str]], object], str]] = {
    "evaluate": (evaluate.main, "--episodes 1 --envs 1"),
    "probe": (probe.main, "--episodes 4 --steps 3 --frames 2 --random-encoders 0 --autoencoder-steps 0"),
    "video": (video.main, "--episodes 1 --steps 2 --size 64"),
    "export": (export.main, ""),
    "encoder": (_encoder, ""),
}
"""What else reads run folders, and with which arguments beside the folder."""


@dataclass
class Report:
    """What damaged files did.

    :param counts: of "refused" (one line), "unchanged" (the damage changed nothing), "as the file says".
    :param after: of what came after loads that were accepted: "trained on" to the next rollout, "not trained on" (one
        line), "only read" (of another configuration); and of other programs, which are "done" or "refused" (one line).
    :param failures: what must not happen: tracebacks, processes that die, code that was executed, files outside that
        were touched, loads of what no file says, hangs.
    :param slowest: seconds.
    """

    counts: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, other: Report) -> None:
        """Take over what another one says."""
        self.counts += other.counts
        self.after += other.after
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)


@dataclass(frozen=True)
class Harm:
    """What was done to a run.

    :param what: in words.
    :param changes: whether anything is different now.
    :param signed: whether the checksums fit.
    """

    what: str
    changes: bool
    signed: bool


# -- the process that looks on -----------------------------------------------------------------------------------------


def damage(folder: Path, files: int, seed: int, plant: Callable[[], None] | None = None) -> Report:
    """Damage runs of several kinds, one place at a time, and load them.

    :param folder: to work in.
    :param files: how many are damaged, over all of them.
    :param seed: of the damage; what is done to a file depends on this and on its number alone.
    :param plant: called in every process before it begins, to plant faults that must be found.
    """
    report, show, lock = Report(), Progress("damaged files", "files", 60.0), threading.Lock()

    def tell(part: Report) -> None:
        with lock:
            report.add(part)
            for failure in part.failures:
                print(failure, file=sys.stderr, flush=True)
            show(sum(report.counts.values()), files, f"{len(report.failures)} failures" if report.failures else "")

    def run(number: int, algorithm: str) -> None:
        share = range(number * files // len(TRAININGS), (number + 1) * files // len(TRAININGS))
        _look_on(folder, algorithm, seed, share, plant, tell)

    with ThreadPoolExecutor(min(cores(), len(TRAININGS))) as pool:
        list(pool.map(run, range(len(TRAININGS)), TRAININGS))
    return report


def _look_on(
    folder: Path,
    algorithm: str,
    seed: int,
    numbers: range,
    plant: Callable[[], None] | None,
    tell: Callable[[Report], None],
) -> None:
    """Have a process damage file after file; where it dies, and after so many, the next one goes on."""
    waiting = list(reversed(numbers))
    while waiting:
        with _Worker(folder, algorithm, seed, plant) as worker:
            for _ in range(min(FILES, len(waiting))):
                tell(worker.damage(waiting.pop()))
                if not worker.is_alive:
                    break


class _Worker:
    """A process that damages files of one algorithm, seen from outside; parameters as of :func:`damage`."""

    def __init__(self, folder: Path, algorithm: str, seed: int, plant: Callable[[], None] | None) -> None:
        self.name, self.words, self.is_alive = f"{algorithm}, seed {seed}", folder / f"{algorithm}-last-words", True
        folder.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_work, args=(folder, algorithm, seed, self.words, plant, there))
        self.process.start()
        there.close()

    def __enter__(self) -> _Worker:
        if self._answer(START) != "ready":
            self.__exit__()
            raise RuntimeError(f"no process for {self.name} gets ready: {self._last_words()}")
        return self

    def __exit__(self, *exception: object) -> None:
        self.pipe.close()  # which it takes as the end
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def damage(self, number: int) -> Report:
        """What one damaged file did, or did to the process."""
        self.pipe.send(number)
        started, what = time.monotonic(), self._answer(PATIENCE)
        answer = self._answer(4 * PATIENCE) if isinstance(what, str) else what
        if isinstance(answer, Report):
            return answer
        if hangs := self.is_alive:  # and says nothing
            self.process.kill()
        self.is_alive = False
        self.process.join()
        code = self.process.exitcode or 0
        fate = f"died of {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
        fate = "hangs" if hangs else fate
        seconds = time.monotonic() - started
        failure = f"{self.name}, file {number}: {what}: process {fate} after {seconds:.1f} s: {self._last_words()}"
        return Report(Counter(died=1), Counter(), [failure], seconds)

    def _answer(self, seconds: float) -> str | Report | None:
        """What the process says; None where it says nothing in time, or nothing any more."""
        try:
            return self.pipe.recv() if self.pipe.poll(seconds) else None
        except (EOFError, OSError):
            self.is_alive = False
            return None

    def _last_words(self) -> str:
        """Where it was, as Python's fault handler says, and what it printed."""
        lines = self.words.read_text(errors="replace").splitlines() if self.words.exists() else []
        said = " | ".join(line.strip() for line in lines if line.strip()) or "without a word"
        return said if len(said) <= 700 else f"{said[:400]} ... {said[-300:]}"


# -- the process that does it ------------------------------------------------------------------------------------------


def _work(
    folder: Path, algorithm: str, seed: int, words: Path, plant: Callable[[], None] | None, pipe: Connection
) -> None:
    """Damage files as their numbers come, until no more do."""
    with open(words, "w") as said:
        os.dup2(said.fileno(), 2)
    faulthandler.enable()
    warnings.simplefilter("ignore")  # which would stand behind what the process dies of
    use_threads(1)
    with quiet():
        patient = Patient(folder, algorithm)
    limit_memory(MEMORY)
    if plant is not None:
        plant()
    with pipe, contextlib.suppress(EOFError):
        pipe.send("ready")
        while True:
            pipe.send(one(patient, f"{seed} {algorithm} {pipe.recv()}", pipe.send))


def one(patient: Patient, seed: str, tell: Callable[[str], None] = lambda what: None) -> Report:
    """Damage one place, load, judge, go on, mend.

    :param patient: whole, and whole again afterwards.
    :param seed: of what is done.
    :param tell: is told what is done before anything is read.
    """
    draw, report = random.Random(seed), Report()
    harm = harmed(patient, draw)
    tell(harm.what)
    started, failures = time.monotonic(), list[str]()
    try:
        if draw.random() < PROGRAM:
            _run_program(patient, draw.choice(sorted(PROGRAMS)), report, failures)
        loaded = _attempt(patient, patient.load, "load", failures)
        report.counts["refused" if loaded is None else "as the file says" if harm.changes else "unchanged"] += 1
        if loaded is not None and harm.changes:
            found = _attempt(patient, lambda: wrong(loaded, harm.signed), "judge", failures)
            failures += [found] if found else []
            if draw.random() < GO_ON:
                gone_on = _attempt(patient, lambda: patient.go_on(loaded), "going on", failures)
                report.after["not trained on" if gone_on is None else "trained on" if gone_on else "only read"] += 1
        failures += [] if patient.outside_is_untouched() else ["something outside was written"]
        failures += ["code was executed"] if Path(CANARY).exists() else []
    finally:
        patient.mend()
    report.failures = [f"{seed}: {harm.what}: {failure}" for failure in failures]
    report.slowest = time.monotonic() - started
    return report


def _run_program(patient: Patient, name: str, report: Report, failures: list[str]) -> None:
    program, arguments = PROGRAMS[name]
    argv = ["--run", str(patient.path), *arguments.split()]
    done = _attempt(patient, lambda: [program(argv)], name, failures, is_watched=False)
    report.after[f"{name} {'refused' if done is None else 'done'}"] += 1


def harmed(patient: Patient, draw: random.Random) -> Harm:
    """Damage one place of a whole run.

    :param draw: decides where and how.
    """
    if draw.random() < KINDS:
        what = change_kind(patient.path, patient.outside, draw, patient.newest, patient.coming)
        signed = draw.random() < 0.5
        if signed:
            patient.sign()
        return Harm(f"{what}{', signed' if signed else ''}", True, signed)
    if draw.random() < STATES:
        what = change_state(patient.path / "checkpoints" / f"{patient.newest:09d}", draw)
        patient.sign()
        return Harm(f"{what}, signed", True, True)
    name = patient.draw_target(draw)
    meant = name.suffix in STRUCTURED and draw.random() < MEANT
    data = (STRUCTURED[name.suffix] if meant else mutate)(patient.whole[name], draw)
    (patient.path / name).write_bytes(data)
    signed = name.name not in ("SHA256SUMS", "latest") and draw.random() < (0.95 if meant else 0.5)
    if signed:
        patient.sign()
    how = f"{'changed' if meant else 'damaged'}{', signed' if signed else ''}"
    return Harm(f"{name} {how}", data != patient.whole[name], signed)


def _attempt(
    patient: Patient, action: Callable[[], Result], name: str, failures: list[str], is_watched: bool = True
) -> Result | None:
    """Do something that may end in one line for the user and in no other way.

    :return: what it returned; None where it did not.
    """
    found: list[str] = []
    try:
        with quiet(), watched(found if is_watched else [], patient.path), time_limit(PATIENCE):
            return action()
    except UserError as error:
        if not str(error).isprintable() or len(str(error)) > 1000:
            failures.append(f"{name}: more than a line: {str(error)[:300]!r}")
    except KeyboardInterrupt:
        raise
    except (Exception, Hangs, SystemExit) as error:
        failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]} ({_where(error)})")
    finally:
        failures += [f"{name}: caused {event}" for event in dict.fromkeys(found)]
    return None


def _where(error: BaseException) -> str:
    """The last places of a traceback, innermost first."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "experiments/soak" not in frame.filename]
    places = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}" for f in reversed(frames)]
    return " < ".join(places[:4])
