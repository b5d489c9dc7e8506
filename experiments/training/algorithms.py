"""From a configuration to a model: which policy class, which algorithm of SB3 or sb3-contrib, with which options."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from agents.baselines import AutoencoderExtractor, CURLExtractor, DrQExtractor, PixelExtractor, RADExtractor
from agents.batch_env import renders_on_device
from agents.bootstrapped import BootstrappedExtractor
from agents.buffers import DeviceRolloutBuffer
from agents.extractors import KeypointExtractor, ViewExtractor
from agents.policies import require_action_space
from agents.replay import FrameReplayBuffer, replay_bytes, require_replay_fits
from agents.scene import Scene
from agents.training_state import require_fitting_weights
from envs.errors import UserError
from experiments.options.config import TrainConfig
from experiments.runs import Checkpoint, Run
from experiments.training.building import (
    SEEDS_PER_RUN,
    choose_device,
    require_same_keypoints,
    require_same_scene,
    within_memory,
)
from kp3d_rl.bootstrapping.detector import DetectorConfig
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.storage.files import DamagedError

POLICIES = {
    "ppo": {
        "keypoints": "agents.policies:KeypointPolicy",
        "own loss": "agents.policies:AuxiliaryPolicy",
        "policy's loss": "agents.policies:PixelPolicy",
        "state": "stable_baselines3.ppo.policies:MultiInputPolicy",
    },
    "sac": {
        "keypoints": "agents.offpolicy:KeypointSACPolicy",
        "own loss": "agents.offpolicy:AuxiliarySACPolicy",
        "policy's loss": "agents.offpolicy:PixelSACPolicy",
        "state": "stable_baselines3.sac.policies:MultiInputPolicy",
    },
    "tqc": {
        "keypoints": "agents.contrib:KeypointTQCPolicy",
        "own loss": "agents.contrib:AuxiliaryTQCPolicy",
        "policy's loss": "agents.contrib:PixelTQCPolicy",
        "state": "sb3_contrib.tqc.policies:MultiInputPolicy",
    },
}
"""Where an algorithm's policies are, by what trains the encoder; imported on demand, sb3-contrib being an extra."""
EXTRACTORS: dict[str, type[ViewExtractor]] = {
    "keypoint3d": KeypointExtractor,
    "keypoint2d": KeypointExtractor,
    "autoencoder": AutoencoderExtractor,
    "curl": CURLExtractor,
    "pixels": PixelExtractor,
    "rad": RADExtractor,
    "drqv2": DrQExtractor,
    "bootstrapped": BootstrappedExtractor,
}
"""The encoder of each kind that sees."""
ONLY_FOR = {"rad": ("ppo",), "drqv2": ("sac", "tqc"), "curl": ("sac", "tqc")}
"""Kinds of encoders that not every algorithm trains."""
SHIFTED = ("keypoint3d", "keypoint2d", "pixels", "drqv2")
"""Kinds of encoders whose views off-policy training shifts at random."""


def policy_class(config: TrainConfig) -> type:
    """The policy that a run's algorithm and encoder ask for.

    :raises UserError: where the algorithm does not train that encoder, or needs sb3-contrib, which is not installed.
    """
    encoder, able = config.encoder, ONLY_FOR.get(config.encoder.kind, tuple(POLICIES))
    if config.algorithm not in able:
        raise UserError(f"encoder '{encoder.kind}' is trained by {' or '.join(able)}, not by {config.algorithm}")
    trained = "keypoints" if encoder.finds_keypoints else "own loss" if encoder.has_loss else "policy's loss"
    module, name = POLICIES[config.algorithm][trained if encoder.sees else "state"].split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != "sb3_contrib":
            raise
        raise UserError(
            f"algorithm '{config.algorithm}' needs sb3-contrib: pip install -c constraints.txt sb3-contrib"
        ) from None


def require_effect(config: TrainConfig) -> None:
    """Refuse a random shift where nothing is shifted.

    :raises UserError: then.
    """
    if config.encoder.random_shift and (config.algorithm == "ppo" or config.encoder.kind not in SHIFTED):
        asked = f"with {config.algorithm} and {config.encoder.kind} it does nothing"
        raise UserError(f"encoder random_shift is for sac and tqc with {', '.join(SHIFTED)}: {asked}")


def note_of_idle_options(typed: Sequence[str], config: TrainConfig) -> None:
    """Say which options are of another algorithm than the run's. They are no error: scripts hand the same to several.

    :param typed: the command line, without what a preset stands for.
    """
    own, other = ("ppo", "sac") if config.algorithm == "ppo" else ("sac", "ppo")
    names = (token.partition("=")[0] for token in typed if token.startswith(f"--{other}."))
    if idle := ", ".join(dict.fromkeys(names)):
        print(f"note: without effect, since {config.algorithm}'s options are --{own}.*: {idle}", file=sys.stderr)


