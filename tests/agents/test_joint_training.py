"""Joint training: unmodified SB3 trains encoder and decoder by the auxiliary loss, and only where it should."""

from __future__ import annotations

import dataclasses
import inspect
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.callbacks import AuxiliaryCallback, AuxiliaryConfig, ClippingCallback
from agents.clipping import ClipConfig
from agents.finite import NonFiniteError
from agents.policies import KeypointPolicy, PixelPolicy
from agents.scene import Scene
from agents.unsupervised import UnsupervisedTrainer
from envs.errors import UserError
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.losses import LossWeights
from tests.dotworld import DotEnv, dot_scene

SMALL = Keypoint3DConfig(keypoints=4, width=4, decoder_width=8)
QUIET = AuxiliaryConfig(warmup_frames=0, warmup_steps=0, steps_per_rollout=0)
EPOCHS, MINIBATCHES = 2, 2


def make_model(encoder: Keypoint3DConfig = SMALL, policy_gradient: float = 1.0, **kwargs) -> PPO:
    env = DummyVecEnv([DotEnv, DotEnv])
    kwargs = {"n_steps": 8, "batch_size": 8, "n_epochs": EPOCHS, "seed": 0, "max_grad_norm": math.inf} | kwargs
    policy_kwargs = {"scene": Scene.of(env), "encoder": encoder, "policy_gradient_scale": policy_gradient}
    return PPO(KeypointPolicy, env, policy_kwargs=policy_kwargs, device="cpu", **kwargs)


class KeepingLogger(Logger):
    """Keeps the last value of everything that is recorded."""

    def __init__(self, kept: dict[str, float]) -> None:
        super().__init__(None, [])
        self.kept = kept

    def record(self, key: str, value: object, exclude: object = None) -> None:
        self.kept[key] = value


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("joint", [True, False])
def test_one_ppo_update_moves_encoder_and_decoder_by_the_auxiliary_loss(joint: bool) -> None:
    """With the policy's gradient cut off, only the auxiliary loss can move them; closed, nothing does."""
    model = make_model(policy_gradient=0.0)
    encoder, decoder = model.policy.features_extractor.encoder, model.policy.decoder
    before_encoder, before_decoder = copy_of(encoder), copy_of(decoder)
    model.learn(16, callback=AuxiliaryCallback(dataclasses.replace(QUIET, joint=joint)))
    for module, before in ((encoder, before_encoder), (decoder, before_decoder)):
        assert moved(module, before) == ({name for name, _ in module.named_parameters()} if joint else set())


def test_the_algorithm_is_stable_baselines3s_own() -> None:
    assert inspect.getmodule(PPO.train).__name__ == "stable_baselines3.ppo.ppo"
    assert type(make_model()).train is PPO.train


def optimizer_gradients(weights: LossWeights, joint: bool, clip: ClipConfig) -> dict[str, torch.Tensor]:
    """The policy's gradients as the optimiser gets them in the first step of an update."""
    model = make_model(dataclasses.replace(SMALL, loss=weights))
    seen: list[dict[str, torch.Tensor]] = []

    def record(optimizer, args, kwargs) -> None:  # noqa: ANN001
        named = model.policy.named_parameters()
        seen.append({n: p.grad.clone() for n, p in named if "encoder" not in n and "decoder" not in n})

    class Record(AuxiliaryCallback):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            torch.manual_seed(1)  # the open seam draws noise; the minibatches come from numpy
            np.random.seed(1)
            model.policy.optimizer.register_step_pre_hook(record)

    model.learn(16, callback=Record(dataclasses.replace(QUIET, joint=joint, clip=clip)))
    return seen[0]


@pytest.mark.parametrize("weight", [1.0, 1e6])
def test_the_policys_gradient_is_unchanged_by_the_seam(weight: float) -> None:
    """Bit for bit, also where the auxiliary gradient is huge and both are clipped."""
    weights, clip = LossWeights(reconstruction=weight, multiview=weight), ClipConfig(policy=0.01)
    alone = optimizer_gradients(weights, joint=False, clip=clip)
    beside = optimizer_gradients(weights, joint=True, clip=clip)
    assert alone.keys() == beside.keys() and len(alone) > 8
    for name in alone:
        assert torch.equal(alone[name], beside[name]), name


