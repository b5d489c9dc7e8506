"""Redrawn scenes: another look of the same task, and everything in it can still be seen."""

import pickle

import mujoco
import numpy as np
import pytest

from envs import registry
from envs.cameras import CameraSpec, WorkspaceSpec, save_cameras
from envs.colours import colour_difference, colour_slots
from envs.errors import UserError
from envs.redraw import CROSSING, ROBOT_CONTRAST, TARGET_CONTRAST, redraw_box, redraw_cameras, redraw_colours
from envs.registry import make
from envs.tasks.arm import ASSETS
from envs.tasks.reach import ReachEnv
from tests.envs.test_projection import present_state, project, seen_by_ray
from tests.tasks import FIXED

SEEDS = range(8)
SIZE = 64


@pytest.fixture(scope="module", params=[(env_id, seed) for env_id in FIXED for seed in SEEDS], ids=str)
def redrawn(request):
    env_id, seed = request.param
    env = make(env_id, redraw=seed, height=SIZE, width=SIZE)
    yield env, make(env_id, height=SIZE, width=SIZE), seed
    env.close()


def colours_of(model):
    return np.array([slot.read(model) for slot in colour_slots(model)])


def geoms_of(model, names):
    return [geom for geom in range(model.ngeom) if model.body(model.geom_bodyid[geom]).name in names]


def directions(env):
    away = env.rig.world_from_camera[:, :3, 3] - env.workspace.centre
    return away / np.linalg.norm(away, axis=1, keepdims=True)


def test_colours_start_and_cameras_differ_from_the_tasks_own(redrawn):
    env, own, _ = redrawn
    assert np.all(np.abs(colours_of(env.unwrapped.model) - colours_of(own.unwrapped.model)).max(1) > 0.01)
    assert env.rig.names == own.rig.names
    angles = np.degrees(np.arccos(np.clip((directions(env) * directions(own)).sum(1), -1, 1)))
    assert angles.max() > 5 and np.all(angles < 45)
    assert not np.allclose(env.rig.intrinsics, own.rig.intrinsics)
    box, own_box = env.unwrapped.start, own.unwrapped.start
    assert np.abs(np.subtract(box.centre, own_box.centre)).max() > 0.01
    assert np.abs(np.subtract(box.half_extents, own_box.half_extents)).max() > 0.002


