"""The filmed hand: its truth against the renderer's segmentation, its motion within limits, the same from seeds."""

import importlib.util

import numpy as np
import pytest

from envs.cameras import CameraSpec
from envs.errors import UserError
from envs.renderers import make_renderer
from envs.scenes import footage, hand, motion
from envs.scenes.footage import dome, label_hands, record_hand, split_dome
from envs.scenes.hand import BONES, CENTRE, FINGERS, GROUPS, KEYPOINTS, Hand, ThingSpec, bone_limits
from envs.scenes.looks import Look, noise_texture
from envs.visual_model import VisualModel


@pytest.fixture(scope="module")
def renderer():
    made = make_renderer()
    yield made
    made.close()


def project(rig, points):
    """(V, K, 2) pixels of points (K, 3), by plain matrices."""
    inverse = np.linalg.inv(rig.world_from_camera)
    local = np.einsum("vij,kj->vki", inverse[:, :3, :3], points) + inverse[:, None, :3, 3]
    pixels = np.einsum("vij,vkj->vki", rig.intrinsics, local)
    return pixels[..., :2] / pixels[..., 2:]


def test_names_groups_and_bones_are_those_of_a_hand():
    assert len(KEYPOINTS) == len(GROUPS) == len(set(KEYPOINTS)) == 21 and len(BONES) == 20
    assert [GROUPS.count(group) for group in range(6)] == [4, 4, 4, 4, 4, 1]
    for first, second in BONES:
        assert GROUPS[first] == GROUPS[second] or (first == 0 and KEYPOINTS[second].endswith("base"))
    lengths = bone_limits(50)
    assert (lengths[:, 0] > 0.02).all() and (lengths[:, 1] - lengths[:, 0] < 0.012).all()
    hand = Hand(Look(plain=True))
    hand.pose(np.zeros(24), np.eye(3), np.zeros(3))
    points = dict(zip(KEYPOINTS, hand.keypoints(), strict=True))
    assert 0.18 < np.linalg.norm(points["middle tip"] - points["wrist"]) < 0.25
    assert points["index base"][0] > points["middle base"][0] > points["ring base"][0] > points["little base"][0]


def test_every_keypoint_lies_on_its_body_in_the_renderers_segmentation(renderer):
    """Seen from the palm and from the back, open: what a joint's pixel shows is that finger, or the palm."""
    hand = Hand(Look(plain=True))
    cameras = [CameraSpec(n, (0, y, 0.02), look_at=(0, 0, 0), fovy=26.0) for n, y in (("palm", -0.75), ("back", 0.75))]
    visual = VisualModel(hand.spec, hand.model, cameras)
    hand.pose(np.zeros(24), np.eye(3), np.zeros(3))
    visual.sync(hand.model, hand.data)
    shown = renderer.segment(visual, 256, 256)
    uv = project(visual.rig(256, 256), hand.keypoints())
    prefixes = dict(zip(FINGERS, ("th", "ff", "mf", "rf", "lf"), strict=True))
    wrong = []
    for view in range(2):
        for name, (u, v) in zip(KEYPOINTS, uv[view], strict=True):
            if name.endswith("tip"):  # is the very end: its pixel may be the wall's
                v += 3
            geom = shown[view, int(v), int(u)]
            body = visual.model.body(visual.model.geom_bodyid[geom]).name.removeprefix("robot0:") if geom >= 0 else ""
            finger = prefixes.get(name.split()[0], "wrist")
            if not body.startswith((finger, "palm", "wrist") + ("forearm",) * (finger == "wrist")):
                wrong.append((cameras[view].name, name, body))
    assert not wrong


def test_the_hand_stands_where_it_is_put():
    hand, rng = Hand(Look(plain=True)), np.random.default_rng(0)
    for _ in range(5):
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        rotation *= np.linalg.det(rotation)
        centre = rng.normal(size=3)
        hand.pose(rng.uniform(-2, 2, 24), rotation, centre)
        turned, at = hand.palm()
        np.testing.assert_allclose(turned, rotation, atol=1e-6)
        np.testing.assert_allclose(at + turned @ CENTRE, centre, atol=1e-6)
        joints = hand.data.qpos[hand.joints]
        assert (joints >= hand.limits[:, 0] - 1e-9).all() and (joints <= hand.limits[:, 1] + 1e-9).all()


@pytest.mark.parametrize("grasps", [False, True])
def test_motion_is_smooth_within_limits_and_not_always_the_same(grasps):
    rng = np.random.default_rng(3)
    hand = Hand(Look(plain=True), [ThingSpec("sphere", (0.03, 0.03, 0.03)), ThingSpec("box", (0.02, 0.02, 0.02))])
    path = motion.draw_path(hand, 60, rng, grasps)
    assert (path.joints >= hand.limits[:, 0] - 1e-6).all() and (path.joints <= hand.limits[:, 1] + 1e-6).all()
    points = []
    for frame in range(60):
        path.apply(hand, frame)
        points.append(hand.keypoints())
    step = np.linalg.norm(np.diff(points, axis=0), axis=-1)
    assert 1e-4 < np.median(step) < 0.02 and step.max() < 0.06, "metres in a thirtieth of a second"
    np.testing.assert_allclose(np.linalg.norm(path.things[..., 3:], axis=-1), 1.0)
    assert np.abs(path.centres).max() <= 0.05
    other = motion.draw_path(hand, 60, rng, grasps)
    assert np.abs(other.joints - path.joints).max() > 0.1
    if grasps:
        path.apply(hand, 59)
        assert sum(hand.touches(finger, 0) for finger in FINGERS) == 0, "fingers stop before they are inside of it"
        flexed = [
            path.joints[59][hand.joint_names.index(f"{finger}J{n}")] for finger in ("FF", "MF", "RF") for n in (1, 2)
        ]
        assert min(flexed) > 0.3, "and are closed round it"
        held = [path.rotations[t].T @ (path.things[t, 0, :3] - path.centres[t]) for t in (0, 30, 59)]
        np.testing.assert_allclose(held, [held[0]] * 3, atol=1e-6)


