"""Geometry-aware runs: whole, stopped and gone on with, judged, filmed, refused; by exact joints and by a detector."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from envs.errors import UserError
from envs.scenes.clips import VALIDATION
from envs.scenes.people import ring
from experiments import evaluate, study, video
from experiments.geometry_aware import __main__ as geometry_aware
from experiments.geometry_aware.config import GeometryAwareRunConfig
from experiments.geometry_aware.evaluating import (
    FRACTIONS,
    OURS,
    PAPER,
    PAPER_LABELS,
    errors,
    load_regressor,
    summary,
    table,
)
from experiments.geometry_aware.folder import GeometryAwareRun, asks_for_geometry_aware
from experiments.geometry_aware.presets import PRESETS
from experiments.geometry_aware.seeing import (
    DetectorEyes,
    ExactEyes,
    as_inputs,
    exactly,
    people_to_judge_by,
    people_to_learn_from,
    said_usable,
    views_to_learn_from,
)
from experiments.geometry_aware.study import MEMBERS, Job
from experiments.geometry_aware.study_report import TABLES
from experiments.options.cli import parse
from experiments.options.presets import expanded_by
from experiments.runs.plain import read_tensors
from experiments.studies.plain import Member
from experiments.training import gradient_steps
from kp3d_rl.gradient_training import GradientTraining
from tests.experiments.conftest import run_in, run_in_this_process

pytest.importorskip("pybullet_data", reason="PyBullet has packages for Python 3.11 alone")

TINY = (
    "--threads 1 --poses 24 --bodies 3 --test-bodies 2 --cameras 3 --views 3 --evaluate-every 2 --network.width 8 "
    "--network.points 6 --network.size 32 --training.steps 5 --training.batch-size 4"
).split()
DETECTED = (
    "--source detector --poses 6 --bodies 2 --test-bodies 1 --cameras 2 --labelled 4 --image-size 32 "
    "--detector.width 8 --detecting.steps 4 --detecting.batch-size 4 --least-confidence 0"
).split()
JUDGED = "--draws 2 --poses 20 --regression.steps 20 --regression.hidden 16 --regression.lifter 16".split()


def start(workplace: Path, *more: str) -> int:
    return run_in(workplace, geometry_aware.main, [*TINY, *more])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("geometry-aware")


@pytest.fixture(scope="module")
def finished(workplace: Path) -> GeometryAwareRun:
    assert start(workplace, "--run", "finished") == 0
    return GeometryAwareRun.open(workplace / "runs/human/finished")


@pytest.fixture(scope="module")
def judged(workplace: Path, finished: GeometryAwareRun) -> dict:
    run_in(workplace, evaluate.main, ["--env", "human", "--run", "finished", *JUDGED])
    return json.loads((finished.path / "eval.json").read_text())


def test_a_run_leaves_networks_and_a_row_for_each_judgement(workplace: Path, finished: GeometryAwareRun) -> None:
    rows = finished.rows()
    assert [row["step"] for row in rows] == [2, 4, 5] and finished.finished
    assert {"iou", "equivariance", "loss_drawing", "loss_consistency", "minutes"} <= rows[0].keys()
    assert finished.stages == ["synthesis", "autoencoder"]
    assert not any(finished.training_file(stage).exists() for stage in finished.stages)
    start(workplace, "--run", "alone", "--no-autoencoder", "--evaluate-every", "0", "--network.no-shared")
    alone = GeometryAwareRun.open(workplace / "runs/human/alone")
    assert [row["step"] for row in alone.rows()] == [5] and alone.stages == ["synthesis"]
    assert len(alone.network("synthesis")) == 2 > len(finished.network("synthesis"))  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    workplace: Path, finished: GeometryAwareRun, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Stopped within the synthesis, between its last step and its judgement, and within the autoencoder."""
    advance, made = GradientTraining.advance, []

    def stopping(training: GradientTraining) -> float:
        made.append(training)
        if len(made) > at:
            raise gradient_steps.Stopped
        return advance(training)

    monkeypatch.setattr(GradientTraining, "advance", stopping)
    monkeypatch.setattr(gradient_steps, "SAVE_EVERY", -1.0)
    start(workplace, "--run", f"stopped{at}")
    monkeypatch.undo()
    run = GeometryAwareRun.open(workplace / f"runs/human/stopped{at}")
    assert not run.finished and run.network("synthesis")
    assert run_in(workplace, geometry_aware.main, ["--resume", str(run.path)]) == 0
    for stage in run.stages:
        ours, theirs = run.network(stage).state_dict(), finished.network(stage).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "bit for bit"
    for row, other in zip(run.rows(), finished.rows(), strict=True):
        assert row | {"minutes": 0} == other | {"minutes": 0}


