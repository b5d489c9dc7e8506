"""The bootstrapping study: what it runs, what it leaves out, its tables; and what more cameras bring, by counting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor

from envs.cameras import CameraRig
from envs.errors import UserError
from envs.scenes.footage import Footage
from experiments import bootstrap, evaluate, pages, study
from experiments.bootstrapping.config import BootstrapConfig
from experiments.bootstrapping.filming import truth
from experiments.bootstrapping.presets import expanded
from experiments.bootstrapping.study import MEMBERS, Job
from experiments.bootstrapping.study_report import gain_by_cameras, mean_by_round
from experiments.bootstrapping.views import COUNTS, found_by_views
from experiments.options.cli import parse
from experiments.studies.plain import Member
from kp3d_rl.triangulation import RansacConfig
from tests.experiments.conftest import run_in, run_in_this_process
from tests.experiments.test_bootstrap import TINY
from tests.kp3d_rl.rigs import ring

OPTIONS = " ".join(TINY[2:])


def test_every_member_is_a_valid_command_line_and_differs_in_what_its_name_says() -> None:
    for member in MEMBERS:
        job = Job(member, 1)
        config = parse(BootstrapConfig, expanded(job.options))
        assert config.seed == 1 and config.threads == 1 and config.run == job.folder.name
        assert (config.reference is None) == (member == MEMBERS[0])
        if member.name.endswith("cameras"):
            assert member.name == f"{config.watching} cameras" and config.method == "bootstrapping"
    assert [job.watching for job in (parse(BootstrapConfig, Job(m, 0).options) for m in MEMBERS)][0] == COUNTS[-1]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Two seeds of tiny members, whose programs run in this process; the list is what was run."""
    members = (Member("bootstrapping", OPTIONS, seeds=2), Member("oracle", f"{OPTIONS} --method oracle", seeds=1))
    for module in ("study", "study_report"):
        monkeypatch.setattr(f"experiments.bootstrapping.{module}.MEMBERS", members)
    programs = {"experiments.bootstrap": bootstrap.main, "experiments.evaluate": evaluate_briefly}
    return run_in_this_process(monkeypatch, programs)


def evaluate_briefly(arguments: list[str]) -> None:
    evaluate.main([*arguments, "--sequences", "1"])


def test_a_study_runs_what_is_missing_and_writes_tables_and_a_picture(tiny: list[list[str]], tmp_path: Path) -> None:
    arguments = ["--name", "bootstrapping", "--jobs", "1"]
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text("<!-- table bootstrapping bootstrap-rounds -->\n<!-- end -->\n")
    run_in(tmp_path, study.main, [*arguments, "--seeds", "1"])
    assert [command[0].rpartition(".")[2] for command in tiny] == ["bootstrap", "bootstrap", "evaluate"]
    assert "--reference" not in tiny[0] and "--reference" in tiny[1]
    run_in(tmp_path, study.main, arguments)
    assert len(tiny) == 5, "only the second seed's run was missing"
    (tmp_path / "runs/hand/study-bootstrapping-1/rounds/1/round.json").unlink()
    run_in(tmp_path, study.main, arguments)
    assert "--resume" in tiny[5] and len(tiny) == 6, "what was stopped goes on; judged it is already"
    run_in(tmp_path, evaluate.main, ["--run", "runs/hand/study-bootstrapping-1", "--sequences", "1"])
    run_in(tmp_path, study.main, arguments)
    assert len(tiny) == 7, "by other sequences than the study's it is not judged"
    path = tmp_path / "runs/hand/study-bootstrapping-1/eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"turn": 5.0}))
    run_in(tmp_path, study.main, arguments)
    assert len(tiny) == 8, "nor by images that are seen turned, too"
    weights = tmp_path / "runs/hand/study-oracle-0/rounds/1/detector.safetensors"
    weights.write_bytes((tmp_path / "runs/hand/study-oracle-0/rounds/0/detector.safetensors").read_bytes())
    run_in(tmp_path, study.main, arguments)
    assert len(tiny) == 9 and "study-bootstrapping-0" in tiny[8][2], "nor is a detector that is another by now"
    rows = json.loads((tmp_path / "docs/bootstrapping.json").read_text())["runs"]
    rounds = [(row["condition"], row["seed"], row["round"]) for row in rows if row["section"] == "rounds"]
    assert sorted(rounds) == [
        (c, s, r) for c, s in (("bootstrapping", 0), ("bootstrapping", 1), ("oracle", 0)) for r in (0, 1)
    ]
    assert [row["cameras"] for row in rows if row["section"] == "views"] == [4, 4]
    assert all({"commit", "machine", "trained", "command"} <= row.keys() for row in rows)
    assert page.read_text() == pages.filled(page.read_text(), tmp_path / "docs")
    assert "| bootstrapping | 2 | 1 |" in page.read_text()
    assert iio.imread(tmp_path / "docs/bootstrapping.png").std() > 5