def test_physics_is_the_tasks_own(redrawn):
    env, own, _ = redrawn
    a, b = env.unwrapped.model, own.unwrapped.model
    for name in ("body_mass", "body_pos", "geom_size", "geom_pos", "jnt_range", "dof_damping", "eq_data", "qpos0"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert env.workspace == own.workspace and env.horizon == own.horizon
    np.testing.assert_array_equal(a.mat_rgba[:, 3], b.mat_rgba[:, 3])


def test_the_box_is_in_every_view_with_a_margin_and_fills_it(redrawn):
    env, *_ = redrawn
    uv, depth = project(env.rig, env.workspace.corners())
    assert np.all(depth > 0.1)
    assert np.all(uv > 0.02 * SIZE) and np.all(uv < 0.98 * SIZE)
    assert np.all(np.ptp(uv, axis=1).max(axis=1) > 0.6 * SIZE)


def test_cameras_look_from_different_sides_and_not_from_below(redrawn):
    env, *_ = redrawn
    away = directions(env)
    crossing = np.degrees(np.arccos(np.minimum(np.abs(away @ away.T), 1)))[np.triu_indices(len(away), 1)]
    assert np.all(crossing > 0.85 * CROSSING)  # they look at slightly different points
    assert np.all(away[:, 2] > np.sin(np.radians(5)))


def test_the_target_is_seen_in_every_view_most_of_the_time(redrawn):
    env, own, _ = redrawn
    target = geoms_of(env.unwrapped.model, env.unwrapped.movable)
    pixels = []
    for seed in range(20):
        env.reset(seed=seed)
        pixels.append(np.isin(env.segment_views(), target).sum((1, 2)))
    seen = np.array(pixels) >= 8
    assert np.all(seen.mean(0) >= 0.7) and np.mean(seen.sum(1) >= 2) >= 0.9
    assert np.median(pixels) >= 20


def test_what_matters_stands_out(redrawn):
    env, *_ = redrawn
    model = env.unwrapped.model
    target = set(geoms_of(model, env.unwrapped.movable))
    moves = {geom for geom in range(model.ngeom) if model.body_weldid[model.geom_bodyid[geom]] != 0} - target
    groups = {"target": [], "robot": [], "still": [(0.93, 0.95, 0.97)]}  # the sky of our scenes
    for slot in colour_slots(model):
        kind = "target" if target & set(slot.geoms) else "robot" if moves & set(slot.geoms) else "still"
        groups[kind].append(slot.read(model))
    assert all(len(group) >= 1 for group in groups.values())
    for colour in groups["target"]:
        assert (
            min(colour_difference(colour, other) for other in groups["robot"] + groups["still"]) >= TARGET_CONTRAST - 1
        )
    for colour in groups["robot"]:
        assert min(colour_difference(colour, other) for other in groups["still"]) >= ROBOT_CONTRAST - 1


def test_the_targets_pixels_stand_out_in_the_render(redrawn):
    """Where the target hangs before the background, its pixels are of another colour, in light and shade."""
    env, *_ = redrawn
    target = geoms_of(env.unwrapped.model, env.unwrapped.movable)
    differences = []
    for seed in range(5):
        image = env.reset(seed=seed)[0]["images"]
        shown = np.isin(env.segment_views(), target)
        pairs = zip(image[shown] / 255.0, env.background[shown] / 255.0, strict=True)
        differences += [colour_difference(a, b) for a, b in pairs]
    assert np.mean(np.array(differences) > 20) > 0.95


def test_the_gripper_starts_in_its_box_at_rest(redrawn):
    env, own, _ = redrawn
    base = env.unwrapped
    box, starts = base.start, []
    low, high = env.workspace.corners().min(0), env.workspace.corners().max(0)
    assert np.all(box.corners() > low) and np.all(box.corners() < high)
    for seed in range(25):
        base.reset(seed=seed)
        starts.append(base.end_effector.copy())
        start = base.end_effector.copy()
        base.step(np.array([0, 0, 0, -1.0]))
        assert np.linalg.norm(base.end_effector - start) < 2e-3
    spread = np.abs(box.normalise(np.array(starts)))
    assert np.all(spread < 1.05) and np.all(spread.max(0) > 0.7)


def test_the_background_is_of_every_episode(redrawn):
    env, *_ = redrawn
    env.reset(seed=0)
    background, movable = env.background, env._visual.movable_geoms
    for seed in (1, 2):
        image = env.reset(seed=seed)[0]["images"]
        segments = env.segment_views()
        still = ~np.isin(segments, movable) & (segments != -2)
        still[:, [0, -1]] = still[:, :, [0, -1]] = False
        inner = still & np.roll(still, 1, 1) & np.roll(still, -1, 1) & np.roll(still, 1, 2) & np.roll(still, -1, 2)
        assert np.abs(image[inner].astype(int) - background[inner]).max() <= 1


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("env_id", FIXED)
def test_redrawn_cameras_project_to_where_the_renderer_draws(env_id, seed):
    env = make(env_id, redraw=seed, height=192, width=192)
    landed = {view: [] for view in range(len(env.rig.names))}
    for episode in range(10):
        env.reset(seed=episode)
        model, data, origin = present_state(env)
        rig, segments = env.rig, env.segment_views()
        uv, depth = project(rig, data.geom_xpos - origin)
        for view, geom in np.ndindex(depth.shape):
            column, row = np.floor(uv[view, geom]).astype(int)
            if depth[view, geom] > 0 and 0 <= row < 192 and 0 <= column < 192:
                if seen_by_ray(model, data, rig.world_from_camera[view, :3, 3], data.geom_xpos[geom]) == geom:
                    landed[view].append(segments[view, row, column] == geom)
    for hits in landed.values():
        assert len(hits) >= 8 and np.mean(hits) >= 0.95
    env.close()


@pytest.mark.parametrize("env_id", FIXED)
def test_one_seed_is_one_scene_and_another_is_another(env_id):
    scenes = []
    for seed in (4, 4, 5):
        env = make(env_id, redraw=seed, height=32, width=32)
        observation = env.reset(seed=1)[0]
        model = env.unwrapped.model
        scenes.append(
            (env.rig.to_dict(), env.unwrapped.start, colours_of(model).tolist(), observation["images"].tolist())
        )
        env.close()
    assert scenes[0] == scenes[1]
    assert all(one != other for one, other in zip(scenes[0], scenes[2], strict=True))
    again = pickle.loads(pickle.dumps(make(env_id, redraw=4, height=32, width=32)))  # as workers get it
    assert again.rig.to_dict() == scenes[0][0] and again.reset(seed=1)[0]["images"].tolist() == scenes[0][3]
    again.close()


def test_redrawing_twice_is_redrawing_once():
    once, twice = ReachEnv(), ReachEnv()
    once.redraw(1)
    twice.redraw(2)
    twice.redraw(1)
    assert once.cameras == twice.cameras and once.start == twice.start
    np.testing.assert_array_equal(once.model.mat_rgba, twice.model.mat_rgba)
    assert ReachEnv.cameras[0] != once.cameras[0]  # the task's own stay as they are


def test_without_a_seed_the_scene_is_the_tasks_own():
    env = make("reach-multiview", height=16, width=16)
    assert env.unwrapped.cameras is ReachEnv.cameras and env.unwrapped.start is ReachEnv.start


def test_redrawn_cameras_are_chosen_by_name_and_those_of_a_file_stay(tmp_path):
    whole = make("reach-multiview", redraw=2, height=16, width=16)
    one = make("reach-multiview", redraw=2, cameras="front", height=16, width=16)
    np.testing.assert_array_equal(one.rig.world_from_camera[0], whole.rig.world_from_camera[2])
    save_cameras(tmp_path / "mine.yaml", ReachEnv.cameras)
    mine = make("reach-multiview", redraw=2, cameras=tmp_path / "mine.yaml", height=16, width=16)
    own = make("reach-multiview", height=16, width=16)
    np.testing.assert_array_equal(mine.rig.world_from_camera, own.rig.world_from_camera)
    np.testing.assert_array_equal(mine.unwrapped.model.mat_rgba, whole.unwrapped.model.mat_rgba)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_redrawn_says_so():
    class Fixed(ReachEnv):
        redraw = property()  # as if the task had none

    registry._TASKS["test-only-fixed"] = Fixed, {}
    try:
        with pytest.raises(UserError, match="test-only-fixed cannot be redrawn: its task has no method 'redraw'"):
            make("test-only-fixed", redraw=0)
        make("test-only-fixed", height=16, width=16).close()
    finally:
        registry._TASKS.pop("test-only-fixed")
    with pytest.raises(UserError, match="Ant-v5 cannot be redrawn: it is not a task of this project"):
        make("Ant-v5", cameras=ASSETS / "cameras" / "ant.yaml", redraw=0)
    with pytest.raises(UserError, match="some.module:Ant-v5 cannot be redrawn"):
        make("some.module:Ant-v5", cameras=ASSETS / "cameras" / "ant.yaml", redraw=0)
    with pytest.raises(UserError, match="did you mean 'reach-multiview'"):
        make("reach-multivew", redraw=0)


@pytest.mark.parametrize("seed", [-1, 1.5, "one", True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(UserError, match="redraw is .* whole number"):
        make("reach-multiview", redraw=seed)


# -- the parts -------------------------------------------------------------------------------------------------------

BOX = WorkspaceSpec((0.3, 0.1, 0.2), (0.2, 0.3, 0.1))


def test_cameras_are_moved_whatever_way_they_were_described():
    cameras = [
        CameraSpec("described", (1.3, 0.1, 0.5), quaternion=(1, 0, 0, 0), fovy=60),
        CameraSpec("tilted", (0.3, 1.4, 0.9), look_at=(0.3, 0.1, 0.2), up=(0.3, 0, 1)),
        CameraSpec("mounted", (0, 0, 0.1), look_at=(0, 0, 0.3), up=(1, 0, 0), body="hand"),
    ]
    for seed in range(20):
        moved = redraw_cameras(cameras, BOX, np.random.default_rng(seed))
        assert [camera.name for camera in moved] == ["described", "tilted", "mounted"]
        assert moved[2] == cameras[2] and moved[1].up == cameras[1].up
        assert 51 <= moved[0].fovy <= 69 and moved[0].quaternion is None


def test_few_degrees_between_the_tasks_own_cameras_are_not_asked_to_be_more():
    near = [CameraSpec(str(n), (1.5, 0.1 * n, 0.6), look_at=(0.3, 0.1, 0.2)) for n in range(3)]
    assert len(redraw_cameras(near, BOX, np.random.default_rng(0))) == 3
    with pytest.raises(UserError, match="follows body 'torso'"):
        redraw_cameras(near, WorkspaceSpec((0, 0, 0), (1, 1, 1), body="torso"), np.random.default_rng(0))


def test_a_box_stays_inside_another_however_small():
    for seed in range(50):
        for half in ((0.1, 0.1, 0.05), (0.2, 0.3, 0.1)):
            box = redraw_box(WorkspaceSpec(BOX.centre, half), BOX, np.random.default_rng(seed))
            assert np.all(np.abs(BOX.normalise(box.corners())) <= 0.951)
            ratio = np.divide(box.half_extents, half)
            assert np.all(ratio <= 1.4) and np.all(ratio >= 0.6)


def test_colours_that_cannot_stand_out_are_refused():
    geoms = "".join(f'<geom size=".1" pos="{n} 0 0"/>' for n in range(60))
    target = '<body name="goal"><geom size=".1" rgba="1 0 0 1"/></body>'
    arm = f"<body><joint/>{geoms}</body>"
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{geoms}{target}{arm}</worldbody></mujoco>")
    with pytest.raises(UserError, match="cannot redraw 121 colours"):
        redraw_colours(model, ["goal"], np.random.default_rng(0))


def test_colour_differences_are_those_of_the_standard():
    assert colour_difference((0, 0, 0), (1, 1, 1)) == pytest.approx(100, abs=0.1)
    assert colour_difference((0.2, 0.4, 0.6), (0.2, 0.4, 0.6)) == 0
    # sRGB red is L*a*b* (53.24, 80.09, 67.20), blue (32.30, 79.19, -107.86): Lindbloom's tables
    assert colour_difference((1, 0, 0), (0, 0, 0)) == pytest.approx(np.linalg.norm([53.24, 80.09, 67.20]), abs=0.1)
    expected = np.linalg.norm([53.24 - 32.30, 80.09 - 79.19, 67.20 + 107.86])
    assert colour_difference((1, 0, 0), (0, 0, 1)) == pytest.approx(expected, abs=0.1)
