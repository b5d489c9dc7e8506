"""Studies: what is run, what is left out because it is there, and what the report makes of it."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest

from envs.errors import UserError
from experiments import pages, pretrain, study, train
from experiments.judging.evaluation import Episode, Evaluation
from experiments.options.cli import parse
from experiments.options.config import PretrainConfig, TrainConfig
from experiments.options.files import to_yaml
from experiments.options.presets import expanded
from experiments.studies import report
from experiments.studies.conditions import Condition, Study
from experiments.study import Job, StudyConfig
from tests.experiments.conftest import TINY, run_in

TINY_STUDY = Study(
    "reach-multiview",
    (Condition("default", "--ppo.hidden 24", ablate=True, probe=True), Condition("no eyes", "--encoder.kind state")),
)


@pytest.mark.parametrize("name", sorted(study.STUDIES))
def test_every_condition_is_a_valid_command_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for job in study.chosen(StudyConfig(name)):
        program, *arguments = job.steps()[0]
        kind = {"train": TrainConfig, "pretrain": PretrainConfig}[program]
        config = parse(kind, expanded(arguments, kind))
        assert config.seed == job.seed and config.run == job.run
        assert config.threads == config.render.workers == job.condition.cores == (name != "speed")
        assert f"make {program} ENV={config.env} RUN={config.run} SEED={config.seed}" in job.command


@pytest.mark.parametrize("name", ["control-reach", "control-window-open"])
def test_what_is_compared_has_equal_steps(name: str) -> None:
    """Of the task, too: whatever a preset says for some of the conditions is typed for the others."""
    found, learners = set(), set()
    for job in study.chosen(StudyConfig(name, seeds=1)):
        config = parse(TrainConfig, expanded(job.steps()[0][1:], TrainConfig))
        gamma = (config.ppo if config.algorithm == "ppo" else config.sac).gamma
        evaluated = (config.log.evaluate_every, config.log.evaluation_episodes)
        found.add((config.total_steps, config.action_repeat, gamma, *evaluated, config.image_size))
        if config.algorithm != "ppo":
            learners.add(dataclasses.replace(config.sac, learning_starts=0))
    assert len(found) == 1
    assert len(learners) <= 1, "all by SAC have the same, but that a warm-up plays its first steps"


def test_seeds_come_first_so_that_an_early_stop_leaves_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(study.STUDIES, "tiny", TINY_STUDY)
    jobs = study.chosen(StudyConfig("tiny", seeds=2))
    assert [(job.seed, job.condition.name) for job in jobs] == [
        (0, "default"), (0, "no eyes"), (1, "default"), (1, "no eyes"),
    ]  # fmt: skip
    assert [job.condition.name for job in study.chosen(StudyConfig("tiny", only="no eyes", seeds=1))] == ["no eyes"]
    assert len(study.chosen(StudyConfig("tiny"))) == 10


def test_unknown_studies_and_conditions_name_the_closest() -> None:
    with pytest.raises(UserError, match="did you mean 'learning'"):
        study.chosen(StudyConfig("learnin"))
    with pytest.raises(UserError, match="did you mean 'pixels'"):
        study.chosen(StudyConfig("learning", only="default,pixel"))
    with pytest.raises(ValueError, match="jobs at least 1"):
        StudyConfig(jobs=0)


def test_what_is_there_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(study.STUDIES, "tiny", TINY_STUDY)
    job = Job("reach-multiview", "tiny", TINY_STUDY.conditions[0], 3)
    assert [step[0] for step in job.steps()] == ["train", "evaluate", "probe"]
    assert "--ablate" in job.steps()[1]
    ran = []

    def run(command, **kwargs):  # noqa: ANN001, ANN202
        ran.append(command[2])
        job.folder.mkdir(parents=True, exist_ok=True)
        if command[2].endswith("evaluate"):
            (job.folder / "eval.json").touch()
        return SimpleNamespace(returncode=int(command[2].endswith("probe")))

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))
    assert study.perform(job) == "reach-multiview/tiny-default-3"  # the probe failed
    assert ran == ["experiments.train", "experiments.evaluate", "experiments.probe"]
    assert [step[0] for step in job.steps()] == ["probe"]
    state = Job("reach-multiview", "tiny", TINY_STUDY.conditions[1], 3)
    assert [step[0] for step in state.steps()] == ["train", "evaluate"] and "--ablate" not in state.steps()[1]


def test_a_run_that_was_stopped_half_way_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job, ran = Job("reach-multiview", "tiny", TINY_STUDY.conditions[1], 0), []
    checkpoint = job.folder / "checkpoints" / "000000064"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")

    def run(command, **kwargs):  # noqa: ANN001, ANN202
        ran.append(command[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))
    assert study.perform(job) is None and (job.folder / "done").is_file() and checkpoint.is_dir()
    assert [" ".join(command[:3]) for command in ran] == [
        f"experiments.resume --run {job.folder}", f"experiments.evaluate --run {job.folder}",
    ]  # fmt: skip


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_moved_aside_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job("reach-multiview", "tiny", TINY_STUDY.conditions[1], 0)
    job.folder.mkdir(parents=True)
    (job.folder / "metrics.csv").write_text("half")

    def run(command, **kwargs):  # noqa: ANN001, ANN202
        job.folder.mkdir(exist_ok=command[2] == "experiments.evaluate")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))
    assert study.perform(job) is None and (job.folder / "done").is_file()
    (aside,) = job.folder.parent.glob("*-stopped-*")
    assert (aside / "metrics.csv").read_text() == "half"


def test_a_run_of_other_options_is_moved_aside_and_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset, or a condition, may have changed since it was made."""
    monkeypatch.chdir(tmp_path)
    job = Job("reach-multiview", "tiny", TINY_STUDY.conditions[1], 0)
    config = parse(TrainConfig, job.options)
    job.folder.mkdir(parents=True)
    for name in ("done", "eval.json"):
        (job.folder / name).touch()
    (job.folder / "config.yaml").write_text(to_yaml(config))
    assert job.is_done and not job.steps()
    other_sac = dataclasses.replace(config, sac=dataclasses.replace(config.sac, gamma=0.5))
    (job.folder / "config.yaml").write_text(to_yaml(other_sac))
    assert job.is_done, "it is trained by PPO"
    (job.folder / "config.yaml").write_text(to_yaml(dataclasses.replace(config, action_repeat=2)))
    assert not job.is_done and [step[0] for step in job.steps()] == ["train", "evaluate"]

    def run(command, **kwargs):  # noqa: ANN001, ANN202
        job.folder.mkdir(exist_ok=command[2] == "experiments.evaluate")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))
    assert study.perform(job) is None and job.is_done
    assert len(list(job.folder.parent.glob("*-stopped-*/config.yaml"))) == 1


