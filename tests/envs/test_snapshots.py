"""Environments that go on from a saved state: bit for bit, over episode ends, and never from a state that is none."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from envs import snapshots
from envs.cameras import CameraSpec, load_cameras
from envs.errors import UserError
from envs.multiview import MultiViewObservation
from envs.registry import make
from envs.snapshots import ReplayError, model_fields, save_physics, save_random
from envs.tasks.arm import ASSETS, ArmEnv
from envs.tasks.reach import ReachEnv
from envs.workers import Workers
from tests.counting import CountingEnv, differences, spoilt, through_files
from tests.tasks import ARM, TESTED

CAMERAS = ASSETS / "cameras"
SMALL: dict[str, Any] = dict(height=16, width=16, observe=("images", "proprio", "state"))
VIEW = CameraSpec("c", (2, 2, 1), look_at=(0, 0, 0.3))


def make_ant() -> MultiViewObservation:
    specs, workspace = load_cameras(CAMERAS / "ant.yaml")
    return MultiViewObservation(gym.make("Ant-v5", max_episode_steps=25), specs, workspace=workspace, **SMALL)


def make_pendulum() -> MultiViewObservation:
    return MultiViewObservation(gym.make("InvertedPendulum-v5", reset_noise_scale=0.1), [VIEW], **SMALL)


def make_limited_reach() -> MultiViewObservation:
    """One of our tasks inside of a wrapper that keeps a count of its own."""
    return MultiViewObservation(gym.wrappers.TimeLimit(ReachEnv(), 9), ReachEnv.cameras, **SMALL)


OURS: dict[str, Callable] = {env_id: functools.partial(make, env_id, **SMALL) for env_id in ARM}
OURS |= {f"{env_id} redrawn": functools.partial(make, env_id, redraw=1, **SMALL) for env_id in ARM}
FOREIGN: dict[str, Callable] = {
    "Ant-v5": make_ant,
    "Reacher-v5": functools.partial(make, "Reacher-v5", cameras=CAMERAS / "reacher.yaml", **SMALL),
    "InvertedPendulum-v5": make_pendulum,
    "limited": make_limited_reach,
}
FOREIGN |= {env_id: functools.partial(make, env_id, **SMALL) for env_id in TESTED if env_id not in ARM}
KINDS = OURS | FOREIGN


def play(env: gym.Env, actions: np.random.Generator, steps: int, ends: int = 0) -> list[Any]:
    """What is seen in so many steps, and until so many episodes ended; the next ones begin without a seed."""
    seen: list[Any] = []
    while steps > 0 or ends > 0:
        action = actions.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        seen.append(env.step(action))
        steps -= 1
        if seen[-1][2] or seen[-1][3]:
            seen.append(env.reset())
            ends -= 1
    return seen


def go_on(one: gym.Env, other: gym.Env, ends: int = 2) -> list[str]:
    """Where two environments differ when both do the same."""
    seen = [play(env, np.random.default_rng(1), 0, ends) for env in (one, other)]
    return differences(*seen)


def saved_and_loaded(one: gym.Env, other: gym.Env) -> Any:
    """Put an environment into the state of another one, through files; the observation."""
    return other.load_state(through_files(one.save_state()))


@functools.singledispatch
def kept(value: Any) -> Any:
    """What an object keeps, as a tree."""
    return {name: kept(part) for name, part in vars(value).items()} if hasattr(value, "__dict__") else value


@kept.register
def _(value: gym.Env) -> Any:
    left_out = ("_np_random_seed", "spec", "data", "_cached_spec")
    tree = {name: kept(part) for name, part in vars(value).items() if name not in left_out}
    return tree | {"data": save_physics(value.model, value.data), "_np_random": save_random(value.np_random)}


@kept.register
def _(value: mujoco.MjModel) -> Any:
    return {name: field.copy() for name, field in model_fields(value)}


@kept.register(type)
@kept.register(gym.Space)
@kept.register(np.random.Generator)
def _(value: Any) -> Any:
    return str(value) if not isinstance(value, np.random.Generator) else save_random(value)


# -- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_new_environment_goes_on_bit_for_bit(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = KINDS[kind](), KINDS[kind]()
    one.reset(seed=seed)
    seen = play(one, rng, 0, ends=1) + play(one, rng, int(rng.integers(1, 30)))
    assert not differences(saved_and_loaded(one, other), seen[-1][0]), "the last observation"
    if kind in OURS:
        assert not differences(kept(one.unwrapped), kept(other.unwrapped)), "an attribute of the task is not saved"
    assert other.defines_success == one.defines_success
    assert not differences(one.save_state(), other.save_state()), "a second resume"
    assert not go_on(one, other)
    assert not differences(one.save_state(), other.save_state())
    one.close()
    other.close()


@pytest.mark.parametrize("kind", KINDS)
def test_also_right_after_a_reset_and_within_an_episode_with_a_seed(kind: str) -> None:
    one, other = KINDS[kind](), KINDS[kind]()
    observation, _ = one.reset(seed=4)
    assert not differences(saved_and_loaded(one, other), observation)
    play(one, np.random.default_rng(0), 3)
    saved_and_loaded(one, other)  # into one that has been used
    assert not go_on(one, other, ends=1)
    one.close()
    other.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_that_was_never_reset_has_a_state(kind: str) -> None:
    one, other = KINDS[kind](), KINDS[kind]()
    observation = saved_and_loaded(one, other)
    assert other.observation_space.contains(observation)
    if kind in OURS:
        assert not differences(one.reset(), other.reset()), "its first episode is drawn from the same random state"
    other.reset(seed=1)
    one.close()
    other.close()


@pytest.mark.parametrize("kind", [*TESTED, "Reacher-v5"])
def test_another_process_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    code = """
import pickle, sys
import numpy as np
from tests.envs.test_snapshots import KINDS, play
kind, state, seen = sys.argv[1:]
env = KINDS[kind]()
with open(state, "rb") as file:
    first = env.load_state(pickle.load(file))
