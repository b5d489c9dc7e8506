"""Camera specifications, cameras files, and rigs read from compiled models."""

import json
import math

import mujoco
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from envs.cameras import CameraRig, CameraSpec, WorkspaceSpec, load_cameras, read_rig, save_cameras
from envs.errors import UserError

finite = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))
triple = st.tuples(finite, finite, finite)


def compile_model(camera_xml):
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{camera_xml}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def test_look_at_points_the_camera_at_the_target():
    spec = CameraSpec("c", position=(1.0, -2.0, 1.5), look_at=(0.2, 0.1, 0.3))
    w, x, y, z = spec.mujoco_quaternion
    axes = Rotation.from_quat([x, y, z, w]).as_matrix()
    direction = np.array(spec.look_at) - spec.position
    np.testing.assert_allclose(-axes[:, 2], direction / np.linalg.norm(direction), atol=1e-12)
    assert abs(axes[2, 0]) < 1e-12  # the image's rows are level
    assert axes[2, 1] > 0  # up is up


def test_quaternion_is_normalised():
    np.testing.assert_allclose(CameraSpec("c", (0, 0, 1), quaternion=(2, 0, 0, 0)).mujoco_quaternion, [1, 0, 0, 0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(position=(0, 0)), "position is (0, 0); it must be 3 finite numbers"),
        (dict(position=(0, 0, math.nan)), "must be 3 finite numbers"),
        (dict(position="abc"), "must be 3 finite numbers"),
        (dict(look_at=None), "either look_at or quaternion"),
        (dict(quaternion=(1, 0, 0, 0)), "either look_at or quaternion"),
        (dict(fovy=0), "fovy is 0"),
        (dict(fovy=180.0), "fovy is 180.0"),
        (dict(fovy="wide"), "fovy is 'wide'"),
        (dict(follow="trak"), "did you mean 'track'"),
    ],
)
def test_bad_specifications_name_camera_and_field(arguments, message):
    with pytest.raises(UserError, match="camera 'top'") as caught:
        CameraSpec(**{"name": "top", "position": (0, 0, 1), "look_at": (1, 0, 0), **arguments})
    assert message in str(caught.value)


@pytest.mark.parametrize("position", [(0, 0, 1), (0, 0, 0)])
def test_a_direction_along_up_is_refused(position):
    with pytest.raises(UserError, match="camera 'top': looks along its up direction"):
        CameraSpec("top", position, look_at=(0, 0, 0)).mujoco_quaternion  # noqa: B018


def test_a_zero_quaternion_is_refused():
    with pytest.raises(UserError, match="quaternion is zero"):
        CameraSpec("top", (0, 0, 1), quaternion=(0, 0, 0, 0)).mujoco_quaternion  # noqa: B018


def test_workspace_normalises_and_has_corners():
    box = WorkspaceSpec(centre=(1, 2, 3), half_extents=(0.5, 1, 2))
    assert box.corners().shape == (8, 3)
    assert set(map(tuple, box.normalise(box.corners()))) == {
        (x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)
    }
    with pytest.raises(UserError, match="half_extents"):
        WorkspaceSpec(centre=(0, 0, 0), half_extents=(1, 0, 1))


@given(
    position=triple,
    look_at=triple,
    fovy=st.floats(1, 179),
    body=st.none() | st.just("torso"),
    follow=st.sampled_from(["rigid", "track"]),
    centre=triple,
)
def test_files_read_back_what_was_written(tmp_path_factory, position, look_at, fovy, body, follow, centre):
    path = tmp_path_factory.mktemp("cameras") / "cameras.yaml"
    cameras = [
        CameraSpec("one", position, look_at=look_at, fovy=fovy, body=body, follow=follow),
        CameraSpec("two", position, quaternion=(0.5, 0.5, 0.5, 0.5)),
    ]
    workspace = WorkspaceSpec(centre, (1, 2, 3), body)
    save_cameras(path, cameras, workspace)
    assert load_cameras(path) == (cameras, workspace)
    save_cameras(path, cameras)
    assert load_cameras(path) == (cameras, None)


