"""The KeypointNet study: what it runs, what it leaves out, its table and its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as iio
import pytest

from envs.errors import UserError
from envs.scenes.objects import CATEGORIES
from experiments import evaluate, pages, study
from experiments.keypointnet import __main__ as keypointnet
from experiments.keypointnet.config import KeypointNetRunConfig
from experiments.keypointnet.presets import PRESETS
from experiments.keypointnet.study import MEMBERS, Job
from experiments.keypointnet.study_report import PAPER, results_table
from experiments.options.cli import parse
from experiments.options.presets import expanded_by
from experiments.studies.plain import Member
from tests.experiments.conftest import run_in, run_in_this_process
from tests.experiments.test_keypointnet import TINY

OPTIONS = " ".join(TINY[2:]).replace("--network.keypoints 4", "")


def test_every_member_is_a_valid_command_line_and_differs_in_what_its_name_says() -> None:
    names = {member.name for member in MEMBERS}
    assert set(CATEGORIES) <= names and set(PAPER) <= names
    for member in MEMBERS:
        job = Job(member, 2)
        config = parse(KeypointNetRunConfig, expanded_by(PRESETS, job.options))
        assert config.category == job.home and config.seed == 2 and config.threads == 1
        assert config.training.supervised == ("supervised" in member.name)
        assert (config.training.loss.pose == 0) == ("without pose" in member.name)
        assert (config.training.loss.consistency == 0) == ("without consistency" in member.name)


def test_a_study_runs_what_is_missing_and_writes_table_and_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    members = (
        Member("chair", f"--category chair {OPTIONS}", seeds=2),
        Member("plane supervised", f"--category plane --training.supervised {OPTIONS}", seeds=1),
    )
    for module in ("study", "study_report"):
        monkeypatch.setattr(f"experiments.keypointnet.{module}.MEMBERS", members)
    ran = run_in_this_process(
        monkeypatch, {"experiments.keypointnet": keypointnet.main, "experiments.evaluate": evaluate.main}
    )
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text("<!-- table keypointnet keypointnet -->\n<!-- end -->\n")
    arguments = ["--name", "keypointnet", "--jobs", "1"]
    run_in(tmp_path, study.main, [*arguments, "--seeds", "1"])
    assert [command[0].rpartition(".")[2] for command in ran] == ["keypointnet"] * 2 + ["evaluate"] * 2
    run_in(tmp_path, study.main, arguments)
    assert len(ran) == 6, "only the second seed was missing"
    run_in(tmp_path, study.main, [*arguments, "--report"])
    assert len(ran) == 6
    rows = json.loads((tmp_path / "docs/keypointnet.json").read_text())["runs"]
    assert sorted((row["condition"], row["seed"]) for row in rows) == [
        ("chair", 0), ("chair", 1), ("plane supervised", 0),
    ]  # fmt: skip
    assert all(row["steps"] == 5 and len(row["curve"]) == 3 and row["finished"] for row in rows)
    assert page.read_text() == pages.filled(page.read_text(), tmp_path / "docs")
    assert "| chair | 2 | 5 |" in page.read_text() and "18.4, 7.2, 0.233 |" in page.read_text()
    assert results_table(rows)[2].count("|") == results_table(rows)[0].count("|")
    for name in ("keypointnet", "keypointnet-chair"):
        assert iio.imread(tmp_path / f"docs/{name}.png").std() > 5
    assert not (tmp_path / "docs/keypointnet-plane.png").exists(), "that one was taught"


def test_what_cannot_be_studied_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of study 'keypointnet' is finished"):
        run_in(tmp_path, study.main, ["--name", "keypointnet", "--report"])
    with pytest.raises(UserError, match="unknown condition of study 'keypointnet' 'ship'.*chair"):
        run_in(tmp_path, study.main, ["--name", "keypointnet", "--only", "ship"])