with open(seen, "wb") as file:
    pickle.dump([first, play(env, np.random.default_rng(1), 0, 2)], file)
"""
    env = KINDS[kind]()
    env.reset(seed=3)
    last = play(env, np.random.default_rng(0), 57)[-1][0]
    state, seen = tmp_path / "state", tmp_path / "seen"
    state.write_bytes(pickle.dumps(through_files(env.save_state())))
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, kind, str(state), str(seen)], cwd=root, check=True)
    assert not differences(pickle.loads(seen.read_bytes()), [last, play(env, np.random.default_rng(1), 0, 2)])
    env.close()


def test_images_that_are_deferred_stay_away() -> None:
    one, other = OURS["reach-multiview"](), OURS["reach-multiview"]()
    one.reset(seed=0)
    other.images_are_deferred = True
    assert set(saved_and_loaded(one, other)) == {"proprio", "state"}
    unseen = FOREIGN["Reacher-v5"]()
    unseen.images_are_deferred = True
    assert set(unseen.load_state(unseen.save_state())) == {"proprio", "state"}


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_all_generators_of_numpy_go_on(kind: str) -> None:
    one, other = ReachEnv(), ReachEnv()
    one.np_random = np.random.Generator(getattr(np.random, kind)(3))
    for drawn in range(3):
        one.np_random.integers(9, size=drawn, dtype=np.uint32)  # half a word is left over
        other.load_state(through_files(one.save_state()))
        assert one.np_random.random() == other.np_random.random()
        a, b = (env.np_random.integers(9, size=9, dtype=np.uint32) for env in (one, other))
        assert not differences(a, b)


def test_generators_stay_the_object_that_others_hold() -> None:
    env = ReachEnv()
    held = env.np_random
    state = env.save_state()
    drawn = held.random()
    env.load_state(state)
    assert held is env.np_random and held.random() == drawn


# -- what forgetting would do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forget",
    [
        lambda task: task.np_random.random(),
        lambda task: setattr(task, "_elapsed", task._elapsed + 1),
        lambda task: task.data.qvel.__imul__(1.0 + 1e-12),
        lambda task: task.data.mocap_pos.__iadd__(1e-12),
        lambda task: task.model.dof_damping.__imul__(1.001),
    ],
    ids=["random state", "elapsed steps", "velocities", "mocap bodies", "model"],
)
def test_what_is_not_restored_is_noticed(forget: Callable) -> None:
    one, other = (MultiViewObservation(ReachEnv(), ReachEnv.cameras, **SMALL) for _ in range(2))
    one.reset(seed=0)
    play(one, np.random.default_rng(0), 8)
    saved_and_loaded(one, other)
    forget(other.unwrapped)
    assert differences(kept(one.unwrapped), kept(other.unwrapped)) and go_on(one, other)


def test_the_solvers_warm_start_is_part_of_the_state() -> None:
    """Nothing in reach shows it; where things lie upon each other it does."""
    balls = "".join(
        f'<body pos="0 {i % 2 * 0.05} {0.2 * i + 0.1}"><freejoint/><geom size=".1"/></body>' for i in range(6)
    )
    floor = '<option solver="CG"/><worldbody><geom type="plane" size="1 1 1"/>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco>{floor}{balls}</worldbody></mujoco>")
    datas = [mujoco.MjData(model) for _ in range(3)]
    mujoco.mj_step(model, datas[0], 200)
    for data in datas[1:]:
        snapshots.load_physics(model, data, save_physics(model, datas[0]))
    datas[2].qacc_warmstart[:] = 0.0
    for data in datas:
        mujoco.mj_step(model, data, 5)
    one, restored, forgotten = (save_physics(model, data) for data in datas)
    assert not differences(one, restored) and differences(one, forgotten)


class CountingReach(ReachEnv):
    """Keeps a count over episodes."""

    episodes = 0

    def reset(self, **arguments: Any) -> Any:
        self.episodes += 1
        return super().reset(**arguments)

    def reward(self) -> float:
        return super().reward() / (1 + self.episodes)


class RememberingReach(CountingReach):
    """And has it saved."""

    def save_state(self) -> dict[str, Any]:
        return super().save_state() | {"episodes": self.episodes}

    def load_state(self, state: Any) -> np.ndarray:
        observation = super().load_state(state)
        self.episodes = snapshots.require_number(state["episodes"], int, "episodes", 0)
        return observation


@pytest.mark.parametrize("task", [CountingReach, RememberingReach])
def test_a_count_that_a_task_forgets_to_save_is_noticed(task: type[ArmEnv]) -> None:
    one, other = (MultiViewObservation(task(), task.cameras, **SMALL) for _ in range(2))
    one.reset(seed=0)
    play(one, np.random.default_rng(0), 0, 1)
    saved_and_loaded(one, other)
    told = differences(kept(one.unwrapped), kept(other.unwrapped))
    if task is CountingReach:
        assert any("episodes" in line for line in told) and go_on(one, other)
    else:
        assert not told and not go_on(one, other)
        with pytest.raises(UserError, match="entry 'episodes' is missing"):
            other.unwrapped.load_state(ReachEnv().save_state())


class RepaintedReach(ReachEnv):
    """Changes its model in every episode, more and more."""

    model_changes = ("geom_rgba", "dof_damping", "opt.gravity", "opt.impratio", "geom_contype", "geom_matid")

    def place(self, rng: np.random.Generator) -> None:
        super().place(rng)
        self.model.geom_rgba[:, :3] = 0.5 * self.model.geom_rgba[:, :3] + 0.5 * rng.uniform(size=3)
        self.model.dof_damping *= rng.uniform(0.9, 1.1)
        self.model.opt.gravity[2] += rng.uniform(-0.1, 0.1)
        self.model.opt.impratio *= 1.1
        self.model.geom_contype[:] ^= 2
        self.model.geom_matid[0] = -1


def test_a_model_that_a_task_changes_goes_on() -> None:
    one, other = (MultiViewObservation(RepaintedReach(), ReachEnv.cameras, **SMALL) for _ in range(2))
    one.reset(seed=0)
    play(one, np.random.default_rng(0), 55)
    assert set(RepaintedReach.model_changes) - {"geom_contype"} <= set(one.save_state()["state"]["model"])
    other.reset(seed=7)  # what it changed itself is undone
    saved_and_loaded(one, other)
    assert not differences(kept(one.unwrapped), kept(other.unwrapped)) and not go_on(one, other)
    fresh = MultiViewObservation(RepaintedReach(), ReachEnv.cameras, **SMALL)
    saved_and_loaded(fresh, other)
    assert not differences(kept(fresh.unwrapped), kept(other.unwrapped))


def test_a_task_that_changes_what_cannot_be_restored_is_refused() -> None:
    task = ReachEnv()
    task.reset(seed=0)
    task.model.geom_dataid[0] = 3
    message = "^ReachEnv cannot be saved: it changes the model's field geom_dataid, which may not be set$"
    with pytest.raises(UserError, match=message):
        task.save_state()
    task = ReachEnv()
    task.reset(seed=0)
    task.model.dof_damping[0] *= 2.0
    message = "it changes the model's field dof_damping, which is not named in the task's model_changes$"
    with pytest.raises(UserError, match=message):
        task.save_state()


# -- environments that are played again -------------------------------------------------------------------------------


class DriftingEnv(gym.Env):
    """A pole whose mass and colour wander from episode to episode.

    :param path: where its MJCF is written.
    :param draws: "own" random state, "global" one of NumPy, or "fresh": a generator of its own, seeded by chance.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    horizon = 6

    def __init__(self, path: Path, draws: str = "own") -> None:
        path.write_text(
            '<mujoco><worldbody><body name="pole"><joint name="j" axis="0 1 0" damping=".1"/>'
            '<geom name="g" type="capsule" fromto="0 0 0 0 0 .6" size=".1"/></body></worldbody>'
            '<actuator><motor joint="j"/></actuator></mujoco>'
        )
        self.fullpath, self.draws = str(path), draws
        self.model = mujoco.MjModel.from_xml_path(self.fullpath)
        self.data = mujoco.MjData(self.model)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        rng: Any = self.np_random if self.draws == "own" else np.random
        self.model.body_mass[1] *= rng.uniform(0.8, 1.2)
        self.model.geom_rgba[0, :3] = 0.5 * self.model.geom_rgba[0, :3] + 0.5 * rng.uniform(size=3)
        self.data.qpos += rng.uniform(-1, 1) if options is None else options["turn"]  # from where the last one ended
        self.data.time, self.steps = 0.0, 0
        mujoco.mj_setConst(self.model, mujoco.MjData(self.model))
        mujoco.mj_forward(self.model, self.data)
        return self.seen(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, 5)
        self.steps += 1
        action *= 0.0  # some environments write to what they are given
        return self.seen(), float(self.data.qpos[0]), False, self.steps >= self.horizon, {"success": self.steps > 5}

    def seen(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])