def test_the_same_seed_films_the_same_and_another_one_something_else(renderer):
    cameras = dome(3)
    first, again, other = (record_hand(cameras, 2, 48, seed, renderer) for seed in (5, 5, 6))
    assert np.array_equal(first.images, again.images) and np.array_equal(first.points, again.points)
    assert first.images.shape == (2, 3, 48, 48, 3) and first.points.shape == (2, 21, 3)
    assert np.abs(first.images.astype(int) - other.images).mean() > 20
    plain = [record_hand(cameras[:1], 1, 48, seed, renderer, plain=True).images for seed in (5, 6)]
    greys = [np.ptp(images.astype(int), axis=-1).mean() for images in plain]
    assert max(greys) < 10 < np.ptp(first.images.astype(int), axis=-1).mean()


def test_keypoints_are_in_the_images_of_most_cameras(renderer):
    shot = record_hand(dome(12), 4, 64, 1, renderer)
    inside = [((uv := project(shot.rig, points)) >= 0).all(-1) & (uv < 64).all(-1) for points in shot.points]
    assert np.mean(inside) > 0.97


def test_labelled_images_are_from_a_cone_about_the_palm_and_nothing_hides_the_hand(renderer):
    shot = label_hands(30, 48, 0, renderer, cone=40.0, looks=3)
    camera = shot.rig.world_from_camera[0, :3, 3]
    names = {name: number for number, name in enumerate(KEYPOINTS)}
    angles = []
    for points in shot.points:
        across = points[names["index base"]] - points[names["ring base"]]
        normal = np.cross(across, points[names["middle base"]] - points[0])  # out of the palm of a right hand
        way = camera - points.mean(0)
        angles.append(np.degrees(np.arccos(normal @ way / np.linalg.norm(normal) / np.linalg.norm(way))))
    assert 25 < np.max(angles) < 48 and np.min(angles) < 20
    assert not shot.hidden.any() and len(np.unique(shot.images.reshape(30, -1)[:, :3], axis=0)) >= 3
    again = label_hands(30, 48, 0, renderer, cone=40.0, looks=3)
    assert np.array_equal(shot.images, again.images)


def test_views_that_are_said_to_be_hidden_show_nothing_of_the_hand(renderer):
    hand = Hand(Look(plain=True), [ThingSpec("box", (0.001, 0.3, 0.3))])
    hand.pose(np.zeros(24), np.eye(3), np.zeros(3))
    hand.place(0, np.array([0.3, 0.0, 0.0]), np.array([1.0, 0, 0, 0]))
    cameras = [
        CameraSpec(name, (x, 0.0, 0.05), look_at=(0, 0, 0), fovy=26.0) for name, x in (("far", 0.75), ("near", -0.75))
    ]
    visual = VisualModel(hand.spec, hand.model, cameras)
    visual.sync(hand.model, hand.data)
    hidden = hand.hidden_from(visual.rig(64, 64).world_from_camera[:, :3, 3])
    shown = renderer.segment(visual, 64, 64)
    fingers = np.isin(
        visual.model.geom_bodyid[shown], [visual.model.body(f"robot0:{b}").id for b in ("palm", "mfproximal")]
    )
    seen = (fingers & (shown >= 0)).any((1, 2))
    assert hidden.tolist() == [True, False] and seen.tolist() == [False, True]


def test_the_dome_looks_inwards_from_everywhere_and_its_first_cameras_are_spread_out():
    cameras = dome(24)
    places = np.array([camera.position for camera in cameras])
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), footage.DISTANCE)
    assert len({camera.name for camera in cameras}) == 24

    def nearest(points):
        apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + 9 * np.eye(len(points))
        return apart.min(1)

    assert nearest(places).min() > 0.15
    assert nearest(places[:4]).min() > 2 * nearest(places).mean(), "four of 24 are far from each other"
    trained, held_out = split_dome(24, 6)
    assert len(trained) == 24 and len(held_out) == 6
    assert not {camera.position for camera in trained} & {camera.position for camera in held_out}
    theirs = np.array([camera.position for camera in trained])
    assert max(np.linalg.norm(theirs - camera.position, axis=1).min() for camera in held_out) < 0.3, "between them"
    assert trained[:4] == split_dome(24, 6)[0][:4] and nearest(theirs[:4]).min() > 0.35


def test_textures_are_many():
    rng = np.random.default_rng(0)
    textures = [noise_texture(rng) for _ in range(20)]
    assert all(texture.shape == (64, 64, 3) and texture.dtype == np.uint8 for texture in textures)
    assert min(texture.std() for texture in textures) > 3
    assert np.std([texture.mean((0, 1)) for texture in textures]) > 20


def test_without_the_hands_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'kp3d_rl\[hand\]'"):
        hand.hand_file()
