"""Environments that are rendered together: the same episodes, on the host and as tensors, and the same training."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.batch_env import BatchVecEnv, renders_on_device
from agents.buffers import DeviceRolloutBuffer, FrameBuffer
from agents.callbacks import AuxiliaryCallback, AuxiliaryConfig
from agents.offpolicy import KeypointSACPolicy, PixelSACPolicy
from agents.policies import KeypointPolicy
from agents.replay import FrameReplayBuffer
from agents.scene import Scene
from agents.vec_env import watched_over
from envs import registry
from envs.errors import UserError
from experiments.options.config import PretrainConfig
from experiments.pretrain import build_trainer
from experiments.training.collecting import collect_frames
from experiments.training.recording import StopRequest
from kp3d_rl.keypoint3d import Keypoint3DConfig
from tests.counting import CountingEnv

pytest.importorskip("mujoco_warp")
MAKE = functools.partial(registry.make, "reach-multiview", height=24, width=24, renderer="warp")


def assert_same(first: dict, second: dict) -> None:
    assert set(first) == set(second)
    for key, values in first.items():
        np.testing.assert_array_equal(np.asarray(values), np.asarray(second[key]), err_msg=key)


@pytest.mark.parametrize(("tensors", "threads"), [(False, 1), (False, 2), (True, 2)])
def test_episodes_are_those_of_one_after_the_other(tensors: bool, threads: int) -> None:
    plain, together = DummyVecEnv([MAKE] * 3), BatchVecEnv([MAKE] * 3, tensors=tensors, threads=threads)
    for env in (plain, together):
        env.seed(7)
    first, second = plain.reset(), together.reset()
    assert isinstance(second["images"], torch.Tensor if tensors else np.ndarray)
    assert renders_on_device(watched_over(together)) == tensors
    rng, ended = np.random.default_rng(0), 0
    for _ in range(51):
        assert_same(first, second)
        before = np.array(second["images"])
        actions = rng.uniform(-1, 1, (3, *plain.action_space.shape)).astype(np.float32)
        (first, *ours), (after, *theirs) = plain.step(actions), together.step(actions)
        np.testing.assert_array_equal(np.asarray(second["images"]), before)  # what was handed out stays as it was
        second = after
        for mine, other in zip(ours[:2], theirs[:2], strict=True):
            np.testing.assert_array_equal(mine, other)
        for mine, other in zip(ours[2], theirs[2], strict=True):
            assert mine["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            if "terminal_observation" in mine:
                assert_same(mine["terminal_observation"], other["terminal_observation"])
                ended += 1
    assert ended == 3
    together.close()
    together.close()


def test_training_on_tensors_is_training_on_arrays_bit_for_bit() -> None:
    def trained(on_device: bool) -> tuple[PPO, VecEnv]:
        env = watched_over(BatchVecEnv([MAKE] * 2, tensors=on_device), seed=0)
        model = PPO(
            KeypointPolicy,
            env,
            n_steps=12,
            batch_size=8,
            n_epochs=2,
            seed=0,
            max_grad_norm=math.inf,
            policy_kwargs={
                "scene": Scene.of(env),
                "encoder": Keypoint3DConfig(keypoints=3, width=4, decoder_width=8),
                "net_arch": [8],
            },
            rollout_buffer_class=DeviceRolloutBuffer if on_device else None,
        )
        auxiliary = AuxiliaryConfig(warmup_frames=8, warmup_steps=2, steps_per_rollout=2, batch_size=4)
        return model.learn(56, callback=AuxiliaryCallback(auxiliary)), env

    (arrays, _), (tensors, env) = trained(False), trained(True)
    assert isinstance(tensors.rollout_buffer.observations["images"], torch.Tensor)
    assert isinstance(tensors.rollout_buffer.observations["proprio"], np.ndarray)
    start = KeypointPolicy(
        env.observation_space, env.action_space, lambda _: 0.0, scene=Scene.of(env),
        encoder=Keypoint3DConfig(keypoints=3, width=4, decoder_width=8), net_arch=[8],
    ).state_dict()  # fmt: skip
    weights = tensors.policy.state_dict()
    for name, value in arrays.policy.state_dict().items():
        assert torch.equal(value, weights[name]), name
    moved = [name for name in start if not torch.equal(start[name], weights[name])]
    assert any("encoder" in name for name in moved) and any("decoder" in name for name in moved)


@pytest.mark.parametrize("policy", [KeypointSACPolicy, PixelSACPolicy])
def test_replay_of_tensors_trains_as_one_of_arrays_bit_for_bit(policy: type) -> None:
    def trained(on_device: bool) -> SAC:
        env = watched_over(BatchVecEnv([functools.partial(MAKE, height=36, width=36)] * 2, tensors=on_device), seed=0)
        torch.manual_seed(0)
        keypoints = {
            "scene": Scene.of(env),
            "encoder": Keypoint3DConfig(keypoints=3, width=4, decoder_width=8),
        }
        model = SAC(
            policy,
            env,
            learning_starts=8,
            batch_size=4,
            buffer_size=60,  # overwritten, and episodes of 50 steps end
            seed=0,
            policy_kwargs={"net_arch": [8]} | (keypoints if policy is KeypointSACPolicy else {}),
            replay_buffer_class=FrameReplayBuffer,
            replay_buffer_kwargs={"on_device": ("images",) if on_device else ()},
        )
        model.learn(110)
        env.close()
        return model

    arrays, tensors = trained(False), trained(True)
    kept = tensors.replay_buffer.frames
    assert isinstance(kept["images"], torch.Tensor) and isinstance(kept["proprio"], np.ndarray)
    np.testing.assert_array_equal(arrays.replay_buffer.frames["images"], kept["images"])
    assert kept["images"].float().std() > 10 and arrays.replay_buffer.dones.sum() >= 2
    weights = tensors.policy.state_dict()
    for name, value in arrays.policy.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_pretraining_collects_frames_that_are_tensors() -> None:
    config = PretrainConfig("reach-multiview", frames=6, batch_size=2)
    for together in (False, True):
        env = BatchVecEnv([MAKE] * 2, tensors=together)
        trainer = build_trainer(config, env, Scene.of(env))
        held_out = collect_frames(config, env, trainer, StopRequest())
        assert isinstance(trainer.frames.stored["images"], torch.Tensor) == together
        assert isinstance(held_out["images"], np.ndarray) and held_out["images"].std() > 10
        env.close()


def test_a_picture_of_each_environment_is_for_videos() -> None:
    env = BatchVecEnv([MAKE] * 2)
    for number, inner in enumerate(env.envs):
        inner.render = lambda number=number: np.full((4, 4, 3), number)
    assert [int(picture.max()) for picture in env.get_images()] == [0, 1]
    env.close()


def test_frames_may_be_tensors() -> None:
    buffer = FrameBuffer(4)
    for number in range(3):
        buffer.add({"images": torch.full((2, 3), number, dtype=torch.uint8)})
    assert isinstance(buffer.stored["images"], torch.Tensor) and len(buffer) == 4
    assert sorted(buffer.last(4)["images"][:, 0].tolist()) == [1, 1, 2, 2]
    assert buffer.sample(5, np.random.default_rng(0))["images"].shape == (5, 3)


def test_only_views_of_one_kind_can_be_rendered_together() -> None:
    with pytest.raises(UserError, match="only environments that observe images"):
        BatchVecEnv([CountingEnv])
    with pytest.raises(UserError, match="only environments that observe images"):
        BatchVecEnv([functools.partial(registry.make, "reach-multiview", observe=("state",))])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="warp was asked for the device 'cuda', but there are: cpu"):
        BatchVecEnv([MAKE], device="cuda", tensors=True).reset()