GOOD = {"name": "a", "position": [0, 0, 1], "look_at": [1, 0, 0]}


@pytest.mark.parametrize(
    "content, message",
    [
        ("cameras: [", "is not YAML"),
        (yaml.safe_dump([1, 2]), "must hold the keys 'cameras'"),
        (yaml.safe_dump({"camera": []}), "unknown key 'camera': did you mean 'cameras'?"),
        (yaml.safe_dump({"cameras": {}}), "'cameras' must be a list"),
        (yaml.safe_dump({"cameras": []}), "at least one"),
        (yaml.safe_dump({"cameras": [GOOD, GOOD]}), "two cameras are named 'a'"),
        (yaml.safe_dump({"cameras": [GOOD, "b"]}), "camera 2: must be a mapping"),
        (yaml.safe_dump({"cameras": [{**GOOD, "fov": 3}]}), "camera 1: unknown key 'fov': did you mean 'fovy'?"),
        (yaml.safe_dump({"cameras": [{"name": "a", "look_at": [0, 0, 0]}]}), "camera 1: key 'position' is missing"),
        (yaml.safe_dump({"cameras": [GOOD], "workspace": {"centre": [0, 0, 0]}}), "key 'half_extents' is missing"),
    ],
)
def test_faulty_files_name_file_entry_and_key(tmp_path, content, message):
    path = tmp_path / "cameras.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_cameras(path)
    assert str(path) in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.yaml: cannot be read"):
        load_cameras(tmp_path / "none.yaml")


def test_rig_reads_field_of_view_and_turns_the_axes():
    model, data = compile_model('<camera name="c" pos="0 -2 0" xyaxes="1 0 0 0 0 1" fovy="60"/>')  # looks along +y
    rig = read_rig(model, data, [0], ["c"], height=120, width=200)
    focal = 60 / math.tan(math.radians(30))
    np.testing.assert_allclose(rig.intrinsics[0], [[focal, 0, 100], [0, focal, 60], [0, 0, 1]], rtol=1e-12)
    right, down, forward, centre = rig.world_from_camera[0, :3].T
    np.testing.assert_allclose(
        [right, down, forward, centre], [[1, 0, 0], [0, 0, -1], [0, 1, 0], [0, -2, 0]], atol=1e-12
    )
    moved = read_rig(model, data, [0], ["c"], 120, 200, origin=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(moved.world_from_camera[0, :3, 3], [-1, -4, -3])


@pytest.mark.parametrize(
    "attributes, message",
    [
        ('sensorsize="0.01 0.01" focal="0.01 0.01" resolution="10 10"', "sensorsize"),
        ('projection="orthographic"', "orthographic"),
    ],
)
def test_other_kinds_of_camera_are_refused(attributes, message):
    model, data = compile_model(f'<camera name="odd" {attributes}/>')
    with pytest.raises(UserError, match=f"camera 'odd'.*{message}"):
        read_rig(model, data, [0], ["odd"], 64, 64)


def test_rig_goes_through_json_unchanged():
    model, data = compile_model('<camera name="c" pos="0.1 0.2 0.3" euler="10 20 30" fovy="47.3"/>')
    rig = read_rig(model, data, [0], ["c"], 48, 64, moving=True)
    back = CameraRig.from_dict(json.loads(json.dumps(rig.to_dict())))
    np.testing.assert_array_equal(back.intrinsics, rig.intrinsics)
    np.testing.assert_array_equal(back.world_from_camera, rig.world_from_camera)
    assert (back.names, back.height, back.width, back.moving) == (("c",), 48, 64, True)


def test_faulty_rigs_are_refused():
    model, data = compile_model('<camera name="c"/>')
    good = read_rig(model, data, [0], ["c"], 48, 64).to_dict()
    with pytest.raises(UserError, match="'intrinsics' is missing"):
        CameraRig.from_dict({key: value for key, value in good.items() if key != "intrinsics"})
    with pytest.raises(UserError, match="did you mean 'height'"):
        CameraRig.from_dict({**good, "heigth": 3})
    with pytest.raises(UserError, match="1 cameras need"):
        CameraRig.from_dict({**good, "world_from_camera": []})
