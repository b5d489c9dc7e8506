"""Baselines are what they say: what the layers of each see, and when."""

from __future__ import annotations

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.baselines import CROP, AutoencoderExtractor, CURLExtractor, DrQExtractor, PixelExtractor, RADExtractor
from agents.callbacks import AuxiliaryCallback, AuxiliaryConfig
from agents.extractors import KeypointExtractor
from agents.offpolicy import AuxiliarySACPolicy, PixelSACPolicy
from agents.policies import AuxiliaryPolicy, PixelPolicy
from agents.replay import FrameReplayBuffer
from agents.scene import Scene
from agents.training_state import optimizers
from envs.errors import UserError
from kp3d_rl.augmentation import random_crop
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.losses import LossWeights
from tests.dotworld import DotEnv, dot_frames, dot_scene

SIDE, SMALL = 44, round(CROP * 44)


def space(side: int = SIDE) -> gym.spaces.Dict:
    return gym.spaces.Dict({"images": gym.spaces.Box(0, 255, (2, side, side, 3), np.uint8)})


def batch(count: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"images": torch.randint(0, 256, (count, 2, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the layers of pixel encoders are shown, (B, V, h, w, 3)."""
    shown: list[torch.Tensor] = []
    prepare = RADExtractor.prepare

    def keep(self: RADExtractor, images: torch.Tensor, augment: bool) -> torch.Tensor:
        shown.append(prepare(self, images, augment))
        return shown[-1]

    monkeypatch.setattr(RADExtractor, "prepare", keep)
    return shown


def test_rad_is_the_pixel_baseline_on_crops() -> None:
    """The same layers, and in evaluation exactly their output on the middle."""
    torch.manual_seed(0)
    rad, plain = RADExtractor(space()), PixelExtractor(space(SMALL))
    plain.load_state_dict(rad.state_dict())
    images, at = batch()["images"], (SIDE - SMALL) // 2
    middle = images[:, :, at : at + SMALL, at : at + SMALL]
    with torch.no_grad():
        assert torch.equal(rad.eval()({"images": images}), plain.eval()({"images": middle}))


def test_crops_are_random_where_gradients_are_wanted_and_nowhere_else(seen: list[torch.Tensor]) -> None:
    rad, images = RADExtractor(space()).train(), batch()["images"]
    rad({"images": images}), rad({"images": images})
    assert not torch.equal(seen[0], seen[1])
    windows = [images[:, :, y : y + SMALL, x : x + SMALL] for y in range(8) for x in range(8)]
    for sample, view in np.ndindex(6, 2):  # each is a window of its own view
        assert any(torch.equal(seen[0][sample, view], window[sample, view]) for window in windows)
    rad.eval()
    rad({"images": images})
    with torch.no_grad():
        rad.train()({"images": images})
    assert torch.equal(seen[2], seen[3]) and not torch.equal(seen[2], seen[0])


def test_ppo_acts_on_the_middle_and_learns_on_crops(seen: list[torch.Tensor]) -> None:
    class Noise(gym.Env):
        observation_space, action_space = space(), gym.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.image = {"images": np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)}
            return self.image, {}

        def step(self, action):
            return self.image, 0.0, False, False, {}

    model = PPO(
        PixelPolicy,
        DummyVecEnv([Noise]),
        n_steps=4,
        batch_size=4,
        n_epochs=2,
        max_grad_norm=math.inf,
        policy_kwargs={"features_extractor_class": RADExtractor},
    )
    model.learn(4)
    image = torch.as_tensor(Noise().reset()[0]["images"])[None]
    acted = [images for images in seen if len(images) == 1]
    learnt = [images for images in seen if len(images) == 4]
    at = (SIDE - SMALL) // 2
    assert len(acted) >= 4 and all(torch.equal(x, image[:, :, at : at + SMALL, at : at + SMALL]) for x in acted)
    assert len(learnt) == 2 and not torch.equal(learnt[0], learnt[1])
    assert len({bytes(row.numpy().tobytes()) for row in learnt[0]}) > 1, "each sample has a place of its own"


def test_views_that_are_too_small_for_crops_are_refused() -> None:
    with pytest.raises(UserError, match="needs? crops of at least 36 x 36 pixels, got 34 x 34"):
        RADExtractor(space(40))


# --- DrQ-v2 ----------------------------------------------------------------------------------------------------------
def test_drqv2_has_the_published_layers() -> None:
    """Yarats et al. 2021, appendix: 32 channels of 3 x 3 with strides 2, 1, 1, 1; 50 features, layer norm, tanh."""
    extractor = DrQExtractor(space(84))
    layers = [layer for layer in extractor.cnn if isinstance(layer, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in layers] == [
        (channels, 32, (3, 3), (stride, stride)) for channels, stride in zip((6, 32, 32, 32), (2, 1, 1, 1), strict=True)
    ]
    assert extractor.linear[0].in_features == 32 * 35 * 35 and extractor.features_dim == 50
    features = extractor({"images": torch.randint(0, 256, (2, 2, 84, 84, 3), dtype=torch.uint8)})
    assert features.abs().max() < 1 and torch.allclose(torch.atanh(features).mean(1), torch.zeros(2), atol=1e-4)
    assert extractor.random_shift == 4, "of 84 pixels"
    assert DrQExtractor(space(64)).random_shift == 3 and DrQExtractor(space(64), 7).random_shift == 7


def test_drqv2_sees_pixels_around_zero() -> None:
    """As the original, ``obs / 255 - 0.5``."""
    extractor, seen = DrQExtractor(space()), []
    extractor.cnn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = batch()["images"]
    extractor.eval()({"images": images})
    torch.testing.assert_close(seen[0], images.permute(0, 1, 4, 2, 3).flatten(1, 2) / 255.0 - 0.5)


def off_policy(policy: type, **policy_kwargs) -> SAC:
    """SAC in the dot's world, 2 environments, a gradient step after every 4 steps of each."""
    env = DummyVecEnv([DotEnv, DotEnv])
    if issubclass(policy, AuxiliarySACPolicy):
        policy_kwargs |= {"scene": Scene.of(env)}
    options = {"train_freq": 4, "gradient_steps": 1, "batch_size": 16, "buffer_size": 200, "learning_starts": 8}
    kwargs = {"net_arch": [16, 16]} | policy_kwargs
    return SAC(policy, env, policy_kwargs=kwargs, replay_buffer_class=FrameReplayBuffer, seed=0, **options)


def test_drqv2_is_trained_by_the_critic_on_shifted_views_and_acts_on_them_as_they_are(monkeypatch) -> None:
    shown: list[tuple[bool, torch.Tensor]] = []
    prepare = DrQExtractor.prepare

    def keep(self: DrQExtractor, images: torch.Tensor, augment: bool) -> torch.Tensor:
        shown.append((torch.equal(images, prepared := prepare(self, images, augment)), images))
        return prepared

    monkeypatch.setattr(DrQExtractor, "prepare", keep)
    model = off_policy(PixelSACPolicy, features_extractor_class=DrQExtractor)
    before = [parameter.clone() for parameter in model.policy.features_extractor.parameters()]
    model.learn(32)
    assert all(same for same, images in shown if len(images) == 2), "acting"
    trained = [same for same, images in shown if len(images) == 16]
    assert len(trained) == 2 * model._n_updates > 0 and not any(trained), "observations and next ones, once each"
    after = list(model.policy.features_extractor.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- CURL ------------------------------------------------------------------------------------------------------------
def curl() -> CURLExtractor:
    torch.manual_seed(0)
    return CURLExtractor(DotEnv().observation_space, Scene.of(DotEnv()), Keypoint3DConfig(precision="float32"))


def test_the_contrast_is_that_of_a_naive_loop(monkeypatch) -> None:
    """With one and the same crop for all, so that the crops are known."""
    monkeypatch.setattr("agents.baselines.random_crop", lambda images, h, w: images[:, :, 1 : 1 + h, 2 : 2 + w])
    extractor, images = curl(), dot_frames(dot_scene(), 5)[0]
    side = round(CROP * images.shape[2])
    seen = images[:, :, 1 : 1 + side, 2 : 2 + side].permute(0, 1, 4, 2, 3).flatten(1, 2) / 255.0
    with torch.no_grad():
        queries, keys = (torch.nn.Sequential(*e)(seen).double() for e in (extractor.encoder, extractor.key_encoder))
        weights = extractor.similarity.double()
        loss = 0.0
        for i in range(5):
            scores = [float(queries[i] @ weights @ keys[j]) for j in range(5)]
            loss -= (scores[i] - math.log(sum(math.exp(score) for score in scores))) / 5
        found = extractor.terms({"images": images})["contrast"]
    assert float(found) == pytest.approx(loss, rel=1e-4)


def test_anchors_and_keys_are_different_crops_of_the_same_views(monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr("agents.baselines.random_crop", lambda *args: drawn.append(random_crop(*args)) or drawn[-1])
    extractor, images = curl().train(), dot_frames(dot_scene(), 16)[0]
    _, anchors = extractor.encode({"images": images, "proprio": torch.zeros(16, 2)}, augment=True)
    extractor.terms({"images": images}, anchors)
    assert len(drawn) == 2 and drawn[0].shape == drawn[1].shape
    same = (drawn[0] == drawn[1]).flatten(2).all(-1)  # (16, V): by chance some views are cut at the same place
    assert same.float().mean() < 0.5


def test_curls_features_are_not_squashed_and_drqs_are() -> None:
    """The original's encoders give logits: behind the layer norm there is no tanh."""
    images = dot_frames(dot_scene(), 8)[0]
    with torch.no_grad():
        features = curl().encode({"images": images, "proprio": torch.zeros(8, 2)})[1]
        squashed = DrQExtractor(DotEnv().observation_space)({"images": images, "proprio": torch.zeros(8, 2)})[:, :-2]
    torch.testing.assert_close(features.mean(-1), torch.zeros(8), atol=1e-4, rtol=0)
    assert features.abs().max() > 1.5 and squashed.abs().max() <= 1.0


def test_keys_follow_slowly_and_get_no_gradient() -> None:
    """2.5 percent of the way in each step that trains: the original's 5 percent in every second one."""
    extractor = curl().train()
    with torch.no_grad():
        for parameter in extractor.encoder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    pairs = list(zip(extractor.key_encoder.parameters(), extractor.encoder.parameters(), strict=True))
    before = [(key.clone(), query.clone()) for key, query in pairs]
    extractor.total(extractor.terms({"images": dot_frames(dot_scene(), 4)[0]})).backward()
    for (key, query), (old, own) in zip(pairs, before, strict=True):
        assert torch.allclose(key, old + 0.025 * (own - old)) and key.grad is None and torch.equal(query, own)
    assert extractor.encoder[0][0].weight.grad.abs().sum() > 0 and extractor.similarity.grad.abs().sum() > 0
    with torch.no_grad():
        extractor.terms({"images": dot_frames(dot_scene(), 4)[0]})
    assert torch.allclose(pairs[0][0], before[0][0] + 0.025 * (before[0][1] - before[0][0])), "measuring moves nothing"


def test_curl_learns_to_tell_frames_apart_and_acts_on_the_middle() -> None:
    extractor, images = curl().train(), dot_frames(dot_scene(), 64)[0]
    before = extractor.quality({"images": images})["curl/recognised"]
    optimizer = torch.optim.Adam([p for p in extractor.parameters() if p.requires_grad], 1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        extractor.total(extractor.terms({"images": images})).backward()
        optimizer.step()
    assert before < 0.2 and extractor.quality({"images": images})["curl/recognised"] > 2 * before + 0.1
    side, extractor = round(CROP * images.shape[2]), extractor.eval()
    at = (images.shape[2] - side) // 2
    changed = images.clone()
    changed[:, :, :at] = 255 - changed[:, :, :at]
    changed[:, :, at + side :] = 255 - changed[:, :, at + side :]
    proprio = torch.zeros(64, 2)
    features = [extractor({"images": shown, "proprio": proprio}) for shown in (images, changed)]
    assert torch.equal(*features) and features[0].shape == (64, 52)


@pytest.mark.parametrize("extractor", [CURLExtractor, AutoencoderExtractor])
def test_sac_carries_their_losses_once_in_a_gradient_step(extractor: type) -> None:
    small = Keypoint3DConfig(keypoints=4, width=4, decoder_width=8, precision="float32")
    model = off_policy(AuxiliarySACPolicy, extractor=extractor, encoder=small)
    model.learn(48, callback=AuxiliaryCallback(AuxiliaryConfig(warmup_frames=16, warmup_steps=5)))
    assert model.policy.auxiliary.calls == 5 + model._n_updates > 8


@pytest.mark.parametrize("extractor", [CURLExtractor, AutoencoderExtractor])
@pytest.mark.parametrize("policy", [AuxiliaryPolicy, AuxiliarySACPolicy])
def test_all_that_their_losses_train_is_in_one_optimizer(policy: type, extractor: type) -> None:
    """CURL's similarity, too; its keys only follow."""
    small = Keypoint3DConfig(keypoints=4, width=4, decoder_width=8, precision="float32")
    if policy is AuxiliaryPolicy:
        env = DummyVecEnv([DotEnv])
        kwargs = {"scene": Scene.of(env), "encoder": small, "extractor": extractor}
        model = PPO(policy, env, n_steps=8, batch_size=8, policy_kwargs=kwargs, max_grad_norm=math.inf)
    else:
        model = off_policy(policy, extractor=extractor, encoder=small)
    groups = [group for optimizer in optimizers(model).values() for group in optimizer.param_groups]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    for name, parameter in model.policy.features_extractor.named_parameters():
        assert held.count(id(parameter)) == 1 or not parameter.requires_grad, name
        assert parameter.requires_grad != name.startswith("key_encoder"), name


# --- autoencoder -----------------------------------------------------------------------------------------------------
def test_the_autoencoder_is_as_wide_as_the_keypoints_and_learns_to_draw() -> None:
    config = Keypoint3DConfig(keypoints=5, width=4, decoder_width=8, precision="float32", decoded_views=0)
    env = DummyVecEnv([DotEnv, DotEnv])
    kwargs = {"scene": Scene.of(env), "encoder": config, "extractor": AutoencoderExtractor}
    model = PPO(AuxiliaryPolicy, env, n_steps=16, batch_size=16, policy_kwargs=kwargs, max_grad_norm=math.inf, seed=0)
    extractor = model.policy.features_extractor
    assert extractor.features_dim == 4 * 5 + 2 and not extractor.has_looked
    images = dot_frames(dot_scene(), 32)[0]
    model.learn(64, callback=AuxiliaryCallback(AuxiliaryConfig(warmup_frames=32, warmup_steps=5, steps_per_rollout=0)))
    assert extractor.has_looked and model.policy.auxiliary.calls > 5
    optimizer = torch.optim.Adam(extractor.parameters(), 5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        extractor.total(extractor.terms({"images": images})).backward()
        optimizer.step()
    assert extractor.quality({"images": images})["autoencoder/reconstruction_ratio"] < 0.5


def test_its_loss_is_the_reconstruction_at_the_weight_that_keypoints_give_it() -> None:
    config = Keypoint3DConfig(keypoints=3, width=4, decoder_width=8, precision="float32", decoded_views=0)
    extractor = AutoencoderExtractor(DotEnv().observation_space, dot_scene(), config)
    extractor.encoder.config = dataclasses.replace(config, loss=LossWeights(reconstruction=7.0))
    images = dot_frames(dot_scene(), 4)[0]
    terms = extractor.terms({"images": images})
    total, error = float(extractor.total(terms).detach()), float(terms["reconstruction"].detach())
    assert set(terms) == {"reconstruction"} and total == pytest.approx(7 * error)
    with torch.no_grad():
        drawn = extractor.encoder(extractor.encoder.encode(images), torch.arange(3))
    naive = torch.mean((drawn - images.permute(0, 1, 4, 2, 3) / 255.0) ** 2)
    assert error == pytest.approx(float(naive), rel=1e-3), "all pixels alike before it looked"


# --- frame stacks ----------------------------------------------------------------------------------------------------
class StackedDotEnv(DotEnv):
    """The dot's world with the frame before beside the present one."""

    def __init__(self) -> None:
        super().__init__()
        images = self.observation_space["images"]
        before = gym.spaces.Box(0, 255, (1, *images.shape), np.uint8)
        self.observation_space = gym.spaces.Dict({**self.observation_space.spaces, "previous": before})

    def reset(self, *, seed=None, options=None):
        self.last = None
        return super().reset(seed=seed, options=options)

    def observe(self):
        observation = super().observe()
        before = observation["images"] if self.last is None else self.last
        self.last = observation["images"]
        return observation | {"previous": before[None]}


TINY_ENCODER = Keypoint3DConfig(keypoints=3, width=4, decoder_width=8, precision="float32")


def stacked_batch(count: int = 4) -> dict[str, torch.Tensor]:
    frames = dot_frames(dot_scene(), 2 * count)[0]
    return {"images": frames[:count], "previous": frames[count:, None], "proprio": torch.zeros(count, 2)}


def extractor_of(kind: type) -> torch.nn.Module:
    torch.manual_seed(0)
    env = StackedDotEnv()
    if issubclass(kind, PixelExtractor):
        return kind(env.observation_space)
    return kind(env.observation_space, Scene.of(env), TINY_ENCODER, 1.0)


@pytest.mark.parametrize("kind", [KeypointExtractor, AutoencoderExtractor, DrQExtractor, CURLExtractor])
def test_the_frame_before_is_seen_by_every_encoder(kind: type) -> None:
    extractor, batch = extractor_of(kind).eval(), stacked_batch()
    with torch.no_grad():
        features = extractor(batch)
        still = extractor(batch | {"previous": batch["images"][:, None]})
        other = extractor(batch | {"images": batch["previous"][:, 0], "previous": batch["images"][:, None]})
    assert features.shape == (4, extractor.features_dim)
    assert not torch.allclose(features, still) and not torch.allclose(features, other)


@pytest.mark.parametrize("kind", [KeypointExtractor, AutoencoderExtractor])
def test_features_are_those_of_the_newest_frame_and_ten_times_their_change(kind: type) -> None:
    extractor, batch = extractor_of(kind).eval(), stacked_batch()
    plain = kind(DotEnv().observation_space, dot_scene(), TINY_ENCODER, 1.0).eval()
    plain.load_state_dict(extractor.state_dict())
    with torch.no_grad():
        now = plain({"images": batch["images"], "proprio": batch["proprio"]})
        before = plain({"images": batch["previous"][:, 0], "proprio": batch["proprio"]})
        features, found = extractor.encode(batch)
    expected = torch.cat([now[:, :-2], 10 * (now - before)[:, :-2], batch["proprio"]], 1)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    if kind is KeypointExtractor:  # and the auxiliary loss is of the newest frame
        torch.testing.assert_close(found.points, extractor.encoder(batch["images"]).points)


def test_frames_of_a_view_are_moved_and_cut_alike() -> None:
    """A frame that equals the one before it does so still after a shift, or a crop."""
    images = dot_frames(dot_scene(), 8)[0]
    for extractor in (DrQExtractor(StackedDotEnv().observation_space), extractor_of(CURLExtractor)):
        both = torch.cat([images, images], -1)
        seen = (
            extractor._crops(both, True)
            if isinstance(extractor, CURLExtractor)
            else extractor.see(extractor.prepare(both, True))
        )
        halves = seen.unflatten(1, (2, -1))
        assert torch.equal(halves[:, 0], halves[:, 1])
    shifting = KeypointExtractor(
        StackedDotEnv().observation_space, dot_scene(), dataclasses.replace(TINY_ENCODER, random_shift=4)
    )
    shown = []
    shifting.encoder.register_forward_pre_hook(lambda module, args: shown.append(args))
    shifting.encode({"images": images, "previous": images[:, None]}, augment=True)
    frames, _, offset = shown[0]
    assert torch.equal(frames[::2], frames[1::2]) and torch.equal(offset[::2], offset[1::2]) and offset.any()


@pytest.mark.parametrize("extractor", [KeypointExtractor, AutoencoderExtractor, CURLExtractor])
@pytest.mark.parametrize("policy", [AuxiliaryPolicy, AuxiliarySACPolicy])
def test_stacks_are_trained_on(policy: type, extractor: type) -> None:
    env = DummyVecEnv([StackedDotEnv, StackedDotEnv])
    kwargs = {"scene": Scene.of(env), "encoder": TINY_ENCODER, "extractor": extractor}
    if policy is AuxiliaryPolicy:
        model = PPO(policy, env, n_steps=16, batch_size=16, policy_kwargs=kwargs, max_grad_norm=math.inf, seed=0)
    else:
        options = {"train_freq": 4, "gradient_steps": 1, "batch_size": 8, "buffer_size": 100, "learning_starts": 8}
        model = SAC(policy, env, policy_kwargs=kwargs, replay_buffer_class=FrameReplayBuffer, seed=0, **options)
    before = [parameter.clone() for parameter in model.policy.features_extractor.parameters()]
    model.learn(48, callback=AuxiliaryCallback(AuxiliaryConfig(warmup_frames=16, warmup_steps=2)))
    after = model.policy.features_extractor.parameters()
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) >= 4