def policy_arguments(config: TrainConfig, scene: Scene | None) -> dict[str, Any]:
    """What the policy class is built with, beside spaces and learning rate.

    :param scene: cameras of the environment; None on the simulator's state.
    """
    if config.algorithm == "ppo":
        hidden = [config.ppo.hidden] * 2
        arguments: dict[str, Any] = {"net_arch": {"pi": hidden, "vf": hidden}, "log_std_init": config.ppo.log_std}
    else:
        arguments = {"net_arch": [config.sac.hidden] * 2}
    if config.encoder.has_loss:
        fields = {name: getattr(config.encoder, name) for name in Keypoint3DConfig.__dataclass_fields__}
        arguments |= {
            "scene": scene,
            "encoder": Keypoint3DConfig(**fields),
            "policy_gradient_scale": config.auxiliary.policy_gradient,
            "learning_rate_scale": config.auxiliary.learning_rate,
            "extractor": EXTRACTORS[config.encoder.kind],
        }
    elif config.encoder.kind == "bootstrapped":
        arguments["features_extractor_class"] = BootstrappedExtractor
        arguments["features_extractor_kwargs"] = {
            "scene": scene,
            "keypoints": config.encoder.keypoints,
            "detector": DetectorConfig(width=config.encoder.width, precision=config.encoder.precision),
        }
    elif config.encoder.sees:
        arguments["features_extractor_class"] = EXTRACTORS[config.encoder.kind]
        arguments["features_extractor_kwargs"] = {
            "random_shift": config.encoder.random_shift,
            "precision": config.encoder.precision,
        }
    return arguments


def build_model(config: TrainConfig, env: VecEnv, scene: Scene | None) -> BaseAlgorithm:
    """The algorithm, as SB3 or sb3-contrib ships it, with the policy that the encoder kind asks for.

    :param config: of the run.
    :param env: its environments.
    :param scene: their cameras; None for the state encoder.
    :raises UserError: where the algorithm does not fit the actions, is not installed, or its replay not the memory.
    """
    require_action_space(config.algorithm.upper(), env.action_space)
    shared = {
        "policy": policy_class(config),
        "env": env,
        "policy_kwargs": policy_arguments(config, scene),
        "seed": config.seed,
        "device": choose_device(config.device),
    }
    with within_memory("what this configuration describes"):
        model = _build_ppo(config, shared) if config.algorithm == "ppo" else _build_off_policy(config, shared)
    env.seed(SEEDS_PER_RUN * config.seed)  # SB3's own seeding would let neighbouring seeds share episodes
    return model


def _build_ppo(config: TrainConfig, shared: dict[str, Any]) -> PPO:
    ppo = config.ppo
    return PPO(
        **shared,
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
        rollout_buffer_class=DeviceRolloutBuffer if renders_on_device(shared["env"]) else None,
    )


def _build_off_policy(config: TrainConfig, shared: dict[str, Any]) -> BaseAlgorithm:
    """SAC, or TQC, whose options are the same."""
    sac = config.sac
    algorithm = SAC if config.algorithm == "sac" else importlib.import_module("sb3_contrib").TQC
    return algorithm(
        **shared,
        learning_rate=sac.learning_rate,
        buffer_size=replay_size(config),
        learning_starts=sac.learning_starts,
        batch_size=sac.batch_size,
        tau=sac.tau,
        gamma=sac.gamma,
        train_freq=(sac.steps, "step"),
        gradient_steps=sac.gradient_steps,
        ent_coef=sac.entropy or f"auto_{sac.reward_scale}",  # where it starts, SB3's 1, is scaled with the rewards
        replay_buffer_class=FrameReplayBuffer,
        replay_buffer_kwargs={"on_device": on_device(shared["env"]), "reward_scale": sac.reward_scale},
    )


def on_device(env: VecEnv) -> tuple[str, ...]:
    """Entries of the observation that the environment hands out as tensors: the replay keeps them where they are."""
    return ("images",) if renders_on_device(env) else ()


def replay_size(config: TrainConfig) -> int:
    """Transitions that the replay of a run of SAC or TQC keeps: never more than the run has."""
    return min(config.sac.buffer_size, config.total_steps)


def describe_replay(config: TrainConfig, env: VecEnv) -> str:
    """The size of the replay that a run would allocate.

    :param env: its environments.
    :raises UserError: where it does not fit into the memory that is free.
    """
    asked = env.observation_space, env.action_space, replay_size(config), env.num_envs
    require_replay_fits(*asked, choose_device(config.device) if on_device(env) else "cpu")
    return f"replay: {replay_size(config)} transitions, each frame once, {replay_bytes(*asked) / 1e9:.2f} GB"


def load_policy(run: Run, env: gym.Env | VecEnv, checkpoint: Checkpoint, device: str = "auto") -> BasePolicy:
    """Rebuild a run's policy for acting.

    :param run: the run.
    :param env: an environment like those that it was trained in.
    :param checkpoint: its weights.
    :param device: where to put it.
    :raises UserError: where cameras, image size or K of run, weights and environment differ; both values are named.
    """
    scene = Scene.of(env) if run.config.encoder.sees else None
    require_same_scene(run, scene)
    require_same_keypoints(run, checkpoint)
    arguments = policy_arguments(run.config, scene)
    with within_memory(f"the policy that {run.path}/config.yaml describes"):
        policy = policy_class(run.config)(env.observation_space, env.action_space, lambda _: 0.0, **arguments)
    try:
        require_fitting_weights(checkpoint.policy, policy)
    except DamagedError as error:
        raise UserError(f"checkpoint {checkpoint.step} of {run.path} does not fit its config.yaml: {error}") from None
    policy.load_state_dict(checkpoint.policy)
    policy.to(choose_device(device))
    policy.set_training_mode(False)
    return policy