def test_sb3s_common_clip_would_have_changed_it() -> None:
    """What the hook is there for: one norm over all parameters lets a huge auxiliary gradient shrink the policy's."""

    def policy_gradient_norm(weight: float) -> float:
        weights = LossWeights(reconstruction=weight, multiview=weight)
        model, norms = make_model(dataclasses.replace(SMALL, loss=weights), max_grad_norm=0.5), []
        model.policy.auxiliary.is_open = True
        model.policy.optimizer.register_step_pre_hook(
            lambda *_: norms.append(gradient_norm(model.policy.mlp_extractor))
        )
        model.learn(16)
        return norms[0]

    assert policy_gradient_norm(1e6) < 0.01 * policy_gradient_norm(0.0)
    with pytest.raises(UserError, match="max_grad_norm"):
        make_model(max_grad_norm=0.5).learn(16, callback=AuxiliaryCallback(QUIET))


def test_moving_cameras_train_on_the_poses_of_their_own_frame() -> None:
    """Poses travel with the observation through rollout buffer, frame buffer and quality frames."""
    env = DummyVecEnv([MovingDotEnv])
    policy_kwargs = {"scene": Scene.of(env), "encoder": SMALL}
    model = PPO(KeypointPolicy, env, n_steps=8, batch_size=8, policy_kwargs=policy_kwargs, max_grad_norm=math.inf)
    seen = []
    model.policy.features_extractor.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    config = AuxiliaryConfig(warmup_frames=8, warmup_steps=2, steps_per_rollout=1, batch_size=4)
    model.learn(24, callback=AuxiliaryCallback(config))
    assert len(seen) > 10
    for images, poses, *_ in seen:
        for frame, pose in zip(images.numpy(), poses.numpy(), strict=True):
            assert int(pose[0, 0, 3] * 1000) % 256 == frame[0, 0, 0, 0]  # see MovingDotEnv


