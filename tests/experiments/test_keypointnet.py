"""KeypointNet runs: whole, stopped and gone on with, judged, filmed, refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from envs.errors import UserError
from envs.renderers import make_renderer
from envs.scenes.objects import CATEGORIES
from experiments import evaluate, video
from experiments.keypointnet import __main__ as keypointnet
from experiments.keypointnet.config import KeypointNetRunConfig
from experiments.keypointnet.evaluating import table
from experiments.keypointnet.filming import film_test, film_training
from experiments.keypointnet.folder import KeypointNetRun, asks_for_keypointnet
from experiments.keypointnet.presets import PRESETS
from experiments.options.cli import parse
from experiments.options.presets import expanded_by
from experiments.training import gradient_steps
from kp3d_rl.keypointnet.metrics import judge_pairs
from kp3d_rl.keypointnet.network import FoundKeypoints, KeypointNet, faces_right
from tests.envs.test_meshes import CHAIR, TURN, catalogue
from tests.experiments.conftest import run_in

TINY = (
    "--threads 1 --image-size 32 --shapes 4 --test-shapes 3 --views 4 --evaluate-every 2 --network.width 16 "
    "--network.keypoints 4 --training.steps 5 --training.batch-size 4"
).split()


def start(workplace: Path, *more: str) -> int:
    return run_in(workplace, keypointnet.main, [*TINY, *more])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keypointnet")


@pytest.fixture(scope="module")
def finished(workplace: Path) -> KeypointNetRun:
    assert start(workplace, "--run", "finished") == 0
    return KeypointNetRun.open(workplace / "runs/chair/finished")


def test_a_run_leaves_a_network_and_a_row_for_each_judgement(workplace: Path, finished: KeypointNetRun) -> None:
    rows = finished.rows()
    assert [row["step"] for row in rows] == [2, 4, 5] and finished.finished and not finished.training_file.exists()
    assert {"median_angle", "flipped", "apart", "facing", "loss_pose", "minutes"} <= rows[0].keys()
    assert all(0 <= row["mean_angle"] <= 180 and 0 <= row["flipped"] <= 1 for row in rows)
    assert run_in(workplace, keypointnet.main, ["--resume", str(finished.path)]) == 0, "there is nothing left to do"
    assert finished.rows() == rows


def test_without_an_interval_it_is_judged_at_the_end_alone(workplace: Path) -> None:
    start(workplace, "--run", "once", "--evaluate-every", "0")
    assert [row["step"] for row in KeypointNetRun.open(workplace / "runs/chair/once").rows()] == [5]


@pytest.mark.parametrize("at", [1, 4])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    workplace: Path, finished: KeypointNetRun, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Stopped within a stretch, and between its last step and its judgement."""
    advance, made = keypointnet.KeypointNetTraining.advance, []

    def stopping(training: keypointnet.KeypointNetTraining) -> float:
        made.append(training)
        if len(made) > at:
            raise gradient_steps.Stopped
        return advance(training)

    monkeypatch.setattr(keypointnet.KeypointNetTraining, "advance", stopping)
    monkeypatch.setattr(gradient_steps, "SAVE_EVERY", -1.0)
    start(workplace, "--run", f"stopped{at}")
    monkeypatch.undo()
    run = KeypointNetRun.open(workplace / f"runs/chair/stopped{at}")
    assert not run.finished and run.network()
    assert run_in(workplace, keypointnet.main, ["--resume", str(run.path)]) == 0
    ours, theirs = run.network().state_dict(), finished.network().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "bit for bit"
    for row, other in zip(run.rows(), finished.rows(), strict=True):
        assert row | {"minutes": 0} == other | {"minutes": 0}


def test_evaluation_judges_other_objects_and_draws_them(
    workplace: Path, finished: KeypointNetRun, capsys: pytest.CaptureFixture
) -> None:
    run_in(workplace, evaluate.main, ["--run", "runs/chair/finished", "--seed", "0"])
    record = json.loads((finished.path / "eval.json").read_text())
    assert record["median_angle"] == pytest.approx(finished.rows()[-1]["median_angle"]), "block 0 is that of the run"
    run_in(workplace, evaluate.main, ["--category", "chair", "--run", "finished", "--shapes", "5"])
    other = json.loads((finished.path / "eval.json").read_text())
    assert other["objects"] == 5 and other["median_angle"] != record["median_angle"] and "commit" in other
    said = capsys.readouterr().out
    assert "| finished | 5 |" in said and table([other | {"run": "finished"}])[2] in said
    assert iio.imread(finished.path / "keypoints.png").shape[1] > 5 * 90
    run_in(workplace, evaluate.main, ["--run", "runs/chair/finished", "--seen"])
    own, renderer = json.loads((finished.path / "eval.json").read_text()), make_renderer()
    data = film_training(finished.config, renderer)
    renderer.close()
    assert own["seen"] and own["objects"] == 3, "no more than it is judged by"
    few = dataclasses.replace(
        data, **{name: getattr(data, name)[:3] for name in ("images", "masks", "poses", "landmarks")}
    )
    assert own["median_angle"] == pytest.approx(judge_pairs(finished.network(), few).summary()["median_angle"])


