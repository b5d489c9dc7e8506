"""The probe: its numbers on keypoints whose truth is known, and end to end on tiny runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import mujoco
import numpy as np
import pytest
import torch

import kp3d_rl
from envs.errors import UserError
from envs.shapes import BodyShape, GeomShape
from experiments import pretrain, probe
from experiments.judging.episodes import Episodes, behaviour, collect, visible_bodies
from experiments.judging.evaluation import PERIODIC_SEED
from experiments.judging.probe_picture import KEY_WIDTH
from experiments.judging.representation import Baselines, Found, find, make_extractor, probe_errors, sitting
from experiments.options.config import RunConfig
from experiments.probe import ProbeConfig
from experiments.runs import Run
from experiments.training.building import SEEDS_PER_RUN, make_env, side_by_side
from experiments.training.collecting import ENVS, collect_frames
from experiments.training.recording import StopRequest
from kp3d_rl.metrics import constant_probe, ridge_probe, split_episodes
from tests.experiments.conftest import TINY_PRETRAIN, run_in

FAST = "--episodes 4 --steps 6 --frames 3 --random-encoders 1 --autoencoder-steps 2".split()
WRIST = str(Path(__file__).with_name("wrist.yaml"))


@pytest.fixture(scope="module")
def trained(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny training run: other tests look at what the original's folder holds."""
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("probed") / "tiny"))


def probed(workplace: Path, run: Path, *options: str) -> dict:
    run_in(workplace, probe.main, ["--run", str(run), *FAST, *options])
    return json.loads((run / "probe.json").read_text())


# -- numbers whose truth is known --------------------------------------------------------------------------------------


DOT = GeomShape(mujoco.mjtGeom.mjGEOM_SPHERE, np.full(3, 1e-9), np.zeros(3), np.eye(3))


def glued(apart: float = 0.0) -> tuple[Found, Episodes]:
    """Keypoint 0 on a body that stands, 1 and 2 on moving ones, 3 beside the second by 20 cm and not confident; two
    views put each keypoint ``apart`` from each other."""
    rng = np.random.default_rng(0)
    bodies = np.tile(np.array([[0, 0, 0], [3.0, 0, 0], [0, 3, 0]]), (8, 5, 1, 1))
    bodies[:, :, 1] += rng.uniform(-0.3, 0.3, (8, 5, 3))
    bodies[:, :, 2] += rng.uniform(-0.3, 0.3, (8, 1, 3))  # elsewhere in each episode
    points = torch.tensor(bodies[:, :, [0, 1, 2, 2]]).flatten(0, 1)
    points[:, 3, 0] += 0.2
    shift = torch.tensor([[[-0.5 * apart, 0, 0]], [[0.5 * apart, 0, 0]]])
    confidence = torch.tensor([0.3, 0.3, 0.3, 0.1], dtype=torch.float64).expand(40, 2, 4)
    features = points.reshape(8, 5, 12).numpy()
    found = Found(features, points, points[:, None] + shift, confidence, 4 * confidence.mean(1))
    poses = np.tile(np.eye(4), (8, 5, 3, 1, 1))
    poses[..., :3, 3] = bodies
    shapes = tuple(BodyShape(name, (DOT,)) for name in ("stand", "arm", "target"))
    return found, Episodes(np.zeros((8, 5, 2, 4, 4, 3), np.uint8), None, poses, shapes)


def test_keypoints_glued_to_bodies() -> None:
    found, episodes = glued(apart=0.04)
    split = split_episodes(8)
    errors = 100 * ridge_probe(found.features, episodes.positions(["arm", "target"]), split)
    assert errors.max() < 1e-3 and constant_probe(episodes.positions(["arm"]), split)[0] > 0.1
    sits = sitting(found, episodes)
    assert sits.body == ("stand", "arm", "target", "target") and sits.counted.tolist() == [False, True, True, False]
    np.testing.assert_allclose(sits.distance, [0, 0, 0, 20], atol=1e-9)
    np.testing.assert_allclose(sits.apart, 4.0)
    np.testing.assert_allclose(sits.confidence, [1.2, 1.2, 1.2, 0.4])
    assert sits.on("target", 5).tolist() == [2] and sits.on("stand", 5).tolist() == [] and sits.same_body_share == 1
    numbers = sits.to_dict()
    assert numbers["counted"] == 2 and numbers["view_disagreement_cm"] == pytest.approx(4.0)
    every = sitting(found, episodes, confident=0.3)
    assert every.counted.tolist() == [False, True, True, True]
    assert every.on("target", 5).tolist() == [2] and every.on("target", 25).tolist() == [2, 3]