@pytest.fixture
def drifting(tmp_path: Path) -> Callable[..., MultiViewObservation]:
    """Makes a drifting environment that is seen."""
    return lambda **arguments: MultiViewObservation(
        DriftingEnv(tmp_path / "pole.xml", **arguments), [VIEW], **SMALL | {"observe": ("images", "state")}
    )


@pytest.mark.parametrize("seed", range(4))
def test_what_an_environment_keeps_in_its_model_and_simulation_goes_on(drifting: Callable, seed: int) -> None:
    one, other = drifting(), drifting()
    one.reset(seed=seed)
    seen = play(one, np.random.default_rng(seed), 15 + seed)
    assert not differences(saved_and_loaded(one, other), (seen[-1][0]))
    assert not differences(kept(one.unwrapped), kept(other.unwrapped)) and not go_on(one, other)
    fields = one.save_state()["state"]["episode"]["model"]
    assert {"body_mass", "body_inertia", "geom_rgba", "stat.meaninertia"} - {"body_inertia"} <= set(fields)


def test_options_of_the_reset_are_played_again(drifting: Callable) -> None:
    one, other = drifting(), drifting()
    one.reset(seed=0)
    one.reset(options={"turn": 0.25})
    saved_and_loaded(one, other)
    assert not go_on(one, other)
    one.reset(options={"turn": np.float64(0.5)})
    with pytest.raises(UserError, match="^DriftingEnv cannot be saved: what the reset was given .* holds float64"):
        one.save_state()


