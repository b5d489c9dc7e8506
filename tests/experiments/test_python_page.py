"""docs/python.md keeps its promises: each of its blocks runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import callbacks
from agents.baselines import AutoencoderExtractor
from agents.policies import KeypointPolicy
from agents.scene import Scene
from envs.errors import UserError
from tests.dotworld import DotEnv

TEXT = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
ACT, LOOK, OWN = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def run(block: str, names: dict) -> dict:
    exec(compile(block, "docs/python.md", "exec"), names)
    return names


def test_a_trained_policy_acts_and_its_keypoints_are_found(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    names: dict = {}
    for block in (ACT, LOOK):
        assert "runs/reach-multiview/<name>" in block
        run(block.replace("runs/reach-multiview/<name>", str(tiny_run)), names)
    assert capsys.readouterr().out.startswith(("True", "False"))
    extractor = names["policy"].features_extractor
    with torch.no_grad():
        seen = {key: torch.as_tensor(value)[None] for key, value in names["observation"].items()}
        acted_on = extractor.encode(seen)[1].points
    assert torch.equal(acted_on, names["found"].points), "the policy acts on these"
    names["env"].close()


def test_an_encoder_of_ones_own_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortened alone; its loss falls where it says so."""
    short = callbacks.AuxiliaryConfig(warmup_frames=16, warmup_steps=1)
    monkeypatch.setattr(callbacks, "AuxiliaryConfig", lambda: short)
    assert "100_000" in OWN and "* 8" in OWN and "n_steps=128" in OWN
    block = OWN.replace("100_000", "64").replace("* 8", "* 2").replace("n_steps=128", "n_steps=16, batch_size=16")
    model = run(block, {})["model"]
    extractor = model.policy.features_extractor
    assert model.num_timesteps >= 48 and model.policy.auxiliary.calls > 1 and extractor.features_dim == 64 + 7
    frames = {key: torch.as_tensor(value) for key, value in model.get_env().reset().items()}
    before = extractor.quality(frames)["feeling/error"]
    optimizer = torch.optim.Adam(extractor.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        extractor.total(extractor.terms(frames)).backward()
        optimizer.step()
    assert extractor.quality(frames)["feeling/error"] < 0.7 * before


def test_stable_baselines_own_way_to_name_an_encoder_says_what_is_right() -> None:
    env = DummyVecEnv([DotEnv])
    arguments = {"scene": Scene.of(env), "features_extractor_class": AutoencoderExtractor}
    with pytest.raises(UserError, match="KeypointPolicy takes its encoder as 'extractor'.*not as 'features_extractor"):
        PPO(KeypointPolicy, env, policy_kwargs=arguments)
