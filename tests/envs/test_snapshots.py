"""Environments that go on from a saved state: bit for bit, over episode ends, and never from a state that is none."""

from __future__ import annotations

import functools
import json
import math
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
from envs.registry import env_ids, make
from envs.snapshots import ReplayError, model_fields, save_physics, save_random
from envs.tasks.arm import ASSETS, ArmEnv
from envs.tasks.reach import ReachEnv
from tests.counting import differences, spoilt, through_files

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


OURS: dict[str, Callable] = {env_id: functools.partial(make, env_id, **SMALL) for env_id in env_ids()}
OURS |= {f"{env_id} redrawn": functools.partial(make, env_id, redraw=1, **SMALL) for env_id in env_ids()}
FOREIGN: dict[str, Callable] = {
    "Ant-v5": make_ant,
    "Reacher-v5": functools.partial(make, "Reacher-v5", cameras=CAMERAS / "reacher.yaml", **SMALL),
    "InvertedPendulum-v5": make_pendulum,
    "limited": make_limited_reach,
}
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


@pytest.mark.parametrize("kind", [*env_ids(), "Reacher-v5"])
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

    field = "geom_rgba"

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
    assert {"geom_rgba", "dof_damping", "opt.gravity", "opt.impratio"} <= set(one.save_state()["state"]["model"])
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
    with pytest.raises(UserError, match="^ReachEnv cannot be saved: it changes the model's field geom_dataid$"):
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
        (lambda s: s["model"].update({"opt.timestep": np.array(math.nan)}), "'opt.timestep' holds NaN"),
        (lambda s: s["model"].update({"geom_rgba": np.zeros((2, 4), np.float32)}), "'geom_rgba' is an array"),
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