def test_the_last_observation_shows_that_an_episode_is_another_one(drifting: Callable) -> None:
    one, other = drifting(), drifting(draws="global")
    other.reset(seed=0)
    play(other, np.random.default_rng(0), 3)
    state, unsaved = through_files(other.save_state()), other.unwrapped.np_random.bit_generator.state
    for env in (one, drifting(draws="global")):
        message = r"^DriftingEnv is not where it was after 3 replayed actions: it depends on more than was saved"
        with pytest.raises(ReplayError, match=message):
            env.load_state(state)
        assert env.unwrapped.np_random.bit_generator.state == unsaved, "a new episode is drawn from the saved state"
        env.reset()


def test_an_environment_that_fails_when_played_again_is_not_where_it_was(drifting: Callable) -> None:
    one, other = drifting(), drifting()
    one.reset(seed=0)
    one.step(np.ones(1, np.float32))
    other.unwrapped.step = lambda action: 1 / 0
    with pytest.raises(ReplayError, match="after 1 replayed actions: ZeroDivisionError: division by zero$"):
        other.load_state(one.save_state())


@pytest.mark.parametrize("part", ["random", "model", "physics", "seed", "actions"])
def test_each_part_of_an_episode_is_needed(drifting: Callable, part: str) -> None:
    one, other = drifting(), drifting()
    one.reset(seed=0)
    play(one, np.random.default_rng(0), 10)
    state = one.save_state()
    episode = state["state"]["episode"]
    if part == "seed":
        assert episode["seed"] is None
        episode["seed"] = 0
    elif part == "actions":
        episode["actions"][0][0] += 1e-6
    elif part == "random":
        episode["random"]["state"]["state"] ^= 1 << 64
    else:
        episode[part] = episode[part] * 0.5 if part == "physics" else {}
    with pytest.raises(ReplayError, match="is not where it was"):
        other.load_state(state)


class Telling(gym.Wrapper):
    """Counts the episodes, and tells them.

    :param tell: of the number of episodes and the reward, None at a reset: the reward, and more to say in the infos;
        "ends" there ends the episode.
    """

    def __init__(self, env: gym.Env, tell: Callable[[int, float | None], tuple[float | None, dict]]) -> None:
        super().__init__(env)
        self.tell, self.episodes = tell, 0

    def reset(self, **arguments: Any) -> Any:
        self.episodes += 1
        observation, info = super().reset(**arguments)
        return observation, info | self.tell(self.episodes, None)[1]

    def step(self, action: np.ndarray) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        reward, more = self.tell(self.episodes, reward)
        return observation, reward, more.pop("ends", terminated), truncated, info | more


