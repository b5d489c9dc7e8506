"""SAC and TQC with one encoder: the unmodified algorithms train it by critic and auxiliary loss, and only there."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import TQC
from sb3_contrib.tqc.policies import MultiInputPolicy as TQCMultiInputPolicy
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents.callbacks import AuxiliaryCallback, AuxiliaryConfig, ClippingCallback
from agents.clipping import ClipConfig
from agents.contrib import KeypointTQCPolicy, PixelTQCPolicy
from agents.finite import NonFiniteError
from agents.offpolicy import KeypointSACPolicy, OffPolicyAuxiliary, PixelSACPolicy
from agents.policies import KeypointPolicy, require_action_space
from agents.replay import FrameReplayBuffer
from agents.scene import Scene
from agents.vec_env import make_vec_env
from envs import registry
from envs.errors import UserError
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.losses import LossWeights
from tests.agents.test_joint_training import MovingDotEnv, copy_of, gradient_norm, moved, pixel_env
from tests.agents.test_joint_training import make_model as make_ppo
from tests.dotworld import DotEnv, dot_frames, dot_scene

SMALL = Keypoint3DConfig(keypoints=4, width=4, decoder_width=8, precision="float32")
QUIET = AuxiliaryConfig(warmup_frames=0, warmup_steps=0)
POLICIES = {SAC: KeypointSACPolicy, TQC: KeypointTQCPolicy}
PIXELS = {SAC: PixelSACPolicy, TQC: PixelTQCPolicy}
both = pytest.mark.parametrize("algorithm", [SAC, TQC])

OPTIONS = {
    "buffer_size": 400,
    "replay_buffer_class": FrameReplayBuffer,
    "batch_size": 8,
    "train_freq": 4,
    "gradient_steps": 2,
    "learning_starts": 8,
    "seed": 0,
    "device": "cpu",
}


def make_model(
    algorithm: type[OffPolicyAlgorithm] = SAC,
    encoder: Keypoint3DConfig = SMALL,
    make_env: Callable[[], gym.Env] = DotEnv,
    policy: Any = None,
    policy_kwargs: dict | None = None,
    **kwargs: Any,
) -> OffPolicyAlgorithm:
    """Two environments; 8 steps of experience, then two gradient steps after every further 8."""
    env = DummyVecEnv([make_env, make_env])
    if policy is None:
        policy = POLICIES[algorithm]
        policy_kwargs = {"scene": Scene.of(env), "encoder": encoder, "policy_gradient_scale": 1.0} | (
            policy_kwargs or {}
        )
    return algorithm(policy, env, policy_kwargs={"net_arch": [16, 16]} | (policy_kwargs or {}), **OPTIONS | kwargs)


def watch_gradients(optimizer: torch.optim.Optimizer, *modules: torch.nn.Module) -> list[list[torch.Tensor]]:
    """The gradients of modules at every step of an optimiser, zeros where there is none."""
    seen: list[list[torch.Tensor]] = []

    def record(*_: Any) -> None:
        parameters = [p for module in modules for p in module.parameters()]
        seen.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    optimizer.register_step_pre_hook(record)
    return seen


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- how often -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", [PPO, SAC, TQC])
def test_one_call_per_gradient_step_carries_the_auxiliary_loss(algorithm: type) -> None:
    model = make_ppo() if algorithm is PPO else make_model(algorithm)
    carried, steps = [], []
    model.policy.decoder.views[0].register_forward_hook(  # quality is measured without gradients
        lambda *_: carried.append(1) if torch.is_grad_enabled() else None
    )
    encoder = model.policy.features_extractor.encoder

    def count(*_: Any) -> None:
        steps.append(len(carried))
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.policy.decoder.parameters())
        assert any(p.grad.abs().sum() > 0 for p in encoder.parameters())

    model.policy.encoder_optimizer.register_step_pre_hook(count)
    model.learn(64, callback=AuxiliaryCallback(QUIET))
    assert len(steps) >= 12 and steps == list(range(1, len(steps) + 1))
    assert len(carried) == model.policy.auxiliary.calls == len(steps)
    assert type(model).train is algorithm.train and type(model) is algorithm


@both
@pytest.mark.parametrize(
    ("joint", "policy_gradient", "with_gradient"), [(True, 1.0, True), (True, 0.0, True), (False, 0.0, False)]
)
def test_a_batch_is_encoded_once(algorithm: type, joint: bool, policy_gradient: float, with_gradient: bool) -> None:
    """Observations once, with gradient if anything is to be trained by it; next observations once, without."""
    model = make_model(algorithm, policy_kwargs={"policy_gradient_scale": policy_gradient})
    passes, batches = [], []
    model.policy.features_extractor.encoder.register_forward_pre_hook(
        lambda module, inputs: passes.append((inputs[0], torch.is_grad_enabled())) if module.training else None
    )
    sample = model.replay_buffer.sample
    model.replay_buffer.sample = lambda *a, **k: batches.append(sample(*a, **k)) or batches[-1]
    model.learn(40, callback=AuxiliaryCallback(dataclasses.replace(QUIET, joint=joint)))
    expected = []
    for batch in batches:
        expected += [(batch.observations["images"], with_gradient), (batch.next_observations["images"], False)]
    assert len(batches) == 8 and len(passes) == len(expected)
    for (images, gradient), (expected_images, expected_gradient) in zip(passes, expected, strict=True):
        assert images is expected_images and gradient == expected_gradient
        assert images.dtype == torch.uint8  # untouched


def test_nothing_is_kept_outside_training() -> None:
    model = make_model()
    policy = model.policy
    model.learn(24, callback=AuxiliaryCallback(QUIET))
    observation = policy.obs_to_tensor(model.get_env().reset())[0]

    def read() -> torch.Tensor:
        return policy.actor.features_extractor(observation)

    policy.set_training_mode(True)
    trained = read()
    assert torch.equal(trained, read())
    with torch.no_grad():
        for parameter in policy.features_extractor.parameters():
            parameter.mul_(1.2)
    assert torch.equal(trained, read())  # within a step nothing is encoded twice
    policy.set_training_mode(False)
    now = read()
    assert not torch.equal(trained, now) and torch.equal(now, policy.features_extractor(observation))
    policy.set_training_mode(True)
    assert torch.equal(now, read())
    observation["images"].zero_()  # in place: the same tensor, another batch
    assert not torch.equal(now, read())


def test_a_batch_that_is_trained_on_again_is_encoded_again() -> None:
    policy = make_model().policy
    observation = policy.obs_to_tensor(DummyVecEnv([DotEnv]).reset())[0]
    policy.set_training_mode(True)
    for _ in range(3):
        loss = sum(q.sum() for q in policy.critic(observation, torch.zeros(1, 3)))
        policy.critic.optimizer.zero_grad()
        loss.backward()
        assert gradient_norm(policy.features_extractor) > 0


def test_rollouts_and_predictions_build_no_graph_and_carry_nothing() -> None:
    model = make_model()
    observation = model.get_env().reset()
    closed, _ = model.predict(observation, deterministic=True)
    model.policy.auxiliary.is_open = True
    opened, _ = model.predict(observation, deterministic=True)
    assert np.array_equal(closed, opened) and model.policy.auxiliary.calls == 0
    assert not model.policy.features_extractor.training and not model.policy.decoder.training


# --- which gradient goes where ---------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("joint", [True, False])
def test_without_the_critics_gradient_only_the_auxiliary_loss_moves_the_encoder(algorithm: type, joint: bool) -> None:
    model = make_model(algorithm, policy_kwargs={"policy_gradient_scale": 0.0})
    encoder, decoder = model.policy.features_extractor.encoder, model.policy.decoder
    before = copy_of(encoder), copy_of(decoder)
    model.learn(24, callback=AuxiliaryCallback(dataclasses.replace(QUIET, joint=joint)))
    for module, old in zip((encoder, decoder), before, strict=True):
        assert moved(module, old) == ({name for name, _ in module.named_parameters()} if joint else set())


@both
def test_the_auxiliary_loss_alone_leaves_actor_and_critics(algorithm: type) -> None:
    model = make_model(algorithm)
    parts = (model.policy.actor, model.policy.critic, model.policy.critic_target)
    before = [copy_of(part) for part in parts]
    seen = []

    class AfterWarmup(AuxiliaryCallback):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            seen.append([moved(part, old) for part, old in zip(parts, before, strict=True)])
            assert self.auxiliary.calls == 3

    model.learn(32, callback=AfterWarmup(AuxiliaryConfig(warmup_frames=16, warmup_steps=3, batch_size=4)))
    assert seen == [[set()] * 3]
    assert all(moved(part, old) for part, old in zip(parts, before, strict=True))  # which training then moves


@both
def test_the_critics_gradient_reaches_the_encoder_scaled(algorithm: type) -> None:
    def gradients(scale: float) -> list[torch.Tensor]:
        model = make_model(algorithm, policy_kwargs={"policy_gradient_scale": scale})
        seen = watch_gradients(model.critic.optimizer, model.policy.features_extractor)
        model.learn(16)
        return seen[0]

    whole, part, none = gradients(1.0), gradients(0.25), gradients(0.0)
    assert sum(float(g.abs().sum()) for g in whole) > 0
    for a, b, c in zip(whole, part, none, strict=True):
        assert torch.allclose(0.25 * a, b, rtol=1e-4, atol=1e-9)
        assert not c.any()


@both
@pytest.mark.parametrize("pixels", [False, True])
def test_the_actors_loss_never_reaches_the_encoder(algorithm: type, pixels: bool) -> None:
    """Between critic's and actor's step, the actor's loss adds to the critic's gradients, not to the encoder's."""
    if pixels:
        model = make_model(algorithm, make_env=pixel_env, policy=PIXELS[algorithm])
    else:
        model = make_model(algorithm)
    encoder, critic = model.policy.features_extractor, model.critic
    at_critic = watch_gradients(critic.optimizer, encoder), watch_gradients(critic.optimizer, critic)
    at_actor = watch_gradients(model.actor.optimizer, encoder), watch_gradients(model.actor.optimizer, critic)
    model.learn(24)
    assert len(at_critic[0]) == len(at_actor[0]) == 4
    for step in range(4):
        assert equal(at_critic[0][step], at_actor[0][step])
        assert any(g.any() for g in at_critic[0][step])
        assert not equal(at_critic[1][step], at_actor[1][step])


