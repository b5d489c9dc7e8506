"""Bootstrapping runs: whole, stopped and gone on with, refused; and that a poor detector becomes a good one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from envs.cameras import CameraRig, CameraSpec
from envs.errors import UserError
from envs.scenes.footage import Footage
from experiments import bootstrap, evaluate, train, video
from experiments.bootstrapping import rounds
from experiments.bootstrapping.config import BootstrapConfig
from experiments.bootstrapping.filming import HandStudio, Subject, TaskStudio, calibrated, make_studio, truth
from experiments.bootstrapping.folder import BootstrapRun, asks_for_bootstrap
from experiments.bootstrapping.judging import label_precision
from experiments.bootstrapping.presets import PRESETS, expanded
from experiments.bootstrapping.rounds import choose, film, run_round
from experiments.options.cli import parse
from experiments.runs import Run
from experiments.runs.plain import read_tensors
from experiments.training import gradient_steps
from experiments.training.recording import StopRequest
from kp3d_rl.bootstrapping.detector import DetectorConfig
from kp3d_rl.bootstrapping.metrics import area_under_curve, box_sizes, pck
from kp3d_rl.bootstrapping.training import AugmentationConfig, DetectorTrainingConfig
from kp3d_rl.cameras import Rig
from kp3d_rl.storage.files import write_tensors
from kp3d_rl.triangulation import RansacConfig
from tests.experiments.conftest import run_in
from tests.kp3d_rl.rigs import ring

LENIENT = (
    "--ransac.threshold 60 --ransac.least-confidence 0 --plausibility.least-confidence 0 --plausibility.least-points 0 "
    "--plausibility.bone-tolerance 100 --plausibility.velocity 1000"
).split()
TINY = (
    "--threads 1 --rounds 1 --cameras 4 --held-out 1 --image-size 32 --sequences 1 --frames 6 --labelled 4 "
    "--test-sequences 1 --test-frames 4 --first-steps 3 --detector.width 8 --training.steps 3 --training.batch-size 4 "
    "--selection.window 2 --selection.frames 2 --calibration-noise 20"
).split() + LENIENT


def start(workplace: Path, *more: str) -> int:
    return run_in(workplace, bootstrap.main, [*TINY, *more])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bootstrap")


@pytest.fixture(scope="module")
def finished(workplace: Path) -> BootstrapRun:
    assert start(workplace, "--run", "finished") == 0
    return BootstrapRun.open(workplace / "runs/hand/finished")


def test_a_run_leaves_detectors_labels_and_numbers_of_every_round(finished: BootstrapRun) -> None:
    assert finished.finished_rounds() == [0, 1]
    for number in (0, 1):
        numbers = finished.numbers(number)
        assert numbers["round"] == number and 0 <= numbers["pck"]["0.1"] <= 1 and numbers["images"] == 4
        assert finished.detector(number).keypoints == 21
    chosen, points = finished.labels(1)
    assert points.shape == (len(chosen), 21, 3) and 1 <= len(chosen) <= 2
    assert finished.numbers(1)["frames"] == len(chosen) and "precision" in finished.numbers(1)
    names = {path.name for path in finished.folder(1).iterdir()}
    assert names == {"detector.safetensors", "round.json", "labels.safetensors", "choice.json"}, (
        "nothing is left of the way"
    )
    assert json.loads((finished.path / "origin.json").read_text())["commit"]


@pytest.mark.parametrize("stopped_at", ["filming", "round 0", "round 1"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    workplace: Path, finished: BootstrapRun, stopped_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = stopped_at.replace(" ", "-")
    calls = {"filming": 0, "round 0": 2, "round 1": 4}[stopped_at]

    class Stop(StopRequest):
        """A signal that comes when it has been asked for so many times in trainings."""

        def __bool__(self) -> bool:
            asked.append(1)
            return len(asked) > limit

        @property
        def exit_code(self) -> int:
            return 143

    asked: list[int] = []
    limit = 0
    if stopped_at != "filming":
        advance = rounds.DetectorTraining.advance

        def counted(training: rounds.DetectorTraining) -> float:
            nonlocal limit
            steps.append(1)
            if len(steps) == calls:
                limit = 0
            return advance(training)

        steps: list[int] = []
        limit = 1_000_000
        monkeypatch.setattr(rounds.DetectorTraining, "advance", counted)
    monkeypatch.setattr(gradient_steps, "StopRequest", Stop)
    assert start(workplace, "--run", name) == 143
    monkeypatch.undo()
    path = workplace / "runs/hand" / name
    assert BootstrapRun.open(path).finished_rounds() == ([0] if stopped_at == "round 1" else [])
    assert run_in(workplace, bootstrap.main, ["--resume", str(path)]) == 0
    run = BootstrapRun.open(path)
    assert run.finished_rounds() == [0, 1]
    for number in (0, 1):
        ours, theirs = run.detector(number).state_dict(), finished.detector(number).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), "bit for bit"
        then, now = run.numbers(number), finished.numbers(number)
        assert then | {"minutes_of_training": 0} == now | {"minutes_of_training": 0}
    assert run_in(workplace, bootstrap.main, ["--resume", str(path)]) == 0, "a finished run has nothing left to do"


def test_evaluation_lists_rounds_beside_those_of_runs_that_refer_to_it(
    workplace: Path, finished: BootstrapRun, capsys: pytest.CaptureFixture
) -> None:
    for method in ("oracle", "self-training", "random"):
        start(workplace, "--run", method, "--method", method, "--reference", "runs/hand/finished")
        run = BootstrapRun.open(workplace / "runs/hand" / method)
        first, theirs = run.detector(0).state_dict(), finished.detector(0).state_dict()
        assert all(torch.equal(first[key], theirs[key]) for key in theirs), "the first round is taken over"
    oracle = BootstrapRun.open(workplace / "runs/hand/oracle").numbers(1)
    assert oracle["precision"] == 1.0, "true labels are projected by the true cameras, not by measured ones"
    capsys.readouterr()
    run_in(workplace, evaluate.main, ["--run", "runs/hand/finished", "--sequences", "1"])
    said = capsys.readouterr().out
    lines = [line.split("|") for line in said.splitlines() if line.startswith("| ")]
    assert [tuple(cell.strip() for cell in line[1:4]) for line in lines[1:9]] == [
        (method, "4", str(n)) for method in ("bootstrapping", "oracle", "random", "self-training") for n in (0, 1)
    ]
    assert lines[9][1].strip() == "cameras" and lines[10][1].strip() == "4" and len(lines) == 11
    record = json.loads((finished.path / "eval.json").read_text())
    for row in record["rounds"][:2]:  # the same sequence as in the run, measured again
        assert row["pck"] == finished.numbers(row["round"])["pck"]
    assert len({json.dumps(row["pck"]) for row in record["rounds"] if row["round"] == 0}) == 1
    run_in(workplace, evaluate.main, ["--run", "runs/hand/finished", "--sequences", "1", "--alone", "--turn", "12"])
    turned = json.loads((finished.path / "eval.json").read_text())
    assert turned["turn"] == 12 and record["turn"] == 0
    assert turned["rounds"][1]["auc"] != record["rounds"][1]["auc"], "of the same images, each seen three times"
    arguments = ["--run", "runs/hand/finished", "--sequences", "1", "--alone", "--seed", "1"]
    run_in(workplace, evaluate.main, arguments)
    alone = json.loads((finished.path / "eval.json").read_text())["rounds"]
    assert [(row["run"], row["round"]) for row in alone] == [("finished", 0), ("finished", 1)]
    assert alone[0]["auc"] != record["rounds"][0]["auc"] or alone[0]["error_mm"] != record["rounds"][0]["error_mm"]


def test_the_video_shows_both_detectors_and_the_hand_turning(workplace: Path, finished: BootstrapRun) -> None:
    arguments = ["--env", "hand", "--run", "finished", "--sequences", "1", "--size", "96"]
    run_in(workplace, video.main, arguments)
    frames = iio.imread(finished.path / "videos/rounds-seed0.mp4")
    assert len(frames) == 4 and frames.shape[2] > 2.5 * 96
    third = frames.shape[2] // 3
    assert frames[0][:, 2 * third :].mean() > 200, "a light sheet with the hand in 3D"
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "oracle"], "reference must name a run"),
        (["--cameras", "3"], "cameras are too few: 4 must agree"),
        (["--use", "5"], "use must be at most the number of cameras, 4"),
        (["--env", "reach-multiview", "--bodies", "hand"], "at least two must be keypoints"),
        (["--reference", "runs/hand/finished", "--ransac.threshold", "5"], "reference runs/hand/finished has ransac"),
        (["--reference", "x" * 300], "is no bootstrapping run"),
        (["--method", "oracle", "--reference", "runs/hand/finished", "--rounds", "2"], "rounds/2/labels.safetensors"),
        (["--bodies", "hand"], "bodies are those of an environment"),
        (["--env", "reech-multiview"], "reach-multiview"),
        (["--env", "reach-wrist-multiview"], "camera 'wrist' moves"),
        (["--env", "reach-multiview", "--bodies", "elbow"], "unknown body of reach-multiview 'elbow'"),
        (["--env", "reach-multiview", "--bodies", "hand,hand"], "bodies of reach-multiview: hand is named twice"),
        (["--preset", "smok"], "unknown preset 'smok'"),
        (["--run", "finished"], "make bootstrap RESUME=runs/hand/finished"),
        (["--run", "a/b"], "must be a plain folder name"),
        (["--image-size", "16"], "image_size must be at least 32"),
        (["--reference", "runs/hand/finished", "--seed", "3"], "has seed 0, this run 3"),
        (["--detector.width", "12"], "width must be a multiple of 8"),
    ],
)
def test_bad_input_is_one_line(workplace: Path, finished: BootstrapRun, arguments: list[str], message: str) -> None:
    before = sorted(path.name for path in (workplace / "runs").glob("*/*"))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        run_in(workplace, bootstrap.main, [*(() if "--preset" in arguments else TINY), *arguments])
    assert before == sorted(path.name for path in (workplace / "runs").glob("*/*")), "no run is left behind"


def test_resume_takes_a_run_and_nothing_else(workplace: Path, finished: BootstrapRun, tmp_path: Path) -> None:
    for argv in (["--resume"], ["--resume", "runs/hand/finished", "--seed", "1"]):
        with pytest.raises(UserError, match="takes the folder of a run, and no other option"):
            run_in(workplace, bootstrap.main, argv)
    with pytest.raises(UserError, match="is no bootstrapping run"):
        bootstrap.main(["--resume", str(tmp_path)])


def test_damaged_files_are_one_line(workplace: Path, finished: BootstrapRun, tmp_path: Path) -> None:
    start(workplace, "--run", "damaged", "--rounds", "0")
    run = BootstrapRun.open(workplace / "runs/hand/damaged")
    path = run.folder(0) / "detector.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="detector.safetensors is damaged"):
        run.detector()
    path.write_bytes(whole)
    weights = run.detector().state_dict()
    write_tensors(path, weights | {"nowhere": torch.tensor(1.0)})
    with pytest.raises(UserError, match="holds no such detector"):
        run.detector()
    write_tensors(path, weights)
    for broken in ({"sequence": torch.tensor([0])}, {"sequence": torch.tensor([7]), "frame": torch.tensor([0]),
                                                     "points": torch.zeros(1, 21, 3)}):  # fmt: skip
        write_tensors(run.folder(0) / "labels.safetensors", broken)
        with pytest.raises(UserError, match="labels.safetensors is damaged"):
            run.labels(0)
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("width: 8", "width: 16"))
    with pytest.raises(UserError, match="holds no such detector"):
        BootstrapRun.open(run.path).detector()
    (run.path / "config.yaml").write_text(text.replace("rounds: 0", "rounds: -1"))
    with pytest.raises(UserError, match="config.yaml line .*'rounds': must be at least 0"):
        BootstrapRun.open(run.path)
    with pytest.raises(UserError, match="has no finished round 3"):
        finished.detector(3)


def studio_films(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the sequences that are filmed from now on."""
    films: list[int] = []
    monkeypatch.setattr(HandStudio, "sequence", lambda self, number: films.append(number))
    return films