TOLD: dict[str, tuple[bool, Callable]] = {
    "reward": (True, lambda count, reward: (reward and reward / count, {})),
    "end": (True, lambda count, reward: (reward, {} if reward is None else {"ends": count > 1})),
    "reset": (True, lambda count, reward: (reward, {"count": count} if reward is None else {})),
    "int": (True, lambda count, reward: (reward, {} if reward is None else {"count": count})),
    "bool": (True, lambda count, reward: (reward, {"first": count == 1})),
    "NumPy's number": (True, lambda count, reward: (reward, {"count": np.int16(count)})),
    "array": (True, lambda count, reward: (reward, {"counts": np.zeros((count, 0), np.float32)})),
    "nested": (True, lambda count, reward: (reward, {"a": {"more": [{"b": (1, count)}]}})),
    "nothing": (False, lambda count, reward: (reward, {"t": 1, "nan": math.nan, "deep": [[[np.ones(1)]]]})),
    "text": (False, lambda count, reward: (reward, {"episode": str(count), "object": object(), "type": np.array("a")})),
    "clocks": (False, lambda count, reward: (reward, {"step_time": count, "e": {"r": 1.0, "l": 1, "t": count}})),
    "endless": (False, lambda count, reward: (reward, {"info": endless(count)})),
    "odd": (False, lambda count, reward: (reward, {1: count, "\ud800": 10**5000, "none": None})),
}


def endless(count: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"text": str(count)}
    tree["tree"] = tree
    return tree


def seen_reacher(wrap: Callable[[gym.Env], gym.Env]) -> MultiViewObservation:
    """Reacher in a wrapper, without images."""
    return MultiViewObservation(wrap(gym.make("Reacher-v5")), [VIEW], height=4, width=4, observe=("state",))


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("what", TOLD)
def test_what_steps_answer_shows_that_an_episode_is_another_one(what: str, steps: int) -> None:
    matters, tell = TOLD[what]
    one, other = (seen_reacher(functools.partial(Telling, tell=tell)) for _ in range(2))
    one.reset(seed=0)
    for count in (4, 5, steps):
        for _ in range(count):
            one.step(np.ones(2, np.float32))
        if count != steps:
            one.reset()
    state = through_files(one.save_state())
    if matters:
        message = f"after {steps or 5} replayed actions: it depends on more than was saved, or this machine computes"
        with pytest.raises(ReplayError, match=message):
            other.load_state(state)
    else:
        other.load_state(state)
        assert not differences(through_files(other.save_state()), state)