@both
@pytest.mark.parametrize("weight", [1.0, 1e6])
def test_the_policys_gradients_are_unchanged_by_the_seam(algorithm: type, weight: float) -> None:
    """Bit for bit as the optimisers see them, also where the auxiliary gradient is huge and both are clipped."""

    def gradients(joint: bool) -> list[list[torch.Tensor]]:
        weights = LossWeights(reconstruction=weight, multiview=weight)
        model = make_model(algorithm, dataclasses.replace(SMALL, loss=weights))
        seen = []

        class Record(AuxiliaryCallback):
            def _on_training_start(self) -> None:
                super()._on_training_start()  # installs the clippers first
                seen.append(watch_gradients(model.critic.optimizer, model.critic))
                seen.append(watch_gradients(model.actor.optimizer, model.actor))

        clip = ClipConfig(policy=0.01)
        model.learn(16, callback=Record(dataclasses.replace(QUIET, joint=joint, clip=clip)))
        assert model.policy.auxiliary.calls == (2 if joint else 0)
        return [steps[0] for steps in seen]

    for alone, beside in zip(gradients(False), gradients(True), strict=True):
        assert equal(alone, beside) and len(alone) >= 6
        assert torch.cat([g.flatten() for g in alone]).norm() == pytest.approx(0.01, rel=1e-3)  # clipped