def test_what_cannot_be_studied_is_said_in_one_line(tiny: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of study 'bootstrapping' is finished"):
        run_in(tmp_path, study.main, ["--name", "bootstrapping", "--report"])
    with pytest.raises(UserError, match="unknown condition of study 'bootstrapping' 'oracel'.*oracle"):
        run_in(tmp_path, study.main, ["--name", "bootstrapping", "--only", "oracel"])
    with pytest.raises(UserError, match="unknown study 'bootstraping'.*bootstrapping"):
        run_in(tmp_path, study.main, ["--name", "bootstraping"])
    (tmp_path / "runs/hand/study-bootstrapping-0/rounds").mkdir(parents=True)
    (tmp_path / "runs/hand/study-bootstrapping-0/config.yaml").write_text("env: hand\n")
    with pytest.raises(UserError, match="config.yaml"):
        run_in(tmp_path, study.main, ["--name", "bootstrapping", "--seeds", "1", "--jobs", "1"])
    assert not tiny


def test_gains_are_differences_of_the_first_two_rounds_averaged_over_common_seeds() -> None:
    def row(condition: str, cameras: int, seed: int, number: int, pck: float) -> dict:
        method = "oracle" if condition == "oracle" else "bootstrapping"
        about = {"section": "rounds", "condition": condition, "method": method, "cameras": cameras}
        return about | {"seed": seed, "round": number, "pck": {"0.1": pck}}

    rows = [row("bootstrapping", 24, s, n, p) for s, n, p in ((0, 0, 0.4), (0, 1, 0.6), (1, 0, 0.5), (1, 1, 0.6))]
    rows += [row("4 cameras", 4, 0, 0, 0.4), row("4 cameras", 4, 0, 1, 0.38), row("oracle", 24, 0, 1, 1.0)]
    assert gain_by_cameras(rows) == [(4, pytest.approx(-2)), (24, pytest.approx(20))], "of the common seed"
    rows += [row("4 cameras", 4, 1, 0, 0.4), row("4 cameras", 4, 1, 1, 0.4)]
    assert gain_by_cameras(rows) == [(4, pytest.approx(-1)), (24, pytest.approx(15))]


def test_the_mean_over_seeds_is_of_those_that_came_to_a_round() -> None:
    assert mean_by_round([[(0, 1.0), (1, 2.0)], [(0, 3.0)]]) == [(0, 2.0), (1, 2.0)]


def test_a_member_that_finds_nothing_to_learn_from_is_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    strict = f"{OPTIONS} --plausibility.least-confidence 1 --plausibility.least-points 1"
    members = (Member("bootstrapping", strict, seeds=1),)
    for module in ("study", "study_report"):
        monkeypatch.setattr(f"experiments.bootstrapping.{module}.MEMBERS", members)
    programs = {"experiments.bootstrap": bootstrap.main, "experiments.evaluate": evaluate_briefly}
    ran = run_in_this_process(monkeypatch, programs)
    (tmp_path / "docs").mkdir()
    run_in(tmp_path, study.main, ["--name", "bootstrapping", "--jobs", "1"])
    assert len(ran) == 2, "it is judged like any other"
    found = json.loads((tmp_path / "docs/bootstrapping.json").read_text())["runs"]
    rows = [row for row in found if row["section"] == "rounds"]
    assert [(row["round"], row["gave_up"]) for row in rows] == [(0, True)]
    assert gain_by_cameras(rows) == [(rows[0]["cameras"], 0.0)]


class Guesser:
    """Finds a point with a probability of its own in each view, and something far off otherwise."""

    def __init__(self, footage: Footage, success: float, seed: int, confidence: float = 1.0) -> None:
        self.confidence, generator = confidence, torch.Generator().manual_seed(seed)
        self.uv = truth(footage)[::4].double()
        far = 60 * torch.randn(self.uv.shape, generator=generator)
        wrong = torch.rand(self.uv.shape[:-1], generator=generator) >= success
        self.uv = self.uv + torch.where(wrong.unsqueeze(-1), far + 20 * far.sign(), 0.0)

    def detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert len(images) == self.uv[..., 0, 0].numel()
        uv = self.uv.flatten(0, 1)
        return uv, torch.full(uv.shape[:-1], self.confidence)


def test_independent_views_find_as_many_points_as_the_formula_says() -> None:
    cameras = ring(0, 16)
    arrays = (cameras.intrinsics.numpy(), cameras.world_from_camera.numpy())
    rig = CameraRig(tuple(map(str, range(16))), *arrays, cameras.height, cameras.width)
    points = np.random.default_rng(0).uniform(-0.1, 0.1, (160, 5, 3))
    footage = Footage(np.zeros((160, 16, 2, 2, 3), np.uint8), points, np.zeros((160, 16), bool), rig)
    ransac, groups = RansacConfig(threshold=3.0), range(5)  # each point by itself
    rows = found_by_views(Guesser(footage, 0.4, 1), [footage], 0, ransac, groups, 0.0, counts=(2, 4, 8, 16, 24))
    of_four = found_by_views(Guesser(footage, 0.4, 1), [footage], 0, ransac, groups, 0.0, counts=(8,), needed=4)[0]
    for name in ("formula", "enough", "found"):
        assert of_four[name] == pytest.approx(0.406, abs=0.09), name
    unsure = dataclasses.replace(ransac, least_confidence=1.0)
    assert found_by_views(Guesser(footage, 0.4, 1, 0.9), [footage], 0, unsure, groups, 0.0)[0]["success"] == 0
    assert [row["cameras"] for row in rows] == [4, 8, 16], "two cannot agree by three, and there are no 24"
    for row, formula in zip(rows, (0.179, 0.685, 0.982), strict=True):  # 1 - sum over k < 3 of C(V, k) .4^k .6^(V - k)
        assert row["success"] == pytest.approx(0.4, abs=0.04)
        for name in ("formula", "enough", "found"):
            assert row[name] == pytest.approx(formula, abs=0.09), name
