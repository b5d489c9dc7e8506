"""Training end to end: what is printed, written and logged, how it stops, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.errors import UserError
from envs.tasks.reach import ReachEnv
from experiments import evaluate, train
from experiments.logs.weights_and_biases import import_wandb
from experiments.options.config import EncoderConfig, LogConfig, TrainConfig
from experiments.runs import Run
from experiments.training import checkpointing
from experiments.training.building import choose_device, use_threads
from experiments.training.estimate import _checkpoints_kept, _frames_on_disk, _times
from experiments.training.recording import StopRequest
from tests.experiments.conftest import TINY, run_in

ROOT = Path(__file__).parents[2]


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "experiments.train", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_metrics_hold_every_term_and_the_evaluations(tiny_run: Path) -> None:
    last = rows(tiny_run)[-1]
    columns = set().union(*(row.keys() for row in rows(tiny_run)))
    for name in ("auxiliary/reconstruction", "auxiliary/multiview", "auxiliary/separation", "train/value_loss",
                 "gradients/encoder_from_policy", "gradients/encoder_from_auxiliary", "keypoints/reconstruction_ratio",
                 "keypoints/view_disagreement_cm", "evaluation/success_at_end", "evaluation/return"):  # fmt: skip
        assert name in columns, name
    assert last["evaluation/success_at_end"] != ""
    steps = [int(row["time/total_timesteps"]) for row in rows(tiny_run)]  # every row says when, first and last too
    assert steps == sorted(steps) and steps[0] == 32 and steps[-1] == 160
    assert list((tiny_run / "tensorboard").glob("events.*"))


def test_training_twice_gives_the_same_weights(workplace: Path, tiny_run: Path) -> None:
    run_in(workplace, train.main, ["--run", "again", *TINY])
    first, second = (Run.open(str(tiny_run.with_name(name))).load().policy for name in ("tiny", "again"))
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("kind", ["pixels", "rad", "state"])
def test_other_encoders_behind_the_same_switch(workplace: Path, kind: str, capsys: pytest.CaptureFixture) -> None:
    options = ["--run", f"kind-{kind}", *TINY, "--encoder.kind", kind]
    if kind != "state":
        options += ["--image-size", "44"]
    run_in(workplace, train.main, options)
    shown = capsys.readouterr().out
    assert f"PPO on {kind}" in shown and "estimate: about" in shown and "final evaluation" in shown
    run = Run.open(str(workplace / "runs" / "reach-multiview" / f"kind-{kind}"))
    assert any(name.startswith("features_extractor.cnn") for name in run.load().policy) == (kind != "state")


def test_wandb_is_offline_by_default_and_off_changes_nothing_else(workplace: Path, tiny_run: Path) -> None:
    options = [option for option in TINY if option not in ("--log.wandb", "off")]
    run_in(workplace, train.main, ["--run", "wandb", *options])
    run = workplace / "runs" / "reach-multiview" / "wandb"
    assert list((run / "wandb").glob("wandb/offline-run-*/*.wandb")) or list(run.glob("wandb/offline-run-*/*.wandb"))
    by_other_programs = {"eval.json", "probe.json", "videos", "policy.onnx"}
    assert {p.name for p in run.iterdir()} - {"wandb"} == {p.name for p in tiny_run.iterdir()} - by_other_programs
    first, second = Run.open(str(run)).load().policy, Run.open(str(tiny_run)).load().policy
    assert all((first[name] == second[name]).all() for name in first)


def test_wandb_without_a_login_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = import_wandb()

    def refuse() -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "login", refuse)
    with pytest.raises(UserError) as error:
        run_in(tmp_path, train.main, [*TINY, "--log.wandb", "online"])
    assert "No API key configured. Use `wandb login`" in str(error.value) and "offline" in str(error.value)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env", "reach-multivew"], "unknown environment 'reach-multivew': did you mean 'reach-multiview'?"),
        (["--encoder.kind", "keypoint"], "unknown value for --encoder.kind"),
        (["--cameras", "frontt"], "unknown camera"),
        (["--device", "tpu9"], "unknown device 'tpu9'"),
        (["--device", "mps"], "unknown device 'mps'"),
        (["--encoder.kind", "pixels"], "at least 36 x 36 pixels, got 32 x 32"),
        (["--encoder.layers", "paper"], "32 x 32 pixels leaves fewer than 4 heat-map cells"),
        (["--seed", "10000"], "seed must lie between 0 and 9999"),
        (["--encoder.keypoints", "0"], "keypoints must be at least 1"),
        (["--env", "Ant-v5"], "cameras"),
        (
            ["--encoder.random-shift", "2"],
            "keypoint2d, pixels, drqv2: with ppo and keypoi",
        ),
        (
            ["--algorithm", "sac", "--encoder.kind", "curl", "--encoder.random-shift", "2"],
            "with sac and curl it does no",
        ),
        (
            ["--env", "metaworld-reach", "--log.evaluation-episodes", "51"],
            "51 episodes were asked for: the task has",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        run_in(tmp_path, train.main, [*TINY, *options])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_interval_of_zero_is_estimated_as_never() -> None:
    def times(**log: int) -> list[int]:
        config = TrainConfig(total_steps=1000, log=LogConfig(**log))
        return [_times(config, config.log.evaluate_every), _times(config, config.log.checkpoint_every)]

    assert times(evaluate_every=0, checkpoint_every=0) == [1, 1]  # at the end
    assert times(evaluate_every=300, checkpoint_every=1000) == [4, 2]


def test_frames_on_disk_are_those_of_the_checkpoints_that_are_kept() -> None:
    def frames(total: int, **log: int) -> int:
        config = TrainConfig(total_steps=total, log=LogConfig(checkpoint_every=5000, **log))
        return _frames_on_disk(config)

    assert frames(4000) == 4000  # no more than there are
    assert frames(100_000, checkpoints_kept=1) == 15_000  # for a moment there are two: the ring, and what came between
    assert frames(100_000, checkpoints_kept=2) == 20_000
    assert frames(100_000, checkpoints_kept=0) == 100_000
    on_state = TrainConfig(encoder=EncoderConfig(kind="state"))
    assert _frames_on_disk(on_state) == 0


def test_checkpoints_are_kept_as_the_options_say(tmp_path: Path) -> None:
    options = "--encoder.kind state --log.checkpoint-every 64 --log.checkpoints-kept 1 --log.checkpoints-kept-every 128"
    run_in(tmp_path, train.main, ["--run", "kept", *TINY, *options.split()])
    assert Run.open(str(tmp_path / "runs" / "reach-multiview" / "kept")).steps() == [0, 128, 192]


@pytest.mark.parametrize(("interval", "steps"), [(100_000, [0, 64, 128, 192]), (0, [0, 192])])
def test_where_steps_are_slow_checkpoints_come_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int, steps: list[int]
) -> None:
    monkeypatch.setattr(checkpointing, "LONGEST", 0.0)
    options = f"--encoder.kind state --log.checkpoint-every {interval} --log.checkpoints-kept 0"
    run_in(tmp_path, train.main, ["--run", "slow", *TINY, *options.split()])
    assert Run.open(str(tmp_path / "runs" / "reach-multiview" / "slow")).steps() == steps


def test_checkpoints_by_the_clock_are_estimated() -> None:
    """One before anything else, one at the end, and two intervals; in each of these, more where it takes long."""

    def kept(interval: int, seconds: float) -> int:
        log = LogConfig(checkpoint_every=interval, checkpoints_kept=0)
        return _checkpoints_kept(TrainConfig(total_steps=10_000, log=log), seconds)

    assert kept(5000, seconds=120) == 4
    assert kept(5000, seconds=7200) == 4 + 3 * 6  # the end counts as an interval
    assert kept(0, seconds=7200) == 2


def test_exit_code_2_and_one_line_for_a_typing_error(tmp_path: Path) -> None:
    done = subprocess.run(command("--envv", "x"), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean '--env'?" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_training_at_a_rollouts_start_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    long = [*TINY, "--total-steps", "1000000", "--run", "stopped", "--log.checkpoint-every", "0"]
    process = subprocess.Popen(
        command(*long), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = tmp_path / "runs" / "reach-multiview" / "stopped" / "metrics.csv"
    deadline = time.monotonic() + 120
    warmed_up = metrics.parent / "checkpoints" / "000000032"
    while not warmed_up.is_dir() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert number.name in output and "Traceback" not in output
    assert f"RESUME={metrics.parent.relative_to(tmp_path)}" in output
    run = Run.open(str(metrics.parent))
    counters = run.load().state["training"]["counters"]
    assert counters["num_timesteps"] == run.steps()[-1] >= 32 and counters["num_timesteps"] % 64 == 32  # whole rollouts
    assert counters["updates"] == (counters["num_timesteps"] - 32) // 64  # and the training on each of them


def test_a_second_signal_interrupts_at_once() -> None:
    with StopRequest().listening() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop and stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_nan_stops_training_and_names_step_term_and_checkpoint(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kp3d_rl import reconstruction

    true_loss, calls = reconstruction.multiview_loss, []

    def poisoned(points):
        calls.append(1)
        return true_loss(points) * (float("nan") if len(calls) > 7 else 1.0)

    monkeypatch.setattr(reconstruction, "multiview_loss", poisoned)
    with pytest.raises(UserError) as error:
        run_in(workplace, train.main, ["--run", "nan", *TINY, "--log.checkpoint-every", "64"])
    message = str(error.value)
    assert "training stopped at step 160" in message and "'multiview' is nan" in message
    assert message.endswith("checkpoints/000000096")
    assert Run.open(str(workplace / "runs" / "reach-multiview" / "nan")).steps() == [32, 96]


def test_threads_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    for asked, given in ((0, 3), (2, 2)):
        use_threads(asked)
        assert torch.get_num_threads() == given


def test_nan_in_an_observation_stops_training_and_names_step_entry_and_checkpoint(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(env):
        felt = true_proprio(env)
        return felt * np.nan if env._elapsed == poisoned_step else felt

    true_proprio, poisoned_step = ReachEnv.proprio, 40
    monkeypatch.setattr(ReachEnv, "proprio", poisoned)
    with pytest.raises(UserError, match="observation 'proprio'"):  # seen by the estimate: nothing is written
        run_in(workplace, train.main, ["--run", "nan-estimated", *TINY])
    assert not (workplace / "runs" / "reach-multiview" / "nan-estimated").exists()
    # Later than the estimate looks; an episode comes that far after the first rollout and its checkpoint.
    poisoned_step = 45
    options = ["--ppo.envs", "1", "--auxiliary.warmup-frames", "16", "--log.checkpoint-every", "32"]
    with pytest.raises(UserError) as error:
        run_in(workplace, train.main, ["--run", "nan-seen", *TINY, *options, "--log.evaluate-every", "0"])
    message = str(error.value)
    assert "training stopped at step 60" in message and "the observation 'proprio' of environment 0 is NaN" in message
    assert message.endswith("checkpoints/000000048") and "\n" not in message


def test_devices() -> None:
    assert choose_device("cpu") == "cpu" and choose_device("auto") in ("cpu", "cuda")
    with pytest.raises(UserError, match="CUDA devices are present"):
        choose_device("cuda:77")


def test_a_gymnasium_environment_with_a_cameras_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cameras = tmp_path / "mine.yaml"
    shutil.copy(ROOT / "envs" / "assets" / "cameras" / "reacher.yaml", cameras)
    run_in(tmp_path, train.main, [*TINY, "--env", "Reacher-v5", "--cameras", "mine.yaml", "--run", "reacher"])
    cameras.unlink()  # the run holds its own copy, and is evaluated from another folder
    run = tmp_path / "runs" / "Reacher-v5" / "reacher"
    assert json.loads((run / "rig.json").read_text())["cameras"]["height"] == 32
    assert Run.open(str(run)).steps() == [32, 160]
    run_in(ROOT, evaluate.main, ["--run", str(run), "--episodes", "1"])
    assert "'Reacher-v5' defines no success" in capsys.readouterr().out