# --- structure -------------------------------------------------------------------------------------------------------
@both
def test_only_the_policy_has_an_encoder(algorithm: type) -> None:
    model = make_model(algorithm, tau=1.0)
    policy = model.policy
    for part in (policy.actor, policy.critic, policy.critic_target):
        assert not list(part.features_extractor.parameters()) and not list(part.features_extractor.buffers())
        assert not any("encoder" in name or "extractor" in name for name in part.state_dict())
    model.learn(24, callback=AuxiliaryCallback(QUIET))
    assert equal(list(policy.critic.parameters()), list(policy.critic_target.parameters()))  # tau = 1: copied


@both
def test_every_parameter_is_in_one_optimizer(algorithm: type) -> None:
    policy = make_model(algorithm, policy_kwargs={"learning_rate_scale": 7.0}).policy

    def names(group: dict) -> set[str]:
        held = {id(p) for p in group["params"]}
        return {name for name, p in policy.named_parameters() if id(p) in held}

    def of(*parts: str) -> set[str]:
        return {name for name, _ in policy.named_parameters() if name.split(".")[0] in parts}

    (actor,), (critic, encoder) = policy.actor.optimizer.param_groups, policy.critic.optimizer.param_groups
    assert names(actor) == of("actor") and names(critic) == of("critic")
    assert names(encoder) == of("features_extractor", "decoder") and encoder["lr_scale"] == 7.0
    assert policy.encoder_optimizer is policy.critic.optimizer


