"""The benchmark compares like with like: both formulations compute the same numbers, and times add up."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.buffers import to_tensors
from envs.errors import UserError
from envs.renderers import gl_info
from experiments.bench import __main__ as bench
from experiments.bench import learner, profile, report, tables, views
from experiments.bench.original import ORIGINAL, use_original_formulation
from experiments.bench.scenes import BenchScene, reach
from experiments.bench.stages import Stages
from experiments.bench.timing import race


@pytest.fixture
def require_gl() -> None:
    try:
        gl_info()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("change", [{}, {"depth": "triangulated", "depth_trust": 0.1}])
def test_both_formulations_compute_the_same_losses_and_gradients(change: dict) -> None:
    config = dataclasses.replace(ORIGINAL, precision="float32", keypoints=6, width=4, decoder_width=8, **change)
    ours, plain = (learner.trainer(config, 66, "cpu", frames=16) for _ in range(2))
    plain.policy.load_state_dict(ours.policy.state_dict())
    use_original_formulation(plain.extractor.encoder, plain.policy.decoder)
    batch, terms, gradients = to_tensors(ours.frames.last(8), "cpu"), [], []
    for made in (ours, plain):
        torch.manual_seed(0)
        made.policy.set_training_mode(True)
        terms.append(made.extractor.terms(batch))
        sum(terms[-1].values()).backward()
        gradients.append({name: p.grad for name, p in made.policy.named_parameters() if p.grad is not None})
    for name, value in terms[0].items():
        torch.testing.assert_close(terms[1][name], value, rtol=1e-4, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    assert set(gradients[0]) == set(gradients[1]) and len(gradients[0]) >= 40 and largest > 0.01
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_the_originals_sizes_are_the_published_ones() -> None:
    encoder = learner.trainer(ORIGINAL, 108, "cpu", frames=2).extractor.encoder
    assert (encoder.rows.cells, encoder.columns.cells) == (12, 12) and encoder.config.keypoints == 32
    widths = [layer.weight.shape[0] for layer in encoder.views[0].trunk if hasattr(layer, "weight")]
    assert widths == [16, 32, 64] and len(encoder.views) == 3


def test_every_renderer_and_the_naive_stack_show_the_same_views(require_gl: None) -> None:
    """In a process of its own: MuJoCo's renderer asks for its platform when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.compare_renderers"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"MUJOCO_GL": "egl"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["deviation"] > 20 and len(found["differences"]) >= 5, "the reference shows something"
    for name, difference in found["differences"].items():
        assert difference < (12 if "warp" in name else 4), name
    assert found["naive_proprio"] == 0.0 and found["naive_images"] < 4


def test_renderers_that_show_something_else_are_not_timed() -> None:
    black, grey = [np.zeros((8, 8, 3), np.uint8)], [np.full((8, 8, 3), 40, np.uint8)]
    views.require_same_views({"a": black, "b": [image + 5 for image in black]})
    with pytest.raises(RuntimeError, match="^b does not show what Gymnasium's.*40.0 of 255"):
        views.require_same_views({"a": black, "b": grey})


def test_things_are_timed_in_turns_and_by_their_median() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.02 if len(calls) != 5 else 0.3)  # one hiccup

    times = race({"slow": slow, "quick": lambda: calls.append("quick")}, seconds=0.05)
    assert calls[:6] == ["slow", "quick"] * 3 and 0.019 < times["slow"] < 0.05 and times["quick"] < 0.01


def test_stages_count_each_moment_once_and_stop_when_told() -> None:
    class Work:
        def outer(self) -> str:
            time.sleep(0.02)
            self.inner()
            return "done"

        def inner(self) -> None:
            time.sleep(0.06)

    stages, work = Stages(), Work()
    stages.watch("outside", work, "outer")
    stages.watch("inside", Work, "inner")
    with stages.counted("the rest"):
        assert work.outer() == "done"
        time.sleep(0.02)
    assert stages.seconds["inside"] == pytest.approx(0.06, abs=0.02)
    assert stages.seconds["outside"] == pytest.approx(0.02, abs=0.015)
    assert stages.seconds["the rest"] == pytest.approx(0.02, abs=0.015)
    assert sum(stages.shares().values()) == pytest.approx(1.0) and list(stages.shares())[0] == "inside"
    before = dict(stages.seconds)
    stages.stop()
    work.outer()
    assert stages.seconds == before and "outer" not in vars(work)


def test_a_profile_names_the_stages(capsys: pytest.CaptureFixture) -> None:
    small = "--ppo.envs 2 --ppo.steps 8 --ppo.batch-size 8 --image-size 32 --rollouts 1 --threads 1 --render.workers 1"
    profile.main(small.split())
    said = capsys.readouterr().out
    for stage in ("environments: step, render, transport", "backward", "encoder, forward", "decoder and losses"):
        assert stage in said
    assert sum(float(line.split("%")[0]) for line in said.splitlines()[1:]) == pytest.approx(100, abs=1)
    with pytest.raises(UserError, match="only PPO on keypoints"):
        profile.main(["--algorithm", "sac"])


def test_a_section_is_measured_written_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    page = tmp_path / "speed.md"
    page.write_text("<!-- table bench memory -->\n<!-- end -->\n")
    docs = ["--docs", str(tmp_path)]
    old = [{"section": "memory", "device": "cpu", "what": "old"}, {"section": "memory", "device": "cuda", "what": "x"}]
    (tmp_path / "bench.json").write_text(json.dumps({"runs": [row | {"megabytes": 1.0} for row in old]}))
    bench.main(["--only", "memory", "--device", "cpu", *docs])
    rows = json.loads((tmp_path / "bench.json").read_text())["runs"]
    assert [row["what"].split()[0] for row in rows] == ["x", "8", "replay"] and rows[-1]["machine"]
    assert 100 < rows[1]["megabytes"] < 3000 and 3600 < rows[2]["megabytes"] < 4000
    assert f"| {rows[1]['what']} | {rows[1]['megabytes']:.0f} |" in page.read_text()
    assert (tmp_path / "bench.png").is_file()


def test_what_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(UserError, match="unknown section of the benchmark 'view'.*did you mean 'views'"):
        bench.main(["--only", "view"])
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(UserError, match="type make bench, or set MUJOCO_GL=egl"):
        bench.main([])


def test_tables_and_picture_of_all_sections(tmp_path: Path) -> None:
    common = {"device": "cpu", "milliseconds": 10.0, "views_per_second": 300.0, "steps_per_second": 100.0}
    rows = [
        {"section": "views", "scene": "reach, 3 views", "what": "ours, gl", "times_defaults": 4.25, **common},
        {"section": "workers", "what": "2 workers", "times_first": 1.9, **common},
        {"section": "learner", "what": "ours", "times_first": 3.1, **common},
        {"section": "training", "what": "ours", "times_first": 11.0, "shares": {"backward": 0.4}, **common},
        {"section": "growth", "varied": "views", "value": 6, **common},
        {"section": "memory", "what": "8 workers", "megabytes": 900.0, "device": "cpu"},
    ]
    for kind, table in tables.TABLES.items():
        lines = table(rows)
        assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1, kind
        assert table([]) == []
    report.draw(rows, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 5000
    assert isinstance(reach(), BenchScene)