def test_runs_from_elsewhere_stay_in_the_record_and_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(study.STUDIES, "tiny", TINY_STUDY)
    jobs = study.in_order(study.chosen(StudyConfig("tiny", seeds=2)))
    old, outdated = record("default", 1, 70), record("no eyes", 0, 50)
    runs = [old | {"command": jobs[1].command}, outdated | {"command": "make train with other options"}]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "tiny.json").write_text(json.dumps({"study": "tiny", "runs": runs}))
    ran: list[str] = []
    monkeypatch.setattr(study, "run_all", lambda jobs, _: ran.extend(job.run for job in jobs))
    study.main(["--name", "tiny", "--seeds", "2", "--extend"])
    assert ran == ["tiny-default-0", "tiny-no-eyes-0", "tiny-no-eyes-1"]
    assert json.loads((tmp_path / "docs" / "tiny.json").read_text())["runs"] == runs[:1]
    ran.clear()
    study.main(["--name", "tiny", "--seeds", "2"])
    assert "tiny-default-1" in ran and len(ran) == 4

    def made_here(condition, seed, command, run):  # noqa: ANN001, ANN202
        return record(condition, seed, 100) | {"command": command}

    monkeypatch.setattr(study.Job, "steps", lambda job: [] if job.seed == 0 else [["train"]])
    monkeypatch.setattr(report, "gather", made_here)
    monkeypatch.setattr(report.Run, "open", lambda *args, **kwargs: None)
    study.main(["--name", "tiny", "--report"])
    found = json.loads((tmp_path / "docs" / "tiny.json").read_text())["runs"]
    assert [(r["condition"], r["seed"]) for r in found] == [("default", 0), ("default", 1), ("no eyes", 0)]
    assert report.pooled(found) == (270, 300)


