"""The encoder's own learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.callbacks import AuxiliaryCallback, AuxiliaryConfig
from agents.optimizers import ScaledAdam
from agents.policies import KeypointPolicy
from agents.scene import Scene
from kp3d_rl.keypoint3d import Keypoint3DConfig
from tests.dotworld import DotEnv


def test_a_scaled_group_moves_as_plain_adam_at_the_scaled_rate() -> None:
    def run(optimizer_of) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
        optimizers = optimizer_of(parameters)
        for step in range(5):
            for p in parameters:
                p.grad = torch.linspace(-1, 2, p.numel()) * (step + 1)
            for optimizer in optimizers:
                optimizer.step()
        return [p.detach() for p in parameters]

    scaled = run(lambda p: [ScaledAdam([{"params": [p[0]]}, {"params": [p[1]], "lr_scale": 3.0}], lr=0.01)])
    plain = run(lambda p: [torch.optim.Adam([p[0]], lr=0.01), torch.optim.Adam([p[1]], lr=0.03)])
    for a, b in zip(scaled, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("plain_adam_exists", [False, True])
def test_every_hook_runs_once_per_step(plain_adam_exists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 makes a plain Adam before ours, upon which torch puts the hooks into Adam's own step as well."""
    if plain_adam_exists:
        torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
        assert torch.optim.Adam.step.hooked
    elif getattr(torch.optim.Adam.step, "hooked", False):
        monkeypatch.setattr(torch.optim.Adam, "step", torch.optim.Adam.step.__wrapped__)
    parameter, calls = torch.nn.Parameter(torch.ones(2)), []
    optimizer = ScaledAdam([{"params": [parameter], "lr_scale": 2.0}], lr=0.01)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert calls == ["before", "after"]
    assert parameter.tolist() == pytest.approx([0.98, 0.98], abs=1e-6)


def test_the_scale_survives_sb3s_schedule() -> None:
    """SB3 sets every group's rate in each update; the encoder still takes steps of its own size."""
    env = DummyVecEnv([DotEnv])
    model = PPO(
        KeypointPolicy,
        env,
        n_steps=8,
        batch_size=8,
        n_epochs=1,
        learning_rate=1e-3,
        max_grad_norm=math.inf,
        device="cpu",
        policy_kwargs={
            "scene": Scene.of(env),
            "encoder": Keypoint3DConfig(keypoints=2, width=4, decoder_width=8),
            "learning_rate_scale": 5.0,
        },
    )
    policy_bias, encoder_bias = model.policy.action_net.bias.data, model.policy.auxiliary.parameters[-1].data
    before = policy_bias.clone(), encoder_bias.clone()
    model.learn(8, callback=AuxiliaryCallback(AuxiliaryConfig(warmup_frames=0, warmup_steps=0)))
    # Adam's very first step is the learning rate itself, whatever the gradient.
    assert float((policy_bias - before[0]).abs().max()) == pytest.approx(1e-3, rel=0.05)
    assert float((encoder_bias - before[1]).abs().max()) == pytest.approx(5e-3, rel=0.05)
    assert {group["lr"] for group in model.policy.optimizer.param_groups} == {1e-3}
