"""People: bodies against anthropometry and the renderer, clips against their files, poses against each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.errors import UserError
from envs.renderers import make_renderer
from envs.scenes import clips
from envs.scenes.clips import TEST, TRAINING, VALIDATION, Clip, draw_poses, mirrored, read_clip
from envs.scenes.human import JOINTS, LIMBS, MIRROR, ROTATIONS, SIDES, BodyShape, Human
from envs.scenes.people import (
    EXTENT,
    FARTHEST,
    NEAREST,
    cameras_at,
    draw_people,
    play_people,
    record_people,
    ring,
    virtual_places,
)
from envs.visual_model import VisualModel

pytest.importorskip("pybullet_data", reason="PyBullet has packages for Python 3.11 alone")

STANDING = np.tile([1.0, 0.0, 0.0, 0.0], (13, 1))


def joint(name: str) -> int:
    return JOINTS.index(name)


def bones(points: np.ndarray) -> np.ndarray:
    first, second = np.array(LIMBS).T
    return np.linalg.norm(points[..., first, :] - points[..., second, :], axis=-1)


def test_an_average_body_has_the_shares_of_stature_of_anthropometry() -> None:
    human = Human(BodyShape(stature=1.7))
    human.pose(STANDING, (0.0, 0.0, 0.9))
    points = human.keypoints()
    lengths = dict(zip(LIMBS, bones(points) / 1.7, strict=True))
    assert lengths[(1, 2)] == pytest.approx(0.245) and lengths[(2, 3)] == pytest.approx(0.246)
    assert lengths[(10, 11)] == pytest.approx(0.186) and lengths[(11, 12)] == pytest.approx(0.146)
    assert np.linalg.norm(points[joint("left shoulder")] - points[joint("right shoulder")]) == pytest.approx(
        0.259 * 1.7
    )
    assert points[0] == pytest.approx([0, 0, 0.9])
    sole = points[joint("left ankle"), 2] - 0.039 * 1.7
    assert points[joint("head"), 2] - sole == pytest.approx(1.7, rel=0.03)
    assert points[joint("left wrist"), 1] > 0 > points[joint("right wrist"), 1], "left is where y is"


def test_bodies_differ_and_keep_their_bones_in_every_pose() -> None:
    rng = np.random.default_rng(0)
    shapes = [BodyShape.draw(rng) for _ in range(5)]
    assert len({shape.stature for shape in shapes}) == 5 and all(1.5 <= shape.stature <= 1.95 for shape in shapes)
    human = Human(shapes[0])
    human.pose(STANDING)
    straight = bones(human.keypoints())
    human.pose(Rotation.random(13, random_state=0).as_quat(scalar_first=True))
    np.testing.assert_allclose(bones(human.keypoints()), straight, atol=1e-9)
    other = Human(shapes[1])
    other.pose(STANDING)
    assert not np.allclose(bones(other.keypoints()), straight)


def test_a_pose_is_the_product_of_rotations_down_the_tree() -> None:
    """A naive chain from pelvis to the left wrist."""
    human, turns = Human(), Rotation.random(13, random_state=3)
    human.pose(STANDING)
    rest = human.keypoints()
    human.pose(turns.as_quat(scalar_first=True), (0.3, -0.2, 1.0))
    place, turn = np.array([0.3, -0.2, 1.0]), turns[0]
    chain = [("pelvis", "root"), ("spine", "chest"), ("left shoulder", "left shoulder"), ("left elbow", "left elbow")]
    for (name, _), (after, rotation) in zip(chain, chain[1:], strict=False):
        place = place + turn.apply(rest[joint(after)] - rest[joint(name)])
        turn = turn * turns[ROTATIONS.index(rotation)]
    place = place + turn.apply(rest[joint("left wrist")] - rest[joint("left elbow")])
    np.testing.assert_allclose(human.keypoints()[joint("left wrist")], place, atol=1e-9)


def test_a_body_notices_when_it_lies_in_itself() -> None:
    human = Human()
    spread = STANDING.copy()
    for name, angle in (("left shoulder", 1.0), ("right shoulder", -1.0)):
        spread[ROTATIONS.index(name)] = Rotation.from_rotvec([angle, 0, 0]).as_quat(scalar_first=True)
    human.pose(spread)
    assert human.penetration() < 0.01
    crossed = spread.copy()
    crossed[ROTATIONS.index("left hip")] = Rotation.from_rotvec([-0.5, 0, 0]).as_quat(scalar_first=True)
    human.pose(crossed)
    assert human.penetration() > 0.05, "a leg through the other one"


@pytest.mark.parametrize("name", (*TRAINING, *VALIDATION, *TEST))
def test_clips_are_smooth_motions_of_unit_quaternions(name: str) -> None:
    clip = read_clip(name)
    assert clip.rotations.shape == (len(clip), 13, 4) and clip.positions.shape == (len(clip), 3)
    np.testing.assert_allclose(np.linalg.norm(clip.rotations, axis=-1), 1.0, atol=1e-6)
    steps = Rotation.from_quat(clip.rotations[:-1].reshape(-1, 4), scalar_first=True).inv() * Rotation.from_quat(
        clip.rotations[1:].reshape(-1, 4), scalar_first=True
    )
    assert np.percentile(np.degrees(steps.magnitude()), 90) < 40 and 0.01 < clip.seconds < 0.1


def test_clips_are_split_and_people_walk_upright_forwards() -> None:
    assert len({*TRAINING, *VALIDATION, *TEST}) == len((*TRAINING, *VALIDATION, *TEST)) == 15
    walk, human = read_clip("walk"), Human()
    assert np.ptp(walk.positions[:, 0]) > 0.5 > np.ptp(walk.positions[:, 1]), "along x"
    knees = []
    for pose in walk.rotations:
        human.pose(pose)
        points = human.keypoints()
        assert points[joint("head"), 2] > 0.6 and points[joint("left ankle"), 2] < -0.6
        thigh, shank = points[5] - points[4], points[6] - points[5]
        knees.append(np.cross(thigh, shank)[1])
    assert max(knees) > 0.02 and min(knees) > -0.02, "knees bend backwards, never forwards"


def test_a_mirrored_pose_is_the_reflection_of_the_body() -> None:
    human, pose = Human(), read_clip("dance_b").rotations[40]
    human.pose(pose)
    points = human.keypoints()
    human.pose(mirrored(pose))
    swapped = [joint(name.replace("left", "?").replace("right", "left").replace("?", "right")) for name in JOINTS]
    np.testing.assert_allclose(human.keypoints(), points[swapped] * [1, -1, 1], atol=1e-9)
    assert [MIRROR[at] for at in MIRROR] == list(range(13)) and [SIDES[at] for at in swapped].count(1) == 6


def test_drawn_poses_are_new_look_anywhere_and_do_not_lie_in_themselves() -> None:
    walk, human = read_clip("walk"), Human()
    poses = draw_poses([walk, read_clip("roll")], 40, human, np.random.default_rng(1))
    assert poses.shape == (40, 13, 4) and len({pose.tobytes() for pose in poses}) == 40
    worst = []
    for pose in poses:
        human.pose(pose)
        worst.append(human.penetration())
    assert max(worst) < 0.08
    headings = Rotation.from_quat(poses[:, 0], scalar_first=True).apply([1.0, 0, 0])
    assert (headings[:, :2] > 0.3).any(0).all() and (headings[:, :2] < -0.3).any(0).all()
    with pytest.raises(UserError, match="at least one motion clip"):
        draw_poses([], 3, human, np.random.default_rng(0))


def test_people_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    played = [read_clip("walk"), read_clip("crawl")]
    people = draw_people(played, 9, 2, seed=4)
    assert people.joints.shape == (9, 16, 3) and not people.joints[:, 0].any() and set(people.bodies) == {0, 1}
    np.testing.assert_array_equal(people.joints, draw_people(played, 9, 2, seed=4).joints)
    assert not np.allclose(people.joints, draw_people(played, 9, 2, seed=5).joints)
    for body, shape in enumerate(people.shapes):
        human = Human(shape)
        human.pose(STANDING)
        expected = np.tile(bones(human.keypoints()), (int((people.bodies == body).sum()), 1))
        np.testing.assert_allclose(bones(people.joints[people.bodies == body]), expected, atol=1e-6)


def test_played_people_are_frames_of_the_clip() -> None:
    clip = read_clip("walk")
    people = play_people([clip], 10, 3, seed=1, turning=False)
    human = Human(people.shapes[0])
    human.pose(clip.rotations[0])
    np.testing.assert_allclose(people.joints[0], human.keypoints() - human.keypoints()[0], atol=1e-9)
    turned = play_people([clip], 10, 3, seed=1)
    np.testing.assert_allclose(turned.joints[..., 2], people.joints[..., 2], atol=1e-9)
    assert not np.allclose(turned.joints, people.joints)
    with pytest.raises(UserError, match="500 test poses were asked for: the 1 clips have 39 frames"):
        play_people([clip], 500, 1, 0)


def test_cameras_stand_round_the_person_and_the_held_out_ones_between_them() -> None:
    trained, held_out = ring(8, 2)
    far = np.linalg.norm(np.concatenate([trained, held_out, virtual_places(50, np.random.default_rng(0))]), axis=1)
    assert far.min() >= NEAREST and far.max() <= FARTHEST
    towards = np.concatenate([trained, held_out]) / far[:10, None]
    apart = np.degrees(np.arccos(np.clip(towards @ towards.T, -1, 1))) + 180 * np.eye(10)
    assert apart[8:].min() > 15, "no held-out camera is where another one is"
    assert len({round(float(place[2]), 3) for place in trained}) == 8, "at different heights"


def test_joints_are_in_the_images_where_the_renderer_draws_the_body() -> None:
    """Joints projected by each camera lie on the body's pixels; the image shows what EXTENT says."""
    people = play_people([read_clip("kick")], 4, 2, seed=0)
    places, _ = ring(3, 1)
    renderer = make_renderer()
    images = record_people(people, places, 96, 0, renderer)
    assert images.shape == (4, 3, 96, 96, 3) and len({image.tobytes() for image in images[:, 0]}) == 4
    human = Human(people.shapes[people.bodies[1]])
    human.pose(people.rotations[1])
    visual = VisualModel(human.spec, human.model, cameras_at(places))
    visual.sync(human.model, human.data)
    masks, rig = renderer.segment(visual, 96, 96) >= 0, visual.rig(96, 96)
    renderer.close()
    for mask, pose, intrinsics, place in zip(masks, rig.world_from_camera, rig.intrinsics, places, strict=True):
        inside = (human.keypoints() - pose[:3, 3]) @ pose[:3, :3]
        uv = inside[:, :2] / inside[:, 2:] * intrinsics[0, 0] + 48
        near = [mask[int(v) - 1 : int(v) + 2, int(u) - 1 : int(u) + 2].any() for u, v in uv]
        assert all(near)
        assert 96 / intrinsics[0, 0] * np.linalg.norm(place) == pytest.approx(EXTENT)