def test_a_round_without_a_good_frame_stops_and_the_last_detector_stays(
    workplace: Path, finished: BootstrapRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = ["--plausibility.least-confidence", "1", "--plausibility.least-points", "1"]
    with pytest.raises(UserError, match=r"round 1 stopped: no frame of 1 sequences .*little confidence.*round 0 stays"):
        start(workplace, *strict, "--run", "strict")
    run = BootstrapRun.open(workplace / "runs/hand/strict")
    assert run.finished_rounds() == [0] and run.detector().keypoints == 21
    assert run.gave_up and not finished.gave_up
    films = studio_films(monkeypatch)
    with pytest.raises(UserError, match=r"round 1 stopped: .*little confidence.*round 0 stays in runs/hand/strict/rou"):
        run_in(workplace, bootstrap.main, ["--resume", "runs/hand/strict"])
    assert not films, "that nothing will be found is known before anything is filmed"


def test_programs_know_which_runs_are_bootstrapped(workplace: Path, finished: BootstrapRun) -> None:
    root = workplace / "runs"
    assert asks_for_bootstrap(["--run", str(finished.path)], root) and asks_for_bootstrap(["--env=hand"], root)
    assert asks_for_bootstrap(["--env", "hand", "--run", "finished"], root)
    assert not asks_for_bootstrap(["--env", "reach-multiview"], root)
    assert not asks_for_bootstrap(["--run", "nothing"], root) and not asks_for_bootstrap([], root)
    assert BootstrapRun.find(None, "hand", root).path.parent == finished.path.parent
    with pytest.raises(UserError, match="is a run of 'hand', not of 'reach-multiview'"):
        BootstrapRun.find(str(finished.path), "reach-multiview", root)
    (root / "hand/.x.partial/rounds").mkdir(parents=True)
    (root / "hand/.x.partial/config.yaml").touch()
    assert not BootstrapRun.find(None, "hand", root).path.name.startswith(".")
    assert not asks_for_bootstrap(["--run", "x" * 5000], root)
    with pytest.raises(UserError, match="no bootstrapping run named 'nothing'"):
        BootstrapRun.find("nothing", "hand", root)


# --- an environment, and a policy on its keypoints ------------------------------------------------------------------


@pytest.fixture(scope="module")
def reach(workplace: Path) -> BootstrapRun:
    # what fits no arm fits here: errors of a metre and a detector that knows nothing
    assert start(workplace, "--env", "reach-multiview", "--run", "reach", "--rounds", "0", "--image-size", "64") == 0
    return BootstrapRun.open(workplace / "runs/reach-multiview/reach")


def test_an_environments_bodies_become_keypoints_seen_by_its_own_cameras_and_others() -> None:
    config = parse(BootstrapConfig, expanded([*TINY, "--env", "reach-multiview"]))
    studio = make_studio(config)
    assert isinstance(studio, TaskStudio) and {"wrist", "target"} <= set(studio.subject.keypoints)
    shot = studio.test(0)
    assert shot.images.shape == (4, 3 + 4, 32, 32, 3) and len(studio.held_out) == 3
    assert shot.points.shape == (4, len(studio.subject.keypoints), 3)
    target = studio.subject.keypoints.index("target")
    uv = truth(shot)[0, :, target].numpy()
    checked = 0
    for image, (u, v) in zip(shot.images[0], uv, strict=True):  # the ball is red, and nothing else is
        red = image.astype(int)
        redness = red[..., 0] - red[..., 1:].max(-1)
        rows, columns = np.nonzero(redness > 0.6 * redness.max())
        if redness.max() > 60:
            checked += 1
            assert abs(columns.mean() + 0.5 - u) < 2 and abs(rows.mean() + 0.5 - v) < 2
    assert checked >= 4
    assert np.array_equal(studio.sequence(1).images, studio.sequence(1).images)
    assert not np.array_equal(studio.sequence(1).images, studio.sequence(2).images)
    studio.close()


def test_sac_acts_on_bootstrapped_keypoints_too(workplace: Path, reach: BootstrapRun) -> None:
    options = (
        "--env reach-multiview --encoder.kind bootstrapped --algorithm sac --total-steps 24 --sac.envs 2 "
        "--sac.learning-starts 8 --sac.batch-size 4 --sac.gradient-steps 1 --sac.hidden 8 --log.wandb off "
        "--log.evaluation-episodes 1 --threads 1 --render.workers 1"
    ).split()
    run_in(workplace, train.main, [*options, "--encoder.weights", str(reach.path), "--run", "sac"])
    weights = Run.open(str(workplace / "runs/reach-multiview/sac")).load().policy
    theirs = reach.detector().state_dict()
    found = {name: value for name, value in weights.items() if ".detector." in name}
    assert found and all(torch.equal(value, theirs[name.partition(".detector.")[2]]) for name, value in found.items())


def test_a_policy_acts_on_bootstrapped_keypoints_which_it_does_not_change(workplace: Path, reach: BootstrapRun) -> None:
    options = (
        "--env reach-multiview --encoder.kind bootstrapped --total-steps 32 --ppo.envs 2 --ppo.steps 8 --ppo.epochs 1 "
        "--ppo.batch-size 8 --log.wandb off --log.evaluation-episodes 1 --threads 1 --render.workers 1"
    ).split()
    run_in(workplace, train.main, [*options, "--encoder.weights", str(reach.path), "--run", "acting"])
    run = Run.open(str(workplace / "runs/reach-multiview/acting"))
    assert run.config.encoder.keypoints == reach.detector().keypoints and run.config.encoder.width == 8
    weights = run.load().policy
    for name, value in reach.detector().state_dict().items():
        assert torch.equal(weights[f"features_extractor.detector.{name}"], value)
    run_in(workplace, evaluate.main, ["--run", str(run.path), "--episodes", "2", "--envs", "2"])
    for more, message in (
        (["--encoder.weights", str(reach.path), "--image-size", "48"], "has image-size 64, this run asks for 48"),
        ([], "must name a bootstrapping run"),
    ):
        with pytest.raises(UserError, match=message):
            run_in(workplace, train.main, [*options, *more])
    with pytest.raises(UserError, match="must name a bootstrapping run"):
        run_in(workplace, train.main, ["--encoder.weights", str(reach.path)])


# --- numbers against formulas ---------------------------------------------------------------------------------------


def test_pck_and_its_area_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    true = torch.as_tensor(rng.uniform(0, 64, (7, 5, 2)))
    distance = torch.as_tensor(rng.exponential(5, (7, 5)))
    true[3, 2], true[5, 1:] = torch.nan, torch.nan  # one that is not in the image, and an image with but one
    distance[3, 2], distance[5, 1:], distance[0, 1] = torch.nan, torch.nan, torch.inf
    size = box_sizes(true)
    found, count = 0, 0
    for image in (0, 1, 2, 3, 4, 6):
        known = true[image][~true[image].isnan().any(-1)].numpy()
        side = np.ptp(known, axis=0).max()
        assert float(size[image]) == pytest.approx(side)
        distances = [float(d) for d in distance[image] if not d.isnan()]
        found, count = found + sum(d < 0.1 * side for d in distances), count + len(distances)
    assert size[5].isnan() and count == 29 and pck(distance, size, 0.1) == pytest.approx(found / count)
    shares = (np.arange(4000) + 0.5) / 4000 * 0.2
    assert area_under_curve(distance, size, 0.2) == pytest.approx(
        np.mean([pck(distance, size, s) for s in shares]), abs=1e-3
    )
    assert np.isnan(pck(distance, torch.full((7,), torch.nan), 0.1))


def test_a_label_is_right_within_four_pixels_of_368() -> None:
    true = torch.zeros(4, 2)
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.1], [torch.nan, 0.0], [0.5, 0.5]])
    assert label_precision(labels, true, 96) == pytest.approx(2 / 3)
    true[0] = torch.nan  # everything is hidden there: a label is wrong
    assert label_precision(labels, true, 96) == pytest.approx(1 / 3)
    assert np.isnan(label_precision(torch.full((2, 2), torch.nan), true[:2], 96))


