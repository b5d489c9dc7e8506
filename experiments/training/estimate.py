"""What a training run will cost, measured on this machine before it starts."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.buffers import to_tensors
from agents.finite import require_finite
from experiments.judging.evaluation import stack
from experiments.options.config import TrainConfig
from experiments.training.building import make_env, workers
from experiments.training.checkpointing import LONGEST

MEGABYTE = 2**20
WORKER_MEMORY = 100 * MEGABYTE
"""Of a worker process: about what `make bench` measures."""


@dataclass(frozen=True)
class Estimate:
    """Cost of a run: seconds, and bytes of memory and of disk."""

    seconds: float
    memory: int
    disk: int
    disk_free: int

    def __str__(self) -> str:
        minutes = self.seconds / 60
        span = f"{minutes:.0f} min" if minutes >= 2 else f"{self.seconds:.0f} s"
        return (
            f"estimate: about {span}, {self.memory / MEGABYTE:.0f} MB of memory, "
            f"{self.disk / MEGABYTE:.0f} MB of disk ({self.disk_free / MEGABYTE:.0f} MB free)"
        )


def estimate(config: TrainConfig, model: BaseAlgorithm, folder: Path) -> Estimate:
    """Time a few steps and one gradient step; the model and the random state are left as they were.

    :param config: of the run.
    :param model: as built, before training.
    :param folder: an existing folder on the disk that the run will be written to.
    """
    env = make_env(config)
    env.reset(seed=0)
    observation, act = _time_step(env)
    horizon = env.get_wrapper_attr("horizon") or 1000
    env.close()
    with torch.random.fork_rng():
        update = _time_update(config, model, observation)
    updates = _updates(config)
    evaluated = _times(config, config.log.evaluate_every) * config.log.evaluation_episodes * horizon
    beside = min(workers(config), config.envs)
    seconds = (config.total_steps / beside + evaluated) * act + updates * update
    frame = sum(value.nbytes for value in observation.values()) / len(next(iter(observation.values())))
    frames = _frames_kept(config)
    weights = 4 * sum(parameter.numel() for parameter in model.policy.parameters())
    kept = _checkpoints_kept(config, seconds)
    return Estimate(
        seconds,
        int(resident_memory() + frames * frame + 4 * weights + (beside > 1) * beside * WORKER_MEMORY),
        int(kept * 3 * weights + _frames_on_disk(config) * frame + 2 * MEGABYTE),
        shutil.disk_usage(folder).free,
    )


def _updates(config: TrainConfig) -> float:
    """Gradient steps of the algorithm, and unsupervised ones in units of those."""
    auxiliary, joint = config.auxiliary, config.encoder.has_loss
    share = min(1.0, 0.5 * config.total_steps / max(1, auxiliary.warmup_frames))
    extra = share * auxiliary.warmup_steps if joint and config.pretrained is None else 0.0
    if config.algorithm != "ppo":
        sac = config.sac
        phases = max(0, config.total_steps - sac.learning_starts) / (sac.envs * sac.steps)
        return phases * sac.gradient_steps + extra * auxiliary.batch_size / sac.batch_size
    ppo = config.ppo
    rollouts = config.total_steps / (ppo.envs * ppo.steps)
    extra += rollouts * auxiliary.steps_per_rollout if joint else 0.0
    updates = rollouts * ppo.epochs * (ppo.envs * ppo.steps // ppo.batch_size)
    return updates + extra * auxiliary.batch_size / ppo.batch_size


def _frames_kept(config: TrainConfig) -> int:
    """Observations that rollouts, replay and unsupervised steps hold at a time."""
    if config.algorithm != "ppo":
        return 0  # the replay is counted by itself, where it is allocated
    buffer = config.auxiliary.buffer_frames if config.encoder.has_loss else 0
    return config.ppo.envs * config.ppo.steps + buffer


def _frames_on_disk(config: TrainConfig) -> int:
    """Frames that the checkpoints which are kept refer to, while the run lasts; each frame is written once."""
    log = config.log
    ring = config.auxiliary.buffer_frames if config.encoder.has_loss else 0
    if config.algorithm != "ppo":
        ring = min(config.sac.buffer_size, config.total_steps)
    older = (_checkpoints_kept(config) - 1) * (log.checkpoint_every or config.total_steps)
    return min(config.total_steps, ring + older) if ring else 0


def _checkpoints_kept(config: TrainConfig, seconds: float = 0.0) -> int:
    """How many checkpoints lie on the disk together, for a moment one more than are kept.

    :param config: of the run.
    :param seconds: that it takes.
    """
    log = config.log
    by_the_clock = int(seconds * log.checkpoint_every / config.total_steps / LONGEST)  # of each interval
    written = 1 + _times(config, log.checkpoint_every) * (1 + by_the_clock)
    if log.checkpoints_kept == 0:
        return written
    return min(written, log.checkpoints_kept + 1 + (_times(config, log.checkpoints_kept_every) - 1))


def _times(config: TrainConfig, interval: int) -> int:
    """How often something is done every so many steps (0: never) and once more at the end."""
    return 1 + (config.total_steps // interval if interval else 0)


def _time_step(env, steps: int = 20):  # noqa: ANN001, ANN202
    """An observation as a batch of one, and seconds per step, best of two halves so that a hiccup does not count."""
    observation, times = None, []
    for _ in range(2):
        started = time.perf_counter()
        for _ in range(steps):
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
        times.append((time.perf_counter() - started) / steps)
    return require_finite("observation", stack([observation])), min(times)


def _time_update(config: TrainConfig, model: BaseAlgorithm, observation: dict) -> float:
    """Seconds of one gradient step of policy and auxiliary loss on a minibatch, or a little less."""
    size = config.ppo.batch_size if config.algorithm == "ppo" else config.sac.batch_size
    batch = {key: value.repeat_interleave(size, 0) for key, value in to_tensors(observation, model.device).items()}
    actions = torch.zeros(size, *model.action_space.shape, device=model.device)
    model.policy.set_training_mode(True)
    times = []
    for _ in range(2):
        started = time.perf_counter()
        _passes(config, model, batch, actions).backward()
        times.append(time.perf_counter() - started)
    model.policy.zero_grad(set_to_none=True)
    model.policy.set_training_mode(False)
    return min(times)


def _passes(config: TrainConfig, model: BaseAlgorithm, batch: dict, actions: torch.Tensor) -> torch.Tensor:
    """The forward passes of one gradient step; weight 0, so that only the time counts."""
    policy = model.policy
    if config.algorithm == "ppo":
        values, log_prob, _ = policy.evaluate_actions(batch, actions)
        loss = (values.mean() + log_prob.mean()) * 0.0
    else:
        chosen, log_prob = policy.actor.action_log_prob(batch)
        critics = [*policy.critic(batch, actions), *policy.critic(batch, chosen)]
        loss = (sum(q.mean() for q in critics) + log_prob.mean()) * 0.0
    if config.encoder.has_loss:
        loss = loss + sum(policy.features_extractor.terms(batch).values())
    return loss


def resident_memory() -> int:
    """Bytes that this process holds in memory now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