WRAPPERS: dict[str, Callable[[gym.Env], gym.Env]] = {
    "limit": lambda env: gym.wrappers.TimeLimit(env, 7),
    "statistics": gym.wrappers.RecordEpisodeStatistics,
    "rewards": gym.wrappers.NormalizeReward,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("env_id", ["Reacher-v5", "InvertedPendulum-v5", "Hopper-v5"])
def test_environments_in_wrappers_go_on_bit_for_bit_or_not_at_all(env_id: str, wrapper: str) -> None:
    def made() -> MultiViewObservation:
        inner = WRAPPERS[wrapper](gym.make(env_id, max_episode_steps=9))
        return MultiViewObservation(inner, [VIEW], height=4, width=4, observe=("state",))

    for episode, steps in itertools.product(range(4), range(3)):
        one, other = made(), made()
        one.reset(seed=0)
        play(one, np.random.default_rng(0), 0, ends=episode)
        play(one, np.random.default_rng(1), steps)
        state = through_files(one.save_state())
        if wrapper == "rewards" and episode + (steps > 0) > 1:  # statistics of earlier episodes are lost
            with pytest.raises(ReplayError, match=f"^{env_id} is not where it was after [1-9] replayed actions: "):
                other.load_state(state)
        else:
            other.load_state(state)
            assert not differences(through_files(other.save_state()), state), "a second resume"
            assert not differences(*(without_time(play(env, np.random.default_rng(1), 0, 2)) for env in (one, other)))


def without_time(seen: list[Any]) -> list[Any]:
    """What was seen, but for how long it took."""
    for step in seen:
        step[-1].get("episode", {}).pop("t", None)
    return seen


def test_an_episode_that_is_refused_leaves_nothing_behind(drifting: Callable) -> None:
    one, other = drifting(), drifting()
    one.reset(seed=0)
    play(one, np.random.default_rng(0), 8)
    state, new = one.save_state(), kept(other.unwrapped.model)
    episode = state["state"]["episode"]
    episode["model"] = {"opt.gravity": np.array([0.0, 0.0, 1e9]), "geom_rgba": np.ones((1, 4), np.float32)}
    episode["physics"] += 1e9
    other.reset(seed=1)
    with pytest.raises(ReplayError):
        other.load_state(state)
    assert not differences(kept(other.unwrapped.model), new)
    model, data = other.unwrapped.model, other.unwrapped.data
    assert not differences(save_physics(model, data), save_physics(model, mujoco.MjData(model)))
    assert save_random(other.unwrapped.np_random) == episode["random_then"]
    assert other.save_state()["state"] == {"episode": None}


def test_a_refused_texture_is_taken_off_again() -> None:
    one, other = make_ant(), make_ant()
    one.reset(seed=0)
    state, new = one.save_state(), kept(other.unwrapped.model)
    episode = state["state"]["episode"]
    assert new["tex_data"].nbytes > 1 << 16
    episode["model"] = {"tex_data": new["tex_data"] // 2}
    with pytest.raises(ReplayError, match="after 0 replayed actions"):
        other.load_state(state)
    assert not differences(kept(other.unwrapped.model), new)
    assert not differences(other.reset(seed=0), one.reset(seed=0))


def test_what_no_file_may_set_is_left_out_and_seen_in_the_replay(drifting: Callable) -> None:
    one, other = drifting(), drifting()
    one.reset(seed=0)
    one.unwrapped.model.opt.timestep *= 2.0
    one.unwrapped.model.opt.gravity[0] = np.inf
    one.unwrapped.data.qvel[:] = np.nan
    one.reset(seed=0)
    state = through_files(one.save_state())
    episode = state["state"]["episode"]
    assert np.isfinite(episode["physics"]).all() and not {"opt.timestep", "opt.gravity"} & set(episode["model"])
    with pytest.raises(ReplayError):
        other.load_state(state)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("opt.timestep", np.array(0.004), "'model': the model's field opt.timestep may not be set$"),
        ("opt.gravity", np.full(3, np.inf), "field opt.gravity holds NaN or Inf$"),
        ("body_pos", np.full((2, 3), 1e308), "field body_pos holds numbers beyond 1e.10$"),
    ],
)
@pytest.mark.parametrize("which", ["episode", "before"])
def test_fields_of_foreign_models_are_checked(
    drifting: Callable, which: str, field: str, value: np.ndarray, says: str
) -> None:
    env = drifting()
    env.reset(seed=0)
    play(env, np.random.default_rng(0), 6)
    state = env.save_state()
    episode = state["state"]["episode"]
    assert episode["before"]["steps"] == 6 and episode["steps"] == 0
    (episode if which == "episode" else episode["before"])["model"][field] = value
    with pytest.raises(UserError, match=says):
        env.load_state(state)


def test_what_is_observed_must_be_finite(drifting: Callable) -> None:
    one, other = drifting(), drifting()
    one.unwrapped.data.qpos[:] = 1e200  # finite, but not as float32
    message = "^environment 3: the state of DriftingEnv leads to an observation that holds NaN or Inf$"
    with np.errstate(over="ignore"), pytest.raises(UserError, match=message):
        one.reset(seed=0)
        snapshots.load(other, 3, through_files(one.save_state()))


def test_actions_keep_their_type_and_long_episodes_all_of_them(drifting: Callable) -> None:
    one, other = drifting(), drifting()
    one.unwrapped.horizon = other.unwrapped.horizon = 10**6
    one._played.horizon = other._played.horizon = None
    for _ in range(2):
        one.reset(seed=0)
        rng = np.random.default_rng(0)
        for count, kind in ((150, np.float32), (3, np.float64), (2, np.float32)):
            for _ in range(count):
                one.step(rng.uniform(-1, 1, 1).astype(kind))
    actions = one.save_state()["state"]["episode"]["actions"]
    assert [(len(block), block.dtype) for block in actions] == [(150, np.float32), (3, np.float64), (2, np.float32)]
    saved_and_loaded(one, other)
    assert not differences(kept(one.unwrapped), kept(other.unwrapped))


def test_environments_travel_with_their_episodes(drifting: Callable) -> None:
    env = drifting()
    env.reset(seed=0)
    play(env, np.random.default_rng(0), 3)
    twin = pickle.loads(pickle.dumps(env))
    assert not differences(env.save_state(), twin.save_state()) and not go_on(env, twin, ends=1)


