"""Environments side by side that go on from a saved state, whatever processes they were and are in."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from agents.batch_env import BatchVecEnv
from agents.vec_env import NormalizeReward, make_vec_env, watched_over
from agents.vec_state import load_env_state, save_env_state
from agents.worker_env import WorkerVecEnv
from envs import registry
from envs.cameras import CameraSpec
from envs.errors import UserError
from envs.multiview import MultiViewObservation
from tests.counting import CountingEnv, differences, spoilt, through_files
from tests.dotworld import DotEnv

MAKE = functools.partial(registry.make, "reach-multiview", height=16, width=16)
WARP = functools.partial(MAKE, renderer="warp")


class Pushed(gym.Wrapper):
    """Pushes its environment at every reset, as hard as NumPy's global random state says."""

    def reset(self, **arguments: Any) -> Any:
        _, info = super().reset(**arguments)
        base = self.unwrapped
        base.set_state(base.data.qpos, base.data.qvel + np.random.uniform(-0.1, 0.1, 2))
        return base._get_obs(), info


def make_pendulum(pushed: bool = False) -> MultiViewObservation:
    """A foreign environment, whose episodes are as long as luck has it."""
    view = CameraSpec("c", (2, 2, 1), look_at=(0, 0, 0.3))
    env = gym.make("InvertedPendulum-v5")
    return MultiViewObservation(Pushed(env) if pushed else env, [view], height=8, width=8)


COUNTS = [CountingEnv, functools.partial(CountingEnv, length=3), functools.partial(CountingEnv, length=7)]
CONSTRUCTORS: dict[str, list[Callable]] = {
    "reach": [MAKE] * 3,
    "warp": [WARP] * 3,
    "counts": COUNTS,
    "dots": [DotEnv] * 3,
    "pendulum": [make_pendulum] * 3,
}


def stack(kind: str, shape: str, normalized: bool = True) -> VecEnv:
    """Three environments as training has them; ``shape`` is a number of processes, or "one", "batch", "tensors"."""
    constructors = CONSTRUCTORS[kind]
    if shape in ("batch", "tensors"):
        env = watched_over(BatchVecEnv(constructors, tensors=shape == "tensors"))
    elif shape == "one":
        env = watched_over(WorkerVecEnv(constructors, 1))
    else:
        env = make_vec_env(constructors, workers=int(shape))
    return NormalizeReward(env, gamma=0.9) if normalized else env


@pytest.fixture
def stacks() -> Iterator[Callable[..., VecEnv]]:
    """Makes stacks and closes them."""
    made: list[VecEnv] = []

    def make(*arguments: Any) -> VecEnv:
        made.append(stack(*arguments))
        return made[-1]

    yield make
    for env in made:
        env.close()


def played(env: VecEnv, seed: int, steps: int) -> list[Any]:
    """Everything that comes back from so many steps, but for the time of day."""
    rng, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        actions = rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)
        observations, rewards, ends, infos = env.step(actions)
        for info in infos:
            info.get("episode", {}).pop("t", None)
        seen.append((plain(observations), rewards, ends, plain(infos)))
    return seen


def plain(tree: Any) -> Any:
    """A tree with tensors as arrays."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    return tree.numpy() if isinstance(tree, torch.Tensor) else tree


SHAPES = [("1", "1"), ("one", "2"), ("2", "3"), ("3", "1"), ("1", "2")]
CASES = [("counts", *shapes, normalized) for shapes in SHAPES for normalized in (True, False)]
CASES += [("reach", "1", "1", False), ("reach", "2", "3", True), ("reach", "3", "1", False)]
CASES += [("dots", "1", "1", True), ("pendulum", "2", "1", True)]
CASES += [("warp", "batch", "batch", False), ("warp", "tensors", "tensors", True), ("warp", "1", "tensors", True)]


@pytest.mark.parametrize(("kind", "before", "after", "normalized"), CASES)
def test_a_stack_goes_on_bit_for_bit(stacks: Callable, kind: str, before: str, after: str, normalized: bool) -> None:
    if kind == "warp":
        pytest.importorskip("mujoco_warp")
    one, other = stacks(kind, before, normalized), stacks(kind, after, normalized)
    one.seed(5)
    one.reset()
    steps = 10 if kind == "pendulum" else 53
    last = played(one, 0, steps)[-1][0]
    other.seed(99)  # must be forgotten
    other.set_options({"a": 1})
    state = through_files(save_env_state(one))
    observations, restarted = load_env_state(other, state)
    assert isinstance(observations["images"], torch.Tensor) == (after == "tensors")
    assert not differences(plain(observations), last) and restarted.tolist() == [False] * 3
    assert restarted.dtype == bool
    assert not differences(save_env_state(other), state), "a second resume"
    assert not differences(played(one, 1, 2 * steps), played(other, 1, 2 * steps))
    for wrapped in (one, other):
        wrapped.env_method("reset", indices=[1])
        wrapped.step(np.zeros((3, *one.action_space.shape), np.float32))
    assert not differences(save_env_state(one), save_env_state(other))
    assert not differences(plain(one.reset()), plain(other.reset())), "random states go on, seeds do not come back"


def test_another_process_goes_on_bit_for_bit(stacks: Callable, tmp_path: Path) -> None:
    code = """
