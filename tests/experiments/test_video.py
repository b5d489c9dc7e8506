"""Videos: read back with ffmpeg, what is drawn is where the cameras say, and failures leave nothing behind."""

import contextlib
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from envs.cameras import CameraSpec, save_cameras
from envs.errors import UserError
from envs.tasks.reach import ReachEnv
from experiments import train
from experiments.judging.evaluation import EVALUATION_SEED, stack
from experiments.mp4 import write_mp4
from experiments.runs import Run
from experiments.training.algorithms import load_policy
from experiments.training.building import make_env
from experiments.video import Film, VideoConfig, main, text_panel
from kp3d_rl.drawing import caption, palette

TINY = """--env reach-multiview --total-steps 32 --threads 1
    --ppo.envs 1 --ppo.steps 16 --ppo.batch-size 16 --ppo.epochs 1
    --auxiliary.warmup-frames 16 --auxiliary.warmup-steps 1 --auxiliary.steps-per-rollout 0
    --encoder.keypoints 4 --image-size 40 --log.wandb off
    --log.evaluate-every 0 --log.evaluation-episodes 1 --log.picture-every 0""".split()
KINDS = {
    "flat": ["--encoder.kind", "keypoint2d"],
    "moving": ["--cameras", "wrist.yaml"],
    "pixels": ["--encoder.kind", "pixels"],
    "sac": "--algorithm sac --sac.envs 1 --sac.batch-size 4 --sac.hidden 16 --sac.learning-starts 30".split(),
}
MARGIN = 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_run, state_run):
    """A function that gives the folder of a tiny run of a kind, and trains it where that has not been done."""
    folder, made = tmp_path_factory.mktemp("runs"), {"keypoints": tiny_run, "state": state_run}
    on_hand = CameraSpec("wrist", (0.25, 0.0, -0.2), look_at=(0.0, 0.0, 0.1), up=(0, 1, 0), fovy=80.0, body="hand")
    save_cameras(folder / "wrist.yaml", [ReachEnv.cameras[0], on_hand])

    def run(kind):
        if kind not in made:
            options = [str(folder / word) if word.endswith(".yaml") else word for word in KINDS[kind]]
            with contextlib.chdir(folder):
                train.main([*TINY, "--run", kind, *options])
            made[kind] = folder / "runs" / "reach-multiview" / kind
        return made[kind]

    return run


def film(path, *options):
    """Run the program; the video that it made."""
    for old in (path / "videos").glob("*"):
        old.unlink()
    main(["--run", str(path), *map(str, options)])
    (made,) = (path / "videos").glob("*.mp4")
    return made


def read(path):
    """Header and frames (T, H, W, 3) of a video, decoded by ffmpeg."""
    reader = imageio_ffmpeg.read_frames(str(path))
    header = next(reader)
    width, height = header["size"]
    return header, np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def replay(path, steps):
    """Environment, policy and what the policy saw, ``steps`` steps into the first evaluation episode."""
    run = Run.open(str(path))
    env = make_env(run.config)
    policy = load_policy(run, env, run.load(), "cpu")
    observation, _ = env.reset(seed=EVALUATION_SEED)
    for _ in range(steps):
        observation, *_ = env.step(policy.predict(stack([observation]), deterministic=True)[0][0])
    return env, policy, observation


def project(rig, points, size):
    """(V, K, 2) pixels in images of ``size``, in float64, from the definition of the camera."""
    found = []
    for k, pose in zip(rig.intrinsics, rig.world_from_camera, strict=True):
        seen = k @ np.linalg.inv(pose)[:3] @ np.column_stack([points, np.ones(len(points))]).T
        found.append((seen[:2] / seen[2]).T * size / rig.height)
    return np.array(found)


@pytest.mark.parametrize(("kind", "views"), [("keypoints", 3), ("moving", 2), ("sac", 3)])
def test_keypoints_are_drawn_where_the_cameras_see_them(runs, kind, views):
    size, step = 160, 6
    header, frames = read(film(runs(kind), "--episodes", 1, "--steps", step, "--size", size))
    assert len(frames) == step + 1
    env, policy, observation = replay(runs(kind), step)
    poses = torch.as_tensor(observation["camera_poses"][None]) if kind == "moving" else None
    with torch.no_grad():
        keypoints = policy.features_extractor.encoder(torch.as_tensor(observation["images"][None]), poses)
    uv = project(env.rig, keypoints.points[0].numpy().astype(np.float64), size)
    if kind == "moving":
        assert env.rig.moving and not np.allclose(env.rig.world_from_camera, env.reset(seed=0)[0]["camera_poses"])
    head = caption(np.zeros((size, size, 3), np.uint8), "").shape[0] - size
    seen = 0
    for view in range(views):
        best = int(keypoints.confidence[0, view].argmax())  # drawn last, on top of the others
        column, row = uv[view, best] + (MARGIN + view * (size + 4), MARGIN + head)
        if (uv[view, best] > 4).all() and (uv[view, best] < size - 4).all():
            patch = frames[step, int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2].reshape(-1, 3)
            assert np.abs(patch.mean(0) - palette(4)[best]).max() < 40, (view, best)
            seen += 1
    assert seen >= 2
    env.close()