def test_a_measured_rig_is_off_by_as_many_pixels_as_asked() -> None:
    rig = ring(0, 60)
    points = 0.1 * torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    off = (calibrated(rig, 0.5, 1).project(points)[0] - rig.project(points)[0]) * 368 / rig.height
    assert 0.4 < off.mean(1).std() < 0.65 and torch.equal(calibrated(rig, 0.0, 1).rotations, rig.rotations)
    assert torch.equal(calibrated(rig, 0.5, 1).rotations, calibrated(rig, 0.5, 1).rotations)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("env", ["hand", "reach-multiview"])
def test_presets_are_valid_and_what_is_typed_counts_more(name: str, env: str) -> None:
    config = parse(BootstrapConfig, expanded(["--preset", name, "--env", env, "--rounds", "7"]))
    assert config.rounds == 7 and config.env == env
    assert (config.frames < 40) == (name == "smoke")


# --- the effect -----------------------------------------------------------------------------------------------------


class Balls:
    """Four coloured balls in the air, filmed without a renderer; labels are from one side, by day."""

    def __init__(self, config: BootstrapConfig) -> None:
        self.config = config
        self.subject = Subject(("red", "green", "blue", "white"), (0, 1, 2, 3))
        self.cameras = tuple(CameraSpec(f"c{n}", (n, 0, 0), look_at=(0, 0, 1)) for n in range(config.cameras))
        self.held_out = self.cameras[:2]

    def shoot(self, rig: Rig, frames: int, seed: int, night: bool) -> Footage:
        rng = np.random.default_rng(seed)
        points = rng.uniform(-0.3, 0.3, (frames, 4, 3))
        if night:  # a sequence
            points = np.clip(points[0] + np.cumsum(rng.normal(0, 0.02, (frames, 4, 3)), 0), -0.3, 0.3)
        uv, depth = (x.numpy() for x in rig.project(torch.as_tensor(points)))
        side = rig.height
        images = np.full((frames, rig.num_views, side, side, 3), 128.0)
        if night:  # clutter of other colours, and a tint
            images += rng.normal(0, 15, (frames, rig.num_views, side, side, 1)) + rng.uniform(-40, 40, 3)
        v, u = np.mgrid[:side, :side] + 0.5
        colours = np.array([[230, 40, 40], [40, 200, 40], [40, 40, 230], [240, 240, 240]])
        for t, view in np.ndindex(frames, rig.num_views):
            for ball in np.argsort(-depth[t, view]):
                near = (u - uv[t, view, ball, 0]) ** 2 + (v - uv[t, view, ball, 1]) ** 2 < (
                    7.0 / depth[t, view, ball]
                ) ** 2
                images[t, view][near] = colours[ball] * (rng.uniform(0.45, 0.7) if night else 1.0)
        cameras = CameraRig(
            tuple(f"c{n}" for n in range(rig.num_views)),
            rig.intrinsics.numpy(),
            rig.world_from_camera.numpy(),
            side,
            side,
        )
        hidden = np.zeros((frames, rig.num_views), bool)
        return Footage(images.clip(0, 255).astype(np.uint8), points, hidden, cameras)

    def label(self) -> Footage:
        return self.shoot(ring(0, 1), self.config.labelled, 1, night=False)

    def sequence(self, number: int) -> Footage:
        return self.shoot(ring(1, self.config.cameras), self.config.frames, 10 + number, night=True)

    def test(self, number: int) -> Footage:
        return self.shoot(ring(2, self.config.cameras), self.config.test_frames, 99 + number, night=True)

    def close(self) -> None:
        pass