def test_evaluation_compares_all_methods_at_all_shares_of_labels(finished: GeometryAwareRun, judged: dict) -> None:
    names = ["2D joints", "untrained", OURS, "autoencoder", "lifter", "lifter + geometry-aware"]
    found = summary(judged["rows"])
    assert list(found) == names and all(list(found[name]) == list(FRACTIONS) for name in names)
    assert len(judged["rows"]) == len(names) * len(FRACTIONS) * 2 and judged["labels"] == 20 * 3
    assert [row["labels"] for row in judged["rows"][:: 2 * len(names)]] == [2, 2, 6, 60]
    assert all(row["pmpjpe"] < row["mpjpe"] < 3000 for row in judged["rows"])
    mean, low, high, _ = found[OURS][1.0]
    assert low <= mean <= high
    assert set(judged["synthesis"]) == {
        "between held-out cameras", "from a held-out camera to the ring's", "with another camera's rotation"
    }  # fmt: skip
    lines = table(judged["rows"])
    assert len(lines) == 2 + len(names) and "200.0 (153.2), 107.9 (82.1), 94.5 (70.7), 80.2 (58.2)" in lines[4]
    assert all(iio.imread(finished.path / name).shape[0] > 100 for name in ("labels.png", "views.png"))
    assert all(len(curve) == len(PAPER_LABELS) for both in PAPER.values() for curve in both)


def test_the_regressor_that_is_kept_is_the_one_that_was_judged(finished: GeometryAwareRun, judged: dict) -> None:
    fitted = load_regressor(finished, read_tensors(finished.path / "regressor.safetensors"))
    config = finished.config
    _, held_out = ring(config.cameras, config.held_out)
    trained, _ = ring(config.cameras, config.held_out)
    from envs.scenes.clips import TEST

    people = people_to_judge_by(config, TEST, 1)
    views = ExactEyes(config).views(people, np.concatenate([held_out, trained]), 1)
    inputs = finished.network("synthesis")[0].codes(views.uv[:, :2].flatten(0, 1)).flatten(1)  # type: ignore[index]
    found = errors(fitted, inputs, views.in_cameras()[:, :2].flatten(0, 1))
    (row,) = (r for r in judged["rows"] if (r["method"], r["fraction"], r["draw"]) == (OURS, 1.0, 0))
    assert found["mpjpe"] == pytest.approx(row["mpjpe"], rel=1e-3)


def test_the_video_shows_the_clip_from_all_round(workplace: Path, finished: GeometryAwareRun, judged: dict) -> None:
    run_in(workplace, video.main, ["--run", "runs/human/finished", "--clip", "run", "--size", "64"])
    frames = iio.imread(finished.path / "videos/run-seed0.mp4")
    assert len(frames) == 25 and np.abs(frames[0].astype(int) - frames[12]).mean() > 1
    with pytest.raises(UserError, match="not learnt from .run, kick.*got 'walk'"):
        run_in(workplace, video.main, ["--run", "runs/human/finished", "--clip", "walk"])


def test_people_are_seen_by_a_detector_of_its_own(workplace: Path, capsys: pytest.CaptureFixture) -> None:
    assert start(workplace, "--run", "seen", *DETECTED) == 0
    run = GeometryAwareRun.open(workplace / "runs/human/seen")
    assert run.stages == ["detector", "synthesis", "autoencoder"] and run.finished
    run_in(workplace, evaluate.main, ["--run", str(run.path), *JUDGED])
    assert json.loads((run.path / "eval.json").read_text())["labels"] == 6 * 2
    run_in(workplace, video.main, ["--run", str(run.path), "--clip", "run", "--size", "64"])


