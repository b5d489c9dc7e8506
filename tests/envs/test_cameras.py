"""Camera specifications, cameras files, and rigs read from compiled models."""

import copy
import json
import math
import os
import pickle
import random

import mujoco
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from envs.cameras import CameraRig, CameraSpec, WorkspaceSpec, load_cameras, read_rig, save_cameras
from envs.errors import UserError
from experiments.soak.mutators import CANARY, mutate

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
        (dict(position="123"), "must be 3 finite numbers"),
        (dict(position=("1", "2", "3")), "must be 3 finite numbers"),
        (dict(position=(True, False, True)), "must be 3 finite numbers"),
        (dict(position=(0, 0, 1e5)), "must be 3 finite numbers, none beyond 10000"),
        (dict(position=(0, 0, 10**400)), "must be 3 finite numbers"),
        (dict(position=None), "position is None; it must be 3 finite numbers"),
        (dict(position=[0] * 100_000), "must be 3 finite numbers"),
        (dict(look_at={0: 1, 1: 2, 2: 3}), "must be 3 finite numbers"),
        (dict(up=None), "up is None"),
        (dict(look_at=None), "either look_at or quaternion"),
        (dict(quaternion=(1, 0, 0, 0)), "either look_at or quaternion"),
        (dict(fovy=0), "fovy is 0"),
        (dict(fovy=180.0), "fovy is 180.0"),
        (dict(fovy="wide"), "fovy is 'wide'; it must be a number of degrees from 0.1 to 179"),
        (dict(fovy=True), "fovy is True"),
        (dict(fovy=math.nan), "fovy is nan"),
        (dict(fovy=1e-300), "fovy is 1e-300"),
        (dict(body=3), "body is 3"),
        (dict(body=""), "body is ''; it must be text of 1 to 256 printable characters"),
        (dict(body="a\nb"), "body is 'a\\nb'"),
        (dict(follow=["track"]), "unknown follow mode"),
        (dict(follow="trak"), "did you mean 'track'"),
    ],
)
def test_bad_specifications_name_camera_and_field(arguments, message):
    with pytest.raises(UserError, match="camera 'top'") as caught:
        CameraSpec(**{"name": "top", "position": (0, 0, 1), "look_at": (1, 0, 0), **arguments})
    assert message in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 250
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # from a worker process


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 1000, 3, None, ["a"]])
def test_bad_names_are_refused(name):
    with pytest.raises(UserError, match="^camera: name is .* must be text of 1 to 256 printable characters"):
        CameraSpec(name, (0, 0, 1), look_at=(1, 0, 0))


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
    for wrong in ((1, 0, 1), (1, -1, 1), (1, 1e-300, 1), (1, 1), "abc", None, (1, math.inf, 1), (10**400, 1, 1)):
        with pytest.raises(UserError, match="^workspace: half_extents"):
            WorkspaceSpec(centre=(0, 0, 0), half_extents=wrong)
    with pytest.raises(UserError, match="^workspace: body is 3"):
        WorkspaceSpec((0, 0, 0), (1, 1, 1), 3)


NAMES = st.sampled_from(["007", "yes", "1e5", "~", "- a", "ü😀", " a "]) | st.text(min_size=1).filter(str.isprintable)


@settings(deadline=None)
@given(
    position=triple,
    look_at=triple,
    fovy=st.floats(1, 179),
    body=st.none() | NAMES,
    follow=st.sampled_from(["rigid", "track"]),
    centre=triple,
)
def test_files_read_back_what_was_written(tmp_path_factory, position, look_at, fovy, body, follow, centre):
    path = tmp_path_factory.getbasetemp() / "cameras.yaml"
    assume(np.linalg.norm(np.cross(np.subtract(look_at, position), (0, 0, 1))) > 1e-3)
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


def dump(cameras, workspace=None):
    """A cameras file with an entry a line, and no aliases."""
    content = {"cameras": copy.deepcopy(cameras)} | ({} if workspace is None else {"workspace": workspace})
    content["cameras"] = [json.loads(json.dumps(camera)) for camera in content["cameras"]]
    return yaml.safe_dump(content, default_flow_style=None, width=1000, sort_keys=False)