class MovingDotEnv(DotEnv):
    """Cameras that drift; the first pixel says in thousandths of a metre where the first one stands."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space["camera_poses"] = gym.spaces.Box(-np.inf, np.inf, (3, 4, 4), np.float32)
        self.background = None

    def observe(self) -> dict[str, np.ndarray]:
        poses = self.scene.cameras.world_from_camera.astype(np.float32)
        poses[0, 0, 3] = (1000 + self.np_random.integers(100)) / 1000 + 5e-4
        observation = super().observe() | {"camera_poses": poses}
        observation["images"][0, 0, 0, 0] = int(poses[0, 0, 3] * 1000) % 256
        return observation


def test_once_per_minibatch_and_never_in_rollout_prediction_or_evaluation() -> None:
    model = make_model()
    decoded = []
    model.policy.decoder.views[0].register_forward_hook(lambda *_: decoded.append(torch.is_grad_enabled()))
    auxiliary = model.policy.auxiliary
    calls_before_training: list[int] = []

    class Count(AuxiliaryCallback):
        def _log_quality(self) -> None:  # the logged numbers are measured without gradients; not the question here
            calls_before_training.append(auxiliary.calls)

    model.learn(32, callback=Count(QUIET))  # two rollouts of 16
    assert auxiliary.calls == 2 * EPOCHS * MINIBATCHES
    assert calls_before_training == [0, EPOCHS * MINIBATCHES]
    assert decoded == [True] * (2 * EPOCHS * MINIBATCHES)
    observation = model.get_env().reset()
    model.predict(observation)
    model.policy.evaluate_actions(model.policy.obs_to_tensor(observation)[0], torch.zeros(2, 3))
    assert auxiliary.calls == len(decoded) == 2 * EPOCHS * MINIBATCHES


def test_rollout_actions_do_not_depend_on_an_open_gate() -> None:
    model = make_model()
    observation = model.get_env().reset()
    closed, _ = model.predict(observation, deterministic=True)
    model.policy.auxiliary.is_open = True
    opened, _ = model.predict(observation, deterministic=True)
    assert np.array_equal(closed, opened) and model.policy.auxiliary.calls == 0


def test_warmup_and_extra_steps_train_keypoints_and_leave_the_policy() -> None:
    model = make_model()
    encoder, decoder = model.policy.features_extractor.encoder, model.policy.decoder
    policy = {n: p.clone() for n, p in model.policy.named_parameters() if "encoder" not in n and "decoder" not in n}
    before = copy_of(encoder), copy_of(decoder)

    class AfterWarmup(AuxiliaryCallback):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            assert moved(encoder, before[0]) and moved(decoder, before[1])
            for name, value in model.policy.named_parameters():
                if name in policy:
                    assert torch.equal(value, policy[name]), name
            assert model.num_timesteps == 32
            assert model.policy.auxiliary.calls == 3

    config = AuxiliaryConfig(warmup_frames=32, warmup_steps=3, steps_per_rollout=2, batch_size=4, joint=False)
    model.learn(64, callback=AfterWarmup(config))
    assert model.policy.auxiliary.calls == 3 + 2 * 2  # two rollouts of 16 after 32 warm-up frames


@pytest.mark.parametrize("batch_size", [3, 5])
def test_unsupervised_steps_take_batches_of_the_stated_size(batch_size: int) -> None:
    model, sizes = make_model(), []
    model.policy.decoder.views[0].register_forward_hook(
        lambda _, inputs, drawn: sizes.append((len(drawn), drawn.requires_grad))
    )
    config = AuxiliaryConfig(warmup_frames=16, warmup_steps=4, steps_per_rollout=0, batch_size=batch_size, joint=False)
    model.learn(32, callback=AuxiliaryCallback(config))
    assert [size for size, trained in sizes if trained] == [batch_size] * 4


def test_quality_is_logged_before_the_first_training_step() -> None:
    model, dumped = make_model(), []

    class Dumps(Logger):
        def dump(self, step: int = 0) -> None:
            dumped.append((step, dict(self.name_to_value), model.policy.auxiliary.calls))
            super().dump(step)

    model.set_logger(Dumps(None, []))
    config = AuxiliaryConfig(warmup_frames=16, warmup_steps=2, batch_size=4)
    model.learn(32, callback=AuxiliaryCallback(config))
    step, logged, calls = dumped[0]
    assert step == 16 and calls == 0 and logged["keypoints/view_disagreement_cm"] > 0


@pytest.mark.parametrize("buffer_frames", [10, 1000])
def test_quality_is_judged_on_frames_that_were_never_trained_on(buffer_frames: int) -> None:
    model = make_model()
    judged, trained = [], set()

    class Watch(AuxiliaryCallback):
        def _log_quality(self) -> None:
            fresh_frames = self.unsupervised.fresh_frames

            def watched():  # noqa: ANN202
                frames = fresh_frames()
                shown = {frame.numpy().tobytes() for frame in frames["images"]}
                judged.append(len(shown))
                assert not shown & trained
                return frames

            self.unsupervised.fresh_frames = watched
            super()._log_quality()
            self.unsupervised.fresh_frames = fresh_frames

        def _on_rollout_start(self) -> None:
            trained.update(frame.tobytes() for frame in self.unsupervised.frames.last(10_000)["images"])
            super()._on_rollout_start()

    config = AuxiliaryConfig(warmup_frames=32, warmup_steps=1, steps_per_rollout=1, buffer_frames=buffer_frames)
    model.learn(64, callback=Watch(config, quality_frames=8))
    assert judged == [8, 8, 8]


def test_a_stop_is_heard_during_the_warm_up() -> None:
    model = make_model()

    class Stop(AuxiliaryCallback):
        def _on_step(self) -> bool:
            return False

    config = AuxiliaryConfig(warmup_frames=1000, warmup_steps=1000, steps_per_rollout=0)
    model.learn(4000, callback=Stop(config, should_stop=lambda: True))
    assert model.num_timesteps == 4 and model.policy.auxiliary.calls == 0  # one step of the warm-up, one of the rollout


def test_quality_is_judged_in_every_environment() -> None:
    """128 steps of 8 environments, 128 frames: a stride of 8 would show one environment's few episodes alone."""
    unsupervised = UnsupervisedTrainer(make_model().policy, quality_frames=128)
    for step in range(128):
        unsupervised.add({"images": np.array([[step, number] for number in range(8)], np.uint8)})
    shown = unsupervised.fresh_frames()["images"]
    assert len(shown) == 128 and sorted(set(shown[:, 1].tolist())) == list(range(8))
    assert shown[:, 0].min() == 0 and shown[:, 0].max() == 127


