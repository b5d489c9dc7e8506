"""Preview pictures: markers and box lie where the cameras see them; errors take one line and write nothing."""

import contextlib
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from envs import registry
from envs.errors import UserError
from experiments.options.config import PretrainConfig
from experiments.preview import lens, main, marked, merged, visible
from experiments.training.building import note_of_strange_cameras
from kp3d_rl.cameras import Rig, Workspace, look_at
from kp3d_rl.drawing import caption, palette

ANT = str(registry.__file__).replace("registry.py", "assets/cameras/ant.yaml")
SIZE, SMALL, GAP = 256, 32, 8


@pytest.fixture(scope="module")
def reach(tmp_path_factory):
    """The picture of reach-multiview at seed 5, and the environment in the same state."""
    with contextlib.chdir(tmp_path_factory.mktemp("preview")):
        main(["--seed", "5", "--size", str(SIZE), "--image-size", str(SMALL)])
        picture = iio.imread("preview-reach-multiview.png")
    env = registry.make("reach-multiview", height=SMALL, width=SMALL)
    env.reset(seed=5)
    yield picture, env
    env.close()


def view_of(picture, number, row=0):
    """(SIZE, SIZE, 3) of one view without its caption."""
    head = caption(np.zeros((SIZE, SIZE, 3), np.uint8), "").shape[0] - SIZE
    top, left = row * (SIZE + head + GAP) + head, number * (SIZE + GAP)
    return picture[top : top + SIZE, left : left + SIZE]


def project(rig, points):
    """(V, N, 2) pixels in images of SIZE, in float64, from the definition of the camera."""
    found = []
    for k, pose in zip(rig.intrinsics, rig.world_from_camera, strict=True):
        seen = k @ np.linalg.inv(pose)[:3] @ np.column_stack([points, np.ones(len(points))]).T
        found.append((seen[:2] / seen[2]).T * SIZE / rig.height)
    return np.array(found)


def test_markers_lie_on_their_bodies_and_the_target_on_its_pixels(reach):
    picture, env = reach
    uv = project(env.rig, env.body_positions(env.probe_bodies))
    model = env.unwrapped.model
    ball = set(np.flatnonzero(model.geom_bodyid == model.body("target").id))
    for number, segments in enumerate(env.segment_views(SIZE, SIZE)):
        view = view_of(picture, number).astype(int)
        for body, colour in enumerate(palette(2).astype(int)):
            rows, columns = np.nonzero((np.abs(view - colour) < 25).all(-1))
            near = np.hypot(columns + 0.5 - uv[number, body, 0], rows + 0.5 - uv[number, body, 1]) < 16
            middle = np.array([columns[near].mean() + 0.5, rows[near].mean() + 0.5])
            assert near.sum() > 30 and np.abs(middle - uv[number, body]).max() < 2.0
        column, row = uv[number, 1].astype(int)
        assert segments[row, column] in ball


def test_box_edges_run_between_projected_corners(reach):
    picture, env = reach
    uv = project(env.rig, env.workspace.corners())
    yellow = (np.abs(picture.astype(int) - (255, 214, 64)) < 90).all(-1)
    for number in range(3):
        view, drawn = view_of(yellow[..., None], number)[..., 0], 0
        for a, b in Workspace.edges():
            points = uv[number, a] + np.linspace(0.1, 0.9, 30)[:, None] * (uv[number, b] - uv[number, a])
            columns, rows = np.clip(points, 1, SIZE - 2).astype(int).T
            drawn += np.mean([view[r - 1 : r + 2, c - 1 : c + 2].any() for r, c in zip(rows, columns, strict=True)])
        assert drawn > 0.8 * 12


def test_below_stand_the_views_that_a_policy_sees(reach):
    picture, env = reach
    for number, view in enumerate(env.render_views()):
        shown = view_of(picture, number, row=1)
        assert (shown == view.repeat(SIZE // SMALL, 0).repeat(SIZE // SMALL, 1)).all()


def test_any_gymnasium_environment_with_cameras(tmp_path, capsys):
    path = tmp_path / "ant.png"
    main(["--env", "Ant-v5", "--cameras", ANT, "--size", "192", "--output", str(path)])
    assert capsys.readouterr().out.strip() == str(path)
    picture = iio.imread(path)
    assert picture.shape[1] == 3 * 192 + 2 * GAP and picture.shape[0] > 2 * 192
    assert (np.abs(picture.astype(int) - palette(1)[0]) < 40).all(-1).sum() > 10, "the torso is marked"


def test_what_a_box_leaves_out_is_told(tmp_path, capsys):
    """Cameras of another task are good ones, as far as they can be judged by themselves."""
    strange = str(Path(ANT).with_name("reacher.yaml"))
    config = PretrainConfig(cameras=strange, image_size=32)
    for look in (
        lambda: main(["--cameras", strange, "--output", str(tmp_path / "a.png")]),
        lambda: note_of_strange_cameras(config),
    ):
        look()
        said = capsys.readouterr().err
        assert "outside of the workspace box at the start, where no keypoint can be: 'end_effector', 'target'" in said
    main(["--output", str(tmp_path / "b.png")])
    note_of_strange_cameras(PretrainConfig(image_size=32))
    assert "outside" not in capsys.readouterr().err


def test_bodies_at_one_place_share_a_marker():
    names, places = merged(["torso", "hip", "toe"], np.array([[0, 0, 1], [0, 0, 1.0001], [0, 0.5, 0]]))
    assert names == ["torso +1", "toe"] and places.tolist() == [[0, 0, 1], [0, 0.5, 0]]


def test_what_is_behind_a_camera_is_left_out():
    k = torch.tensor([[[50.0, 0, 32], [0, 50, 32], [0, 0, 1]]], dtype=torch.float64)
    pose = look_at(torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    rig, grey = Rig(k, pose[None], 64, 64), np.full((64, 64, 3), 128, np.uint8)
    points = torch.tensor([[0.0, 0, 0], [2.0, 0, 0]], dtype=torch.float64)
    assert np.isnan(visible(rig, points)).any(-1).tolist() == [[False, True]]
    far = Workspace.from_arrays([5.0, 0, 0], [0.5, 0.5, 0.5], dtype=torch.float64)
    assert (marked([grey], rig, far, points[1:], ["behind"])[0] == grey).all()
    assert (marked([grey], rig, far, points[:1], ["before"])[0] != grey).any()
    assert lens(k[0]) == "fovy 65.2°, focal length 50.0 px"  # 2 atan(32 / 50)


def test_errors_say_what_is_wrong_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, message in (
        (["--env", "reach-multivew"], "did you mean 'reach-multiview'"),
        (["--cameras", "left,frnt"], "did you mean 'front'"),
        (["--env", "Ant-v5"], "name a cameras file"),
        (["--size", "2"], "size must lie between"),
        (["--seed", "-1"], "seed"),
        (["--output", "a.tiff"], "must end in .png"),
        (["--output", "no/such/folder.png", "--size", "32"], "cannot write no/such/folder.png"),
    ):
        with pytest.raises(UserError, match=message):
            main(options)
    assert not list(tmp_path.iterdir())


def test_a_redrawn_scene_looks_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, options in (("own", []), ("redrawn", ["--redraw", "1"]), ("again", ["--redraw", "1"])):
        main(["--size", "64", "--image-size", "32", "--output", f"{name}.png", *options])
    own, redrawn, again = (iio.imread(f"{name}.png").astype(int) for name in ("own", "redrawn", "again"))
    assert np.array_equal(redrawn, again) and np.abs(own - redrawn).mean() > 5
