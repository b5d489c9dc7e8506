"""From a configuration to environments and models."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from agents.policies import KeypointPolicy, PixelPolicy
from agents.scene import Scene
from agents.vec_env import NormalizeReward, make_vec_env
from envs import registry
from envs.errors import UserError
from experiments.config import TrainConfig
from experiments.runs import Checkpoint, Run
from kp3d_rl.keypoint3d import Keypoint3DConfig

SEEDS_PER_RUN = 1000
"""Training seed s resets environment i with 1000 s + i; evaluations use other ranges (see evaluation.py)."""


def make_env(config: TrainConfig) -> gym.Env:
    """One environment that observes what the run's encoder needs.

    :param config: of the run.
    """
    observe = ("state",) if config.encoder.kind == "state" else ("images", "proprio")
    return registry.make(
        config.env,
        cameras=config.cameras,
        height=config.image_size,
        width=config.image_size,
        observe=observe,
        renderer=config.renderer,
    )


def make_training_env(config: TrainConfig) -> VecEnv:
    """The run's environments side by side, seeded, rewards normalised if asked for."""
    env: VecEnv = make_vec_env([functools.partial(make_env, config) for _ in range(config.envs)])
    return NormalizeReward(env, config.ppo.gamma) if config.ppo.normalize_reward else env


def build_model(config: TrainConfig, env: VecEnv, scene: Scene | None) -> PPO:
    """PPO with the policy that the encoder kind asks for, as SB3 ships it.

    :param config: of the run.
    :param env: its environments.
    :param scene: their cameras; None for the state encoder.
    """
    policy, extra = _policy(config, scene)
    ppo = config.ppo
    model = PPO(
        policy,
        env,
        learning_rate=lambda left: ppo.learning_rate * (ppo.final_learning_rate * (1 - left) + left),
        n_steps=ppo.steps,
        batch_size=ppo.batch_size,
        n_epochs=ppo.epochs,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip_range,
        ent_coef=ppo.entropy,
        vf_coef=ppo.value,
        max_grad_norm=math.inf,  # gradients are clipped by group, in the callbacks
        target_kl=ppo.target_kl or None,
        policy_kwargs={
            "net_arch": {"pi": [ppo.hidden] * 2, "vf": [ppo.hidden] * 2},
            "log_std_init": ppo.log_std,
            **extra,
        },
        seed=config.seed,
        device=choose_device(config.device),
    )
    env.seed(SEEDS_PER_RUN * config.seed)  # PPO's own seeding would let neighbouring seeds share episodes
    return model


def _policy(config: TrainConfig, scene: Scene | None) -> tuple[Any, dict[str, Any]]:
    """Policy class and its extra arguments."""
    if config.encoder.kind == "keypoint3d":
        fields = {name: getattr(config.encoder, name) for name in Keypoint3DConfig.__dataclass_fields__}
        extra = {
            "scene": scene,
            "encoder": Keypoint3DConfig(**fields),
            "policy_gradient_scale": config.auxiliary.policy_gradient,
            "learning_rate_scale": config.auxiliary.learning_rate,
        }
        return KeypointPolicy, extra
    return (PixelPolicy if config.encoder.kind == "pixels" else "MultiInputPolicy"), {}


def choose_device(name: str) -> str:
    """ "auto", "cpu", "cuda" or "cuda:<n>" as a torch device that exists.

    :raises UserError: for a GPU that is not there or an unknown name.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{name}': valid: auto, cpu, cuda, cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' asked for, but {torch.cuda.device_count()} CUDA devices are present")
    return name


def use_threads(count: int) -> None:
    """Give the network library this many threads.

    :param count: 0 is all cores that this process may use, which in a container can be fewer than the machine has.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(count or allowed or 1)


def load_policy(run: Run, env: gym.Env | VecEnv, checkpoint: Checkpoint, device: str = "auto") -> ActorCriticPolicy:
    """Rebuild a run's policy for acting.

    :param run: the run.
    :param env: an environment like those that it was trained in.
    :param checkpoint: its weights.
    :param device: where to put it.
    :raises UserError: where cameras, image size or K of run, weights and environment differ; both values are named.
    """
    scene = None if run.config.encoder.kind == "state" else Scene.of(env)
    require_same_scene(run, scene)
    require_same_keypoints(run, checkpoint)
    policy, extra = _policy(run.config, scene)
    ppo = run.config.ppo
    if isinstance(policy, str):
        policy = PPO.policy_aliases[policy]
    net_arch = {"pi": [ppo.hidden] * 2, "vf": [ppo.hidden] * 2}
    built = policy(env.observation_space, env.action_space, lambda _: 0.0, net_arch=net_arch, **extra)
    try:
        built.load_state_dict(checkpoint.policy)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"checkpoint {checkpoint.step} of {run.path} does not fit its config.yaml: {first}") from None
    built.to(choose_device(device))
    built.set_training_mode(False)
    return built


def require_same_scene(run: Run, scene: Scene | None) -> None:
    """Refuse a run whose cameras, image size or workspace differ from the environment's.

    :param run: as trained.
    :param scene: of the environment at hand.
    :raises UserError: naming the first difference with both values.
    """
    trained = run.scene()
    if trained is None or scene is None:
        return
    differences = trained.differences(scene)
    if differences:
        raise UserError(f"{run.path} was trained with {differences[0]} in this environment")


def require_same_keypoints(run: Run, checkpoint: Checkpoint) -> None:
    """Refuse weights whose number of keypoints is not the configuration's.

    :param run: with its configuration.
    :param checkpoint: with the weights.
    :raises UserError: naming both values.
    """
    heads = [t for name, t in checkpoint.policy.items() if name.endswith("encoder.views.0.head.weight")]
    if run.config.encoder.kind == "keypoint3d" and heads and heads[0].shape[0] != 2 * run.config.encoder.keypoints:
        raise UserError(
            f"{run.path}: its weights have {heads[0].shape[0] // 2} keypoints, "
            f"its config.yaml says {run.config.encoder.keypoints}"
        )