def test_a_keypoint_sits_on_the_surface_and_not_at_the_origin() -> None:
    """On a stick of half a metre that turns about its end, a keypoint at the other end is on it, and it has moved."""
    size, axis = np.array([0.01, 0.25, 0.0]), mujoco.mjtGeom.mjGEOM_CAPSULE
    stick = BodyShape("stick", (GeomShape(axis, size, np.array([0, 0, 0.25]), np.eye(3)),))
    poses = np.tile(np.eye(4), (2, 10, 2, 1, 1))
    for instant, angle in enumerate(np.linspace(0, 1, 10)):
        poses[:, instant, 0, :3, :3] = [
            [np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]
        ]  # fmt: skip
    poses[:, :, 1, :3, 3] = [0.2, 0.1, 0.5]  # the other body's origin is nearer than the stick's
    episodes = Episodes(np.zeros((2, 10, 1, 4, 4, 3), np.uint8), None, poses, (stick, BodyShape("other", (DOT,))))
    tip = torch.tensor(poses[:, :, 0, :3, :3] @ [0.03, 0, 0.5]).flatten(0, 1)[:, None]
    confidence = torch.ones(20, 1, 1, dtype=torch.float64)
    sits = sitting(Found(np.zeros((2, 10, 4)), tip, tip[:, None], confidence, confidence[:, 0]), episodes)
    assert sits.body == ("stick",) and sits.counted.all() and sits.same_body_share == 1
    np.testing.assert_allclose(sits.distance, 2.0, atol=1e-6)  # 3 cm beside the axis of a stick of 1 cm


def test_nothing_sits_on_a_frame_without_a_shape() -> None:
    found, episodes = glued()
    without = dataclasses.replace(episodes.shapes[2], geoms=())
    hidden = dataclasses.replace(episodes, shapes=(*episodes.shapes[:2], without))
    assert sitting(found, episodes).body[2] == "target" and "target" not in sitting(found, hidden).body
    assert sitting(found, hidden).on("target", 1e9).size == 0 and np.isfinite(sitting(found, hidden).distance).all()


def test_views_that_are_not_confident_weigh_less_in_the_disagreement() -> None:
    found, episodes = glued()
    view_points = found.points[:, None].repeat(1, 3, 1, 1)
    view_points[:, 2, :, 0] += 0.3  # one of three views is off, but not confident
    confidence = torch.full((40, 3, 4), 0.25, dtype=torch.float64)
    confidence[:, 2] = 0.0
    sits = sitting(Found(found.features, found.points, view_points, confidence, found.fused_confidence), episodes)
    np.testing.assert_allclose(sits.apart, 0, atol=1e-9)
    np.testing.assert_allclose(sits.apart_unweighted, 20)


def test_where_nothing_counts_there_is_no_number() -> None:
    found, episodes = glued()
    numbers = sitting(found, episodes, confident=9.0).to_dict()
    assert numbers["counted"] == 0 and numbers["view_disagreement_cm"] is None and numbers["same_body_share"] is None
    lines = probe.sitting_lines(sitting(found, episodes, confident=9.0), ["target"], 5.0)
    assert "0 of 4" in lines[-5] and lines[-4].endswith(" -") and lines[-1].endswith(" 0")


def test_baselines_are_fresh_weights_and_a_trained_autoencoder(tiny_pretrained: Path) -> None:
    run, encoder = Run.open(str(tiny_pretrained), kind=RunConfig), kp3d_rl.load(tiny_pretrained)
    env = make_env(run.config)
    names = visible_bodies(env, ["target"])
    episodes = collect(env, range(6), lambda seed, number: behaviour("random", env, seed, number), 6, 4, names)
    found, split = find(make_extractor(env, encoder), episodes), split_episodes(6)
    assert found.features.shape == (6, 4, 16) and found.view_points.shape == (24, 3, 4, 3)
    direct = encoder(torch.as_tensor(episodes.images[2]))
    torch.testing.assert_close(found.points[8:12], direct.points)

    def errors(**options) -> dict[str, np.ndarray]:
        return probe_errors(found, encoder, env, episodes, ["target"], split, Baselines(**options))

    both = errors(random_encoders=2, autoencoder_steps=2)
    assert list(both) == ["keypoints", "constant", "random encoder", "autoencoder"]
    assert list(errors(random_encoders=0, autoencoder_steps=0)) == ["keypoints", "constant"]
    one = errors(random_encoders=1, autoencoder_steps=1)
    assert one["random encoder"] != both["random encoder"] != both["keypoints"]
    assert one["autoencoder"] != both["autoencoder"] and one["keypoints"] == both["keypoints"]
    again = errors(random_encoders=2, autoencoder_steps=2)
    assert all(again[name] == both[name] for name in both)
    env.close()