def test_a_poor_detector_becomes_a_good_one_without_further_labels(tmp_path: Path) -> None:
    """From labels by day alone it finds little by night; what the views agree on teaches it the night."""
    changed = AugmentationConfig(turn=20, colour=0.1, erase=0.0)
    training = DetectorTrainingConfig(450, 16, 0.01, changed)
    config = BootstrapConfig(
        rounds=1, cameras=10, image_size=64, sequences=24, frames=4, labelled=40, test_sequences=3, test_frames=16,
        first_steps=150, first_augmentation=changed, calibration_noise=0.2, detector=DetectorConfig(width=8),
        training=training,
        ransac=RansacConfig(threshold=3.0, least_confidence=0.5, trust=8.0),
    )  # fmt: skip
    config = dataclasses.replace(
        config,
        plausibility=dataclasses.replace(config.plausibility, least_confidence=0.3, velocity=100.0),
        selection=dataclasses.replace(config.selection, window=2, frames=48),
    )
    run = BootstrapRun.create(dataclasses.replace(config, run="balls"), tmp_path)
    studio = Balls(config)
    material = film(config, studio, StopRequest())
    first = run_round(run, 0, None, material, studio.subject, StopRequest())
    run_round(run, 1, first, material, studio.subject, StopRequest())
    before, after = run.numbers(0), run.numbers(1)
    assert after["pck"]["0.1"] > before["pck"]["0.1"] + 0.05 and after["auc"] > before["auc"] + 0.04
    assert after["precision"] > 0.5 and after["error_mm"] < 0.9 * before["error_mm"]


