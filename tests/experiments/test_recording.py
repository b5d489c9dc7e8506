"""Progress, intervals and evaluation while training."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.policies import KeypointPolicy
from agents.scene import Scene
from experiments.judging.evaluation import PERIODIC_SEED
from experiments.training.building import SEEDS_PER_RUN
from experiments.training.recording import Evaluator, Every, ProgressCallback
from kp3d_rl.keypoint3d import Keypoint3DConfig
from tests.dotworld import DotEnv


@pytest.mark.parametrize(("interval", "expected"), [(0, []), (25, [30, 50, 80]), (7, [10, 20, 30, 40, 50, 60, 70, 80])])
def test_every_acts_once_per_interval_passed(interval: int, expected: list[int]) -> None:
    acted: list[int] = []
    callback = Every(interval, lambda model: acted.append(model.num_timesteps))
    callback.model = SimpleNamespace(num_timesteps=0)
    for step in range(10, 81, 10):
        callback.num_timesteps = callback.model.num_timesteps = step
        callback._on_rollout_end()
    assert acted == expected


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    callback = ProgressCallback(100, SimpleNamespace(last=object(), describe=lambda: "all is well"))
    logger = SimpleNamespace(
        name_to_value={"keypoints/reconstruction_ratio": 0.42, "keypoints/view_disagreement_cm": 3.1},
        record=lambda name, value: recorded.append((name, value)),
    )
    recorded: list[tuple] = []
    pool = SimpleNamespace(workers=SimpleNamespace(deaths=2))
    env = SimpleNamespace(get_attr=lambda name, indices: [defined[0]], unwrapped=pool)
    callback.model = SimpleNamespace(num_timesteps=0, ep_success_buffer=[1, 0], logger=logger, get_env=lambda: env)
    defined = [True]
    callback._on_training_start()
    callback.num_timesteps = 120
    callback._on_step()
    callback._on_rollout_end()
    callback._on_training_end()
    shown = capsys.readouterr().err
    for text in ("100/100", "success  50 %", "evaluation: all is well",
                 "reconstruction 0.42 of mean image", "views 3.1 cm apart"):  # fmt: skip
        assert text in shown, text
    assert recorded == [("time/worker_deaths", 2)]
    defined[0] = False
    assert not any("success" in part for part in callback._numbers())


def test_periodic_evaluation_leaves_the_training_environments_alone_and_repeats() -> None:
    recorded: dict[str, float] = {}
    policy = SimpleNamespace(predict=lambda obs, deterministic: (0 * obs["proprio"][:, :1].repeat(3, 1), None))
    model = SimpleNamespace(policy=policy, logger=SimpleNamespace(record=recorded.__setitem__))
    evaluator = Evaluator(DotEnv, 4)
    evaluator(model)
    first = dict(recorded)
    evaluator(model)
    assert recorded == first and evaluator.last.rate() == first["evaluation/success_at_end"]
    assert evaluator.describe() == f"{100 * evaluator.last.rate():.0f} % of 4 episodes end in success"
    evaluator.defines_success = False
    assert evaluator.describe() == f"return {evaluator.last.mean_return():.1f}"
    evaluator.close()


class SeededEnv(DotEnv):
    """It tells which seeds its episodes begin with."""

    seeds: ClassVar[list[int | None]] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)


def test_periodic_evaluations_are_deterministic_and_play_no_episode_of_training() -> None:
    asked: list[bool] = []

    def predict(obs: dict, deterministic: bool) -> tuple[Any, None]:
        asked.append(deterministic)
        return 0 * obs["proprio"][:, :1].repeat(3, 1), None

    model = SimpleNamespace(
        policy=SimpleNamespace(predict=predict), logger=SimpleNamespace(record=lambda name, value: None)
    )
    Evaluator(SeededEnv, 4)(model)
    assert all(asked) and len(asked) >= DotEnv.horizon
    played = [seed for seed in SeededEnv.seeds if seed is not None]
    assert len(set(played)) == 4 and min(played) >= PERIODIC_SEED > SEEDS_PER_RUN * 10_000


class CarryingEnv(DotEnv):
    """Its rewards grow from episode to episode, which no checkpoint of a training knows."""

    episodes = 0

    @property
    def save_state(self) -> Any:
        raise AttributeError("a foreign task has no such method")

    def reset(self, **arguments: Any) -> Any:
        self.episodes += 1
        return super().reset(**arguments)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward + self.episodes, *rest


class TellingEnv(CarryingEnv):
    """As our own tasks, whose episodes depend on nothing before them."""

    def save_state(self) -> dict:
        return {}


def test_what_a_foreign_task_carries_on_is_not_carried_from_one_evaluation_to_the_next() -> None:
    """A run that goes on has new environments for its evaluations; they must be as good as those that it had."""
    returns: list[float] = []
    policy = SimpleNamespace(predict=lambda obs, deterministic: (0 * obs["proprio"][:, :1].repeat(3, 1), None))
    model = SimpleNamespace(policy=policy, logger=SimpleNamespace(record=lambda *_: None))
    for kind, count in ((CarryingEnv, 3), (TellingEnv, 2)):
        evaluator = Evaluator(kind, 1)
        for _ in range(count):
            evaluator(model)
            returns.append(evaluator.last.mean_return())
        evaluator.close()
        assert evaluator.envs == ()
    assert returns[0] == returns[1] == returns[2] == returns[3] != returns[4]


def test_nothing_auxiliary_runs_in_an_evaluation_between_rollout_and_update() -> None:
    """The periodic evaluation runs at a rollout's end, when the gate is open already."""
    env = DummyVecEnv([DotEnv])
    small = Keypoint3DConfig(keypoints=2, width=4, decoder_width=8)
    model = PPO(KeypointPolicy, env, n_steps=8, batch_size=8, policy_kwargs={"scene": Scene.of(env), "encoder": small})
    model.set_logger(SimpleNamespace(record=lambda *args: None))
    model.policy.auxiliary.is_open = True
    decoded = []
    model.policy.decoder.register_forward_hook(lambda *_: decoded.append(1))
    Evaluator(DotEnv, 2)(model)
    assert model.policy.auxiliary.calls == 0 and not decoded and not model.policy.training