def test_weights_of_encoder_and_decoder_have_the_same_names_everywhere() -> None:
    def shapes(policy: torch.nn.Module) -> dict[str, torch.Size]:
        state = policy.state_dict()
        return {name: state[name].shape for name in state if name.startswith(("features_extractor.", "decoder."))}

    ppo, *others = (model.policy for model in (make_ppo(SMALL), make_model(SAC), make_model(TQC)))
    assert len(shapes(ppo)) > 10 and [shapes(other) for other in others] == [shapes(ppo)] * 2


def test_the_encoder_keeps_its_initial_weights() -> None:
    for layer in make_model().policy.features_extractor.encoder.modules():
        if isinstance(layer, torch.nn.Conv2d):
            bound = 1 / math.sqrt(layer.in_channels * layer.kernel_size[0] ** 2)
            assert layer.weight.abs().max() <= bound + 1e-6 and layer.bias.abs().max() > 0


@both
def test_save_and_load(algorithm: type, tmp_path) -> None:  # noqa: ANN001
    model = make_model(algorithm)
    model.learn(24, callback=AuxiliaryCallback(QUIET))
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    observation = model.get_env().reset()
    expected, _ = model.predict(observation, deterministic=True)
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    states = [m.critic.optimizer.state_dict()["state"] for m in (model, loaded)]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 10
    for number, state in states[0].items():
        assert torch.equal(state["exp_avg"], states[1][number]["exp_avg"])
    loaded.learn(24, callback=AuxiliaryCallback(QUIET), reset_num_timesteps=False)
    assert loaded.policy.auxiliary.calls > 0 and not np.array_equal(loaded.predict(observation)[0], expected)

    fresh = make_model(algorithm, seed=1).policy
    assert not np.array_equal(fresh.predict(observation, deterministic=True)[0], expected)
    fresh.load_state_dict(model.policy.state_dict())
    assert np.array_equal(fresh.predict(observation, deterministic=True)[0], expected)

    model.policy.save(tmp_path / "policy.pt")
    alone = type(model.policy).load(tmp_path / "policy.pt", device="cpu")
    assert np.array_equal(alone.predict(observation, deterministic=True)[0], expected)


def test_a_policy_of_ppo_can_be_saved_alone_too(tmp_path) -> None:  # noqa: ANN001
    policy = make_ppo().policy
    policy.save(tmp_path / "policy.pt")
    observation = DummyVecEnv([DotEnv]).reset()
    alone = KeypointPolicy.load(tmp_path / "policy.pt", device="cpu")
    expected = policy.predict(observation, deterministic=True)[0]
    assert np.array_equal(alone.predict(observation, deterministic=True)[0], expected)


def test_copies_stand_on_their_own() -> None:
    model = make_model()
    model.learn(16, callback=AuxiliaryCallback(QUIET))
    policy, observation = model.policy, model.get_env().reset()
    tensors = policy.obs_to_tensor(observation)[0]
    policy.set_training_mode(True)
    policy.actor.features_extractor(tensors)  # keeps a graph for the critic, and tensors with one cannot be copied
    assert policy._readings.kept[0].graph is not None
    twin = copy.deepcopy(policy)
    policy.set_training_mode(False)
    expected, before = policy.predict(observation, deterministic=True)[0], copy_of(policy)
    twin.auxiliary.is_open = True
    loss = sum(q.sum() for q in twin.critic(tensors, torch.zeros(2, 3)))
    loss.backward()
    twin.critic.optimizer.step()
    assert twin.auxiliary.calls == policy.auxiliary.calls + 1 and not policy.auxiliary.is_open
    assert moved(twin.features_extractor, {n[19:]: v for n, v in before.items() if n.startswith("features_extractor")})
    assert not moved(policy, before)
    assert np.array_equal(policy.predict(observation, deterministic=True)[0], expected)
    twin.set_training_mode(False)
    assert not np.array_equal(twin.predict(observation, deterministic=True)[0], expected)