def test_the_first_labels_are_changed_as_they_are_told_and_the_rounds_as_theirs() -> None:
    config = BootstrapConfig(
        first_steps=7, first_augmentation=AugmentationConfig(turn=60),
        training=DetectorTrainingConfig(steps=9, augmentation=AugmentationConfig(turn=1)),
    )  # fmt: skip
    of = [config.training_of(number) for number in (0, 1, 2)]
    assert [(training.steps, training.augmentation.turn) for training in of] == [(7, 60), (9, 1), (9, 1)]


def test_frames_are_chosen_by_score_or_at_random_as_the_method_says() -> None:
    config = BootstrapConfig(cameras=6, ransac=RansacConfig(threshold=2.0))
    config = dataclasses.replace(config, selection=dataclasses.replace(config.selection, window=5, frames=3))
    rig, subject = ring(3, 6), Subject(("a", "b", "c"), (0, 1, 2))
    generator = torch.Generator().manual_seed(0)
    points = 0.1 * torch.randn(2, 20, 3, 3, dtype=torch.float64, generator=generator)[:, :1].expand(-1, 20, -1, -1)
    detections = []
    for sequence in points:
        uv = rig.project(sequence)[0].clone()
        confidence = torch.full(uv.shape[:-1], 0.5)
        confidence[7] = 0.9
        uv[3] = 64 * torch.rand(uv[3].shape, generator=generator, dtype=torch.float64)
        detections.append((uv, confidence))
    chosen, found, numbers = choose(config, detections, rig, subject, 1)
    assert chosen[:2] == [(0, 7), (1, 7)] and len(chosen) == 3 and (0, 3) not in chosen
    assert numbers["accepted"] == 38 and torch.allclose(found[0], points[0, 7])
    drawn = choose(dataclasses.replace(config, method="random"), detections, rig, subject, 1)[0]
    assert len(set(drawn)) == 3 and drawn != chosen
    assert drawn == choose(dataclasses.replace(config, method="random"), detections, rig, subject, 1)[0]


