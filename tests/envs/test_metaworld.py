"""Meta-World's tasks through our adapter: physics, configurations and success are its own, and the goal is seen."""

import importlib.metadata
import pickle
import sys

import numpy as np
import pytest

from envs.errors import UserError
from envs.registry import make
from envs.tasks.metaworld import CONFIGURATIONS, FIXTURES, OBJECTS, MetaWorldEnv, configurations
from tests.tasks import EIGHT, METAWORLD, PAPER

metaworld = pytest.importorskip("metaworld")
pytestmark = pytest.mark.filterwarnings("ignore:Constant")  # of its scripted policies


def task_of(env_id: str) -> str:
    return env_id.removeprefix("metaworld-")


def drawn(tasks) -> np.ndarray:
    """(50, n) what configurations consist of."""
    return np.array([pickle.loads(task.data)["rand_vec"] for task in tasks])


def test_all_fifty_are_registered_under_their_names():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert {f"{task_of(env_id)}-v3" for env_id in METAWORLD} == ALL_V3_ENVIRONMENTS.keys()
    assert len(METAWORLD) == 50 and set(PAPER) <= set(METAWORLD)


@pytest.mark.parametrize("env_id", EIGHT)
def test_scripted_episodes_are_those_of_plain_meta_world_bit_for_bit(env_id):
    """The same configuration, played by Meta-World's own environment and policy: every state, reward and success."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    name = f"{task_of(env_id)}-v3"
    env, plain = make(env_id, observe=("state",), split="test"), ALL_V3_ENVIRONMENTS[name]()
    policy = ENV_POLICY_MAP[name]()
    plain.set_task(metaworld.MT1(name, seed=1).train_tasks[3])  # ML1's test tasks are of the next seed
    expected, _ = plain.reset()
    found, info = env.reset(seed=3)
    assert info["configuration"] == 3
    for _ in range(env.horizon):
        np.testing.assert_array_equal(found["state"], expected.astype(np.float32))
        expected, reward, _, _, plain_info = plain.step(np.clip(policy.get_action(expected), -1, 1).astype(np.float32))
        found, ours, terminated, truncated, info = env.step(env.scripted_action())
        assert ours == reward and info["is_success"] == bool(plain_info["success"]) and not terminated
    np.testing.assert_array_equal(env.unwrapped.data.qpos, plain.data.qpos)
    assert truncated


def test_scripted_policies_solve_what_they_solve():
    """Not only the same numbers: the task is solved in the 200 steps that an episode has."""
    env, ends = make("metaworld-drawer-close", observe=("state",)), []
    for seed in range(5):
        env.reset(seed=seed)
        ends.append(any(env.step(env.scripted_action())[4]["is_success"] for _ in range(env.horizon)))
    assert all(ends)


@pytest.mark.parametrize("env_id", EIGHT)
def test_configurations_are_those_of_ml1_and_none_is_in_both_splits(env_id):
    task, state = task_of(env_id), np.random.get_state()[1].copy()
    train, test = (drawn(configurations.__wrapped__(task, split)) for split in ("train", "test"))
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    theirs = metaworld.ML1(f"{task}-v3", seed=0)
    np.testing.assert_array_equal(train, drawn(theirs.train_tasks))
    np.testing.assert_array_equal(test, drawn(theirs.test_tasks))
    assert len(np.unique(np.concatenate([train, test]), axis=0)) == 2 * CONFIGURATIONS


def test_the_split_decides_where_things_stand():
    train, test = (make("metaworld-push", observe=("state",), split=split) for split in ("train", "test"))
    starts = [{tuple(env.reset(seed=seed)[0]["state"]) for seed in range(50)} for env in (train, test)]
    assert len(starts[0]) == len(starts[1]) == 50 and not starts[0] & starts[1]
    with pytest.raises(UserError, match="unknown split 'tests': did you mean 'test'"):
        make("metaworld-push", split="tests")


def test_seeds_in_a_row_meet_each_configuration_and_later_episodes_draw():
    env = make("metaworld-reach", observe=("state",))
    assert [env.reset(seed=seed)[1]["configuration"] for seed in range(48, 53)] == [48, 49, 0, 1, 2]
    numbers = [[env.reset(seed=7)[1]] + [env.reset()[1] for _ in range(20)] for _ in range(2)]
    assert numbers[0] == numbers[1] and len({info["configuration"] for info in numbers[0]}) > 10
    assert env.reset(options={"configuration": 9})[1]["configuration"] == 9


NO_CONFIGURATIONS = [{"configuration": 50}, {"configuration": -1}, {"config": 1}, {"configuration": 1.0}]


@pytest.mark.parametrize("options", NO_CONFIGURATIONS)
def test_what_is_no_configuration_says_so(options):
    env = make("metaworld-reach", observe=("state",))
    with pytest.raises(UserError, match="reset options are .*; expected {'configuration': 0 … 49}"):
        env.reset(options=options)


@pytest.mark.parametrize("env_id", EIGHT)
def test_an_episode_does_not_depend_on_those_before(env_id):
    fresh, used = (make(env_id, observe=("images", "state"), height=32, width=32) for _ in range(2))
    generator = np.random.default_rng(0)
    for seed in (5, 11):
        used.reset(seed=seed)
        for _ in range(30):
            used.step(generator.uniform(-1, 1, 4).astype(np.float32))
    np.random.seed(17)  # Meta-World's own draws come from NumPy's global generator
    one, other = fresh.reset(seed=7)[0], used.reset(seed=7)[0]
    for _ in range(10):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
        action = generator.uniform(-1, 1, 4).astype(np.float32)
        one, other = fresh.step(action)[0], used.step(action)[0]
    np.testing.assert_array_equal(fresh.unwrapped.data.qpos, used.unwrapped.data.qpos)


@pytest.mark.parametrize("env_id", EIGHT)
def test_what_stands_elsewhere_in_each_configuration_is_named(env_id):
    """Or elsewhere than in the file. It is no background, and the fields of the model that change are those that files
    of a run may set."""
    task = task_of(env_id)
    base = MetaWorldEnv(task)
    places, other, fields = (
        [base.model.body_pos.copy()],
        [],
        ("body_quat", "geom_pos", "geom_size", "geom_rgba", "site_size", "jnt_range"),
    )
    for seed in range(8):
        base.reset(seed=seed)
        places.append(base.model.body_pos.copy())
        other.append([getattr(base.model, name).copy() for name in fields])
    moved = {base.model.body(body).name for body in np.flatnonzero(np.ptp(places, axis=0).max(1) > 0)}
    assert moved == ({FIXTURES[task]} if task in FIXTURES else set())
    assert all(np.array_equal(one, two) for now in other for one, two in zip(now, other[0], strict=True))
    env = make(env_id, height=16, width=16)
    assert set(OBJECTS[task]) <= set(env.body_names)


@pytest.mark.parametrize("env_id", EIGHT)
def test_every_camera_of_our_own_sees_hand_and_object_in_every_configuration(env_id):
    """For the eight tasks of the paper; docs/tasks.md lists all fifty, and the paper's cameras."""
    from experiments.tasks import seen_at_reset

    seen = seen_at_reset(env_id, "train")
    assert seen.keys() == {"hand", *OBJECTS[task_of(env_id)]}
    for name, views in seen.items():
        assert views.keys() == {"left", "right", "top"}
        assert env_id not in PAPER or set(views.values()) == {CONFIGURATIONS}, (name, views)