def test_of_a_pretraining_the_autoencoder_sees_what_the_keypoints_saw(tiny_run: Path, tiny_pretrained: Path) -> None:
    """The very frames of the run, for as many steps; of a training those of the probe."""
    run = Run.open(str(tiny_pretrained), kind=RunConfig)
    seen: list[np.ndarray] = []
    trainer = SimpleNamespace(
        frames=SimpleNamespace(keys=("images",)), add=lambda observation: seen.append(observation["images"].copy())
    )
    with contextlib.closing(side_by_side(run.config, ENVS)) as env:
        held_out = collect_frames(run.config, env, trainer, StopRequest())["images"]
    against = probe.baselines(probe.ProbeConfig(), run)
    assert (against.autoencoder_steps, len(against.frames)) == (run.config.steps, run.config.frames)
    assert np.array_equal(against.frames, np.concatenate(seen))
    assert not any(np.array_equal(frame, other) for frame in held_out for other in seen[0])
    assert probe.baselines(probe.ProbeConfig(autoencoder_steps=0), run).frames is None, "which takes minutes"
    of_training = probe.baselines(probe.ProbeConfig(), Run.open(str(tiny_run)))
    assert (of_training.autoencoder_steps, of_training.frames) == (1500, None)


def test_the_autoencoder_is_trained_on_the_frames_that_it_is_given(tiny_pretrained: Path) -> None:
    run, encoder = Run.open(str(tiny_pretrained), kind=RunConfig), kp3d_rl.load(tiny_pretrained)
    with contextlib.closing(make_env(run.config)) as env:
        names = visible_bodies(env, ["target"])
        episodes = collect(env, range(6), lambda seed, number: behaviour("random", env, seed, number), 6, 4, names)
        found, split = find(make_extractor(env, encoder), episodes), split_episodes(6)
        own = torch.as_tensor(episodes.images)[torch.as_tensor(split.train)].flatten(0, 1)
        errors = [
            probe_errors(found, encoder, env, episodes, ["target"], split, Baselines(0, 3, frames))["autoencoder"][0]
            for frames in (None, own, 255 - own)
        ]
    assert errors[0] == errors[1] != errors[2]


def test_the_first_bodys_true_place_tells_of_what_goes_with_it(tiny_pretrained: Path) -> None:
    run, encoder = Run.open(str(tiny_pretrained), kind=RunConfig), kp3d_rl.load(tiny_pretrained)
    names = ["end_effector", "hand", "target"]
    with contextlib.closing(make_env(run.config)) as env:
        bodies = visible_bodies(env, names)
        episodes = collect(env, range(12), lambda seed, number: behaviour("random", env, seed, number), 6, 4, bodies)
        effector, hand, target = (bodies.index(name) for name in names)
        episodes.bodies[:, :, hand] = episodes.bodies[:, :, effector]
        found, nothing = find(make_extractor(env, encoder), episodes), Baselines(0, 0)
        errors = probe_errors(found, encoder, env, episodes, names, split_episodes(12), nothing)
    itself, glued, apart = errors["first body"]
    assert math.isnan(itself) and glued < 0.05 and apart > 1


def test_seeds_stay_clear_of_all_others() -> None:
    assert ProbeConfig().seeds[0] > PERIODIC_SEED + 1_000_000 > 10_000 * SEEDS_PER_RUN
    assert not set(ProbeConfig(seed=1).seeds) & set(ProbeConfig(seed=0, episodes=10_000).seeds)
    for wrong in ({"seed": 1000}, {"seed": -1}, {"episodes": 2}, {"frames": 0}, {"steps": 0}, {"radius": math.nan}):
        with pytest.raises(ValueError, match="must"):
            ProbeConfig(**wrong)


# -- end to end --------------------------------------------------------------------------------------------------------


