"""``--reject-outliers``: evaluate, video and export act on keypoints that no contradicting view has a part in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import onnxruntime
import pytest
import torch

from agents.extractors import KeypointExtractor
from agents.scene import Scene
from envs.errors import UserError
from experiments import evaluate, export, video
from experiments.judging.evaluation import EVALUATION_SEED, stack
from experiments.judging.outliers import rejecting_outliers
from experiments.runs import Run
from experiments.training.algorithms import load_policy
from experiments.training.building import make_env
from kp3d_rl.keypoint3d import Keypoint3DConfig
from tests.experiments.conftest import run_in

TIGHT = ["--reject-outliers", "2"]
"""Centimetres: keypoints of a run of seconds miss each other by far more."""


def test_evaluation_and_video_show_the_policy_without_contradicting_views(workplace: Path, tiny_run: Path) -> None:
    def returns(*options: str) -> list[float]:
        run_in(workplace, evaluate.main, ["--run", str(tiny_run), "--episodes", "2", *options])
        written = json.loads((tiny_run / "eval.json").read_text())
        assert written["reject_outliers"] == (float(options[-1]) if options else 0)
        return [episode["episode_return"] for episode in written["results"]["as trained"]["episodes"]]

    plain = returns()
    assert returns(*TIGHT) != plain
    assert returns("--reject-outliers", "500") == plain == returns(), "rays never miss by metres"

    def film(*options: str) -> np.ndarray:
        run_in(
            workplace, video.main, ["--run", str(tiny_run), "--episodes", "1", "--steps", "2", "--size", "64", *options]
        )
        (path,) = (tiny_run / "videos").glob("*-seed0.mp4")
        return iio.imread(path)

    assert not np.array_equal(film(), film(*TIGHT))


def test_the_exported_graph_leaves_them_out_too(workplace: Path, tiny_run: Path) -> None:
    path = workplace / "strict.onnx"
    run_in(workplace, export.main, ["--run", str(tiny_run), "--output", str(path), *TIGHT])
    run = Run.open(str(tiny_run))
    env = make_env(run.config)
    policy = load_policy(run, env, run.load(), "cpu")
    observation = stack([env.reset(seed=EVALUATION_SEED + number)[0] for number in range(6)])
    seen = {name: torch.as_tensor(value) for name, value in observation.items()}
    exported = onnxruntime.InferenceSession(str(path)).run(["keypoints"], observation)[0]
    with torch.no_grad(), export.in_float32(policy):
        plain = policy.features_extractor.read(seen)[1].points
        with rejecting_outliers(policy, 2.0):
            strict = policy.features_extractor.read(seen)[1].points
    np.testing.assert_allclose(exported, strict, atol=1e-5)
    assert (plain - strict).abs().max() > 1e-2
    env.close()


def test_what_has_nothing_to_leave_out_is_refused(tiny_run: Path, state_run: Path) -> None:
    with pytest.raises(UserError, match="--reject-outliers is for policies on 3D keypoints"):
        evaluate.main(["--run", str(state_run), "--episodes", "1", *TIGHT])
    for wrong in ("-1", "nan", "inf"):
        with pytest.raises(UserError, match="reject_outliers must be a number of centimetres from 0 on"):
            evaluate.main(["--run", str(tiny_run), f"--reject-outliers={wrong}"])
    env = make_env(dataclasses.replace(Run.open(str(tiny_run)).config, cameras="left,right"))
    extractor = KeypointExtractor(env.observation_space, Scene.of(env), Keypoint3DConfig(keypoints=4, width=4))
    policy = SimpleNamespace(features_extractor=extractor)
    with pytest.raises(UserError, match="at least 3 cameras to tell which one errs: this run has 2"):
        with rejecting_outliers(policy, 4.0):
            pass
    env.close()