@pytest.mark.parametrize("renderer", ["gl", "warp"])
def test_the_goal_is_a_ball_that_both_renderers_draw(renderer, require_renderer):
    """Where the task measures success from, in configurations that differ, and in no background."""
    require_renderer(renderer)
    env = make("metaworld-reach", height=96, width=96, renderer=renderer)
    model = env.synced_visual().model
    (geom,) = np.flatnonzero(model.geom_bodyid == model.body("goal").id)
    for seed in range(4):
        image = env.reset(seed=seed)[0]["images"]
        goal = env.unwrapped._task._target_pos
        np.testing.assert_allclose(env.body_positions(["goal"])[0], goal, atol=1e-12)
        rig = env.rig
        for view, segments in enumerate(env.segment_views()):
            inside = segments == geom
            if inside.sum() < 8:
                continue  # behind the arm
            camera_from_world = np.linalg.inv(rig.world_from_camera[view])
            uvw = rig.intrinsics[view] @ (camera_from_world @ np.append(goal, 1.0))[:3]
            rows, columns = np.nonzero(inside)
            np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], uvw[:2] / uvw[2], atol=1.0)
            red, green, blue = image[view][inside].mean(0)
            assert red > green + 60 and blue > green + 60
    background = env.background.astype(int)
    assert not ((background[..., 0] > background[..., 1] + 60) & (background[..., 2] > background[..., 1] + 60)).any()