def test_a_training_run(workplace: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    record = probed(workplace, trained)
    assert set(record["probe_error_cm"]) == {"end_effector", "target"} and record["checkpoint"] == 160
    for errors in record["probe_error_cm"].values():
        assert list(errors) == ["keypoints", "constant", "first body", "random encoder", "autoencoder"]
        assert all(value > 0 for value in errors.values() if value is not None)
    assert [errors["first body"] is None for errors in record["probe_error_cm"].values()] == [True, False]
    better = record["times_better_than"]["target"]["constant"]
    errors = record["probe_error_cm"]["target"]
    assert better == pytest.approx(errors["constant"] / errors["keypoints"])
    assert record["keypoints"] == len(record["each"]) == 4 and set(record["on_body"]) == {"end_effector", "target"}
    assert record["command"].startswith("python -m experiments.probe --run ") and record["seed"] == 0
    assert {"commit", "machine", "view_disagreement_cm", "same_body_share", "counted"} <= record.keys()
    shown = capsys.readouterr().out
    for words in (f"{errors['keypoints']:.1f}", "constant / keypoints", "view disagreement", "on target, within 5 cm"):
        assert words in shown
    picture = iio.imread(trained / "probe.png")
    assert picture.shape[1] > 5 * probe.VIEW_PIXELS + KEY_WIDTH and picture.shape[0] > 3 * probe.VIEW_PIXELS
    assert probed(workplace, trained)["probe_error_cm"] == record["probe_error_cm"]


def test_options_change_what_they_say(workplace: Path, trained: Path) -> None:
    first = probed(workplace, trained)

    def error(record: dict) -> float:
        return record["probe_error_cm"]["target"]["keypoints"]

    for options in (["--seed", "1"], ["--policy", "own"], ["--policy", "scripted"],
                    ["--policy", "mixed"], ["--episodes", "5"], ["--steps", "4"], ["--frames", "4"]):  # fmt: skip
        assert error(probed(workplace, trained, *options)) != error(first), options
    assert list(probed(workplace, trained, "--bodies", "hand, forearm")["probe_error_cm"]) == ["hand", "forearm"]
    assert probed(workplace, trained, "--confident", "99")["counted"] == 0
    on = probed(workplace, trained, "--radius", "500", "--bodies", ",".join(b["body"] for b in first["each"]))
    counted = sum(each["counted"] and each["body"] in on["on_body"] for each in on["each"])
    assert sum(map(len, on["on_body"].values())) == counted > 0 and on["radius_cm"] == 500
    lean = probed(workplace, trained, "--random-encoders", "0", "--autoencoder-steps", "0")
    assert list(lean["probe_error_cm"]["target"]) == ["keypoints", "constant", "first body"]


def test_a_pretraining_run_by_name(workplace: Path, tiny_pretrained: Path, capsys: pytest.CaptureFixture) -> None:
    run_in(workplace, probe.main, ["--env", "reach-multiview", "--run", "pretrained", *FAST])
    assert "runs/reach-multiview/pretrained, checkpoint 6" in capsys.readouterr().out
    newest = json.loads((tiny_pretrained / "probe.json").read_text())["probe_error_cm"]
    earlier = probed(workplace, tiny_pretrained, "--checkpoint", "4")
    assert earlier["checkpoint"] == 4 and earlier["probe_error_cm"] != newest
    with pytest.raises(UserError, match="is a pretraining run, so it has no policy of its own"):
        run_in(workplace, probe.main, ["--run", str(tiny_pretrained), *FAST, "--policy", "own"])


def test_the_newest_run_of_either_kind_is_found(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_in(tmp_path, pretrain.main, ["--run", "young", *TINY_PRETRAIN])
    run_in(tmp_path, probe.main, ["--env", "reach-multiview", *FAST])
    assert "runs/reach-multiview/young, checkpoint 6" in capsys.readouterr().out


def test_keypoints_in_2d_are_probed_but_sit_nowhere(workplace: Path, capsys: pytest.CaptureFixture) -> None:
    run_in(workplace, pretrain.main, ["--run", "flat", *TINY_PRETRAIN, "--encoder.dimensions", "2d"])
    run = workplace / "runs" / "reach-multiview" / "flat"
    record = probed(workplace, run)
    assert "each" not in record and record["probe_error_cm"]["target"]["keypoints"] > 0
    assert "keypoints in 2D" in capsys.readouterr().out and (run / "probe.png").is_file()


def test_moving_cameras_and_any_bodies(workplace: Path) -> None:
    run_in(workplace, pretrain.main, [*TINY_PRETRAIN, "--env", "Reacher-v5", "--cameras", WRIST, "--run", "moving"])
    run = workplace / "runs" / "Reacher-v5" / "moving"
    record = probed(workplace, run)
    assert {"body0", "fingertip", "target"} <= set(record["probe_error_cm"]) and (run / "probe.png").is_file()
    assert record["times_better_than"]["body0"]["constant"] is None  # it never moves
    assert record["times_better_than"]["fingertip"]["constant"] > 0


def test_refusals_are_one_line(workplace: Path, trained: Path, state_run: Path, tmp_path: Path) -> None:
    pixels, config = tmp_path / "pixels", (trained / "config.yaml").read_text()
    pixels.mkdir()
    (pixels / "config.yaml").write_text(config.replace("kind: keypoint3d", "kind: pixels"))
    for run, options, message in (
        (trained, ["--bodies", "targett"], "unknown body 'targett': did you mean 'target'?.* valid: hand_target,"),
        (trained, ["--checkpoint", "7"], r"no checkpoint at step 7, only at \[32, 160\]"),
        (state_run, [], "acts on 'state': it has no keypoints to probe"),
        (pixels, [], "acts on 'pixels': it has no keypoints to probe"),
        (tmp_path, [], "is not a run"),
        (trained, ["--policy", "greedy"], "unknown value for --policy"),
    ):
        with pytest.raises(UserError, match=message) as error:
            run_in(workplace, probe.main, ["--run", str(run), *FAST, *options])
        assert "\n" not in str(error.value)