def test_evaluation_on_real_meshes_names_what_it_leaves_out(
    workplace: Path, finished: KeypointNetRun, capsys: pytest.CaptureFixture
) -> None:
    catalogue(workplace / "a.sh3f", {"one": ("Chair", CHAIR, ""), "two": ("Chair", CHAIR, TURN)})
    catalogue(workplace / "b.sh3f", {"three": ("Chair", "", ""), "four": ("Arm chair", CHAIR, "")})
    run_in(workplace, evaluate.main, ["--run", "runs/chair/finished", "--meshes", "a.sh3f, b.sh3f"])
    found = json.loads((finished.path / "eval.json").read_text())["meshes"]
    assert found["objects"] == 3 and found["skipped"] == 1 and found["models"][2] == "shop/four/chair.obj"
    said = capsys.readouterr()
    assert "| real meshes | 3 |" in said.out and "skipped: shop/three/chair.obj" in said.err
    assert (finished.path / "meshes.png").is_file()
    with pytest.raises(UserError, match="gone.sh3f is no furniture catalogue"):
        run_in(workplace, evaluate.main, ["--run", "runs/chair/finished", "--meshes", "gone.sh3f"])


def test_the_video_shows_objects_turning(workplace: Path, finished: KeypointNetRun) -> None:
    run_in(
        workplace,
        video.main,
        ["--category", "chair", "--run", "finished", "--objects", "2", "--size", "64", "--fps", "2"],
    )
    frames = iio.imread(finished.path / "videos/objects-seed0.mp4")
    assert len(frames) == 12 and frames.shape[2] >= 2 * 64
    assert np.abs(frames[0].astype(int) - frames[6]).mean() > 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--category", "chiar"], "unknown category 'chiar'.*chair"),
        (["--preset", "smal"], "unknown preset 'smal'.*smoke"),
        (["--run", "finished"], "make keypointnet RESUME=runs/chair/finished"),
        (["--run", "a/b"], "must be a plain folder name"),
        (["--image-size", "16"], "image_size must be at least 32"),
        (["--network.stride", "3"], "stride must be 1, 2 or 4"),
        (["--training.supervised"], "10 landmarks takes 10 keypoints, not 4"),
    ],
)
def test_bad_input_is_one_line(workplace: Path, finished: KeypointNetRun, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        start(workplace, *arguments)
    assert "\n" not in str(error.value)


def test_damaged_runs_are_one_line(workplace: Path, finished: KeypointNetRun) -> None:
    start(workplace, "--run", "damaged")
    path = workplace / "runs/chair/damaged"
    (path / "metrics.csv").write_text("step,minutes\n2,many\n")
    with pytest.raises(UserError, match="metrics.csv is damaged"):
        KeypointNetRun.open(path).rows()
    (path / "network/weights.safetensors").write_bytes(b"what is this")
    with pytest.raises(UserError, match="weights.safetensors"):
        run_in(workplace, evaluate.main, ["--run", str(path)])
    (path / "network/weights.safetensors").unlink()
    with pytest.raises(UserError, match="has no network yet: go on with `make keypointnet RESUME="):
        run_in(workplace, evaluate.main, ["--run", str(path)])
    with pytest.raises(UserError, match="no KeypointNet run in runs/car: make one"):
        run_in(workplace, video.main, ["--category", "car"])
    with pytest.raises(UserError, match="takes the folder of a run, and no other option"):
        run_in(workplace, keypointnet.main, ["--resume", str(path), "--seed", "1"])


def test_programs_know_which_runs_are_keypointnets(workplace: Path, finished: KeypointNetRun) -> None:
    assert asks_for_keypointnet(["--run", str(finished.path)]) and asks_for_keypointnet(["--category=plane"])
    assert not asks_for_keypointnet(["--env", "reach-multiview"]) and not asks_for_keypointnet(["--run", "nowhere"])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_presets_are_valid_and_what_is_typed_counts_more(name: str, category: str) -> None:
    config = parse(
        KeypointNetRunConfig, expanded_by(PRESETS, ["--preset", name, "--category", category, "--views", "7"])
    )
    assert config.views == 7 and config.category == category
    assert (config.network.stride == 1) == (name == "paper")


def test_training_and_test_objects_differ_and_each_block_of_these() -> None:
    config, renderer = parse(KeypointNetRunConfig, TINY), make_renderer()
    sets = [film_training(config, renderer), film_test(config, renderer), film_test(config, renderer, 1)]
    renderer.close()
    assert [len(data) for data in sets] == [4, 3, 3]
    assert len({data.landmarks[n].numpy().tobytes() for data in sets for n in range(len(data))}) == 10


def test_judging_counts_what_a_perfect_and_a_mirrored_network_find() -> None:
    """Landmarks as detections: no error at all; mirrored in depth: rotations are wrong, though pixels are right."""
    config, renderer = parse(KeypointNetRunConfig, [*TINY, "--test-shapes", "6"]), make_renderer()
    data = film_test(config, renderer)
    renderer.close()
    objects, views = torch.arange(6).repeat_interleave(2), torch.arange(4).view(2, 2).repeat(6, 1)
    rig = data.rig(objects, views)
    uv, depth = rig.project_each(data.landmarks[objects].unsqueeze(1).expand(-1, 2, -1, -1))
    ends = rig.project(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))[0].flatten(0, 1)

    class Perfect(KeypointNet):
        sign = 1.0

        def detect(self, images: torch.Tensor, batch: int = 64) -> tuple[FoundKeypoints, torch.Tensor]:
            assert len(images) == len(ends)
            relative = self.sign * (depth - data.distance)
            return FoundKeypoints(uv.flatten(0, 1), relative.flatten(0, 1), uv), faces_right(ends)

    network = Perfect(config.network)
    found = judge_pairs(network, data).summary()
    assert found["mean_angle"] < 0.2 and found["apart"] < 1e-3 and found["flipped"] == 0 and found["facing"] == 1
    assert found["spread"] == pytest.approx(
        float((data.landmarks - data.landmarks.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt().mean()), rel=1e-3
    )
    network.sign = -1.0
    mirrored = judge_pairs(network, data).summary()
    assert mirrored["median_angle"] > 20 and mirrored["apart"] > 0.2
