"""From options to models: each option of PPO arrives where it counts."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.batch_env import BatchVecEnv
from agents.callbacks import AuxiliaryConfig
from agents.scene import Scene
from agents.vec_env import NormalizeReward
from agents.worker_env import WorkerVecEnv
from envs import registry
from experiments.options.config import EncoderConfig, PPOConfig, RenderConfig, TrainConfig
from experiments.training import building
from experiments.training.algorithms import build_model
from experiments.training.building import make_training_env
from tests.dotworld import DotEnv, dot_scene

CONFIG = TrainConfig(
    encoder=EncoderConfig(keypoints=2, width=4, decoder_width=8),
    ppo=PPOConfig(envs=2, steps=8, batch_size=8, hidden=8),
    threads=1,
)


def build(**ppo):
    config = dataclasses.replace(CONFIG, ppo=dataclasses.replace(CONFIG.ppo, **ppo))
    return build_model(config, DummyVecEnv([functools.partial(DotEnv, dot_scene())] * 2), dot_scene())


@pytest.mark.parametrize(
    ("option", "value", "read"),
    [
        ("steps", 16, lambda m: m.n_steps),
        ("batch_size", 4, lambda m: m.batch_size),
        ("epochs", 7, lambda m: m.n_epochs),
        ("gamma", 0.5, lambda m: m.gamma),
        ("gae_lambda", 0.6, lambda m: m.gae_lambda),
        ("clip_range", 0.3, lambda m: m.clip_range(1.0)),
        ("entropy", 0.01, lambda m: m.ent_coef),
        ("value", 0.7, lambda m: m.vf_coef),
        ("target_kl", 0.2, lambda m: m.target_kl),
        ("hidden", 24, lambda m: m.policy.action_net.in_features),
        ("log_std", -1.5, lambda m: float(m.policy.log_std[0])),
        ("learning_rate", 1e-3, lambda m: m.lr_schedule(1.0)),
    ],
)
def test_every_option_of_ppo_arrives(option: str, value: float, read) -> None:
    assert read(build(**{option: value})) == pytest.approx(value)
    assert read(build()) != pytest.approx(value)


def test_learning_rate_falls_linearly_to_its_share_and_no_target_stops_nothing() -> None:
    model = build(learning_rate=1e-3, final_learning_rate=0.2, target_kl=0.0)
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 6e-4, 2e-4])
    assert model.target_kl is None and model.max_grad_norm == math.inf


def test_auxiliary_options_reach_the_policy() -> None:
    config = dataclasses.replace(CONFIG, auxiliary=AuxiliaryConfig(policy_gradient=0.7, learning_rate=9.0))
    model = build_model(config, DummyVecEnv([DotEnv]), dot_scene())
    assert model.policy.features_extractor.policy_gradient_scale == 0.7
    assert [group.get("lr_scale") for group in model.policy.optimizer.param_groups] == [None, 9.0]


@pytest.mark.parametrize("normalize", [True, False])
def test_environments_are_as_many_as_asked_for_and_rewards_normalised_if_asked_for(normalize: bool) -> None:
    ppo = dataclasses.replace(CONFIG.ppo, envs=3, normalize_reward=normalize)
    env = make_training_env(dataclasses.replace(CONFIG, ppo=ppo, image_size=32))
    assert env.num_envs == 3 and isinstance(env, NormalizeReward) == normalize
    assert Scene.of(env).cameras.height == 32
    env.close()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told so")
def test_freed_memory_is_kept_for_the_next_gradient_step() -> None:
    code = """
import resource, sys, torch
from experiments.training.building import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(20):
    if turn == 5:
        before = faults()
    tensors = [torch.ones(5 << 20) for _ in range(4)]
    del tensors
print(faults() - before)
"""
    # Left to itself, glibc raises its threshold as it goes, and what it gives back depends on what lies above.
    fixed = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}

    def count_faults(how: str) -> int:
        command = [sys.executable, "-c", code, how]
        return int(subprocess.run(command, env=fixed, capture_output=True, text=True, check=True).stdout)

    count = {how: count_faults(how) for how in ("keep", "give back")}
    assert count["keep"] < 0.5 * count["give back"], count


def test_images_are_rendered_by_workers_and_state_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "cores", lambda: 3)
    for options, expected in (
        ({}, 3),
        ({"render": RenderConfig(workers=2)}, 2),
        ({"encoder": EncoderConfig(kind="state")}, 1),
    ):
        assert building.workers(TrainConfig(**options)) == expected
    small = TrainConfig(image_size=32, render=RenderConfig(workers=2), ppo=PPOConfig(envs=3, steps=8, batch_size=8))
    env = building.make_training_env(small)
    assert isinstance(env.unwrapped, WorkerVecEnv) and len(env.unwrapped.workers.pids) == 2
    env.close()


def test_the_ray_tracer_draws_all_environments_together() -> None:
    pytest.importorskip("mujoco_warp")
    env = building.make_training_env(TrainConfig(image_size=32, render=RenderConfig(backend="warp", workers=2)))
    assert isinstance(env.unwrapped, BatchVecEnv) and env.unwrapped.renderer.threads == 2
    assert not env.unwrapped.tensors and env.unwrapped.device == "cpu", "on a CPU the images are arrays"
    env.close()


def on_state(env: str) -> TrainConfig:
    small = PPOConfig(envs=2, steps=8, batch_size=8)
    return TrainConfig(env=env, seed=3, encoder=EncoderConfig(kind="state"), ppo=small)


def test_runs_are_judged_on_configurations_that_training_never_sees() -> None:
    """Meta-World's fifty and fifty."""
    config = on_state("metaworld-reach")
    judged, trained = building.make_env(config), building.make_training_env(config)
    assert judged.unwrapped.split == "test" and set(trained.get_attr("split")) == {"train"}
    judged.close(), trained.close()


def test_runs_begin_with_episodes_of_their_own() -> None:
    """Environment i of the run with seed s begins with the episode of seed 1000 s + i."""
    config = on_state("reach-multiview")
    model = build_model(config, building.make_training_env(config), None)
    starts = model.get_env().reset()["state"]
    one = registry.make("reach-multiview", observe=("state",))
    expected = [one.reset(seed=3 * building.SEEDS_PER_RUN + number)[0]["state"] for number in range(2)]
    np.testing.assert_array_equal(starts, expected)
    one.close(), model.get_env().close()


def test_actions_are_repeated_as_often_as_asked_for() -> None:
    for repeat, horizon in ((1, 50), (4, 13)):
        env = building.make_env(TrainConfig(image_size=32, action_repeat=repeat))
        assert (env.get_wrapper_attr("action_repeat"), env.get_wrapper_attr("horizon")) == (repeat, horizon)
        env.close()
