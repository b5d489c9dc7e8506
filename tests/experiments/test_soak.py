"""The harness that damages, kills and watches: it finds what it looks for, and a little of it runs here."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.errors import UserError
from experiments.pages import TABLES, record
from experiments.runs import Run
from experiments.soak import damage as soak_damage
from experiments.soak.__main__ import SECTIONS, SoakConfig, has_failed, main
from experiments.soak.damage import Patient, Report, damage
from experiments.soak.endurance import RESOURCES, descendants, growth, sample
from experiments.soak.kills import differences
from tests.experiments.conftest import run_in


def test_damaged_runs_are_refused_in_one_line_or_loaded_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = damage(tmp_path / "runs", 300, seed=1)
    assert report.failures == [] and sum(report.counts.values()) == 300
    assert report.counts["refused"] > 150 and report.counts["as the file says"] > 10 and report.slowest < 20


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    found = Patient(tmp_path_factory.mktemp("patient"), "ppo")
    yield found
    found.close()


def planted_open(fault: str) -> object:
    true_open = Run.open

    def opened(*args, **kwargs) -> Run:
        if fault == "traceback":
            raise ValueError("a bug")
        if fault == "lines":
            raise UserError("two\nlines")
        if fault == "code":
            exec("pass")
        if fault == "outside":
            Path("/etc/hostname").open().close()
        return true_open(*args, **kwargs)

    return opened


@pytest.mark.parametrize(
    ("fault", "message"),
    [("traceback", "ValueError: a bug"), ("lines", "more than a line"), ("code", "caused compile"),
     ("outside", "caused open ('/etc/hostname'")],
)  # fmt: skip
def test_planted_faults_are_found(patient: Patient, monkeypatch: pytest.MonkeyPatch, fault: str, message: str) -> None:
    monkeypatch.setattr(Run, "open", planted_open(fault))
    report = Report()
    soak_damage._one(patient, random.Random(0), report)
    assert any(message in failure for failure in report.failures), report.failures


def test_a_load_that_ignores_checksums_is_found(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.runs import checkpoints

    monkeypatch.setattr(checkpoints, "read_checked", lambda path, sums, limit=0: path.read_bytes())
    monkeypatch.setattr(soak_damage, "mutate", lambda data, draw: data[:-4] + b"\0\0\1\1")
    weights = [name for name in patient.targets if name.name == "policy.safetensors"]
    monkeypatch.setattr(patient, "targets", weights)
    report, draw = Report(), random.Random(1)
    for _ in range(8):
        soak_damage._one(patient, draw, report)
    assert any("accepted although the checksum does not fit" in failure for failure in report.failures)


def test_differences_between_runs_are_found(tiny_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_run, tmp_path / "other"))
    assert differences(other, tiny_run) == []
    weights = other / "checkpoints" / "000000160" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    (other / "metrics.csv").write_text((other / "metrics.csv").read_text().replace("160", "161"))
    shutil.rmtree(other / "checkpoints" / "000000032")
    assert differences(other, tiny_run) == [
        "checkpoint 000000032 is there in one of them alone", "checkpoint 000000160: policy.safetensors", "metrics.csv",
    ]  # fmt: skip


def test_growth_is_told_from_noise() -> None:
    steady = [dict.fromkeys(RESOURCES, 100.0 + (i % 3) * 0.2) for i in range(60)]
    leaking = [row | {"open_files": 20 + i} for i, row in enumerate(steady)]
    assert not any(has_failed(row) for row in growth(steady, 5, 60.0, 10.0))
    found = {row["what"]: row for row in growth(leaking, 5, 60.0, 10.0)}
    assert has_failed(found["open_files"]) and not has_failed(found["threads"])
    assert found["open_files"]["first"] == 24.5 and found["open_files"]["last"] == 74.5


def test_what_a_process_and_its_children_hold_is_counted() -> None:
    code = (
        "import subprocess, sys, threading, time\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'],"
        " stdout=subprocess.PIPE)\n"
        "inner.stdout.readline()\n"
        "kept = bytearray(50_000_000)\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    outer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        outer.stdout.readline()
        found = sample(outer.pid)
        assert len(descendants(outer.pid)) == found["processes"] == 2
        assert found["megabytes"] > 50 and found["threads"] == 3 and found["open_files"] >= 7
    finally:
        for pid in reversed(descendants(outer.pid)):
            os.kill(pid, 9)
        outer.wait()


def test_the_soak_writes_what_it_found_and_fails_where_something_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = {"what": "ppo", "kills": 3, "in_a_write": 1, "resumes": 3, "lost": 0, "runs": 2, "identical": 2,
              "differences": {}}  # fmt: skip
    monkeypatch.setitem(SECTIONS, "kills", lambda config: [killed])
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("<!-- table soak kills -->\n<!-- end -->\n")
    assert run_in(tmp_path, main, ["--only", "kills", "--seed", "4"]) == 0
    (row,) = json.loads((tmp_path / "docs" / "soak.json").read_text())["runs"]
    assert row["command"] == 'make soak ARGS="--only kills --seed 4"' and row["seed"] == 4 and row["commit"]
    assert "| PPO | 3 | 1 | 3 | 0 | 2 | 2 |" in (tmp_path / "docs" / "page.md").read_text()
    monkeypatch.setitem(SECTIONS, "kills", lambda config: [killed | {"differences": {"run": ["metrics.csv"]}}])
    assert run_in(tmp_path, main, ["--only", "kills"]) == 1
    with pytest.raises(UserError, match="unknown section 'kill'"):
        main(["--only", "kill"])
    for options in ({"kills": 0}, {"minutes": 5.0, "warmup": 5.0}):
        with pytest.raises(ValueError, match="must be at least"):
            SoakConfig(**options)


def test_records_of_a_kind_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    record(path, [{"section": "a", "value": 1}, {"section": "b", "value": 2}])
    rows = record(path, [{"section": "a", "value": 3}])
    assert [(row["section"], row["value"]) for row in rows] == [("b", 2), ("a", 3)]
    assert {"kills", "damage", "endurance", "checkpoints"} <= TABLES.keys()