@pytest.mark.parametrize(
    "content, message",
    [
        ("cameras: [", " line 1: not valid YAML"),
        ("", ": is empty"),
        ("cameras: !!python/object/apply:os.system [ls]", " line 1: tags are not read"),
        ("cameras: &a [*a]", " line 1: anchors and aliases"),
        ("#" * 200_000, ": is larger than 100,000 bytes"),
        (yaml.safe_dump([1, 2]), "must hold the keys 'cameras'"),
        (yaml.safe_dump({"camera": []}), " line 1, key 'camera': unknown key: did you mean 'cameras'?"),
        (yaml.safe_dump({"cameras": None}), "'cameras' must be a list"),
        (yaml.safe_dump({"cameras": {}}), "'cameras' must be a list"),
        (yaml.safe_dump({"cameras": []}), "at least one"),
        (dump([GOOD, GOOD]), " line 1, key 'cameras': two cameras are named 'a'"),
        (dump([{**GOOD, "name": str(n)} for n in range(65)]), "65 cameras are too many: at most 64"),
        (dump([GOOD, "b"]), " line 5, key 'cameras[1]': must be a mapping with the keys name, position"),
        (dump([{**GOOD, "fov": 3}]), "key 'cameras[0].fov': unknown key: did you mean 'cameras[0].fovy'?"),
        (dump([{"name": "a", "look_at": [0, 0, 0]}]), " line 2, key 'cameras[0].position': is missing"),
        (dump([GOOD], {"centre": [0, 0, 0]}), " line 5, key 'workspace.half_extents': is missing"),
        (
            dump([GOOD], {"centre": [0, 0], "half_extents": [1, 1, 1]}),
            "'workspace.centre': workspace: centre is",
        ),
        (dump([GOOD], 3), "key 'workspace': must be a mapping"),
        (dump([{**GOOD, "position": [0, 0, "x"]}]), "key 'cameras[0].position': camera 'a': position is [0, 0, 'x']"),
        (dump([{**GOOD, "position": [1, 0, 0]}]), "key 'cameras[0].look_at': camera 'a': looks along its up direction"),
        (dump([{**GOOD, "name": 3}]), "key 'cameras[0].name': camera: name is 3"),
        (dump([{**GOOD, "fovy": 200}]), "key 'cameras[0].fovy': camera 'a': fovy is 200"),
        (dump([{**GOOD, "fovy": math.nan}]), "key 'cameras[0].fovy': write numbers as 12.5 or 1.0e-3, and finite ones"),
        (dump([{**GOOD, "follow": "trak"}]), " line 5, key 'cameras[0].follow': camera 'a': unknown follow mode"),
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


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="pipe.yaml: is not a regular file"):
        load_cameras(tmp_path / "pipe.yaml")


STORM = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@STORM
@given(seed=st.integers(0, 2**32))
def test_damaged_cameras_files_are_one_line_or_say_what_is_loaded(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cameras.yaml"
    cameras = [
        CameraSpec("one", (1.0, 0.5, 1.5), look_at=(0, 0, 0), fovy=40, body="torso", follow="track"),
        CameraSpec("007", (0.0, -1.0, 1.0), quaternion=(0.5, 0.5, 0.5, 0.5)),
    ]
    save_cameras(path, cameras, WorkspaceSpec((0, 0, 0), (1, 2, 3), "torso"))
    content = mutate(path.read_bytes(), random.Random(seed))
    path.write_bytes(content)
    try:
        found, workspace = load_cameras(path)
    except UserError as error:
        assert str(error).startswith(f"cameras file {path}") and str(error).isprintable()
    else:
        said = yaml.safe_load(content)
        for spec, entry in zip([*found, workspace], [*said["cameras"], said.get("workspace")], strict=True):
            for name, value in (entry or {}).items():
                read = getattr(spec, name)
                assert (list(read) if isinstance(read, tuple) else read) == value
        save_cameras(path, found, workspace)
        assert load_cameras(path) == (found, workspace)
    assert not os.path.exists(CANARY)


@pytest.fixture(scope="module")
def good_rig():
    model, data = compile_model('<camera name="c"/><camera name="d" pos="1 2 3" euler="10 20 30"/>')
    return read_rig(model, data, [0, 1], ["c", "d"], 48, 64).to_dict()


def changed(array, place, value):
    """A nested list with one entry replaced."""
    array = copy.deepcopy(array)
    entry = array
    for number in place[:-1]:
        entry = entry[number]
    entry[place[-1]] = value
    return array


@pytest.mark.parametrize("wrong", [None, 3, "rig", [1], []])
def test_what_is_no_mapping_is_no_rig(wrong):
    with pytest.raises(UserError, match="^rig: must be a mapping with the entries names, intrinsics"):
        CameraRig.from_dict(wrong)


@pytest.mark.parametrize("key", ["names", "intrinsics", "world_from_camera", "height", "width", "moving"])
def test_faulty_entries_of_rigs_are_refused_with_one_short_line(good_rig, key):
    with pytest.raises(UserError, match=f"entry '{key}' is missing"):
        CameraRig.from_dict({name: value for name, value in good_rig.items() if name != key})
    hostile = [None, "x", 10**5000, math.nan, math.inf, -1, 0.5, [], {}, [[]], ["a"], ["c", "c"], ["c", 3], ["c"] * 99]
    hostile += [["c", "a\nb"], ["c", ""], [["c"], ["d"]], [[[1.0] * 4] * 4] * 99, [[["1"] * 4] * 4] * 2, "x" * 99_999]
    for value in hostile:
        with pytest.raises(UserError) as error:
            CameraRig.from_dict({**good_rig, key: value})
        message = str(error.value)
        assert message.startswith("rig: ") and message.isprintable() and len(message) < 250


@pytest.mark.parametrize(
    "key, place, value, message",
    [
        ("intrinsics", (0, 0, 0), -1.0, "with fx, fy above 0"),
        ("intrinsics", (1, 1, 1), 0.0, "with fx, fy above 0"),
        ("intrinsics", (0, 0, 1), 0.1, "intrinsics must be"),
        ("intrinsics", (0, 2, 2), 2.0, "intrinsics must be"),
        ("intrinsics", (0, 0, 2), 1e9, "intrinsics holds 1000000000.0"),
        ("intrinsics", (0, 0, 0), True, "intrinsics holds True; it must hold numbers"),
        ("intrinsics", (0, 0, 0), "60", "intrinsics holds '60'"),
        ("intrinsics", (0, 0), [1.0, 0.0], "another shape; 2 cameras need (2, 3, 3)"),
        ("intrinsics", (0, 0, 0), [1.0], "intrinsics holds [1.0]"),
        ("world_from_camera", (0, 0, 0), 1.1, "must be rigid poses"),
        ("world_from_camera", (1, 3), [0.0, 0.0, 0.1, 1.0], "must be rigid poses"),
        ("world_from_camera", (0, 1, 3), 20_000.0, "more than 10000 m from the origin"),
        ("world_from_camera", (0, 1, 3), math.nan, "world_from_camera holds nan"),
        ("world_from_camera", (0, 1, 3), 10**400, "world_from_camera holds a number beyond 64 bits"),
        ("names", (1,), "c", "two cameras are named 'c'"),
    ],
)
def test_faulty_numbers_in_rigs_are_refused(good_rig, key, place, value, message):
    with pytest.raises(UserError) as error:
        CameraRig.from_dict({**good_rig, key: changed(good_rig[key], place, value)})
    assert message in str(error.value)


def test_mirrored_cameras_are_refused(good_rig):
    poses = np.array(good_rig["world_from_camera"])
    poses[0, :3, 0] *= -1
    with pytest.raises(UserError, match="must be rigid poses"):
        CameraRig.from_dict({**good_rig, "world_from_camera": poses.tolist()})


def test_faulty_rigs_are_refused():
    model, data = compile_model('<camera name="c"/>')
    good = read_rig(model, data, [0], ["c"], 48, 64).to_dict()
    with pytest.raises(UserError, match="'intrinsics' is missing"):
        CameraRig.from_dict({key: value for key, value in good.items() if key != "intrinsics"})
    with pytest.raises(UserError, match="did you mean 'height'"):
        CameraRig.from_dict({**good, "heigth": 3})
    with pytest.raises(UserError, match="1 cameras need"):
        CameraRig.from_dict({**good, "world_from_camera": []})