# --- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", [KeypointSACPolicy, KeypointTQCPolicy])
@pytest.mark.parametrize("share", [True, False])
def test_a_choice_between_encoders_is_refused(policy: type, share: bool) -> None:
    env = DotEnv()
    arguments = (env.observation_space, env.action_space, lambda _: 1e-3)
    with pytest.raises(UserError, match=f"{policy.__name__} has one encoder.*got {share}"):
        policy(*arguments, scene=Scene.of(env), share_features_extractor=share)


@pytest.mark.parametrize(
    ("algorithm", "space", "said"),
    [
        ("SAC", gym.spaces.Discrete(4), r"SAC acts in Box, .* Discrete\(4\); algorithms that fit: PPO"),
        ("TQC", gym.spaces.MultiBinary(3), r"TQC acts in Box, .* MultiBinary\(3\); algorithms that fit: PPO"),
        ("PPO", gym.spaces.Text(3), "PPO acts in Box, Discrete, .* no algorithm here fits"),
        ("SAC", gym.spaces.Box(-np.inf, np.inf, (2,)), "SAC needs actions with finite bounds"),
    ],
)
def test_an_algorithm_that_does_not_fit_the_actions_is_refused(algorithm: str, space: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        require_action_space(algorithm, space)
    if algorithm == "SAC":
        with pytest.raises(UserError, match=said.replace("SAC", "KeypointSACPolicy")):
            KeypointSACPolicy(DotEnv().observation_space, space, lambda _: 1e-3, scene=dot_scene())
    require_action_space(algorithm, DotEnv().action_space)


def test_a_policy_without_keypoints_fails_loudly_at_training_start() -> None:
    model = make_model(make_env=pixel_env, policy=PixelSACPolicy)
    with pytest.raises(UserError, match="whose encoder has a loss of its own.*got PixelSACPolicy"):
        model.learn(16, callback=AuxiliaryCallback(QUIET))


# --- random shifts ---------------------------------------------------------------------------------------------------
def test_shifts_change_training_and_not_acting() -> None:
    plain, shifting = make_model(), make_model(encoder=dataclasses.replace(SMALL, random_shift=3))
    shifting.policy.load_state_dict(plain.policy.state_dict())
    observation = plain.get_env().reset()
    tensors = plain.policy.obs_to_tensor(observation)[0]
    for training in (False, True):
        features = []
        for model in (plain, shifting):
            model.policy.set_training_mode(training)
            torch.manual_seed(0)
            features.append(model.policy.actor.features_extractor(tensors))
        assert torch.equal(*features) == (not training)
    actions = [model.predict(observation, deterministic=True)[0] for model in (plain, shifting)]
    assert np.array_equal(*actions)


def test_both_batches_of_a_step_are_shifted_and_targets_are_not() -> None:
    model, batches, seen, targets = make_model(encoder=dataclasses.replace(SMALL, random_shift=3)), [], [], []
    sample = model.replay_buffer.sample
    model.replay_buffer.sample = lambda *a, **k: batches.append(sample(*a, **k)) or batches[-1]
    extractor = model.policy.features_extractor
    extractor.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs) if module.training else None)
    terms = extractor.terms
    extractor.terms = lambda observations, found: targets.append(observations["images"]) or terms(observations, found)
    model.learn(16, callback=AuxiliaryCallback(QUIET))
    assert len(batches) == len(targets) == 2 and len(seen) == 4
    for number, batch in enumerate(batches):
        assert targets[number] is batch.observations["images"]
        for (images, _, offset), given in zip(
            seen[2 * number :], (batch.observations, batch.next_observations), strict=False
        ):
            assert not torch.equal(images, given["images"]) and images.dtype == torch.uint8
            assert offset.abs().max() == 3


def test_unsupervised_steps_are_shifted_and_ppos_minibatches_are_not() -> None:
    model, offsets = make_ppo(dataclasses.replace(SMALL, random_shift=3)), []
    encoder = model.policy.features_extractor.encoder
    encoder.register_forward_pre_hook(
        lambda module, inputs: offsets.append(inputs[2] is not None) if torch.is_grad_enabled() else None
    )
    model.learn(32, callback=AuxiliaryCallback(AuxiliaryConfig(warmup_frames=16, warmup_steps=3, steps_per_rollout=0)))
    assert offsets == [True] * 3 + [False] * 4