def test_missing_and_damaged_clips_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown motion clip 'wlak'.*walk"):
        read_clip("wlak")
    monkeypatch.setattr(clips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'kp3d_rl\[human\]'"):
        read_clip("walk")
    monkeypatch.setattr(clips, "_folder", lambda: tmp_path)
    path = tmp_path / "humanoid3d_walk.txt"
    for text, said in (
        ("no json", "cannot be read"),
        (json.dumps({"Frames": [[0.1] * 43]}), r"frames of 44 numbers, not \(1, 43\)"),
        (json.dumps({"Frames": [[float("nan")] * 44]}), "frames of 44 numbers"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said) as error:
            read_clip("walk")
        assert "\n" not in str(error.value)


def test_poses_between_frames_are_between_them() -> None:
    turn = Rotation.from_rotvec([[0, 0, 0], [0, 0, 1.0]]).as_quat(scalar_first=True)
    clip = Clip("two", np.repeat(turn[:, None], 13, 1), np.zeros((2, 3)), 0.1)
    frames = clips._frames([clip], 200, np.random.default_rng(0))
    angles = Rotation.from_quat(frames[:, 5], scalar_first=True).as_rotvec()[:, 2]
    assert angles.min() < 0.1 and angles.max() > 0.9 and ((angles >= -1e-9) & (angles <= 1 + 1e-9)).all()