def test_no_unsupervised_step_between_a_rollout_and_its_update() -> None:
    """Stored values and log-probabilities belong to the encoder that made them: the first ratio is exactly 1."""
    model = make_model(n_epochs=1, batch_size=16)
    config = AuxiliaryConfig(warmup_frames=16, warmup_steps=2, steps_per_rollout=3, batch_size=4)
    model.learn(48, callback=AuxiliaryCallback(config))
    logged = dict(model.logger.name_to_value)
    assert abs(logged["train/approx_kl"]) < 1e-6


def test_encoder_keeps_its_initial_weights_at_step_zero() -> None:
    """SB3's orthogonal initialisation must not reach the extractor: norms of its convolutions stay torch's own."""
    encoder = make_model().policy.features_extractor.encoder
    for layer in encoder.modules():
        if isinstance(layer, torch.nn.Conv2d):
            bound = 1 / math.sqrt(layer.in_channels * layer.kernel_size[0] ** 2)
            assert layer.weight.abs().max() <= bound + 1e-6
            assert layer.bias.abs().max() > 0  # SB3 sets biases to 0


def test_decoder_is_the_policys_and_trained_by_its_one_optimizer() -> None:
    model = make_model()
    names = dict(model.policy.features_extractor.named_parameters())
    assert not any("decoder" in name for name in names)
    held = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert all(id(p) in held for p in model.policy.decoder.parameters())
    assert len(held) == sum(len(group["params"]) for group in model.policy.optimizer.param_groups)


def test_hook_is_installed_anew_at_every_training_start_and_removed_at_its_end() -> None:
    model = make_model()
    for _ in range(2):
        model.learn(16, callback=AuxiliaryCallback(QUIET), reset_num_timesteps=False)
        assert not model.policy.optimizer._optimizer_step_pre_hooks


def test_the_first_update_clips_at_the_stated_norm_and_the_next_below() -> None:
    clips = []

    class Watch(AuxiliaryCallback):
        def _measure(self) -> None:
            clips.append(self.config.clip.encoder_at(self.clipper.updates))

    clip = ClipConfig(encoder=15.0, encoder_decay=1.0)
    make_model().learn(32, callback=Watch(dataclasses.replace(QUIET, clip=clip)))
    assert clips == [15.0] * EPOCHS * MINIBATCHES + [14.0] * EPOCHS * MINIBATCHES


def test_weight_schedule_falls_linearly() -> None:
    scales = []

    class Watch(AuxiliaryCallback):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            scales.append(self.auxiliary.scale)

    make_model().learn(64, callback=Watch(dataclasses.replace(QUIET, final_scale=0.0)))
    assert scales == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_logged_terms_and_gradient_norms() -> None:
    model = make_model()
    logged: dict[str, float] = {}
    model.set_logger(KeepingLogger(logged))
    model.learn(32, callback=AuxiliaryCallback(QUIET))
    for name in ("reconstruction", "multiview", "separation"):
        assert logged[f"auxiliary/{name}"] > 0
    for name in ("policy", "encoder", "encoder_from_policy", "encoder_from_auxiliary"):
        assert logged[f"gradients/{name}"] > 0
    assert logged["keypoints/reconstruction_ratio"] > 0 and logged["keypoints/view_disagreement_cm"] > 0