def test_a_detectors_joints_are_where_it_says_and_unsure_ones_are_missing() -> None:
    """A stub that looks for nothing but answers with the truth of the images that it is shown."""
    config = parse(GeometryAwareRunConfig, [*TINY, "--source", "detector", "--image-size", "32"])
    people = people_to_judge_by(config, ("run",))
    places, _ = ring(2, 2)
    truth = exactly(people, places, 32)

    class Stub:
        shown = 0

        def detect(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            rows = np.flatnonzero(people.bodies == self.shown)
            self.shown += 1
            assert images.shape == (2 * len(rows), 32, 32, 3)
            sure = torch.ones(len(images), 16)
            sure[:, 5] = 0.0
            return truth.uv[rows].flatten(0, 1).clone(), sure

    class Dark:
        def render(self, visual: object, height: int, width: int) -> np.ndarray:
            return np.zeros((2, height, width, 3), np.uint8)

    views = DetectorEyes(config, Stub(), Dark()).views(people, places, 0)  # type: ignore[arg-type]
    assert views.uv[:, :, 5].isnan().all()
    kept = [joint for joint in range(16) if joint != 5]
    torch.testing.assert_close(views.uv[:, :, kept], truth.uv[:, :, kept])
    assert as_inputs(views)[0].isnan().any()


def test_an_empty_split_is_one_line_and_what_is_left_out_is_counted(capsys: pytest.CaptureFixture) -> None:
    config = parse(GeometryAwareRunConfig, TINY)
    views = exactly(people_to_judge_by(config, ("run",)), ring(3, 2)[0], 32)
    views.uv[3:5, 1, 0] = float("nan")
    assert len(said_usable(views, "to learn from")) == 23
    assert "skipped 2 of 25 poses to learn from: a view misses the root" in capsys.readouterr().err
    views.uv[:, 0, 0] = float("nan")
    with pytest.raises(UserError, match="none of 25 poses to learn from can be used: of each, a view misses the root"):
        said_usable(views, "to learn from")


def test_what_is_learnt_from_and_judged_by_have_no_body_or_clip_in_common() -> None:
    config = parse(GeometryAwareRunConfig, TINY)
    learners = people_to_learn_from(config)
    blocks = [people_to_judge_by(config, VALIDATION, block) for block in (0, 1)]
    statures = [{shape.stature for shape in people.shapes} for people in (learners, *blocks)]
    assert len(set.union(*statures)) == 3 + 2 + 2
    eyes = ExactEyes(config)
    virtual = views_to_learn_from(config, eyes, learners)
    ringed = views_to_learn_from(parse(GeometryAwareRunConfig, [*TINY, "--no-virtual"]), eyes, learners)
    assert virtual.uv.shape == (24, 3, 16, 2) == ringed.uv.shape
    assert torch.equal(ringed.rotations[0], ringed.rotations[5]) and not torch.equal(
        virtual.rotations[0], virtual.rotations[5]
    )
    exact = exactly(learners, ring(3, 2)[0], 32)
    noise = (ringed.uv - exact.uv).std()
    assert float(noise) == pytest.approx(0.011 / 2.4 * 32, rel=0.1)
    clean = ExactEyes(parse(GeometryAwareRunConfig, [*TINY, "--noise", "0"])).views(learners, ring(3, 2)[0], 0)
    torch.testing.assert_close(clean.uv, exact.uv)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "guess"], "invalid choice|source"),
        (["--preset", "smal"], "unknown preset 'smal'.*smoke"),
        (["--run", "finished"], "make geometry-aware RESUME=runs/human/finished"),
        (["--held-out", "1"], "held_out must be at least 2"),
        (["--network.size", "40"], "size must be a multiple of 16"),
        (["--bodies", "40"], "bodies must be at most the number of poses, 24, got 40"),
        (["--seed", "1000000"], "must lie between 0 and 999999"),
    ],
)
def test_bad_input_is_one_line(workplace: Path, finished: GeometryAwareRun, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        start(workplace, *arguments)
    assert "\n" not in str(error.value)


def test_damaged_runs_are_one_line(workplace: Path, finished: GeometryAwareRun) -> None:
    start(workplace, "--run", "damaged", "--no-autoencoder")
    path = workplace / "runs/human/damaged"
    with pytest.raises(UserError, match="has no regressor yet: `make evaluate RUN="):
        run_in(workplace, video.main, ["--run", str(path)])
    (path / "regressor.safetensors").write_bytes((path / "networks/synthesis.safetensors").read_bytes())
    with pytest.raises(UserError, match="regressor.safetensors holds no regressor of this run"):
        run_in(workplace, video.main, ["--run", str(path)])
    (path / "networks/synthesis.safetensors").write_bytes(b"what is this")
    with pytest.raises(UserError, match="synthesis.safetensors"):
        run_in(workplace, evaluate.main, ["--run", str(path)])
    (path / "networks/synthesis.safetensors").unlink()
    with pytest.raises(UserError, match="has no synthesis network: go on with `make geometry-aware RESUME="):
        run_in(workplace, evaluate.main, ["--run", str(path), *JUDGED])


def test_programs_know_which_runs_are_geometry_aware(workplace: Path, finished: GeometryAwareRun) -> None:
    assert asks_for_geometry_aware(["--run", str(finished.path)]) and asks_for_geometry_aware(["--env=human"])
    assert not asks_for_geometry_aware(["--env", "reach-multiview"])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_what_is_typed_counts_more(name: str) -> None:
    config = parse(GeometryAwareRunConfig, expanded_by(PRESETS, ["--preset", name, "--views", "7"]))
    assert config.views == 7 and (config.source == "detector") == (name == "detected")
    assert config.network.soft == config.network.shared == (name != "paper")


def test_a_study_runs_what_is_missing_and_writes_tables_and_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = " ".join(TINY[2:])
    members = (Member("exact joints", options, seeds=2), Member("ring alone", f"{options} --no-virtual", seeds=1))
    for module in ("study", "study_report"):
        monkeypatch.setattr(f"experiments.geometry_aware.{module}.MEMBERS", members)
    judge = lambda argv: evaluate.main([*argv, *JUDGED])  # noqa: E731
    ran = run_in_this_process(
        monkeypatch, {"experiments.geometry_aware": geometry_aware.main, "experiments.evaluate": judge}
    )
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text("".join(f"<!-- table geometry-aware {kind} -->\n<!-- end -->\n" for kind in TABLES))
    arguments = ["--name", "geometry-aware", "--jobs", "1"]
    run_in(tmp_path, study.main, [*arguments, "--seeds", "1"])
    assert [command[0].rpartition(".")[2] for command in ran] == ["geometry_aware"] * 2 + ["evaluate"] * 2
    run_in(tmp_path, study.main, arguments)
    assert len(ran) == 6, "only the second seed was missing"
    run_in(tmp_path, study.main, [*arguments, "--report"])
    assert len(ran) == 6
    rows = json.loads((tmp_path / "docs/geometry-aware.json").read_text())["runs"]
    assert [(row["condition"], row["seed"]) for row in rows] == [
        ("exact joints", 0), ("exact joints", 1), ("ring alone", 0)
    ]  # fmt: skip
    assert "| exact joints | 2 | 5 |" in page.read_text() and "| lifter |" in page.read_text()
    for name in ("geometry-aware.png", "geometry-aware-views-exact-joints.png", "geometry-aware-views-ring-alone.png"):
        assert iio.imread(tmp_path / "docs" / name).shape[0] > 100
    with pytest.raises(UserError, match="unknown condition of study 'geometry-aware'"):
        run_in(tmp_path, study.main, [*arguments, "--only", "guesses"])


def test_every_member_is_a_valid_command_line_and_differs_in_what_its_name_says() -> None:
    for member in MEMBERS:
        config = parse(GeometryAwareRunConfig, expanded_by(PRESETS, Job(member, 2).options))
        assert config.seed == 2 and config.threads == 1
        assert (config.source == "detector") == ("detected" in member.name)
        assert config.virtual == ("ring" not in member.name)
        assert (config.training.consistency == 0) == ("without consistency" in member.name)
        assert config.network.shared == ("two networks" not in member.name)
