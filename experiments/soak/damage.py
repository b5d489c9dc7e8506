"""Run folders that were damaged by chance or on purpose, and what loading them does: one line, or what the files say.

A run that was stopped half way is damaged one file at a time, with and without checksums that fit, and loaded as
``resume`` does it: configuration, cameras, weights, optimisers, random states, environments, callbacks, frames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load as parse_safetensors
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from envs.errors import UserError
from experiments.algorithms import load_policy
from experiments.building import make_training_env, require_same_scene
from experiments.checkpointing import CheckpointCallback, load_checkpoint
from experiments.cli import parse
from experiments.config import TrainConfig
from experiments.logs import require_state
from experiments.progress import Progress
from experiments.recording import Evaluator, StopRequest
from experiments.runs import Checkpoint, Run
from experiments.soak.kills import TRAININGS
from experiments.soak.mutators import CANARY, mutate
from experiments.train import build, callbacks, train

PATIENCE = 20
"""Seconds after which a load counts as hanging."""
_EXECUTES = (
    "exec", "compile", "import", "marshal.loads", "pickle.find_class", "os.system", "os.exec", "os.posix_spawn",
    "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen",
)  # fmt: skip
"""Audit events (PEP 578) that no load of a file may cause."""


_UNREAD = ("lock", "origin.json", "metrics.csv", "tensorboard", "pictures", "wandb")
"""What is in a run folder that a load does not read."""


class _StopAt(StopRequest):
    """As if a signal had come when so many steps are done."""

    def __init__(self, model: BaseAlgorithm, step: int) -> None:
        super().__init__()
        self.model, self.step = model, step

    def __bool__(self) -> bool:
        return self.model.num_timesteps >= self.step


@dataclass
class Report:
    """What loading damaged files did.

    :param counts: of "refused" (one line), "unchanged" (the damage changed nothing), "as the file says".
    :param failures: what must not happen: tracebacks, code that was executed, loads of what no file says, hangs.
    :param slowest: seconds.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Patient:
    """A run that was stopped half way, which is damaged and mended again and again.

    :param folder: to work in.
    :param algorithm: of :data:`~experiments.soak.kills.TRAININGS`.
    """

    def __init__(self, folder: Path, algorithm: str) -> None:
        options = ["--run", f"{algorithm}-damaged", *TRAININGS[algorithm], "--log.checkpoints-kept", "2"]
        self.config = parse(TrainConfig, options)
        self.path = folder / self.config.run
        with contextlib.closing(make_training_env(self.config)) as env:
            model, scene = build(self.config, env)
            run = Run.create(self.path, self.config, scene)
            train(run, model, _StopAt(model, self.config.total_steps // 2))
        self.env = make_training_env(self.config)
        self.model, self.scene = build(self.config, self.env)
        self.model.set_logger(Logger(None, []))
        self.whole = {path.relative_to(self.path): path.read_bytes() for path in _files(self.path)}
        self.targets = [name for name in sorted(self.whole) if name.parts[0] not in _UNREAD]
        self.newest = self.path / "checkpoints" / (self.path / "checkpoints" / "latest").read_text().strip()
        self.load()  # imports what is imported on demand

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def load(self) -> tuple[Run, Checkpoint]:
        """As ``resume`` does it, up to the first rollout."""
        run = Run.open(str(self.path))
        require_same_scene(run, self.scene)
        checkpoint = run.load()
        if run.config != self.config:  # the model is another run's
            load_policy(run, self.env, checkpoint)
            return run, checkpoint
        load_checkpoint(run, self.model, checkpoint)
        require_state(checkpoint.state["log"])
        first, *others = callbacks(run, Evaluator(lambda: None, 1), StopRequest(), checkpoint)
        self._start(first, others)
        return run, checkpoint

    def _start(self, first: CheckpointCallback, others: list[BaseCallback]) -> None:
        for callback in (first, *others[:-2], others[-1]):
            callback.init_callback(self.model)
        try:
            for part in first.parts.values():
                part.on_training_start({}, {})
            first._go_on()
        finally:
            for part in first.parts.values():
                part.on_training_end()

    def mend(self) -> None:
        """Make the run whole again."""
        for path in _files(self.path):
            if path.relative_to(self.path) not in self.whole:
                path.unlink()
        for name, data in self.whole.items():
            path = self.path / name
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def sign(self, name: Path) -> None:
        """Make all checksums fit a file that was changed, as whoever changes one on purpose can."""
        if name.parts[0] == "segments":
            state = self.newest / "state.json"
            old = hashlib.sha256(self.whole[name]).hexdigest()
            new = hashlib.sha256((self.path / name).read_bytes()).hexdigest()
            state.write_text(state.read_text().replace(old, new))
        for folder in (self.path / "checkpoints").glob("[0-9]*"):
            names = [line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
            lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
            (folder / "SHA256SUMS").write_text("".join(lines))


def damage(folder: Path, files: int, seed: int) -> Report:
    """Damage runs of PPO and SAC, one file at a time, and load them.

    :param folder: to work in.
    :param files: how many files are damaged, over both.
    :param seed: of the damage.
    """
    report, show = Report(), Progress("damaged files", "files", 60.0)
    for number, algorithm in enumerate(TRAININGS):
        patient = Patient(folder, algorithm)
        draw, first = random.Random(f"{seed} {algorithm}"), number * files // len(TRAININGS)
        for done in range(first, (number + 1) * files // len(TRAININGS)):
            _one(patient, draw, report)
            show(done + 1, files)
        patient.close()
    return report


def _one(patient: Patient, draw: random.Random, report: Report) -> None:
    """Damage one file, load, judge, mend."""
    name = draw.choice(patient.targets)
    data = mutate(patient.whole[name], draw)
    (patient.path / name).write_bytes(data)
    signed = name.name not in ("SHA256SUMS", "latest") and draw.random() < 0.5
    if signed:
        patient.sign(name)
    started, what = time.monotonic(), f"{name}{', signed' if signed else ''}, number {sum(report.counts.values())}"
    executed: list[str] = []
    try:
        with _quiet(), _watched(executed, patient.path), _time_limit():
            run, checkpoint = patient.load()
    except UserError as error:
        report.counts["refused"] += 1
        if not str(error).isprintable() or len(str(error)) > 1000:
            report.failures.append(f"{what}: more than a line: {str(error)[:300]!r}")
    except BaseException as error:
        report.failures.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        same = data == patient.whole[name]
        report.counts["unchanged" if same else "as the file says"] += 1
        wrong = None if same else _wrong(patient, run, checkpoint, name, signed)
        report.failures += [f"{what}: {wrong}"] if wrong else []
    report.failures += [f"{what}: caused {event}" for event in executed]
    report.failures += [f"{what}: code was executed"] if Path(CANARY).exists() else []
    report.slowest = max(report.slowest, time.monotonic() - started)
    patient.mend()


def _wrong(patient: Patient, run: Run, checkpoint: Checkpoint, name: Path, signed: bool) -> str | None:
    """What is wrong with a load of a changed file that was accepted; None where it is what the files say."""
    if name.name == "latest":  # another whole checkpoint, or the newest that there is
        return None if checkpoint.step in run.steps() else "a checkpoint that is not there"
    if name.name == "SHA256SUMS" and _lines(patient.whole[name]) == _lines((patient.path / name).read_bytes()):
        return None  # in another order
    if not signed and _is_read(patient, checkpoint, name):
        return "accepted although the checksum does not fit"
    if name.name == "config.yaml":
        said = yaml.safe_load((patient.path / name).read_text())
        found = json.loads(json.dumps(dataclasses.asdict(run.config)))
        return None if said == found else "a configuration that the file does not say"
    folder = patient.path / "checkpoints" / f"{checkpoint.step:09d}"
    said = parse_safetensors((folder / "policy.safetensors").read_bytes())
    if any(not torch.equal(checkpoint.policy[key].view(torch.uint8), value.view(torch.uint8))
           for key, value in said.items() if value.dim()):  # fmt: skip
        return "weights that the file does not say"
    head = json.loads((folder / "state.json").read_text())
    return None if head["step"] == checkpoint.step else "another step than the file says"


def _lines(data: bytes) -> list[bytes]:
    return sorted(data.split(b"\n"))


def _is_read(patient: Patient, checkpoint: Checkpoint, name: Path) -> bool:
    """Whether a load of the newest checkpoint depends on a file."""
    if name.parts[0] == "checkpoints":
        return name.parts[1] == patient.newest.name
    return name.parts[0] != "segments" or name.name in {segment.name for segment in checkpoint.segments}


_LISTENERS: list[tuple[list[str], Path]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hooks cannot be taken out again, so there is one, which mostly has nobody to tell."""
    if not _LISTENERS:
        return
    executed, run = _LISTENERS[-1]
    if event in _EXECUTES:
        executed.append(f"{event} {str(arguments)[:200]}")
    elif event == "open" and isinstance(arguments[0], (str, bytes)):
        path = Path(os.fsdecode(arguments[0])).absolute()
        known = (run, Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2], Path("/proc"), Path("/sys"))
        if not any(path.is_relative_to(folder) for folder in known):
            executed.append(f"open {str(arguments)[:200]}")


@contextlib.contextmanager
def _watched(executed: list[str], run: Path) -> Iterator[None]:
    """Write down what is executed or opened outside of a run."""
    if not getattr(_audit, "installed", False):
        sys.addaudithook(_audit)
        _audit.installed = True
    _LISTENERS.append((executed, run.absolute()))
    try:
        yield
    finally:
        _LISTENERS.pop()


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def hangs(number: int, frame: Any) -> None:
        raise TimeoutError(f"no end after {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
