"""The benchmark compares like with like: both formulations compute the same numbers, and times add up."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.buffers import to_tensors
from agents.callbacks import AuxiliaryConfig
from agents.replay import FrameReplayBuffer
from agents.worker_env import WorkerVecEnv
from envs.errors import UserError
from envs.renderers import gl_info
from experiments.bench import __main__ as bench
from experiments.bench import checkpoints, learner, looks, memory, nodes, profile, report, tables, training, views
from experiments.bench.original import ORIGINAL, use_original_formulation
from experiments.bench.scenes import BenchScene, reach
from experiments.bench.stages import Stages
from experiments.bench.timing import one_core, race
from experiments.options.config import EncoderConfig, PPOConfig, RenderConfig, TrainConfig
from experiments.training.building import cores
from tests.counting import CountingEnv
from tests.tasks import ARM


def in_its_own_process(*arguments: str) -> Any:
    """What a program prints last, as JSON: MuJoCo's renderer asks for its platform when it is imported."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"MUJOCO_GL": "egl"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def require_gl() -> None:
    try:
        gl_info()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("change", [{}, {"depth": "triangulated", "depth_trust": 0.1}, {"outside": 0.0}])
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
    found = in_its_own_process("-m", "tests.experiments.compare_renderers")
    assert found["deviation"] > 20 and len(found["differences"]) >= 5, "the reference shows something"
    for name, difference in found["differences"].items():
        assert difference < (12 if "warp" in name else 4), name
    assert found["naive_proprio"] == 0.0 and found["naive_images"] < 4


def test_renderers_that_show_something_else_are_not_timed() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 250, (2, 32, 32, 3), np.uint8)
    views.require_same_views({"a": [one, other], "b": [one + 5, other]})
    with pytest.raises(
        RuntimeError, match=r"^b does not show what Gymnasium's.* view 1 correlates by -?0\.0\d, not 0.8"
    ):
        views.require_same_views({"a": [one, other], "b": [one, one]})
    with np.errstate(invalid="ignore"), pytest.raises(RuntimeError, match="view 0 correlates by nan"):
        views.require_same_views({"a": [one], "b": [np.zeros_like(one)]})