# -- what is no state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reach-multiview", "Reacher-v5"])
def test_whatever_is_wrong_is_said_in_one_line(kind: str) -> None:
    env = KINDS[kind]()
    env = MultiViewObservation(env.env, [VIEW], height=4, width=4, observe=("state",))
    env.reset(seed=0)
    play(env, np.random.default_rng(0), 4)
    state, taken, refused = through_files(env.save_state()), [], 0
    for where, bad in spoilt(state):
        try:
            env.load_state(bad)
            taken.append(where)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 400, where
            refused += 1
    assert refused > 150
    harmless = ("success = True", "random = None", "random_then = None", "options = ", "episode = None", "model = {}")
    harmless += ("before = None",)
    taken = [where for where in taken if not any(part in where for part in (*harmless, "model without its first"))]
    assert not taken


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s.update(elapsed=51), "'elapsed' is 51; it must be between 0 and 50"),
        (lambda s: s["physics"].fill(np.nan), "'physics' holds NaN or Inf"),
        (lambda s: s["model"].update(geom_rgb=np.zeros(3)), "a model has no field 'geom_rgb'"),
        (lambda s: s["model"].update(body_parentid=np.full(9, 9**9)), "the model's field body_parentid may not be set"),
        (lambda s: s["model"].update({"__class__": np.zeros(3)}), "a model has no field '__class__'"),
        (lambda s: s["model"].update({"opt.__class__": np.zeros(3)}), "a model has no field 'opt.__class__'"),
        (lambda s: s["model"].update({"opt.timestep": np.array(0.0)}), "field opt.timestep may not be set$"),
        (lambda s: s["model"].update({"opt.gravity": np.zeros(3)}), "opt.gravity is not named in the task's model_ch"),
        (lambda s: s["model"].update(body_pos=np.full((99, 3), 1e308)), "body_pos is not named in the task's model_ch"),
        (lambda s: s["physics"].fill(1e200), "'physics' holds numbers beyond 1e.10$"),
        (lambda s: s["physics"].fill(1e7), "'physics' holds numbers beyond 1e.06$"),
        (lambda s: s["physics"].__setitem__(0, -np.inf), "'physics' holds NaN or Inf$"),
        (lambda s: s["random"].update(bit_generator="RandomState"), "unknown random generator 'RandomState'; known"),
        (lambda s: s["random"]["state"].update(state=1 << 128), "'state' is 340282366920938463463374607431768211456; "),
        (lambda s: s["random"].update(has_uint32=2), "'has_uint32' is 2; it must be between 0 and 1"),
        (
            lambda s: s.update(random=save_random(np.random.Generator(np.random.MT19937(0))) | {"state": {}}),
            "entry 'key' is missing|entry 'pos' is missing",
        ),
    ],
)
def test_hostile_states_of_a_task_are_refused(spoil: Callable, says: str) -> None:
    task = ReachEnv()
    task.reset(seed=0)
    state, before = task.save_state(), kept(task)
    spoil(state)
    with pytest.raises(UserError, match=says):
        task.load_state(state)
    assert not differences(kept(task), before), "nothing was changed"


class HastyReach(RepaintedReach):
    """Says that it changes what none may change."""

    model_changes = (*RepaintedReach.model_changes, "opt.timestep", "jnt_qposadr")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("geom_rgba", np.zeros((2, 4), np.float32), "'geom_rgba' is an array .2, 4. of float32 where an array"),
        ("opt.gravity", np.array([0.0, 0.0, np.inf]), "field opt.gravity holds NaN or Inf$"),
        ("opt.gravity", np.array([0.0, 0.0, np.nan]), "field opt.gravity holds NaN or Inf$"),
        ("opt.gravity", np.array([0.0, 0.0, 1e300]), "field opt.gravity holds numbers beyond 1e.10$"),
        ("opt.timestep", np.array(1e-12), "field opt.timestep may not be set$"),
        ("jnt_qposadr", np.zeros(9, np.int32), "field jnt_qposadr may not be set$"),
        ("body_mass", np.zeros(9), "field body_mass is not named in the task's model_changes$"),
    ],
)
def test_fields_that_a_task_changes_are_checked_too(field: str, value: np.ndarray, says: str) -> None:
    task = HastyReach()
    task.reset(seed=0)
    state, before = task.save_state(), kept(task)
    state["model"][field] = value
    with pytest.raises(UserError, match=says):
        task.load_state(state)
    assert not differences(kept(task), before), "nothing was changed"


class SteepReach(ReachEnv):
    """Tells something that grows without bounds."""

    def task_state(self) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.append(super().task_state(), np.float32(1e38 * self.distance))


def test_a_state_that_leads_to_no_finite_observation_is_refused() -> None:
    task, other = SteepReach(), SteepReach()
    task.reset(seed=0)
    other.reset(seed=1)
    other.data.mocap_pos[:] = 1e5
    state, before = other.save_state(), kept(task)
    with pytest.raises(UserError, match="^the state of SteepReach leads to an observation that holds NaN or Inf$"):
        task.load_state(state)
    assert not differences(kept(task), before), "nothing was changed"


