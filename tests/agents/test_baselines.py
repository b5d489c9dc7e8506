"""Baselines are what they say: what the layers of each see, and when."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.extractors import CROP, PixelExtractor, RADExtractor
from agents.policies import RADPolicy
from envs.errors import UserError

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

    model = PPO(RADPolicy, DummyVecEnv([Noise]), n_steps=4, batch_size=4, n_epochs=2, max_grad_norm=math.inf)
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