def test_gradients_that_are_none_stop_training_before_the_weights_are_touched() -> None:
    model = make_model()
    before = copy_of(model.policy.mlp_extractor)

    class Poison(AuxiliaryCallback):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            model.rollout_buffer.returns[:] = np.nan  # the value loss becomes NaN

    with pytest.raises(NonFiniteError, match="gradient of the policy"):
        model.learn(16, callback=Poison(QUIET))
    assert not moved(model.policy.mlp_extractor, before)


def test_policies_without_keypoints_are_clipped_and_checked_by_the_same_hook() -> None:
    model = PPO(PixelPolicy, DummyVecEnv([pixel_env]), n_steps=4, batch_size=4, max_grad_norm=math.inf, device="cpu")
    norms = []

    class Poison(ClippingCallback):
        def _on_rollout_end(self) -> None:
            if self.num_timesteps > 4:
                model.rollout_buffer.returns[:] = np.nan
            else:  # registered after the clipper, so it sees what the optimiser will use
                model.policy.optimizer.register_step_pre_hook(lambda *_: norms.append(gradient_norm(model.policy)))

    with pytest.raises(NonFiniteError, match="gradient of the policy"):
        model.learn(8, callback=Poison(ClipConfig(policy=1e-3)))
    assert norms and max(norms) <= 1e-3 * 1.001
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def gradient_norm(module: torch.nn.Module) -> float:
    return float(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm())


def test_a_policy_without_keypoints_fails_loudly_at_training_start() -> None:
    model = PPO(PixelPolicy, DummyVecEnv([pixel_env]), n_steps=4, batch_size=4, max_grad_norm=math.inf, device="cpu")
    with pytest.raises(UserError, match="whose encoder has a loss of its own.*got PixelPolicy"):
        model.learn(4, callback=AuxiliaryCallback(QUIET))


def test_two_extractors_are_refused() -> None:
    scene = dot_scene()
    env = DotEnv(scene)
    with pytest.raises(UserError, match="share_features_extractor"):
        KeypointPolicy(
            env.observation_space, env.action_space, lambda _: 1e-3, scene=scene, share_features_extractor=False
        )


def pixel_env() -> gym.Env:
    """The dot world at 40 px: the pixel baseline's strides need more than 32."""
    scene = dot_scene()
    rig = dataclasses.replace(scene.cameras, height=40, width=40)
    background = np.full((3, 40, 40, 3), 90, np.uint8)
    return DotEnv(Scene(rig, scene.box, background))


def test_the_extractor_sees_untouched_views_on_every_path() -> None:
    """SB3 converts 4-D boxes to float; the policies hand them over as they are: uint8, height-width-channel."""
    for model in (make_model(), PPO(PixelPolicy, DummyVecEnv([pixel_env]), n_steps=4, batch_size=4, device="cpu")):
        seen = set()
        model.policy.features_extractor.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.add((inputs[0]["images"].dtype, tuple(inputs[0]["images"].shape[2:])))
        )
        callback = AuxiliaryCallback(QUIET) if isinstance(model.policy, KeypointPolicy) else None
        model.learn(16, callback=callback)
        model.predict(model.get_env().reset())
        size = model.observation_space["images"].shape[1]
        assert seen == {(torch.uint8, (size, size, 3))}


def test_stored_frames_are_those_of_their_step() -> None:
    """SB3 stores the last observation after the next step: a live buffer would file every frame one step late."""
    model = make_model(n_steps=6, batch_size=6)
    shown = []

    class Watch(AuxiliaryCallback):
        def _on_rollout_start(self) -> None:
            super()._on_rollout_start()
            shown.append(self.model._last_obs["images"].copy())

        def _on_step(self) -> bool:
            shown.append(self.locals["new_obs"]["images"].copy())
            return super()._on_step()

        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            stored = self.model.rollout_buffer.observations["images"]
            assert stored.dtype == np.uint8
            assert np.array_equal(stored, np.stack(shown[:-1]))

    model.learn(12, callback=Watch(QUIET))
    assert len(shown) == 7 and not np.array_equal(shown[0], shown[1])