def test_sites_are_not_drawn_in_place_of_which_the_goal_is(require_renderer):
    require_renderer("gl")
    env = make("metaworld-hammer", height=96, width=96, renderer="gl")
    env.reset(seed=0)
    before = env.render_views()
    env.unwrapped.model.site_size[:], env.unwrapped.model.site_rgba[:] = 0.2, 1.0
    np.testing.assert_array_equal(env.render_views(), before)


def test_proprio_is_of_the_hand_and_knows_nothing_of_the_object():
    env = make("metaworld-push", observe=("proprio", "state"))
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(env.workspace.normalise(observation["state"][:3]), observation["proprio"][:3], atol=1e-5)
    assert abs(observation["proprio"][6]) <= 1 and env.reset(seed=1)[0]["proprio"].shape == (7,)
    for _ in range(10):
        shut, *_ = env.step(np.array([1, 0, 0, 1], np.float32))
    assert 0.3 < shut["proprio"][3] < 1.1, "the hand moves along x at its full speed"
    qpos = env.unwrapped.data.qpos
    before = env._proprio()
    qpos[9:12] += 0.1  # the puck
    np.testing.assert_array_equal(env._proprio(), before)


def test_actions_that_are_none_are_refused():
    env = make("metaworld-reach", observe=("state",))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="is not finite"):
        env.step(np.array([0, np.nan, 0, 0], np.float32))


def test_a_pickled_one_is_a_new_one():
    env = make("metaworld-drawer-open", height=16, width=16, split="test")
    expected = env.reset(seed=4)[0]
    again = pickle.loads(pickle.dumps(env))
    for key, value in again.reset(seed=4)[0].items():
        np.testing.assert_array_equal(value, expected[key])
    assert again.unwrapped.split == "test"


def test_misspelt_tasks_are_named():
    with pytest.raises(UserError, match="unknown task of Meta-World 'hamer': did you mean 'hammer'"):
        MetaWorldEnv("hamer")
    with pytest.raises(UserError, match="unknown split 'tset': did you mean 'test'"):
        MetaWorldEnv("hammer", split="tset")
    with pytest.raises(UserError, match="unknown environment 'metaworld-hamer': did you mean 'metaworld-hammer'"):
        make("metaworld-hamer")
    with pytest.raises(UserError, match="unknown camera of metaworld-push 'paper-4'.*did you mean 'paper-") as caught:
        make("metaworld-push", cameras="paper-4")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("found, told", [(None, "it is not installed"), ("3.1.1", "found 3.1.1")])
def test_without_meta_world_or_with_another_version_a_line_says_what_to_install(monkeypatch, found, told):
    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr("envs.tasks.metaworld.importlib.metadata.version", version)
    with pytest.raises(UserError, match=f"metaworld-hammer needs Meta-World 3.0: pip install .*{told}") as caught:
        make("metaworld-hammer")
    assert "\n" not in str(caught.value)


def test_it_is_imported_only_when_it_is_used():
    import subprocess

    code = "import envs.registry, sys; assert len(envs.registry.env_ids()) > 50; assert 'metaworld' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cameras_of_the_paper_are_chosen_by_name():
    env = make("metaworld-hammer", cameras="paper-1,paper-3", height=32, width=48)
    assert env.rig.names == ("paper-1", "paper-3")
    half = np.degrees(np.arctan(16 / env.rig.intrinsics[:, 1, 1]))
    np.testing.assert_allclose(2 * half, 80.0)
    np.testing.assert_allclose(env.rig.world_from_camera[0, :3, 3], [-0.4, 0.6, 0.4])
