"""What checkpoints cost: seconds of one, with all that is new since the last, against the seconds between two."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.callbacks import AuxiliaryCallback
from experiments.bench.memory import MEGABYTE
from experiments.logs import metrics_logger
from experiments.options.config import TrainConfig
from experiments.runs import Run
from experiments.train import build, callbacks
from experiments.training.building import make_training_env
from experiments.training.checkpointing import CheckpointCallback
from experiments.training.recording import Evaluator, StopRequest

Row = dict[str, Any]


class _Clock(BaseCallback):
    """When each rollout began, and the training ended, and at which step."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.marks.append((time.perf_counter(), self.model.num_timesteps))

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def seconds_per_step(self) -> float:
        """Of the second half, the first pays for what is made once."""
        marks = self.marks[len(self.marks) // 2 :] if len(self.marks) > 2 else self.marks
        (start, first), (end, last) = marks[0], marks[-1]
        return (end - start) / (last - first)


def checkpoint_cost(config: TrainConfig, steps: int) -> Row:
    """Train for a while, add as many frames as come between two checkpoints, and write one.

    :param config: of the run, whose ``log`` says how often checkpoints are written.
    :param steps: that are trained for; with no warm-up to speak of.
    """
    interval = config.log.checkpoint_every
    short = dataclasses.replace(
        config,
        total_steps=interval + steps,
        auxiliary=dataclasses.replace(config.auxiliary, warmup_frames=config.envs, warmup_steps=1),
        sac=dataclasses.replace(config.sac, learning_starts=0),
        log=dataclasses.replace(config.log, checkpoint_every=0, evaluate_every=0, picture_every=0, wandb="off"),
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(make_training_env(short)) as env:
        model, scene = build(short, env)
        run = Run.create(Path(folder) / "run", short, scene)
        clock, found = _Clock(), callbacks(run, Evaluator(lambda: None, 1), StopRequest())
        with metrics_logger(run, short.log) as logger:
            model.set_logger(logger)
            model.learn(steps, callback=[*found, clock], log_interval=None)
            checkpoints: CheckpointCallback = found[0]
            _add_frames(model, checkpoints, max(0, interval - steps))
            before = _size(run.path)
            started = time.perf_counter()
            checkpoints.save()
            seconds, written = time.perf_counter() - started, _size(run.path) - before
    pace = clock.seconds_per_step()
    return {
        "what": config.algorithm.upper(), "seconds": seconds, "megabytes": written / MEGABYTE,
        "interval": interval, "interval_seconds": interval * pace, "share": seconds / (interval * pace),
    }  # fmt: skip


def _add_frames(model: BaseAlgorithm, checkpoints: CheckpointCallback, count: int) -> None:
    """Put random frames where training would have put those of so many steps."""
    generator, envs = np.random.default_rng(0), model.n_envs
    spaces = model.observation_space.spaces
    infos = [{} for _ in range(envs)]

    def draw() -> dict[str, np.ndarray]:
        return {
            key: generator.integers(0, 256, (envs, *space.shape), np.uint8)
            if space.dtype == np.uint8
            else generator.normal(size=(envs, *space.shape)).astype(space.dtype)
            for key, space in spaces.items()
        }

    for _ in range(count // envs):
        if isinstance(model, OffPolicyAlgorithm):
            actions, zeros = np.zeros((envs, *model.action_space.shape), np.float32), np.zeros(envs)
            model.replay_buffer.add(model._last_obs, (following := draw()), actions, zeros, zeros, infos)
            model._last_obs = following
        else:
            part = checkpoints.parts["gradients"]
            if isinstance(part, AuxiliaryCallback):
                part.unsupervised.add(draw())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
