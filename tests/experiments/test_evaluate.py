"""Evaluation: counts, seeds, the script and its file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from agents.finite import NonFiniteError
from envs import registry
from envs.errors import UserError
from experiments import evaluate as script
from experiments.judging.evaluation import (
    EVALUATION_SEED,
    PERIODIC_SEED,
    Episode,
    Evaluation,
    evaluate,
    evaluation_seeds,
    table,
)
from experiments.options.config import TrainConfig
from experiments.training.building import SEEDS_PER_RUN
from tests.dotworld import DotEnv
from tests.experiments.conftest import run_in


class Counter(gym.Env):
    """Episode of ``seed % 5 + 1`` steps; success at step 2 alone; reward is the action."""

    def reset(self, *, seed=None, options=None):
        self.length, self.time = seed % 5 + 1, 0
        return {"x": np.zeros(1)}, {"is_success": False}

    def step(self, action):
        self.time += 1
        done = self.time >= self.length
        return {"x": np.full(1, self.time)}, float(action), done, False, {"is_success": self.time == 2}


@pytest.mark.parametrize("envs", [1, 2, 3, 7])
def test_one_episode_per_seed_whatever_runs_side_by_side(envs: int) -> None:
    done = []
    result = evaluate(
        lambda o: np.ones(len(o["x"])), [Counter() for _ in range(envs)], range(7), on_episode=done.append
    )
    assert [e.seed for e in result.episodes] == list(range(7)) and done == list(result.episodes)
    assert [e.length for e in result.episodes] == [1, 2, 3, 4, 5, 1, 2]
    assert [e.episode_return for e in result.episodes] == [1, 2, 3, 4, 5, 1, 2]
    assert [e.success_once for e in result.episodes] == [False, True, True, True, True, False, True]
    assert [e.success_at_end for e in result.episodes] == [False, True, False, False, False, False, True]


def test_a_success_while_an_action_is_repeated_counts_as_one_of_the_episode() -> None:
    class Repeating(Counter):
        def step(self, action):
            *told, info = super().step(action)
            return *told, info | {"is_success": False, "was_success": self.time == 1}

    (episode,) = evaluate(lambda o: np.ones(len(o["x"])), [Repeating()], [2]).episodes
    assert (episode.success_once, episode.success_at_end) == (True, False)


def test_the_policy_sees_what_the_transform_makes_of_it() -> None:
    seen = []
    evaluate(lambda o: seen.append(o["x"]) or np.zeros(len(o["x"])), [Counter()], [4], lambda o, _: {"x": o["x"] + 10})
    assert [float(x[0, 0]) for x in seen] == [10, 11, 12, 13, 14]


def test_summary_and_lines_count_honestly() -> None:
    episodes = tuple(Episode(i, i == 0, i < 8, i < 7, float(i), 50) for i in range(10))
    evaluation = Evaluation(episodes)
    summary = evaluation.summary()
    assert summary["success_at_end"]["k"] == 7 and summary["success_once"]["k"] == 8
    assert summary["success_at_end"]["interval"] == pytest.approx([0.3968, 0.8922], abs=1e-3)  # Wilson 1927, 7 of 10
    assert summary["return"]["mean"] == 4.5 and evaluation.rate("success_once") == 0.8
    low, high = summary["return"]["interval"]
    assert 2 < low < 4.5 < high < 7
    text = "\n".join(evaluation.lines())
    assert "success_at_end  7/10 = 70.0 % (95 % interval 39.7 to 89.2 %)" in text
    assert "1 of 10 episodes were a success before the first action" in text


def test_numbers_that_are_none_stop_an_evaluation_with_one_line() -> None:
    dots = [DotEnv(), DotEnv()]
    with pytest.raises(NonFiniteError, match="the action of environment 1 is NaN or Inf"):
        evaluate(lambda o: np.array([[0.0, 0, 0], [np.nan, 0, 0]]), dots, range(2))
    dots[0].poison = "observation"
    with pytest.raises(NonFiniteError, match="the observation 'proprio' of environment 0"):
        evaluate(lambda o: np.zeros((2, 3)), dots, range(2))


def test_seed_ranges_are_disjoint() -> None:
    last = SEEDS_PER_RUN * TrainConfig(seed=9999).seed + SEEDS_PER_RUN - 1
    with pytest.raises(ValueError, match="evaluation has other seeds"):
        TrainConfig(seed=10_000)
    assert last < EVALUATION_SEED and EVALUATION_SEED + 1000 * 10_000 <= PERIODIC_SEED


def test_the_transform_is_told_whose_observations_it_gets() -> None:
    told = []

    def transform(observation, seeds):
        told.append((observation["x"][:, 0].tolist(), list(seeds)))
        return observation

    evaluate(lambda o: np.zeros(len(o["x"])), [Counter(), Counter()], [0, 2, 1], transform)
    assert told == [([0, 0], [0, 2]), ([1], [2]), ([2], [2]), ([0], [1]), ([1], [1])]


def test_two_episodes_cannot_share_a_seed() -> None:
    with pytest.raises(ValueError, match="differ"):
        evaluate(lambda o: np.zeros(len(o["x"])), [Counter()], [3, 4, 3])


def test_the_table_has_a_line_for_each_evaluation() -> None:
    results = {
        name: Evaluation(tuple(Episode(i, False, True, i < k, 2.0 * k, 50) for i in range(10)))
        for name, k in (("as trained", 7), ("blacked out", 0))
    }
    assert table(results) == [
        "             success_at_end   95 % interval  return",
        "as trained    7/10 = 70.0 %  39.7 to 89.2 %   14.00",
        "blacked out    0/10 = 0.0 %   0.0 to 27.8 %    0.00",
    ]


def test_script_prints_and_writes(tiny_run: Path, workplace: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--run", str(tiny_run), "--episodes", "3", "--envs", "2"]
    run_in(workplace, script.main, arguments)
    shown = capsys.readouterr().out
    assert "blacked out" not in shown
    for word in ("as trained", "success_at_end", "success_once", "return", "/3 ="):
        assert word in shown
    record = json.loads((tiny_run / "eval.json").read_text())
    seeds = [episode["seed"] for episode in record["results"]["as trained"]["episodes"]]
    assert seeds == [EVALUATION_SEED, EVALUATION_SEED + 1, EVALUATION_SEED + 2] and record["checkpoint"] == 160
    before = record["results"]["as trained"]
    run_in(workplace, script.main, arguments)
    assert json.loads((tiny_run / "eval.json").read_text())["results"]["as trained"] == before  # deterministic


def test_script_by_environment_and_name(workplace: Path, state_run: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--env", "reach-multiview", "--run", "state", "--episodes", "1", "--envs", "1"]
    run_in(workplace, script.main, arguments)
    shown = capsys.readouterr().out
    assert "runs/reach-multiview/state, checkpoint " in shown and "defines no success" not in shown
    assert json.loads((state_run / "eval.json").read_text())["results"]["as trained"]["summary"]["episodes"] == 1


def test_script_refusals(state_run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--run", str(tmp_path)], "is not a run"),
        (["--run", str(state_run), "--ablate", "--episodes", "1"], "simulator's state"),
        (["--run", str(state_run), "--checkpoint", "3"], "no checkpoint at step 3"),
        (["--run", str(state_run), "--episodes", "0"], "episodes in 1"),
        (["--run", str(state_run), "--seed", "1000"], "stay clear of training's"),
    ):
        with pytest.raises(UserError, match=message):
            script.main(arguments)


def test_configurations_are_played_once_each() -> None:
    """More episodes than a task has test configurations would be the same ones again."""
    with contextlib.closing(registry.make("metaworld-reach", observe=("state",), split="test")) as env:
        with pytest.raises(UserError, match="51 episodes were asked for: the task has 50 test configurations"):
            script.episodes_of(script.EvaluateConfig(episodes=51), env)
        assert [script.episodes_of(script.EvaluateConfig(episodes=n), env) for n in (None, 7)] == [50, 7]
        numbers = {env.reset(seed=seed)[1]["configuration"] for seed in evaluation_seeds(3, 50)}
        assert numbers == set(range(50))
    with contextlib.closing(registry.make("reach-multiview", observe=("state",))) as env:
        assert [script.episodes_of(script.EvaluateConfig(episodes=n), env) for n in (None, 300)] == [100, 300]