def test_self_training_labels_as_many_images_as_its_reference_of_the_views_that_it_uses(
    workplace: Path, finished: BootstrapRun, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    options = ["--method", "self-training", "--reference", "runs/hand/finished", "--use", "3"]
    assert start(workplace, "--run", "three", *options) == 0
    numbers = BootstrapRun.open(workplace / "runs/hand/three").numbers(1)
    chosen = len(finished.labels(1)[0])
    assert numbers["frames"] == chosen and numbers["labels"] == chosen * 3 * 21
    assert f"round 1: {chosen * 63} labels from {chosen} frames, " in capsys.readouterr().out


def test_only_sure_detections_are_labels_and_without_one_the_round_stops(
    workplace: Path, finished: BootstrapRun
) -> None:
    options = ["--method", "self-training", "--reference", "runs/hand/finished", "--ransac.least-confidence", "1"]
    with pytest.raises(UserError, match="reference runs/hand/finished has ransac.least-confidence 0.0, this run 1.0"):
        start(workplace, "--run", "unsure", *options)
    options = ["--method", "self-training", "--ransac.least-confidence", "1"]
    with pytest.raises(
        UserError, match="round 1 stopped: no keypoint of 8 images has a label by self-training; the det"
    ):
        start(workplace, "--run", "unsure", *options)
    assert BootstrapRun.open(workplace / "runs/hand/unsure").finished_rounds() == [0]


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_training_that_diverges_is_not_kept(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    """A loss that is NaN is told at once; weights that became so in the last step, of which no loss tells, too."""
    advance = rounds.DetectorTraining.advance

    def diverging(training: rounds.DetectorTraining) -> float:
        loss = advance(training)
        if at_the_end and training.finished:
            next(training.network.parameters()).data.fill_(torch.nan)
        return loss if at_the_end or training.step < 2 else math.nan

    monkeypatch.setattr(rounds.DetectorTraining, "advance", diverging)
    step = 3 if at_the_end else 2
    message = f"round 0: the loss is nan at step {step} of 3, .* a smaller learning rate than 0.02$"
    with pytest.raises(UserError, match=message):
        start(workplace, "--run", f"wild-{at_the_end}")
    assert BootstrapRun.open(workplace / f"runs/hand/wild-{at_the_end}").finished_rounds() == []


def test_weights_that_a_step_broke_do_not_replace_what_was_saved_before(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of that step is still a number: only the weights tell, and these are about to be saved."""
    advance = rounds.DetectorTraining.advance

    def diverging(training: rounds.DetectorTraining) -> float:
        loss = advance(training)
        if training.step == 2:
            next(training.network.parameters()).data.fill_(torch.nan)
        return loss

    monkeypatch.setattr(rounds.DetectorTraining, "advance", diverging)
    monkeypatch.setattr(gradient_steps, "SAVE_EVERY", -1.0)  # before each step
    with pytest.raises(UserError, match="round 0: the loss is nan at step 2 of 3"):
        start(workplace, "--run", "wild-between")
    saved = read_tensors(workplace / "runs/hand/wild-between/rounds/0" / rounds.TRAINING)
    assert saved["step"] == 1 and all(value.isfinite().all() for value in saved.values())
