"""Frames of scripted or random episodes, which representations are trained on and measured on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from agents.buffers import Frames
from agents.unsupervised import UnsupervisedTrainer
from experiments.judging.episodes import Actors
from experiments.options.config import PretrainConfig
from experiments.training.building import SEEDS_PER_RUN, side_by_side
from experiments.training.progress import Progress
from experiments.training.recording import StopRequest

ENVS = 8
"""Environments side by side, as in training: so many episodes are seen even where episodes are long."""
HELD_OUT_FRAMES = 256
"""Frames of episodes of their own, on which quality is measured; of short pretrainings fewer."""
HELD_OUT_STRIDE = 4
"""Every so manieth frame of those episodes is taken, so that more episodes are seen."""


def held_out_frames(config: PretrainConfig) -> int:
    """How many frames are measured on, beside those that are trained on."""
    return min(HELD_OUT_FRAMES, math.ceil(config.frames / 8))


def collect_frames(config: PretrainConfig, env: VecEnv, trainer: UnsupervisedTrainer, stop: StopRequest) -> Frames:
    """Play the episodes that are trained on, and others to measure on.

    :param config: says how many frames, and who acts.
    :param env: its environments.
    :param trainer: gets the frames to train on.
    :param stop: set by a signal.
    :return: the frames that are not trained on.
    """
    show, kept = Progress("collecting frames", "frames"), []
    apart = held_out_frames(config) * HELD_OUT_STRIDE
    for step, observation in enumerate(played(config, env, stop, held_out=True)):
        if step % HELD_OUT_STRIDE == 0:
            kept.append({key: torch.as_tensor(observation[key]).cpu().numpy().copy() for key in trainer.frames.keys})
        show((step + 1) * env.num_envs, apart + config.frames)
    for step, observation in enumerate(played(config, env, stop)):
        trainer.add(observation)
        show((step + 1) * env.num_envs + apart, apart + config.frames)
    return {key: np.concatenate([frames[key] for frames in kept]) for key in kept[0]}


def played(
    config: PretrainConfig, env: VecEnv, stop: StopRequest | None = None, held_out: bool = False
) -> Iterator[dict[str, Any]]:
    """Observations of the run's episodes, the same ones each time.

    :param config: says how many frames, and who acts.
    :param env: its environments.
    :param stop: set by a signal, after which no more come than the first.
    :param held_out: those that are measured on, not those that are trained on.
    """
    # The first N environments' seeds are those of training; these episodes are neither theirs nor each other's.
    env.seed(SEEDS_PER_RUN * config.seed + held_out * SEEDS_PER_RUN // 2)
    env.reset()
    actors = Actors(config.policy, env, SEEDS_PER_RUN * config.seed + (not held_out))
    frames = held_out_frames(config) * HELD_OUT_STRIDE if held_out else config.frames
    for step in range(math.ceil(frames / env.num_envs)):
        if stop and step:
            return
        yield env.step(actors(step))[0]


def training_frames(config: PretrainConfig) -> torch.Tensor:
    """The views that a pretraining was trained on, played again.

    :param config: of the pretraining.
    :return: (N, V, H, W, 3) uint8.
    """
    show = Progress("collecting the run's own frames", "frames")
    with contextlib.closing(side_by_side(config, ENVS)) as env:
        found = []
        for observation in played(config, env):
            found.append(torch.as_tensor(observation["images"]).cpu().clone())
            show(len(found) * env.num_envs, config.frames)
    return torch.cat(found)
