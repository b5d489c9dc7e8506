"""Whole training steps per second: PPO on keypoints as ``make train`` runs it, against the naive stack."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from agents.callbacks import AuxiliaryCallback
from agents.scene import Scene
from experiments.bench.naive import naive_env
from experiments.bench.original import ORIGINAL, use_original_formulation
from experiments.bench.stages import watched
from experiments.bench.timing import wait_for
from experiments.options.config import TrainConfig
from experiments.training.algorithms import build_model
from experiments.training.building import make_training_env

Row = dict[str, Any]
REST = "the rest: buffers, advantages, quality, logs"
NAIVE = "naive: Gymnasium's renderer per camera, SubprocVecEnv, the original's network at its sizes, 108 px"
SMALLER = "naive, at our sizes: the same with our number of pixels, keypoints and filters"
BETWEEN = "ours, with the original's network at our sizes"
OURS = "ours"


def whole_steps(config: TrainConfig, rollouts: int) -> list[Row]:
    """Steps per second of the naive stack, of ours and of what lies between, and where the time goes.

    From the first to the second the sizes change, from it to the third environments and formulation, from it to ours
    the network and its precision.

    :param config: of our run.
    :param rollouts: of ours that are timed, after a first one that is not; of the others, which are slow, one.
    """
    plain = with_the_originals_network(config)
    large = with_the_originals_sizes(config)
    found = {
        NAIVE: timed_training(large, naive_env(large.env, large.image_size, large.envs), 1, original=True),
        SMALLER: timed_training(plain, naive_env(plain.env, plain.image_size, plain.envs), 1, original=True),
        BETWEEN: timed_training(plain, make_training_env(plain), 1),
        OURS: timed_training(config, make_training_env(config), rollouts),
    }
    return [
        {"what": what, "steps_per_second": speed, "times_first": speed / found[NAIVE][0], "shares": shares}
        for what, (speed, shares) in found.items()
    ]


def with_the_originals_network(config: TrainConfig) -> TrainConfig:
    """The same run with the original's layers, in float32; number of keypoints and widths stay the run's.

    :param config: of a run.
    """
    fields = {name: getattr(ORIGINAL, name) for name in ("layers", "view_weights", "depth", "decoded_views")}
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, precision="float32", **fields))


def with_the_originals_sizes(config: TrainConfig, pixels: int = 108) -> TrainConfig:
    """The same run with all of the original's network, in float32; images have the size that it crops them to.

    :param config: of a run.
    :param pixels: height and width of a view.
    """
    sizes = {name: getattr(ORIGINAL, name) for name in ("keypoints", "width", "decoder_width")}
    plain = with_the_originals_network(config)
    return dataclasses.replace(plain, image_size=pixels, encoder=dataclasses.replace(plain.encoder, **sizes))


def timed_training(
    config: TrainConfig, env: VecEnv, rollouts: int, original: bool = False
) -> tuple[float, dict[str, float]]:
    """Train for some rollouts.

    :param config: of the run; its warm-up, which costs the same per gradient step, is left out.
    :param env: its environments; closed at the end.
    :param rollouts: that are timed.
    :param original: compute the network as the original does.
    :return: environment steps per second, and the share of each stage.
    """
    try:
        model = build_model(config, env, Scene.of(env))
        if original:
            use_original_formulation(model.policy.features_extractor.encoder, model.policy.decoder)
        steps = config.ppo.envs * config.ppo.steps
        _learn(model, config, steps)  # the first rollout pays for what is made once
        stages = watched(model)
        wait_for(model.device)
        started = time.perf_counter()
        with stages.counted(REST):
            _learn(model, config, rollouts * steps)
        wait_for(model.device)
        taken = time.perf_counter() - started
        stages.stop()
        return rollouts * steps / taken, stages.shares()
    finally:
        env.close()


def _learn(model: BaseAlgorithm, config: TrainConfig, steps: int) -> None:
    model.set_logger(Logger(None, []))
    auxiliary = dataclasses.replace(config.auxiliary, warmup_frames=0, warmup_steps=0)
    model.learn(steps, callback=AuxiliaryCallback(auxiliary), reset_num_timesteps=False)
