"""What goes to a hub: whole, loadable, with the results that were measured, and nothing that is not the run's."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import kp3d_rl
from envs.errors import UserError
from experiments import card, evaluate
from experiments.options.cli import flat, parse
from experiments.options.config import TrainConfig
from experiments.runs import Run
from tests.experiments.conftest import run_in


@pytest.fixture(scope="module")
def judged(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run that was evaluated and filmed."""
    folder = tmp_path_factory.mktemp("judged")
    run = shutil.copytree(tiny_run, folder / "runs" / "reach-multiview" / "tiny")
    (run / "videos").mkdir(exist_ok=True)
    (run / "videos" / "a.mp4").write_bytes(b"video")
    run_in(folder, evaluate.main, ["--run", str(run), "--episodes", "2", "--ablate"])
    return run


@pytest.fixture
def evaluated(judged: Path, tmp_path: Path) -> Path:
    """A copy of it to do with as one likes."""
    return shutil.copytree(judged, tmp_path / "runs" / "reach-multiview" / "tiny")


def head_of(text: str) -> dict:
    """The YAML between the first two lines of dashes, which hubs read."""
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_folder_is_a_run_that_can_be_evaluated_and_loaded(evaluated: Path, tmp_path: Path) -> None:
    run_in(tmp_path, card.main, ["--run", str(evaluated), "--license", "mit"])
    out = shutil.move(evaluated / "card", tmp_path / "downloaded")
    shutil.rmtree(evaluated.parent)
    there, before = kp3d_rl.load(out), (out / "eval.json").read_bytes()
    images = torch.zeros(1, 3, 32, 32, 3, dtype=torch.uint8)
    assert there(images).points.shape == (1, 4, 3)
    run_in(tmp_path, evaluate.main, ["--run", str(out), "--episodes", "2", "--ablate"])
    assert json.loads((out / "eval.json").read_bytes())["results"] == json.loads(before)["results"]
    assert {path.name for path in out.iterdir()} == {
        "README.md", "checkpoints", "config.yaml", "eval.json", "keypoints.png", "metrics.csv", "origin.json",
        "replay.mp4", "rig.json",
    }  # fmt: skip
    kinds = {path.suffix for path in out.rglob("*") if path.is_file()} - {""}
    assert kinds == {".md", ".yaml", ".json", ".png", ".csv", ".mp4", ".safetensors"}, "nothing that could be executed"


def test_the_card_says_what_was_measured(evaluated: Path, tmp_path: Path) -> None:
    run_in(tmp_path, card.main, ["--run", str(evaluated), "--name", "mine"])
    text = (evaluated / "card" / "README.md").read_text()
    summary = json.loads((evaluated / "eval.json").read_text())["results"]["as trained"]["summary"]
    head = head_of(text)
    assert head["library_name"] == "kp3d_rl" and "license" not in head and "keypoints" in head["tags"]
    entry = head["model-index"][0]
    success = entry["results"][0]["metrics"][0]
    k, n = summary["success_at_end"]["k"], summary["success_at_end"]["n"]
    assert entry["name"] == "mine" and success["value"] == k / n and success["verified"] is False
    assert f"| as trained | {k}/{n} |" in text and "| blacked out |" in text and "<video" in text
    assert "160 environment steps, seed 0" in text and "{{" not in text and "\n\n\n\n" not in text


def test_the_command_trains_the_same_again(opened: Run) -> None:
    said = card.command(opened.config)
    assert said.startswith("make train ENV=reach-multiview SEED=0 ARGS=")
    arguments = said.split('ARGS="')[1].rstrip('"').split()
    again = flat(parse(TrainConfig, ["--env", "reach-multiview", "--run", "tiny", *arguments]))
    assert again == flat(opened.config)
    elsewhere = dataclasses.replace(opened.config, cameras="runs/reach-multiview/tiny/cameras.yaml")
    assert "--cameras cameras.yaml " in card.command(elsewhere) + " ", "which lies beside the card"
    assert "--cameras left,front " in card.command(dataclasses.replace(opened.config, cameras="left,front")) + " "


def test_what_is_no_result_gets_no_card(
    tiny_run: Path, evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match="was not evaluated, and a card without results is none: make evaluate RUN="):
        copy = shutil.copytree(evaluated, evaluated.with_name("copy"))
        (copy / "eval.json").unlink()
        run_in(tmp_path, card.main, ["--run", str(copy)])
    mine = tmp_path / "mine"
    mine.mkdir()
    head = "---\nlibrary_name: kp3d_rl\n---\n"
    for files in ({"README.md": "# mine\n"}, {"README.md": head, "precious.txt": ""}):  # folders of somebody's
        for name, text in files.items():
            (mine / name).write_text(text)
        with pytest.raises(UserError, match="is there already and is no card: name another folder"):
            run_in(tmp_path, card.main, ["--run", str(evaluated), "--out", "mine"])
    with pytest.raises(UserError, match="is no card"):
        run_in(tmp_path, card.main, ["--run", str(evaluated), "--out", "."])
    assert len(list(mine.iterdir())) == 2
    found = json.loads((evaluated / "eval.json").read_text())
    (evaluated / "eval.json").write_text(json.dumps(found | {"checkpoint": 64}))
    with pytest.raises(UserError, match="is of the checkpoint at step 64, not of the newest: make evaluate RUN="):
        run_in(tmp_path, card.main, ["--run", str(evaluated)])
    (evaluated / "eval.json").write_text(json.dumps(found | {"reject_outliers": 4.0}))
    with pytest.raises(UserError, match="was made with outliers left out, .* as it was trained: make evaluate RUN="):
        run_in(tmp_path, card.main, ["--run", str(evaluated)])
    (evaluated / "eval.json").write_text(json.dumps(found))
    (evaluated / "videos" / "a.mp4").unlink()
    for _ in range(2):  # a second one takes the place of the first
        run_in(tmp_path, card.main, ["--run", str(evaluated)])
    assert "note: there is no video in it: make video RUN=" in capsys.readouterr().out
    assert "<video" not in (evaluated / "card" / "README.md").read_text()