def test_positions_beyond_a_generators_words_are_refused() -> None:
    for kind, key in ((np.random.MT19937, "pos"), (np.random.Philox, "buffer_pos")):
        state = save_random(np.random.Generator(kind(0)))
        (state["state"] if key == "pos" else state)[key] = 10**6
        with pytest.raises(UserError, match=f"'{key}' is 1000000; it must be between 0"):
            snapshots.check_random(state, "it")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda e: e.update(steps=3), "'steps' is 3; it must be between 4 and 4"),
        (lambda e: e.update(actions=[np.zeros((51, 2))], steps=51), "'steps' is 51; it must be between 51 and 50"),
        (lambda e: e.update(actions=[np.zeros((4, 3))]), "'actions' holds an array .4, 3. of float64, which are no"),
        (lambda e: e.update(actions=[np.array([[None] * 2] * 4)]), "'actions' holds an array .4, 2. of object"),
        (lambda e: e.update(actions=[np.full((4, 2), np.inf)]), "'actions' holds NaN or Inf"),
        (lambda e: e.update(seed=math.nan), "'seed' is float where int is expected"),
        (lambda e: e.update(seed=-1), "'seed' is -1; it must be between 0"),
        (lambda e: e.update(options=functools.reduce(lambda t, _: {"a": t}, range(99), {})), "nested too deeply"),
        (lambda e: e.update(options={"a": lambda: 1}), "holds function, which is neither a plain value nor an array"),
        (lambda e: e.update(physics=np.zeros(2)), "'physics' is an array .2,. of float64 where an array"),
        (lambda e: e["physics"].fill(np.inf), "'physics' holds NaN or Inf$"),
        (lambda e: e.update(seen="0" * 64), "is not where it was after 4 replayed actions"),
        (lambda e: e.update(before={}), "'before': entry '.*' is missing$"),
        (lambda e: e.update(model={"jnt_qposadr": np.zeros(4, np.int32)}), "field jnt_qposadr may not be set"),
        (lambda e: e.update(digest="0" * 64), "is not where it was after 4 replayed actions"),
    ],
)
def test_hostile_states_of_an_episode_are_refused(spoil: Callable, says: str) -> None:
    env = make("Reacher-v5", cameras=CAMERAS / "reacher.yaml", observe=("state",))
    env.reset(seed=0)
    play(env, np.random.default_rng(0), 4)
    state = through_files(env.save_state())
    spoil(state["state"]["episode"])
    with pytest.raises(UserError, match=says):
        env.load_state(state)


def test_a_state_of_another_environment_is_refused() -> None:
    reach, reacher = OURS["reach-multiview"](), FOREIGN["Reacher-v5"]()
    with pytest.raises(UserError, match="^a state of 'ReacherEnv' cannot be that of ReachEnv$"):
        reach.load_state(json.loads(json.dumps(reacher.save_state())))


def test_materials_that_do_not_exist_are_refused() -> None:
    env = make_ant()
    fields = {"geom_matid": np.full_like(env.unwrapped.model.geom_matid, env.unwrapped.model.nmat)}
    env.reset(seed=0)
    state = env.save_state()
    state["state"]["episode"]["model"] = fields
    with pytest.raises(UserError, match="'geom_matid' names materials that do not exist"):
        env.load_state(state)


# -- what MuJoCo warns about ------------------------------------------------------------------------------------------


def go_wild() -> None:
    """Simulate what cannot be simulated: in two ways, and each of them twice."""
    body = '<body><joint name="j"/><geom size=".1"/></body>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{body}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    for field in ("qpos", "qvel") * 2:
        mujoco.mj_resetData(model, data)
        getattr(data, field)[:] = 1e300
        mujoco.mj_step(model, data)


class WildEnv(CountingEnv):
    """Has a simulation that only a worker can know of."""

    def go_wild(self) -> str:
        go_wild()
        return os.getcwd()


@pytest.mark.parametrize("kind", ["reach-multiview", "InvertedPendulum-v5", "worker"])
def test_what_mujoco_warns_about_is_said_and_not_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "worker":
        workers = Workers([WildEnv], 1)
        assert workers.ask("call", [0], "go_wild", (), {}) == [str(tmp_path)]
        workers.close()
    else:
        code = "from tests.envs.test_snapshots import KINDS, go_wild; KINDS['%s'](); KINDS['%s'](); go_wild()"
        place = {"PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", code % (kind, kind)], env=os.environ | place, check=True)
    assert not list(tmp_path.iterdir())
    said = [line for line in capfd.readouterr().err.splitlines() if "MuJoCo" in line]
    assert [line.split(" at DOF")[0] for line in said] == [
        f"warning: MuJoCo: Nan, Inf or huge value in {field}" for field in ("QPOS", "QVEL")
    ]


def test_who_listens_to_mujoco_already_goes_on_doing_so() -> None:
    heard: list[str] = []
    ours = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(heard.append)
    try:
        ReachEnv()
        go_wild()
    finally:
        mujoco.set_mju_user_warning(ours)
    assert len(heard) == 4