@both
def test_the_pixel_baseline_shifts_too(algorithm: type) -> None:
    options = {"features_extractor_kwargs": {"random_shift": 4}}
    model = make_model(algorithm, make_env=pixel_env, policy=PIXELS[algorithm], policy_kwargs=options)
    seen = []
    model.policy.features_extractor.cnn.register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, torch.is_grad_enabled()))
    )
    before = copy_of(model.policy.features_extractor)
    model.learn(24)
    assert [gradient for training, gradient in seen if training] == [True, False] * 4
    assert moved(model.policy.features_extractor, before) == set(before)
    tensors = model.policy.obs_to_tensor(model.get_env().reset())[0]
    acting = model.policy.features_extractor.encode(tensors)[0]
    assert torch.equal(acting, model.policy.features_extractor(tensors))
    assert not torch.equal(acting, model.policy.features_extractor.encode(tensors, augment=True)[0])


# --- the callback ----------------------------------------------------------------------------------------------------
@both
def test_the_warm_up_fills_the_replay_and_gives_its_frames_back(algorithm: type) -> None:
    model, seen = make_model(algorithm), []
    config = AuxiliaryConfig(warmup_frames=40, warmup_steps=2, batch_size=4, buffer_frames=10_000)

    class Watch(AuxiliaryCallback):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            replay = model.replay_buffer
            seen.append((model.num_timesteps, int(replay.counts.sum()), len(self.unsupervised.frames)))
            assert self.unsupervised.frames.capacity == 4 * self.quality_frames
            sample = replay._get_samples(np.arange(20))  # held for 8 steps each
            assert [len(set(map(tuple, part.tolist()))) for part in sample.actions.split(8)] == [1, 1, 1]
            assert np.array_equal(model._last_obs["proprio"], np.full((2, 2), 0.5))

    model.learn(96, callback=Watch(config, quality_frames=8))
    assert seen == [(40, 40, 0)]
    assert model.replay_buffer.counts.sum() == 96


class WideDotEnv(DotEnv):
    """Its actions go from -4 to 4, and it tells which it got."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(-4.0, 4.0, (3,), np.float32)
        self.got: list[np.ndarray] = []

    def step(self, action: np.ndarray) -> Any:
        self.got.append(np.array(action))
        return super().step(action / 4)


def test_the_warm_up_stores_actions_as_the_actor_gives_them() -> None:
    """Between -1 and 1, whatever the environment takes; SB3's own random steps are stored so, too."""
    model = make_model(make_env=WideDotEnv)

    class Watch(AuxiliaryCallback):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            played = np.stack([env.got for env in model.get_env().envs], 1).reshape(-1, 3)
            stored = model.replay_buffer._get_samples(np.arange(40)).actions.numpy()
            assert np.abs(played).max() > 2
            assert np.allclose(np.sort(stored, 0), np.sort(played / 4, 0), atol=1e-6)
            watched.append(len(stored))

    watched: list[int] = []
    model.learn(96, callback=Watch(AuxiliaryConfig(warmup_frames=40, warmup_steps=1, batch_size=4)))
    assert watched == [40]


def test_the_warm_up_leaves_normalised_environments_consistent() -> None:
    """SB3 stores the original of the last observation, so a reset has to renew that too."""
    env = VecNormalize(DummyVecEnv([DotEnv]), norm_obs_keys=["proprio"])
    policy_kwargs = {"scene": Scene.of(env), "encoder": SMALL, "net_arch": [16]}
    model = SAC(KeypointSACPolicy, env, policy_kwargs=policy_kwargs, **OPTIONS)
    starts = []

    class Watch(AuxiliaryCallback):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            starts.append({key: value.copy() for key, value in env.get_original_obs().items()})

    model.learn(16, callback=Watch(AuxiliaryConfig(warmup_frames=4, warmup_steps=1, batch_size=2)))
    stored = model.replay_buffer._get_samples(np.array([4])).observations
    for key, value in starts[0].items():
        assert np.array_equal(stored[key].numpy(), value)