def test_conditions_may_be_of_environments_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Condition("a", program="pretrain", probe=True)
    there = Condition("b", "", 5, "pretrain", probe=True, env="push-multiview", asked="--policy mixed")
    monkeypatch.setitem(study.STUDIES, "places", Study("reach-multiview", (here, there)))
    first, second = study.chosen(StudyConfig("places", seeds=1))
    assert (first.env, second.env) == ("reach-multiview", "push-multiview")
    assert second.steps()[-1][-2:] == ["--policy", "mixed"] and "mixed" not in first.steps()[-1]
    assert "--autoencoder-steps" not in second.steps()[-1], "there is no autoencoder of that environment yet"


def test_failed_runs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(study.STUDIES, "tiny", TINY_STUDY)
    failing = SimpleNamespace(run=lambda *args, **kwargs: SimpleNamespace(returncode=1))
    monkeypatch.setattr(study, "subprocess", failing)
    with pytest.raises(UserError, match="no run of study 'tiny' is finished yet"):
        study.main(["--name", "tiny", "--report"])
    with pytest.raises(UserError, match="2 runs failed, the first is reach-multiview/tiny-default-0: see runs/"):
        study.main(["--name", "tiny", "--seeds", "1"])
    assert not (tmp_path / "docs").exists()


def test_a_study_of_real_runs_is_reported(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The programs run in this process: what is tested is that their files fit together."""
    from experiments import evaluate, probe

    conditions = (
        Condition("default", " ".join(TINY).replace("--threads 1", ""), 1, ablate=True, probe=True),
        Condition("alone", "--steps 6 --frames 64 --image-size 32 --encoder.keypoints 4", 1, "pretrain", probe=True),
    )
    monkeypatch.setitem(study.STUDIES, "real", Study("reach-multiview", conditions))
    quick = {"evaluate": ["--episodes", "2"], "probe": ["--episodes", "4", "--steps", "4", "--autoencoder-steps", "2"]}
    mains = {"train": train.main, "pretrain": pretrain.main, "evaluate": evaluate.main, "probe": probe.main}

    def run(command, **kwargs):  # noqa: ANN001, ANN202
        program = command[2].removeprefix("experiments.")
        arguments = [*command[3:], *quick.get(program, [])]
        mains[program](arguments)
        return SimpleNamespace(returncode=0)

    class Here:
        """Signals are handled in the main thread alone, so nothing runs in a pool."""

        def __init__(self, jobs: int) -> None:
            self.map = map

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(study, "ThreadPoolExecutor", Here)
    run_in(workplace, study.main, ["--name", "real", "--jobs", "1"])
    data = json.loads((workplace / "docs" / "real.json").read_text())
    unfinished = workplace / "runs" / "reach-multiview" / "real-alone-0" / "probe.json"
    unfinished.rename(unfinished.with_suffix(".aside"))
    run_in(workplace, study.main, ["--name", "real", "--report", "--docs", "partly"])
    (partly,) = json.loads((workplace / "partly" / "real.json").read_text())["runs"]
    assert partly["trained"].keys() == {"commit", "machine"}
    unfinished.with_suffix(".aside").rename(unfinished)
    first, second = data["runs"]
    assert first["success"]["blacked out"]["success_at_end"]["n"] == 2 and first["steps"] == 160
    assert set(first["probe"]["probe_error_cm"]) == {"end_effector", "target"}
    assert {"command", "seed", "commit", "machine", "condition", "minutes"} <= first.keys() & second.keys()
    assert "success" not in second and second["steps"] == 6
    assert iio.imread(workplace / "docs" / "real.png").std() > 1
    probed = (workplace / "runs" / "reach-multiview" / "real-default-0" / "probe.png").read_bytes()
    assert (workplace / "docs" / "real-probe.png").read_bytes() == probed
    assert iio.imread(workplace / "docs" / "real-views.png").shape[1] > 3 * 200
    said = capsys.readouterr().out
    assert "| default | 1 | 160 |" in said and "| alone | 1 |" in said


# -- the report ------------------------------------------------------------------------------------------------------


def record(condition: str, seed: int, k: int, black: int | None = None) -> dict:
    def summary(count: int) -> dict:
        episodes = tuple(Episode(n, False, n < count, n < count, 1.0, 5) for n in range(100))
        return Evaluation(episodes).summary()

    shown = {"as trained": summary(k)} | ({} if black is None else {"blacked out": summary(black)})
    return {
        "condition": condition, "seed": seed, "steps": 1000, "minutes": 3.0, "success": shown,
        "evaluated_success_at_end": [[0, 0.0], [1000, k / 100]],
    }  # fmt: skip


RECORDS = [record("default", s, k, black=2) for s, k in enumerate((90, 95, 100))] + [
    record("blind", s, k) for s, k in enumerate((0, 10, 5))
]


def test_the_success_table_pools_episodes_and_compares_over_seeds() -> None:
    _, _, default, blind = report.success_table(RECORDS)
    assert default == "| default | 3 | 1,000 | 3 | 285/300 (92 to 97 %) | 90, 95, 100 |  |"
    assert blind.startswith("| blind | 3 | 1,000 | 3 | 15/300 (3 to 8 %) | 0, 10, 5 | 90 (")
    low, high = (int(x) for x in blind.split("(")[-1].rstrip(") |").split(" to "))
    assert (low, high) == (79, 101)  # 90 +- t(4, 0.975) * 5 * sqrt(2 / 3)
    assert report.success_table(RECORDS[:1] + RECORDS[3:4])[-1].endswith("| 90 |")  # single seeds have no interval


def test_the_area_is_the_mean_over_all_steps_from_the_first_on() -> None:
    assert report.area([[50, 0.0], [100, 1.0]]) == pytest.approx(0.25)
    assert report.area([[100, 1.0]]) == pytest.approx(0.5)  # from nothing at the start
    assert report.area([[1, 1.0], [30, 1.0], [1000, 1.0], [1000, 0.0]]) == pytest.approx(0.9995)
    fine = [[step, (step / 500) ** 2] for step in range(1, 501)]
    assert report.area(fine) == pytest.approx(1 / 3, abs=1e-3)


def test_the_area_table_compares_the_first_condition_with_all_others() -> None:
    _, _, default, blind, nothing = report.area_table([*RECORDS, record("nothing", 0, 0)])
    assert default == "| default | 3 | 48 | 48 | 45, 48, 50 |  |  |"
    assert blind.startswith("| blind | 3 | 2 | 2 | 0, 5, 2 | 19.00 (5.61 and more) | 45 (39 to 51) |"), blind
    assert nothing == "| nothing | 1 | 0 | 0 | 0 | – | 48 |"
    *_, skewed = report.area_table([record("skewed", seed, k) for seed, k in enumerate((0, 2, 4, 60, 100))])
    # As rliable does, of five one is left out at each end: (1 + 2 + 30) / 3.
    assert skewed == "| skewed | 5 | 17 | 11 | 0, 1, 2, 30, 50 |  |  |"
    assert report.area_table([{"condition": "pretraining", "evaluated_success_at_end": []}]) == []


def test_the_ablation_table_is_of_the_first_condition() -> None:
    assert report.ablation_table(RECORDS)[2:] == [
        "| as trained | 285/300 (92 to 97 %) |",
        "| blacked out | 6/300 (1 to 4 %) |",
    ]


def test_the_probe_table_gives_means_and_extremes() -> None:
    def probed(seed: int, error: float, on: list[int]) -> dict:
        errors = {"keypoints": error, "constant": 20.0, "random encoder": 10.0}
        probe = {"probe_error_cm": {"ball": errors}, "counted": 5, "on_body": {"ball": on}}
        probe |= {"view_disagreement_cm": 2.0, "view_disagreement_unweighted_cm": 3.0}
        return {"condition": "default", "seed": seed, "probe": probe}

    row = report.probe_table([probed(0, 1.0, [3]), probed(1, 2.0, [3, 4])])[-1]
    assert row.startswith("| default | 2 | 1.5 (1.0 to 2.0) | 20.0 / 10.0 / – | 2.0 (2.0 to 2.0) (3.0) | 5 (5 to 5) | ")
    assert row.endswith(" | 2 (1 to 2) |")
    some = probed(2, 3.0, [])
    some["probe"]["probe_error_cm"]["ball"]["autoencoder"] = 4.0
    assert "| 20.0 / 10.0 / 4.0 |" in report.probe_table([probed(0, 1.0, []), some])[-1], "over the seeds that have it"
    assert report.probe_table(RECORDS) == []
    flat = probed(0, 1.0, [])
    for name in ("counted", "on_body", "view_disagreement_cm"):
        flat["probe"].pop(name)
    assert report.probe_table([flat])[-1].endswith("| – | – | – |")


def test_bodies_of_several_tasks_have_a_row_each_and_what_misses_its_bar_is_marked() -> None:
    def probed(task: str, seed: int, hand: float, thing: float) -> dict:
        errors = {
            "hand": {"keypoints": hand, "constant": 9.0, "first body": None, "random encoder": 6.0, "autoencoder": 2.0},
            "thing": {"keypoints": thing, "constant": 7.0, "first body": 7.0, "random encoder": 8.0},
            "table": {"keypoints": 0.0, "constant": 0.0, "first body": 0.0, "random encoder": 0.0},
        }
        probe = {"probe_error_cm": errors, "counted": 5, "on_body": {"hand": []}, "same_body_share": 0.8}
        probe |= {"view_disagreement_cm": 2.0, "view_disagreement_unweighted_cm": 3.0}
        return {"condition": task, "seed": seed, "minutes": 12.0, "probe": probe}

    _, _, hand, thing, other, last = report.bodies_table(
        [probed("lift", 0, 1.0, 3.0), probed("lift", 1, 2.0, 5.0), probed("push", 0, 3.0, 1.0)]
    )
    assert hand == "| lift | 2 | hand | 1.5 (1.0 to 2.0) | 9.0 | – | 6.0 | 2.0 |"
    assert thing == "| lift | 2 | thing | 4.0 (3.0 to 5.0) | **7.0** | **7.0** | **8.0** | – |"
    assert other == "| push | 1 | hand | 3.0 | 9.0 | – | **6.0** | **2.0** |" and "**" not in last
    one, other = probed("lift", 0, 1.0, 3.0), probed("push", 0, 1.0, 3.0)
    assert not report.differ([one, other])
    other["probe"]["probe_error_cm"].pop("table")
    assert report.differ([one, other])
    row = report.places_table([probed("lift", 0, 1.0, 3.0), probed("lift", 1, 2.0, 5.0)])[-1]
    assert row == "| lift | 12 | 5 (5 to 5) | 2.0 (2.0 to 2.0) (3.0) | 80 (80 to 80) |"


def test_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    with (tmp_path / "metrics.csv").open("w") as file:
        writer = csv.DictWriter(file, ["time/total_timesteps", "time/time_elapsed", "keypoints/reconstruction_ratio"])
        writer.writeheader()
        writer.writerows({"time/total_timesteps": n, "time/time_elapsed": 60 * n, "keypoints/reconstruction_ratio": n}
                         for n in range(1, 501))  # fmt: skip
    found = report.curves(SimpleNamespace(path=tmp_path))
    points = np.array(found["reconstruction_ratio"])
    assert len(points) == report.POINTS and points[0].tolist() == [1, 1] and points[-1].tolist() == [500, 500]
    assert found["steps"] == 500 and found["minutes"] == 500 and found["evaluated_success_at_end"] == []


def test_trainings_are_drawn_by_success_and_pretrainings_by_quality(tmp_path: Path) -> None:
    report.draw_curves(RECORDS, tmp_path / "trained.png")
    line = [[0, 1.0], [100, 0.5]]
    pretrained = {"reconstruction_ratio": line, "view_disagreement_cm": line, "evaluated_success_at_end": []}
    alone = [{"condition": "default", "seed": seed, **pretrained} for seed in range(2)]
    report.draw_curves(alone, tmp_path / "alone.png")
    one, two = (iio.imread(tmp_path / f"{name}.png") for name in ("trained", "alone"))
    assert two.shape[0] == 2 * one.shape[0] and one.std() > 10 and two[one.shape[0] :].std() > 10


def test_pages_are_filled_from_the_data_beside_them(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"study": "x", "runs": RECORDS}))
    page = "a\n<!-- table x success -->\nold\n<!-- end -->\nb\n<!-- table y probe -->\n<!-- end -->\nc"
    text = pages.filled(page, tmp_path)
    assert text.startswith("a\n<!-- table x success -->\n| condition |") and "old" not in text and "285/300" in text
    assert text.endswith("<!-- end -->\nb\n<!-- table y probe -->\n<!-- end -->\nc")  # not run yet: as it was
    assert pages.filled(text, tmp_path) == text


def test_the_gradient_table_is_of_quarters_of_the_run() -> None:
    def logged(auxiliary: float) -> dict:
        return {
            "condition": "default",
            "encoder_gradient_from_auxiliary": [[n, auxiliary] for n in range(8)],
            "encoder_gradient_from_policy": [[n, 0.1 * (n // 2)] for n in range(8)],
        }

    rows = report.gradient_table([logged(1.0), logged(3.0)])[2:]
    assert rows[0] == "| first quarter | 2.00 | 0.000 | 0.000 |"
    assert rows[3] == "| last quarter | 2.00 | 0.300 | 0.150 |"