def test_renderers_are_timed_on_one_core_and_the_ray_tracer_on_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(views.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(views, "ours", lambda scene, *arguments: asked.append(arguments))
    scene = reach(32)
    assert sum("warp on" in name for name in views._ways(scene)) == 1
    assert [name for name in views._ways(scene, "cuda") if "warp" in name] == [
        f"ours, warp on {device} (ray tracer, no OpenGL)" for device in ("cpu", "cuda")
    ]
    assert asked[-2:] == [("warp", "light", "cpu"), ("warp", "light", "cuda")]

    found: list[int] = []
    draw = contextlib.nullcontext(lambda: found.append(cores()) or [np.arange(12).reshape(2, 2, 3)])
    monkeypatch.setattr(views, "_ways", lambda scene, device: {views.DEFAULTS: draw})
    before = cores()
    (row,) = views.renderers(scene, seconds=0.01)
    assert set(found) == ({1} if hasattr(os, "sched_setaffinity") else {before}) and cores() == before
    assert row["times_defaults"] == 1.0
    with pytest.raises(ZeroDivisionError), one_core():
        raise ZeroDivisionError
    assert cores() == before


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


def test_a_gpu_is_waited_for_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []

    def synchronize(device: str) -> None:
        waited.append(device)
        time.sleep(0.02)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    stages = Stages("cuda:0")
    with stages.counted("a"):
        pass
    assert waited == ["cuda:0"] * 2 and 0.02 <= stages.seconds["a"] < 0.04
    with Stages().counted("a"):
        pass
    assert len(waited) == 2


def tiny() -> TrainConfig:
    """A run of seconds; the 2 workers are real ones."""
    return TrainConfig(
        image_size=48,  # the least that the original's layers take
        device="cpu",
        render=RenderConfig(workers=2),
        encoder=EncoderConfig(keypoints=4, width=4, decoder_width=8),
        auxiliary=AuxiliaryConfig(steps_per_rollout=2, batch_size=8),
        ppo=PPOConfig(envs=2, steps=8, batch_size=8, epochs=1, hidden=16),
    )


def test_whole_steps_of_all_stacks_are_timed(require_gl: None) -> None:
    """The headline comparison, tiny; in a process of its own, as MuJoCo's renderer asks for its platform at once."""
    code = """if True:
        import json
        from experiments.bench import training
        from tests.experiments.test_bench import tiny
        print(json.dumps(training.whole_steps(tiny(), 2)))
    """
    rows = in_its_own_process("-c", code)
    assert [row["what"] for row in rows] == [training.NAIVE, training.SMALLER, training.BETWEEN, training.OURS]
    stages = {"environments: step, render, transport", "encoder, forward", "decoder and losses, forward", "backward"}
    for row in rows:
        assert stages < set(row["shares"]) and min(row["shares"].values()) > 0
        assert sum(row["shares"].values()) == pytest.approx(1.0)
        assert row["times_first"] == pytest.approx(row["steps_per_second"] / rows[0]["steps_per_second"])
    assert rows[0]["times_first"] == 1.0 and rows[0]["steps_per_second"] > 0
    assert len(tables.training_table([{"section": "training", "device": "cpu"} | row for row in rows])) == 6


def test_the_stack_in_between_differs_from_ours_in_the_network_alone() -> None:
    config = tiny()
    plain = training.with_the_originals_network(config)
    assert dataclasses.replace(plain, encoder=config.encoder) == config
    changed = {
        f.name
        for f in dataclasses.fields(EncoderConfig)
        if getattr(plain.encoder, f.name) != getattr(config.encoder, f.name)
    }
    assert changed == {"layers", "view_weights", "depth", "decoded_views", "precision"}
    assert plain.encoder.precision == "float32" and plain.encoder.keypoints == 4
    large = training.with_the_originals_sizes(config)
    sizes = {"image_size": config.image_size, "encoder": plain.encoder}
    assert dataclasses.replace(large, **sizes) == plain and large.image_size == 108
    encoder = large.encoder
    assert (encoder.keypoints, encoder.width, encoder.decoder_width) == (32, 16, 64)


def test_networks_are_named_by_their_precision() -> None:
    half, exact = learner.compared(True), learner.compared(False)
    assert [config.precision for config in half.values()] == ["float32", "float32", "auto", "auto"]
    assert [name.rpartition(", ")[2] for name in list(half)[1:]] == ["float32", *["bfloat16 convolutions"] * 2]
    assert list(exact)[:2] == list(half)[:2] and len(exact) == 3 and all("bfloat16" not in name for name in exact)
    assert len({config for config in list(half.values())[:2]}) == 1, "they differ in their formulation alone"


def test_a_profile_names_the_stages(capsys: pytest.CaptureFixture) -> None:
    small = "--ppo.envs 2 --ppo.steps 8 --ppo.batch-size 8 --image-size 32 --rollouts 1 --threads 1 --render.workers 1"
    profile.main(small.split())
    said = capsys.readouterr().out
    for stage in ("environments: step, render, transport", "backward", "encoder, forward", "decoder and losses"):
        assert stage in said
    assert sum(float(line.split("%")[0]) for line in said.splitlines()[1:]) == pytest.approx(100, abs=1)
    with pytest.raises(UserError, match="only PPO on keypoints"):
        profile.main(["--algorithm", "sac"])


@pytest.fixture
def as_make_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark sets this one itself; here it is put back after the test."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("LP_NUM_THREADS", "")
    monkeypatch.delenv("LP_NUM_THREADS")


def test_a_section_is_measured_written_and_replaced(tmp_path: Path, as_make_sets_it: None) -> None:
    page = tmp_path / "speed.md"
    page.write_text("<!-- table bench memory -->\n<!-- end -->\n<!-- table bench memory-over-time -->\n<!-- end -->\n")
    arguments = ["--only", "memory", "--minutes", "0.02", "--device", "cpu", "--docs", str(tmp_path)]
    old = [{"section": "memory", "device": "cpu", "what": "old"}, {"section": "memory", "device": "cuda", "what": "x"}]
    (tmp_path / "bench.json").write_text(json.dumps({"runs": [row | {"megabytes": 1.0} for row in old]}))
    bench.main(arguments)
    records = json.loads((tmp_path / "bench.json").read_text())["runs"]
    rows = [row for row in records if row["section"] == "memory"]
    assert [row["what"].split()[0] for row in rows] == ["x", "8", "replay"] and rows[-1]["machine"]
    assert rows[-1]["command"] == f'make bench ARGS="{shlex.join(arguments)}"'
    assert 100 < rows[1]["megabytes"] < 3000 and 3600 < rows[2]["megabytes"] < 4000
    assert f"| cpu | {rows[1]['what']} | {rows[1]['megabytes']:.0f} |" in page.read_text()
    assert len(page.read_text().splitlines()) == 4 + 5 + 5, "both tables are filled"
    assert (tmp_path / "bench.png").is_file() and (tmp_path / "bench-memory.png").is_file()
    check_memory_over_time([row for row in records if row["section"] == "memory-over-time"])


def check_memory_over_time(rows: list[dict]) -> None:
    main, workers, everything = tables.memory_curves(rows).values()
    assert [len(curve) for curve in (main, workers, everything)] == [memory.MARKS] * 3
    for parts in zip(main, workers, everything, strict=True):
        sizes = [part["megabytes"] for part in parts]
        assert sizes[2] == pytest.approx(sizes[0] + sizes[1]) and min(sizes[:2]) > 20
    filled = [row["replay_filled"] for row in main]
    assert filled[0] == 0 and filled[memory.MARKS // 3 + 1] >= 1 and filled[-1] >= 3.5, "it wraps, and early"
    late = [row["megabytes"] for row in everything[memory.MARKS // 2 :]]
    assert max(late) < 1.5 * min(late), "other processes come and go, and share pages with these"


def test_the_loop_stores_what_an_off_policy_algorithm_does() -> None:
    env = WorkerVecEnv([CountingEnv] * 2, 2)
    try:
        replay = FrameReplayBuffer(2 * 4, env.observation_space, env.action_space, "cpu", 2)
        collect = memory.collector(env, replay, batch_size=3)
        for _ in range(7):  # episodes of 5
            collect()
        drawn = replay._get_samples(np.arange(replay.counts.sum()))
    finally:
        env.close()
    before, after = (np.ravel(part["proprio"][:, 0]) for part in (drawn.observations, drawn.next_observations))
    assert list(after - before) == [1.0] * len(before) and 5.0 in after and replay.full
    assert list(np.ravel(drawn.rewards)) == pytest.approx(list(after), abs=1.0), "the reward counts, too"


def test_software_opengl_computes_in_one_thread(
    tmp_path: Path, as_make_sets_it: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setitem(
        bench.SECTIONS, "memory", lambda config, device: found.append(os.environ["LP_NUM_THREADS"]) or []
    )
    bench.main(["--only", "memory", "--docs", str(tmp_path)])
    monkeypatch.setenv("LP_NUM_THREADS", "3")
    bench.main(["--only", "memory", "--docs", str(tmp_path)])
    assert found == ["0", "3"], "what somebody has set stays"


def test_looks_are_compared_geom_by_geom() -> None:
    black, bright = np.zeros((2, 10, 10, 3), np.uint8), np.zeros((2, 10, 10, 3), np.uint8)
    bright[1] = 6
    one = np.full((2, 10, 10), -1)
    one[0, :5], one[0, 9] = 3, 4  # 50 pixels of geom 3, and 10 of geom 4: too few to count
    other = one.copy()
    other[0, 4], other[0, 9] = -1, -1
    found = looks.compared((black, one), (bright, other))
    assert found == {"difference": 6.0, "iou": 0.8, "least_iou": 0.8, "geoms": 1}


def test_every_task_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_gl: None) -> None:
    monkeypatch.setattr(looks, "hammer", lambda pixels: looks.task("reach-multiview", pixels))
    rows = looks.looks(tmp_path, 96)
    assert {row["scene"] for row in rows} == {f"{name}, 96 px" for name in ARM}
    assert "simplified against whole meshes" in {row["what"] for row in rows}
    assert all(0.85 < row["least_iou"] <= row["iou"] and row["geoms"] > 10 for row in rows)
    assert 0.3 < max(row["difference"] for row in rows) < 4, "lights and shadows differ"
    assert (tmp_path / "bench-looks.png").stat().st_size > 10_000


def test_a_gpu_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_make_sets_it: None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    monkeypatch.setattr(bench, "choose_device", lambda name: "cuda:1")
    row = {"what": "x", "megabytes": 1.0}
    monkeypatch.setitem(bench.SECTIONS, "memory", lambda config, device: [row | {"asked": device}])
    bench.main(["--only", "memory", "--docs", str(tmp_path)])
    (found,) = json.loads((tmp_path / "bench.json").read_text())["runs"]
    assert found["device"] == "card of cuda:1" and found["asked"] == "cuda:1" and bench.card("cpu") == "cpu"


def test_what_cannot_be_measured_is_told(as_make_sets_it: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown section of the benchmark 'view'.*did you mean 'views'"):
        bench.main(["--only", "view"])
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(UserError, match="type make bench, or set MUJOCO_GL=egl"):
        bench.main([])
    for name in ("seconds", "minutes"):
        with pytest.raises(UserError, match=f"{name} must be above 0 and finite, got -1"):
            bench.main([f"--{name}", "-1"])
    assert bench.command([]) == "make bench"


def test_nodes_are_timed_on_ray_processes_of_this_machine(require_gl: None) -> None:
    one, two = nodes.scaling(0.2, pixels=16, rounds=1)
    assert one["times_first"] == 1 and two["times_first"] == two["steps_per_second"] / one["steps_per_second"] > 0
    assert one["what"].startswith("1 node of ") and two["what"].startswith("2 nodes of ")


def rows_of_all_sections() -> list[dict]:
    common = {"device": "cpu", "milliseconds": 10.0, "views_per_second": 300.0, "steps_per_second": 100.0}
    return [
        {"section": "views", "scene": "reach, 3 views", "what": "ours, gl", "times_defaults": 4.25, **common},
        {"section": "looks", "scene": "reach", "what": "warp against gl", "device": "cpu"}
        | {"difference": 0.6, "iou": 0.987, "least_iou": 0.96, "geoms": 37},
        {"section": "workers", "what": "2 workers", "times_first": 1.9, **common},
        {"section": "nodes", "scene": "reach, 3 views", "what": "2 nodes", "times_first": 1.8, **common},
        {"section": "learner", "what": "ours", "times_first": 3.1, **common},
        {"section": "triangulation", "what": "ours", "times_first": 500.0, "device": "cpu", "points": 10_000}
        | {"points_per_second": 4000.0, "recall": 0.998, "apart": 1e-9},
        {"section": "training", "what": "ours", "times_first": 11.0, "shares": {"backward": 0.4}, **common},
        {"section": "growth", "varied": "views", "value": 6, "unit": "gradient steps", **common},
        {"section": "memory", "what": "8 workers", "megabytes": 900.0, "device": "cpu"},
        {"section": "checkpoints", "what": "PPO", "device": "cpu", "seconds": 0.5, "megabytes": 200.0}
        | {"interval": 5000, "interval_seconds": 60.0, "share": 0.5 / 60},
        *(
            {"section": "memory-over-time", "what": "2 workers", "device": "cpu", "replay_filled": 2.0 * minute}
            | {"minute": minute, "megabytes": size}
            for minute, size in ((0.0, 100.0), (1.0, 140.0), (2.0, 130.0), (3.0, 120.0))
        ),
    ]


def test_tables_and_pictures_of_all_sections(tmp_path: Path) -> None:
    rows = rows_of_all_sections()
    for kind, table in tables.TABLES.items():
        lines = table(rows)
        assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1, kind
        assert table([]) == []
    assert tables.triangulation_table(rows)[2] == "| cpu | ours | 10,000 | 4,000 | 500.0 | 99.80 | 1e-09 |"
    assert tables.growth_table(rows)[2] == "| cpu | gradient steps | views | 6 | 100.0 |"
    assert tables.checkpoints_table(rows)[2] == "| cpu | PPO | 0.50 | 200 | 5,000 | 60 | 0.83 % |"
    assert tables.TABLES["memory-over-time"](rows)[2] == "| cpu | 2 workers | 3.0 | 6.0 | 100 | 130 | 120 | 140 |"
    for name, draw in {"bench.png": report.draw, "bench-memory.png": report.draw_memory}.items():
        draw(rows, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
    assert isinstance(reach(), BenchScene)


def test_tables_and_pictures_tell_devices_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of_all_sections()
    both = rows + [row | {"device": "cuda"} for row in rows]
    for kind, table in tables.TABLES.items():
        lines = table(both)
        if kind == "stages":
            assert lines[0] == "| stage, share of the time | ours (cpu) | ours (cuda) |"
        else:
            assert [line.split(" | ")[0] for line in lines[2:]] == ["| cpu", "| cuda"], kind
            assert lines[0].startswith("| device |"), kind
    assert report.device_marks(rows) == {"cpu": ""}
    assert report.device_marks(both) == {"cpu": " (cpu)", "cuda": " (cuda)"}
    for name, draw in {"bench.png": report.draw, "bench-memory.png": report.draw_memory}.items():
        draw(both, tmp_path / name)
        draw([], tmp_path / f"none-{name}")
        assert (tmp_path / name).stat().st_size > 5000
    assert not (tmp_path / "none-bench-memory.png").exists()


def test_the_cost_of_a_checkpoint_is_that_of_one_with_an_intervals_frames() -> None:
    """Of a training of one rollout even, whose end is a mark of the clock, too."""
    config = TrainConfig(image_size=32, threads=torch.get_num_threads())
    small = dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, keypoints=2, width=4, decoder_width=8),
        ppo=dataclasses.replace(config.ppo, envs=2, steps=8, batch_size=8, epochs=1),
        log=dataclasses.replace(config.log, checkpoint_every=400),
    )
    row = checkpoints.checkpoint_cost(small, 16)
    frames = 400 * 3 * 32 * 32 * 3 / memory.MEGABYTE  # steps, views, pixels, colours
    assert 0.9 < row["megabytes"] / frames < 1.2
    assert row["interval"] == 400 and 0 < row["seconds"] and 0 < row["interval_seconds"] < 600
    assert row["share"] == pytest.approx(row["seconds"] / row["interval_seconds"])