def test_quality_and_gradient_norms_are_measured_once_per_period() -> None:
    model, logged, measured, updates = make_model(), [], [], []

    class Watch(AuxiliaryCallback):
        def _log_quality(self) -> None:
            super()._log_quality()
            logged.append(model.num_timesteps)

        def _measure(self) -> None:
            measured.append(self.auxiliary.measured is not None)
            updates.append(self.clipper.updates)
            super()._measure()

    callback = Watch(QUIET, period=40)
    model.learn(200, callback=callback)
    assert logged == [40, 80, 120, 160]
    assert len(measured) == 2 * 24 and measured.count(True) == 5 and measured[0]  # 8 steps without, then 2 each 8
    assert sorted(set(updates)) == [0, 1, 2, 3, 4]  # what the encoder's clip decays with
    assert len(callback.unsupervised.frames) <= 4 * callback.quality_frames
    assert callback.gradient_norms.keys() == {"auxiliary", "policy"} and min(callback.gradient_norms.values()) > 0


@both
def test_what_is_logged(algorithm: type) -> None:
    model = make_model(algorithm)
    model.learn(96, callback=AuxiliaryCallback(QUIET, period=40), log_interval=1000)
    logged = model.logger.name_to_value
    for name in ("actor", "critic", "encoder", "encoder_from_policy", "encoder_from_auxiliary"):
        assert logged[f"gradients/{name}"] > 0
    for name in ("reconstruction", "multiview", "separation"):
        assert logged[f"auxiliary/{name}"] > 0
    assert logged["keypoints/reconstruction_ratio"] > 0


def test_pixels_are_weighed_once_right_before_the_first_update() -> None:
    model, weighed = make_model(learning_starts=40), []
    model.policy.decoder.weigh_pixels = lambda images: weighed.append((model.num_timesteps, len(images)))
    model.learn(64, callback=AuxiliaryCallback(QUIET))
    assert weighed == [(48, 48)] and model._n_updates == 6
    model.learn(64, callback=AuxiliaryCallback(QUIET), reset_num_timesteps=False)
    assert len(weighed) == 1


def poisoned(model: OffPolicyAlgorithm, optimizer: torch.optim.Optimizer, callback: type, *arguments: Any) -> Any:
    """A callback before whose clipper an optimiser's gradients become NaN."""

    def poison(*_: Any) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad.fill_(math.nan)

    class Poison(callback):
        def _on_training_start(self) -> None:
            optimizer.register_step_pre_hook(poison)
            super()._on_training_start()

    return Poison(*arguments)


@both
@pytest.mark.parametrize("kind", ["keypoints", "pixels", "state"])
@pytest.mark.parametrize("part", ["actor", "critic"])
def test_gradients_that_are_no_numbers_stop_training_in_every_optimizer(algorithm: type, kind: str, part: str) -> None:
    callback, arguments = ClippingCallback, ()
    if kind == "keypoints":
        model, callback, arguments = make_model(algorithm), AuxiliaryCallback, (QUIET,)
    elif kind == "pixels":
        model = make_model(algorithm, make_env=pixel_env, policy=PIXELS[algorithm])
    else:
        model = make_model(algorithm, make_env=StateEnv, policy="MultiInputPolicy")
    module = getattr(model, part)
    before = copy_of(module)
    with pytest.raises(NonFiniteError, match=f"gradient of the {part} is NaN"):
        model.learn(64, callback=poisoned(model, module.optimizer, callback, *arguments))
    assert not moved(module, before)


@both
@pytest.mark.parametrize("kind", ["pixels", "state"])
def test_policies_without_keypoints_are_clipped(algorithm: type, kind: str) -> None:
    if kind == "pixels":
        model = make_model(algorithm, make_env=pixel_env, policy=PIXELS[algorithm])
    else:
        model = make_model(algorithm, make_env=StateEnv, policy="MultiInputPolicy")
    norms = []

    class Watch(ClippingCallback):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            for optimizer in (model.actor.optimizer, model.critic.optimizer):
                optimizer.register_step_pre_hook(lambda used, *_: norms.append(group_norm(used)))

    model.learn(40, callback=Watch(ClipConfig(policy=1e-3), period=16), log_interval=1000)
    assert len(norms) == 16 and max(norms) <= 1e-3 * 1.001 and min(norms) > 0.9e-3
    assert model.logger.name_to_value["gradients/critic"] > 1e-3 < model.logger.name_to_value["gradients/actor"]
    assert len(model.critic.optimizer._optimizer_step_pre_hooks) == 1  # the one above: the clipper's is gone


