"""Progress, intervals and evaluation while training."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from experiments.recording import Evaluator, Every, ProgressCallback, WarmupProgress
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


def test_warmup_prints_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture) -> None:
    progress = WarmupProgress(seconds=1000.0)
    for done in range(1, 6):
        progress(done, 5)
    assert capsys.readouterr().out == "warm-up of the keypoints: 5 / 5 unsupervised steps\n"


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = WarmupProgress()
    for done in range(1, 4):
        progress(done, 3)
    callback = ProgressCallback(100, SimpleNamespace(last_rate=0.5))
    logger = SimpleNamespace(
        name_to_value={"keypoints/reconstruction_ratio": 0.42, "keypoints/view_disagreement_cm": 3.1}
    )
    callback.model = SimpleNamespace(num_timesteps=0, ep_success_buffer=[1, 0], logger=logger)
    callback._on_training_start()
    callback.num_timesteps = 120
    callback._on_step()
    callback._on_rollout_end()
    callback._on_training_end()
    shown = capsys.readouterr().err
    for text in ("warm-up of the keypoints", "3/3", "100/100", "success  50 %", "evaluation  50 %",
                 "reconstruction 0.42 of mean image", "views 3.1 cm apart"):  # fmt: skip
        assert text in shown, text


def test_periodic_evaluation_leaves_the_training_environments_alone_and_repeats() -> None:
    recorded: dict[str, float] = {}
    policy = SimpleNamespace(predict=lambda obs, deterministic: (0 * obs["proprio"][:, :1].repeat(3, 1), None))
    model = SimpleNamespace(policy=policy, logger=SimpleNamespace(record=recorded.__setitem__))
    evaluator = Evaluator(DotEnv, 4)
    evaluator(model)
    first = dict(recorded)
    evaluator(model)
    assert recorded == first and len(evaluator.envs) == 4 and evaluator.last_rate == first["evaluation/success_at_end"]
    evaluator.close()
