"""Pretraining end to end: what it writes, that it repeats itself, how it stops, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import kp3d_rl
from envs.errors import UserError
from envs.tasks.reach import ReachEnv
from experiments import pretrain, train
from experiments.options.config import PretrainConfig
from experiments.runs import Run
from tests.experiments.conftest import TINY_PRETRAIN, run_in

ROOT = Path(__file__).parents[2]
TASK = Path("runs") / "reach-multiview"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return Run.open(str(run), kind=PretrainConfig).load().policy


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_the_run_folder_is_that_of_a_training_run(tiny_pretrained: Path) -> None:
    run = Run.open(str(tiny_pretrained), kind=PretrainConfig)
    assert run.steps() == [4, 6] and run.load().state["gradient_steps"] == 6 and run.load().state["frames"] == 64
    assert json.loads((tiny_pretrained / "rig.json").read_text())["cameras"]["height"] == 32
    assert list((tiny_pretrained / "tensorboard").glob("events.*"))
    assert sorted(path.stem for path in (tiny_pretrained / "pictures").iterdir()) == ["000000004", "000000006"]
    assert iio.imread(tiny_pretrained / "pictures" / "000000006.png").shape[2] == 3
    names = {name.partition(".")[0] for name in run.load().policy}
    assert {"features_extractor", "decoder", "action_net"} <= names


def test_the_encoder_loads_without_simulator(tiny_pretrained: Path) -> None:
    encoder = kp3d_rl.load(tiny_pretrained)
    saved, prefix = weights(tiny_pretrained), "features_extractor.encoder."
    assert all((saved[prefix + name] == value).all() for name, value in encoder.named_parameters())
    earlier = kp3d_rl.load(tiny_pretrained, step=4)
    assert any((a != b).any() for a, b in zip(encoder.parameters(), earlier.parameters(), strict=True))


def test_metrics_are_of_frames_that_are_not_trained_on(tiny_pretrained: Path) -> None:
    found = rows(tiny_pretrained)
    assert [int(row["time/gradient_steps"]) for row in found] == [0, 3, 6]
    for name in ("keypoints/reconstruction_ratio", "keypoints/view_disagreement_cm"):
        assert all(float(row[name]) > 0 for row in found)
    for name in ("auxiliary/reconstruction", "auxiliary/multiview", "auxiliary/separation", "gradients/encoder"):
        assert found[0][name] == "" and all(float(row[name]) > 0 for row in found[1:])
    rates = [float(row["train/learning_rate"]) for row in found]
    assert rates == pytest.approx([1.2e-3, 0.55 * 1.2e-3, 0.1 * 1.2e-3])
    assert len({row["keypoints/mean_image"] for row in found}) == 1  # always the same frames


def test_held_out_episodes_are_not_those_that_are_trained_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = {}

    def spy(self, held_out, stop) -> None:
        kept["held out"], kept["trained on"] = held_out["images"], self.trainer.frames.last(64)["images"]

    monkeypatch.setattr(pretrain.Learning, "learn", spy)
    run_in(tmp_path, pretrain.main, ["--run", "spied", *TINY_PRETRAIN])
    trained = {frame.tobytes() for frame in kept["trained on"]}
    assert len(kept["held out"]) == 8 and len(trained) == 64
    assert not trained & {frame.tobytes() for frame in kept["held out"]}


def test_the_same_seed_gives_the_same_weights_and_another_others(workplace: Path, tiny_pretrained: Path) -> None:
    for name, options in (("again", []), ("other", ["--seed", "1"]), ("picture", ["--picture-every", "0"])):
        run_in(workplace, pretrain.main, ["--run", f"pretrain-{name}", *TINY_PRETRAIN, *options])
    first = weights(tiny_pretrained)
    again, other, picture = (
        weights(workplace / TASK / f"pretrain-{name}") for name in ("again", "other", "picture")
    )  # fmt: skip
    assert all((first[name] == again[name]).all() and (first[name] == picture[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)
    assert Run.open(str(workplace / TASK / "pretrain-picture"), kind=PretrainConfig).steps() == [6]


def test_scripted_and_mixed_episodes(workplace: Path, tiny_pretrained: Path, capsys: pytest.CaptureFixture) -> None:
    seen = [rows(tiny_pretrained)[0]["keypoints/mean_image"]]
    for policy in ("scripted", "mixed"):
        run_in(workplace, pretrain.main, ["--run", f"pretrain-{policy}", *TINY_PRETRAIN, "--policy", policy])
        assert f"of the {policy} policy" in capsys.readouterr().out
        seen.append(rows(workplace / TASK / f"pretrain-{policy}")[0]["keypoints/mean_image"])
    assert len(set(seen)) == 3  # other frames


def test_sizes_and_rates_do_something(workplace: Path, tiny_pretrained: Path) -> None:
    first = weights(tiny_pretrained)
    for number, option in enumerate((["--batch-size", "5"], ["--frames", "56"], ["--learning-rate", "1e-3"])):
        run_in(workplace, pretrain.main, ["--run", f"pretrain-size{number}", *TINY_PRETRAIN, *option])
        changed = weights(workplace / TASK / f"pretrain-size{number}")
        assert any((first[name] != changed[name]).any() for name in first), option


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "greedy"], "unknown value for --policy 'greedy'"),
        (["--frames", "0"], "frames must be above 0"),
        (["--log-every", "0"], "log_every must be above 0"),
        (["--encoder.kind", "pixels"], "only keypoints can be pretrained"),
        (["--env", "Ant-v5"], "cameras"),
        (["--env", "Reacher-v5", "--cameras", str(ROOT / "envs/assets/cameras/reacher.yaml"), "--policy", "mixed"],
         "ReacherEnv has no scripted policy"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        run_in(tmp_path, pretrain.main, [*TINY_PRETRAIN, *options])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_nan_stops_it_and_names_step_term_and_checkpoint(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kp3d_rl import reconstruction

    true_loss, calls = reconstruction.multiview_loss, []

    def poisoned(points):
        calls.append(1)
        return true_loss(points) * (float("nan") if len(calls) > 7 else 1.0)  # two are the estimate's

    monkeypatch.setattr(reconstruction, "multiview_loss", poisoned)
    with pytest.raises(UserError) as error:
        run_in(workplace, pretrain.main, ["--run", "pretrain-nan", *TINY_PRETRAIN])
    message = str(error.value)
    assert "pretraining stopped at step 5" in message and "'multiview' is nan" in message
    assert message.endswith("checkpoints/000000004")


def test_nan_in_an_observation_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_proprio = ReachEnv.proprio
    monkeypatch.setattr(ReachEnv, "proprio", lambda env: true_proprio(env) * (np.nan if env._elapsed == 15 else 1.0))
    with pytest.raises(UserError, match="stopped at step 0: the observation 'proprio' of environment 0.* is NaN"):
        run_in(tmp_path, pretrain.main, ["--run", "nan", *TINY_PRETRAIN, "--frames", "256"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_write_a_checkpoint_first(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "experiments.pretrain", *TINY_PRETRAIN, "--steps", "1000000", "--run", "stopped"]
    process = subprocess.Popen(
        [*command, "--picture-every", "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics, deadline = tmp_path / TASK / "stopped" / "metrics.csv", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert number.name in output and "Traceback" not in output
    run = Run.open(str(metrics.parent), kind=PretrainConfig)
    assert run.load().state["gradient_steps"] == run.steps()[-1] < 1_000_000
    assert (metrics.parent / "pictures" / f"{run.steps()[-1]:09d}.png").is_file()


def test_any_gymnasium_environment_and_cameras_that_move(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """And what it says to type next trains on the keypoints in that scene, without what no policy was trained with."""
    cameras = str(Path(__file__).with_name("wrist.yaml"))
    options = ["--env", "Reacher-v5", "--cameras", cameras, "--run", "moving", "--encoder.loss.equivariance", "5"]
    run_in(tmp_path, pretrain.main, [*TINY_PRETRAIN, *options])
    run = tmp_path / "runs" / "Reacher-v5" / "moving"
    assert float(rows(run)[-1]["auxiliary/equivariance"]) > 0
    assert kp3d_rl.load(run).num_views == 2 and (run / "cameras.yaml").is_file()
    assert float(rows(run)[-1]["keypoints/view_disagreement_cm"]) > 0
    typed = capsys.readouterr().out.rstrip().split("make train ENV=Reacher-v5 ARGS=")[1]
    assert "equivariance" not in typed
    again = ["--env", "Reacher-v5", *shlex.split(typed.strip('"'))]
    short = [
        "--total-steps",
        "32",
        "--ppo.envs",
        "2",
        "--ppo.steps",
        "16",
        "--ppo.batch-size",
        "16",
        "--log.wandb",
        "off",
    ]
    run_in(tmp_path, train.main, [*again, *short, "--log.evaluation-episodes", "1", "--run", "after"])
    assert Run.open(str(run.with_name("after"))).steps()[-1] == 32
    with pytest.raises(UserError, match="pretrained run .* has .* in reach-multiview; it is of Reacher-v5"):
        own_cameras = [word for word in again[2:] if word != "--cameras" and not word.endswith(".yaml")]
        run_in(tmp_path, train.main, [*own_cameras, *short, "--env", "reach-multiview"])