def group_norm(optimizer: torch.optim.Optimizer) -> float:
    gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(torch.cat(gradients).norm())


class StateEnv(DotEnv):
    """The dot's position instead of views."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Dict({"state": gym.spaces.Box(-1, 1, (3,), np.float32)})

    def observe(self) -> dict[str, np.ndarray]:
        return {"state": self.dot.astype(np.float32)}


def test_moving_cameras_train_on_the_poses_of_their_own_frame() -> None:
    """Poses travel with the frame through the replay, shifted or not."""
    model, seen = make_model(make_env=MovingDotEnv), []
    model.policy.features_extractor.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    model.learn(40, callback=AuxiliaryCallback(AuxiliaryConfig(warmup_frames=8, warmup_steps=2, batch_size=4)))
    assert len(seen) > 10
    for images, poses, *_ in seen:
        for frame, pose in zip(images.numpy(), poses.numpy(), strict=True):
            assert int(pose[0, 0, 3] * 1000) % 256 == frame[0, 0, 0, 0]  # see MovingDotEnv


# --- it learns -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def errors(policy: torch.nn.Module, images: torch.Tensor) -> dict[str, float]:
    """How well frames that were never trained on are drawn.

    ``foreground``: squared error where something is, relative to drawing nothing. ``place``: error of drawing each
    frame from its own keypoints relative to another frame's; 1 where keypoints do not tell frames apart.
    """
    extractor, decoder, target = policy.features_extractor, policy.decoder, images.permute(0, 1, 4, 2, 3).float() / 255
    views = torch.arange(images.shape[1])
    drawn, other = (
        decoder(extractor.encoder(shown), extractor.encoder, views) for shown in (images, images.roll(1, 0))
    )
    there = (target - decoder.background).abs().amax(2, keepdim=True) > 0.1
    return {
        "foreground": float((there * (drawn - target) ** 2).sum() / (there * (decoder.background - target) ** 2).sum()),
        "place": float(((drawn - target) ** 2).mean() / ((other - target) ** 2).mean()),
    }


def test_sac_learns_keypoints_on_the_dot_world() -> None:
    encoder = Keypoint3DConfig(keypoints=8, width=8, decoder_width=16, random_shift=1)
    options = {"batch_size": 16, "gradient_steps": 8, "learning_rate": 5e-4}
    model = make_model(encoder=encoder, policy_kwargs={"policy_gradient_scale": 0.1}, **options)
    images, _ = dot_frames(dot_scene(), 64, seed=9)
    before = errors(model.policy, images)
    model.learn(320, callback=AuxiliaryCallback(QUIET))
    after = errors(model.policy, images)
    assert model._n_updates == 312
    assert after["foreground"] < 0.5 * before["foreground"] and after["place"] < 0.9 < before["place"], (before, after)


class TQCKeypointPolicy(OffPolicyAuxiliary, TQCMultiInputPolicy):
    """All that a user writes."""


def test_tqc_trains_reach_with_a_policy_class_of_a_few_lines() -> None:
    assert len(inspect.getsource(TQCKeypointPolicy).splitlines()) <= 10
    make = functools.partial(
        registry.make, "reach-multiview", cameras="left,right", height=32, width=32, observe=("images", "proprio")
    )
    env = make_vec_env([make] * 4, seed=0)
    encoder = Keypoint3DConfig(keypoints=8, width=8, decoder_width=16)
    options = {"scene": Scene.of(env), "encoder": encoder, "net_arch": [32, 32]}
    options = {"policy_kwargs": options} | OPTIONS | {"buffer_size": 2000, "batch_size": 24, "learning_rate": 1e-3}
    model = TQC(TQCKeypointPolicy, env, **options | {"train_freq": 10, "gradient_steps": 3, "learning_starts": 100})
    frames = [env.reset()["images"] for _ in range(8)]  # every reset puts arm and target elsewhere
    images = torch.as_tensor(np.concatenate(frames))
    before = errors(model.policy, images)
    model.learn(2000, callback=AuxiliaryCallback(QUIET))
    after = errors(model.policy, images)
    assert model.num_timesteps == 2000 and model._n_updates == 144 == model.policy.auxiliary.calls
    assert after["foreground"] < 0.5 * before["foreground"] and after["place"] < 0.95 < before["place"], (before, after)
    env.close()