def test_video_is_what_browsers_play(runs, capsys):
    path = film(runs("keypoints"), "--seed", 3, "--episodes", 2, "--steps", 4, "--size", 65, "--fps", 10)
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(path)
    assert path.name == f"{Run.open(str(runs('keypoints'))).steps()[-1]:09d}-seed3.mp4"
    header, frames = read(path)
    assert header["codec"] == "h264" and header["pix_fmt"].startswith("yuv420p") and header["fps"] == 10
    assert len(frames) == 2 * (4 + 1), "one frame more than steps, for each episode"
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0 and frames.shape[1] > 2 * 65 and frames.shape[2] > 4 * 65
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index comes first"
    steps = np.abs(np.diff(frames.astype(int), axis=0)).reshape(9, -1)
    assert ((steps > 60).sum(1) > 50).all(), "something moves from each frame to the next"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["state", "pixels", "flat"])
def test_runs_without_3d_keypoints_are_filmed(runs, kind):
    full = kind == "state"
    _, frames = read(film(runs(kind), "--episodes", 1, "--steps", 400 if full else 2, "--size", 64))
    assert len(frames) == (51 if full else 3)
    assert (frames.shape[1] > 2 * 64) == (kind == "flat"), "reconstructions only where there are keypoints"


def test_moments_are_the_evaluation_episodes_and_each_is_looked_at_once(runs):
    env, policy, first = replay(runs("keypoints"), 0)
    film, calls = Film(env, policy, VideoConfig(episodes=2, steps=3, size=64), {}), []
    policy.features_extractor.encoder.register_forward_hook(lambda *_: calls.append(1))
    assert len(list(film.frames())) == len(calls) == film.longest == 8
    moments = list(film.play([EVALUATION_SEED, EVALUATION_SEED + 1]))
    assert [m.step for m in moments] == [0, 1, 2, 3] * 2 and [m.episode for m in moments] == [1] * 4 + [2] * 4
    assert (moments[0].observation["images"] == first["images"]).all() and moments[0].reward is None
    np.testing.assert_allclose(moments[3].episode_return, sum(m.reward for m in moments[1:4]))
    rows = {name: value for name, value, _ in film.rows(moments[3])}
    assert rows["distance"] == f"{100 * np.linalg.norm(np.subtract(*env.body_positions(env.probe_bodies))):.1f} cm"
    assert rows["step"] == "3 of 50" and rows["success"] in ("yes", "no")
    whole = list(Film(env, policy, VideoConfig(episodes=1, size=64), {}).play([7]))
    assert len(whole) == 51 and {m.seed for m in whole} == {7}
    env.close()


def test_text_panel_writes_values_in_their_colour():
    panel = text_panel([("success", "yes", (0, 200, 0)), ("step", "1", (0, 0, 200))], 200, 60)
    assert panel.shape == (60, 200, 3)
    green, blue = (np.nonzero(panel[..., c] > panel[..., 0].astype(int) + 60)[0] for c in (1, 2))
    assert len(green) > 20 and len(blue) > 3 and green.max() < blue.min()


def grey(count, height=33, width=47):
    return (np.full((height, width, 3), (180, 40, 20 + i), np.uint8) for i in range(count))


def test_odd_sizes_grow_and_colours_stay(tmp_path):
    path = tmp_path / "deep" / "er" / "a.mp4"
    write_mp4(path, grey(5), 25)
    _, frames = read(path)
    assert frames.shape == (5, 34, 48, 3)
    assert np.abs(frames[0].reshape(-1, 3).mean(0) - (180, 40, 20)).max() < 4


def test_what_fails_leaves_the_old_video_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_text("old")

    def broken():
        yield next(grey(1))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_mp4(path, broken(), 20)
    program = tmp_path / "fake"
    program.write_text("#!/bin/sh\necho 'Unknown encoder' >&2\nexit 3\n")
    program.chmod(0o755)
    for exe, message in ((program, "could not write the video: Unknown encoder"), ("/no/such", "cannot run ffmpeg")):
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(exe))
        with pytest.raises(UserError, match=message):
            write_mp4(path, grey(200, 300, 300), 20)

    def none_found():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none_found)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        write_mp4(path, grey(1), 20)
    assert path.read_text() == "old" and {p.name for p in tmp_path.iterdir()} == {"a.mp4", "fake"}


def test_errors_say_what_is_wrong(runs, tmp_path):
    path = str(runs("state"))
    for options, message in (
        (["--run", path, "--checkpoint", "7"], "no checkpoint at step 7, only at"),
        (["--run", str(tmp_path)], "is not a run"),
        (["--run", path, "--fps", "0"], "fps must lie between"),
        (["--run", path, "--size", "8"], "size must lie between"),
        (["--run", path, "--steps", "0"], "steps must be at least 1"),
        (["--run", path, "--episodes", "0"], "episodes in 1"),
        (["--run", path, "--device", "abacus"], "unknown device"),
        (["--rum", path], "did you mean '--run'"),
    ):
        with pytest.raises(UserError, match=message):
            main(options)
    with pytest.raises(UserError, match="^ppo epochs must be above 0"):
        train.main(["--ppo.epochs", "0"])
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_mp4(Path(blocked / "a.mp4"), grey(1), 20)