import pickle, sys
from agents.vec_state import load_env_state
from tests.agents.test_vec_state import played, stack
state, seen = sys.argv[1:]
env = stack("reach", "1")
with open(state, "rb") as file:
    observations, _ = load_env_state(env, pickle.load(file))
with open(seen, "wb") as file:
    pickle.dump([observations, played(env, 1, 40)], file)
"""
    env = stacks("reach", "2")
    env.seed(1)
    env.reset()
    last = played(env, 0, 63)[-1][0]
    state, seen = tmp_path / "state", tmp_path / "seen"
    state.write_bytes(pickle.dumps(through_files(save_env_state(env))))
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(state), str(seen)], cwd=root, check=True)
    assert not differences(plain(pickle.loads(seen.read_bytes())), [last, plain(played(env, 1, 40))])


def test_types_of_statistics_stay(stacks: Callable) -> None:
    one, other = stacks("counts", "1"), stacks("counts", "1")
    load_env_state(other, through_files(save_env_state(one)))  # nothing was reset yet
    one.reset()
    played(one, 0, 9)
    load_env_state(other, through_files(save_env_state(one)))
    for mine, theirs in ((one, other), (one.venv.venv, other.venv.venv)):
        for name in ("returns", "episode_returns", "episode_lengths"):
            if hasattr(mine, name):
                assert not differences(getattr(mine, name), getattr(theirs, name))
    assert other.venv.venv.episode_returns.dtype == np.float32
    assert other.venv.venv.episode_count == one.venv.venv.episode_count > 3
    assert type(other.statistics.mean) is type(one.statistics.mean)
    assert other.statistics.count == one.statistics.count


@pytest.mark.parametrize("shape", ["1", "2", "batch"])
def test_an_episode_that_cannot_be_brought_back_gives_way_to_a_new_one(
    shape: str, capsys: pytest.CaptureFixture
) -> None:
    makers = [make_pendulum, functools.partial(make_pendulum, pushed=True), make_pendulum]
    kinds = {"1": lambda: make_vec_env(makers), "2": lambda: make_vec_env(makers, workers=2)}
    kinds["batch"] = lambda: watched_over(BatchVecEnv(makers, backend="gl"))
    one, other = (NormalizeReward(kinds[shape]()) for _ in range(2))
    one.seed(0)
    one.reset()
    last = played(one, 0, 3)[-1][0]
    state = through_files(save_env_state(one))
    observations, restarted = load_env_state(other, state)
    assert restarted.tolist() == [False, True, False]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    assert said.startswith("warning: environment 1 begins a new episode: InvertedPendulum-v5 is not where it was after")
    for key, values in last.items():
        assert not differences(values[::2], observations[key][::2])
    assert (last["proprio"][1] != observations["proprio"][1]).all()
    monitor = other.venv.venv
    assert [length > 0 for length in monitor.episode_lengths] == [True, False, True]
    assert monitor.episode_returns[1] == 0 and other.returns[1] == 0 and other.returns[0] != 0
    other.step(np.zeros((3, 1), np.float32))
    assert monitor.episode_lengths[1] == 1
    for env in (one, other):
        env.close()


# -- workers that die -------------------------------------------------------------------------------------------------


def killed(env: VecEnv, worker: int) -> None:
    os.kill(env.unwrapped.workers.pids[worker], signal.SIGKILL)


@pytest.mark.parametrize("notices", [True, False])
def test_episodes_that_died_with_their_worker_still_end(
    stacks: Callable, notices: bool, capsys: pytest.CaptureFixture
) -> None:
    one, other, third = stacks("counts", "2"), stacks("counts", "3"), stacks("counts", "1")
    one.seed(0)
    one.reset()
    last = played(one, 0, 2)[-1][0]
    killed(one, 0)  # of environments 0 and 1
    if notices:
        assert one.get_attr("steps") == [0, 0, 2]
    state = through_files(save_env_state(one))
    capsys.readouterr()
    observations, restarted = load_env_state(other, state)
    assert not restarted.any() and not differences(observations, last), "what the agent has seen"
    assert capsys.readouterr().err == ""
    mine, theirs = played(one, 1, 30), played(other, 1, 30)
    assert not differences(mine, theirs) and mine[0][2].tolist() == [True, True, False]
    assert theirs[0][3][0]["worker_died"] and theirs[0][3][0]["terminal_observation"]["proprio"][0] == 2
    observations, restarted = load_env_state(third, state)
    assert restarted.tolist() == [True, True, False] and observations["proprio"][:, 0].tolist() == [0, 0, 2]
    assert capsys.readouterr().err.count("begins a new episode: its worker had died\n") == 2
    assert third.venv.venv.episode_lengths.tolist() == [0, 0, 2]


def test_the_last_observation_outlives_a_worker_that_dies_after_loading(stacks: Callable) -> None:
    one, other = stacks("counts", "2"), stacks("counts", "3")
    one.seed(0)
    one.reset()
    last = played(one, 0, 2)[-1][0]
    load_env_state(other, through_files(save_env_state(one)))
    killed(other, 2)
    _, _, ends, infos = other.step(np.zeros((3, 1), np.float32))
    assert ends[2]
    told = infos[2]["terminal_observation"]
    assert not differences(told, {key: values[2] for key, values in last.items()})


def test_a_worker_that_dies_while_loading_is_asked_again(stacks: Callable) -> None:
    one, other = stacks("counts", "2"), stacks("counts", "3")
    one.seed(0)
    one.reset()
    played(one, 0, 2)
    killed(other, 1)
    load_env_state(other, through_files(save_env_state(one)))
    assert other.unwrapped.workers.deaths == 1
    assert not differences(played(one, 1, 20), played(other, 1, 20))


# -- what is no state -------------------------------------------------------------------------------------------------


class Stateless(CountingEnv):
    save_state = property()  # type: ignore[assignment]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_environment_without_a_state_is_refused(workers: int) -> None:
    env = make_vec_env([CountingEnv, functools.partial(gym.wrappers.TimeLimit, CountingEnv(), 3)], workers=workers)
    message = r"^environment 1 \(TimeLimit\) has no state: it has no method 'save_state'$"
    with pytest.raises(UserError, match=message):
        save_env_state(env)
    env.close()
    env = make_vec_env([CountingEnv, Stateless], workers=workers)
    with pytest.raises(UserError, match=r"^environment 1 \(Stateless\) has no state: it has no method 'save_state'$"):
        save_env_state(env)
    env.close()


def test_other_wrappers_are_refused() -> None:
    with pytest.raises(UserError, match="^environments in a VecNormalize have no state that could be saved$"):
        save_env_state(VecNormalize(DummyVecEnv([CountingEnv])))


@pytest.mark.parametrize("shape", ["1", "2"])
def test_whatever_is_wrong_is_said_in_one_line(stacks: Callable, shape: str) -> None:
    env = stacks("counts", shape)
    env.reset()
    played(env, 0, 4)
    state = through_files(save_env_state(env))
    state["environments"][0]["lost"] = {"images": np.zeros((2, 3, 3, 3), np.uint8), "proprio": np.zeros(2, np.float32)}
    taken, refused = [], 0
    for where, bad in spoilt(state):
        try:
            load_env_state(env, bad)
            taken.append(where)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 400, where
            refused += 1
    assert refused > 150
    harmless = (
        "monitor.count = 1606938",
        "returns = array([0., 0., 0.])",
        ".episode_seed = ",
        ".mean = ",
        ".var = 1.5",
        ".count = 1.5",
        ".lost",
    )
    assert not [where for where in taken if not any(part in where for part in harmless)]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s["environments"].pop(), "^the environments' state is that of 2 environments, here are 3$"),
        (lambda s: s["environments"][1].update(state={}), "^environment 1: the count: entry '.*' is missing$"),
        (lambda s: s["environments"][1].update(lost=1e308), "^environment 1: 'lost' is float where "),
        (lambda s: s["environments"][2].update(lost={}), "^environment 2: 'lost': entry '.*' is missing$"),
        (lambda s: s.update(rewards=None), "'rewards' is missing for NormalizeReward$"),
        (lambda s: s["rewards"].update(var=-1.0), "'rewards': 'var' is -1.0; it must be between 0.0 and"),
        (lambda s: s["rewards"].update(returns=[0.0] * 3), "'returns' is list where an array .3,. of float64 is expec"),
        (lambda s: s["monitor"].update(returns=np.zeros(3)), "'returns' is an array .3,. of float64 where an array"),
        (lambda s: s["monitor"]["lengths"].fill(-1), "'lengths' holds negative numbers"),
        (lambda s: s["monitor"].update(count=True), "'count' is bool where int is expected"),
    ],
)
def test_hostile_states_are_refused(stacks: Callable, spoil: Callable, says: str) -> None:
    env = stacks("counts", "1")
    env.reset()
    state = through_files(save_env_state(env))
    spoil(state)
    with pytest.raises(UserError, match=says):
        load_env_state(env, state)


def test_statistics_that_nothing_takes_are_refused(stacks: Callable) -> None:
    with pytest.raises(UserError, match="'rewards' is there, but nothing here takes it$"):
        load_env_state(stacks("counts", "1", False), save_env_state(stacks("counts", "1", True)))
