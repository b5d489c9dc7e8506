"""Sweeps: what a plan stands for, what is refused, and that every run is made once whatever is killed meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envs.errors import UserError
from experiments import sweep, train
from experiments.options.cli import flat, parse, typed
from experiments.options.config import TrainConfig
from experiments.options.presets import expanded
from experiments.runs.folder import is_locked, locked
from experiments.soak.kills import differing_ends
from experiments.sweeps import state, work
from experiments.sweeps.cluster import Cluster, lost, require_room
from experiments.sweeps.nodes import backend_of, description
from experiments.sweeps.plan import Plan, PlannedRun
from experiments.sweeps.plan_file import read_plan
from experiments.sweeps.single import has_begun, is_evaluated, is_made
from experiments.sweeps.state import Entry, seconds_left, steps_done
from experiments.sweeps.table import duration, summary, table
from experiments.sweeps.work import Outcome, Task
from kp3d_rl.storage.steps import latest_step
from tests.experiments.conftest import TINY, run_in
from tests.tasks import ALL

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
name: first
environments: [reach-multiview, push-multiview]
encoders: [keypoint3d, rad]
algorithms: [ppo, sac]
seeds: 2
options: {total-steps: 2000, preset: fast}
overrides:
  plain: {}
  few keypoints: {encoder.keypoints: 8, auxiliary.joint: false}
leave_out:
  - {encoder: rad, algorithm: sac}
evaluation_episodes: 10
cores: 2
"""
SECONDS = 500
"""A sweep of tiny runs that takes longer hangs."""


def written(folder: Path, text: str = GOOD) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


# -- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_is_all_combinations_seed_by_seed_but_for_those_left_out(tmp_path: Path) -> None:
    runs = read_plan(written(tmp_path)).runs()
    assert len(runs) == 2 * 3 * 2 * 2 and len({run.label for run in runs}) == len(runs)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert not any(run.encoder == "rad" and run.algorithm == "sac" for run in runs)
    assert runs[1].label == "reach-multiview/first-keypoint3d-ppo-few-keypoints-seed0"
    assert runs[1].method == "keypoint3d ppo few keypoints"


def test_a_planned_run_is_an_ordinary_command(tmp_path: Path) -> None:
    """What a person would type gives the same options, the plan's and its override's included."""
    run = read_plan(written(tmp_path)).runs()[1]
    command = (
        "--env reach-multiview --run first-keypoint3d-ppo-few-keypoints-seed0 --seed 0 --algorithm ppo --threads 2 "
        "--render.workers 2 --total-steps 2000 --preset fast --encoder.keypoints 8 --auxiliary.no-joint"
    )
    assert run.config() == parse(TrainConfig, expanded(command.split(), TrainConfig))
    assert run.evaluation == ["--run", f"runs/{run.label}", "--seed", "0", "--episodes", "10"]
    assert flat(run.config())["encoder.keypoints"] == 8 and flat(run.config())["auxiliary.joint"] is False
    assert typed({"log.wandb_project": "x", "a": True}) == ["--log.wandb-project", "x", "--a"]


def test_the_plan_of_the_documentation_can_be_carried_out(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        assert len(read_plan(ROOT / "docs" / "plans" / "reach.yaml").runs()) == 5 * 6 * 2
    with pytest.raises(UserError, match="say which plan"):
        sweep.main([])


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("seeds: 2", "seed: 2", "line 5, key 'seed': unknown key: did you mean 'seeds'"),
        ("seeds: 2", "seeds: [1, 1]", r"line 5, key 'seeds\[1\]': stands there twice"),
        ("seeds: 2", "seeds: [10000]", "line 5, key 'seeds': .*between 0 and 9999"),
        ("seeds: 2", "seeds: none", "a number of seeds, or a list"),
        ("name: first", "name: ../up", "line 1, key 'name': must be of letters"),
        ("name: first\n", "", "key 'name': is missing"),
        ("[reach-multiview,", "[reech-multiview,", r"key 'environments\[0\]': .*did you mean 'reach-multiview'"),
        ("[reach-multiview, push-multiview]", "reach-multiview", "must be a list of names"),
        ("total-steps: 2000", "total-stpes: 2000", "no option of trainings: did you mean 'total-steps'"),
        ("total-steps: 2000", "total-steps: many", "key 'options.total-steps': .*needs a whole number, got 'many'"),
        ("total-steps: 2000", "seed: 3", "key 'options.seed': is given by the plan"),
        ("total-steps: 2000", "ppo.gamma: [1.0]", "key 'options.ppo.gamma': must be a number, a text, true or false"),
        ("total-steps: 2000", "log.wandb: off", "line 6, key 'options.log.wandb': is no flag, and YAML takes a plain"),
        ("preset: fast", "preset: fats", "key 'options.preset': .*did you mean 'fast'"),
        ("keypoints: 8", "keypoints: -8", "key 'overrides.few keypoints.encoder.keypoints': .*must be at least 1"),
        ("  plain: {}", "  few_keypoints: {}\n  few-keypoints: {}", "give runs of one name"),
        ("{encoder: rad, a", "{encoder: pixels, a", r"key 'leave_out\[0\]': leaves out nothing"),
        ("{encoder: rad, a", "{encode: rad, a", "did you mean 'leave_out\\[0\\].encoder'"),
        ("leave_out:\n  - {encoder: rad, algorithm: sac}\n", "", "is trained by ppo, not by sac: leave_out takes"),
        ("cores: 2", "cores: 0", "line 13, key 'cores': must be at least 1"),
        ("cores: 2", "probe: maybe", "key 'probe': must be true or false"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_plan_is_one_line(tmp_path: Path, right: str, wrong: str, said: str) -> None:
    assert right in GOOD
    with pytest.raises(UserError, match=said) as error:
        read_plan(written(tmp_path, GOOD.replace(right, wrong, 1)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000


def test_more_episodes_than_differ_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    text = GOOD.replace("[reach-multiview, push-multiview]", "[metaworld-reach]")
    read_plan(written(tmp_path, text.replace("episodes: 10", "episodes: 50")))
    with pytest.raises(UserError, match="51 episodes were asked for: the task has 50 test configurations"):
        read_plan(written(tmp_path, text.replace("episodes: 10", "episodes: 51")))


def test_a_folder_of_other_options_is_not_taken_for_the_plans_run(tmp_path: Path, tiny_run: Path) -> None:
    text = "name: tiny\nenvironments: [reach-multiview]\nseeds: 1\n"
    with contextlib.chdir(tmp_path):
        run = read_plan(written(tmp_path, text)).runs()[0]
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_bytes((tiny_run / "config.yaml").read_bytes())
        with pytest.raises(UserError, match="was made with run 'tiny', the plan says 'tiny-keypoint3d-ppo-seed0'"):
            read_plan(written(tmp_path, text))


# -- how far it is ---------------------------------------------------------------------------------------------------


def entries(plan: Plan, **statuses: int) -> list[Entry]:
    """Entries of the first runs of a plan, so many of each status."""
    wanted = [status for status, number in statuses.items() for _ in range(number)]
    return [Entry(run, 100, status) for run, status in zip(plan.runs(), wanted, strict=False)]  # type: ignore[arg-type]


def test_the_last_whole_row_says_how_far_a_run_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert steps_done(path) == 0
    path.write_text("a,time/total_timesteps\n1,64\n2,128\n")
    assert steps_done(path) == 128
    path.write_text("a,time/total_timesteps\n1,64\n2,1.28e2\n3,2")  # being written; no whole number in the middle
    assert steps_done(path) == 2
    path.write_text("a,time/total_timesteps\n" + "1,64\n" * 50_000 + "1")
    assert steps_done(path) == 64


def test_the_rest_takes_as_long_as_such_runs_took(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    some = entries(plan, done=1, running=1, waiting=2)
    assert seconds_left(some, 2, {}) is None
    some[0].attempts = [{"host": "a", "seconds": 10.0, "problem": "killed"}, {"seconds": 30.0, "problem": None}]
    assert seconds_left(some, 2, {}) == 3 * 40 / 2
    some[1].steps, some[1].first = 45, 20  # 25 of 100 in 30 s: 120 s for its method, (120 + 40) / 2 for the others
    assert seconds_left(some, 2, {some[1].run.label: 30.0}) == pytest.approx((120 * 0.55 + 2 * 80) / 2)
    assert seconds_left(some, 9, {some[1].run.label: 30.0}) == pytest.approx((120 * 0.55 + 2 * 80) / 3)
    assert summary(some, 130.0) == "1 done, 1 running, 2 waiting, 0 failed; about 2 min left"
    assert duration(30) == "30 s" and duration(9000) == "2.5 h"


def test_the_table_shows_first_what_runs_and_what_failed(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    many = [Entry(run, 100, "done") for run in plan.runs() + plan.runs()]
    many[40].status, many[41].status = "failed", "running"
    shown = table("first", many, None)
    assert list(shown.columns[3].cells)[:3] == ["running", "failed", "done"]
    assert list(shown.columns[0].cells)[-1] == f"… {len(many) - 30} more"


# -- handing out -----------------------------------------------------------------------------------------------------


class FakeCluster:
    """Answers as it is told, one attempt at a time.

    :param answers: what becomes of attempts, by the run's seed; afterwards they succeed.
    """

    def __init__(self, answers: dict[int, list[dict]]) -> None:
        self.answers, self.handed, self.refused, self.cores, self.stopped = answers, {}, {}, 1, False
        self.number, self.made = 0, set()

    def nodes(self) -> list[dict]:
        return [{}]

    def slots(self) -> int:
        return 1

    def hand_out(self, task: Task) -> None:
        self.number += 1
        self.handed[self.number] = task

    def wait(self, seconds: float) -> list[tuple[Task, Outcome]]:
        number = min(self.handed)
        task = self.handed.pop(number)
        answers = self.answers.get(int(task.label[-1]), [])
        answer = answers.pop(0) if answers else {}
        if isinstance(answer.get("raised"), type):
            raise answer["raised"]
        if not answer or answer.pop("whole", False):
            self.made.add(task.label)
        return [(task, Outcome(task.label, "n", "here", 1.0, **answer))]

    def stop(self, seconds: float) -> None:
        self.stopped = True


class Said:
    """A view that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def show(self, *_: object) -> None:
        pass


def handed_out(
    folder: Path, answers: dict[int, list[dict]], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Entry], list[str]]:
    """Carry a plan of four runs out on a cluster that answers so."""
    cluster, view = FakeCluster(answers), Said()
    monkeypatch.setattr(sweep, "is_made", lambda run: run.label in cluster.made)
    text = "name: fake\nenvironments: [reach-multiview]\nencoders: [state]\nseeds: 4\nretries: 1\n"
    plan = read_plan(written(folder, text))
    plan.folder.mkdir(parents=True, exist_ok=True)
    found = sweep.entries_of(plan)
    sweep.Sweep(plan, found, cluster, view).run()  # type: ignore[arg-type]
    return found, view.lines


def test_what_fails_is_tried_again_and_told_and_the_rest_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad, refusal = {"failed": "killed by SIGKILL"}, {"refused": "it has torch 0, the others have 1"}
    half = {"stopped": False}
    answers = {0: [half], 1: [bad], 2: [bad, {"failed": "error: no disk"}], 3: [refusal] * 3}
    found, said = handed_out(tmp_path, answers, monkeypatch)
    assert [entry.status for entry in found] == ["done", "done", "failed", "done"]
    assert [len(entry.attempts) for entry in found] == [2, 2, 2, 1]
    assert "again    reach-multiview/fake-state-ppo-seed0: ended without an error, but something of it is" in said[0]
    assert "again    reach-multiview/fake-state-ppo-seed1: killed by SIGKILL" in said
    assert "failed   reach-multiview/fake-state-ppo-seed2: error: no disk" in said
    assert said.count("node here is left out: it has torch 0, the others have 1") == 1
    assert not list(found[0].run.plan.folder.glob("token*"))
    file = json.loads((found[0].run.plan.folder / "sweep.json").read_text())
    assert [run["status"] for run in file["runs"]] == ["done", "done", "failed", "done"]
    with pytest.raises(UserError, match="1 of 4 runs failed, the first is reach-multiview/fake-state-ppo-seed2"):
        sweep.report(found[0].run.plan, found)
    assert "seed1: 2 attempts (killed by SIGKILL)" in capsys.readouterr().out
    again = sweep.entries_of(found[0].run.plan)  # nothing was made in truth
    assert [entry.before for entry in again] == [2, 2, 2, 1] and again[2].failures == 0


def test_a_sweep_that_is_stopped_stops_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stopped = []
    monkeypatch.setattr(FakeCluster, "stop", lambda self, seconds: stopped.append(len(self.handed)))
    with pytest.raises(KeyboardInterrupt):
        handed_out(tmp_path, {1: [{"raised": KeyboardInterrupt}]}, monkeypatch)
    assert stopped == [2]  # the first is done, the second was at work


def test_why_nodes_were_left_out_stays_for_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = FakeCluster({})
    cluster.refused = {"n": "it has torch 0, the others have 1"}
    monkeypatch.setattr(sweep, "connected", lambda *_: contextlib.nullcontext(cluster))
    monkeypatch.setattr(sweep, "is_made", lambda run: run.label in cluster.made)
    written(tmp_path, "name: fake\nenvironments: [reach-multiview]\nencoders: [state]\nseeds: 1\n")
    sweep.main(["--plan", "plan.yaml"])
    state_file = tmp_path / "runs" / "sweeps" / "fake" / "sweep.json"
    assert json.loads(state_file.read_text())["refused"] == ["it has torch 0, the others have 1"]


def test_a_cluster_without_room_says_why() -> None:
    nodes = [{"Alive": True, "NodeID": "a", "Resources": {"CPU": 2.0}}]
    cluster = Cluster.__new__(Cluster)
    cluster.ray, cluster.cores, cluster.refused = type("Ray", (), {"nodes": lambda: nodes}), 1, {}
    assert require_room(cluster) and cluster.slots() == 2
    cluster.refused = {"a": "it has no OpenGL"}
    with pytest.raises(UserError, match="no node is left that runs can be on: it has no OpenGL"):
        require_room(cluster)
    cluster.cores, cluster.refused = 4, {}
    with pytest.raises(UserError, match="a run takes 4 cores, the largest node has 2"):
        require_room(cluster)
    nodes.clear()
    assert not require_room(cluster), "others may come"
    assert lost(ValueError("first\n\n last ")) == "last"


# -- nodes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "token").write_text("one")
    names = {name: str(tmp_path / name) for name in ("plan", "folder", "log", "place")}
    return Task("a/b", str(tmp_path), cores=1, token=("token", "one"), expected=description(), backend=None, **names)


def test_a_node_that_differs_is_refused_in_one_line(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = work.problem_of_node
    here = backend_of("auto")
    assert problem(dataclasses.replace(task, backend=("auto", here))) is None
    other = {"gl": "warp", "warp": "gl"}[here]
    assert "render.backend" in problem(dataclasses.replace(task, backend=("auto", other)))
    assert "must be shared, at the same path" in problem(dataclasses.replace(task, root="/nowhere"))
    assert "another folder is at" in problem(dataclasses.replace(task, token=("token", "two")))
    versions = {**task.expected, "torch": "0.1"}
    assert f"it has torch {task.expected['torch']}, the others have 0.1" == problem(
        dataclasses.replace(task, expected=versions)
    )
    monkeypatch.setitem(sys.modules, "experiments.sweeps.nodes", None)
    assert "cannot load the project" in problem(task)


def test_why_a_program_failed_is_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("error: an older one\n")
    start = log.stat().st_size
    assert work.reason(2, log, start) == "exit code 2"
    log.write_text(log.read_text() + "step 1\nerror: disk full\n\n")
    assert work.reason(2, log, start) == "error: disk full"
    assert work.reason(-9, log, start) == "killed by SIGKILL"


def test_a_program_on_a_leash_dies_with_its_parent(tmp_path: Path) -> None:
    """Otherwise a lost worker's training would go on beside the one that takes its place."""
    lines = "import subprocess, sys, os, time\n"
    lines += "c = subprocess.Popen([sys.executable, '-m', 'experiments.sweeps.leash', str(os.getpid()), 'timeit', "
    lines += "'-n1', '-r1', 'import time; time.sleep(300)'])\nprint(c.pid, flush=True)\ntime.sleep(300)"
    parent = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    child = int(parent.stdout.readline())
    time.sleep(2)
    os.kill(child, 0)  # is there
    parent.kill()
    parent.wait()
    assert until(lambda: not alive(child), 30)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true: Callable[[], object], seconds: float) -> bool:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def test_a_run_folder_says_whether_a_training_is_at_work(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path, "sweep"):
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match="another sweep is at work"), locked(tmp_path, "sweep"):
            pass
    assert not is_locked(tmp_path)


# -- whole sweeps ----------------------------------------------------------------------------------------------------

TINY_OPTIONS = dict(zip((name[2:] for name in TINY[::2]), TINY[1::2], strict=True))


def tiny_plan(folder: Path, seeds: int) -> Plan:
    """Tiny runs on keypoints and on the state, evaluated on two episodes."""
    options = ", ".join(f"{name}: {json.dumps(value)}" for name, value in TINY_OPTIONS.items())
    text = "name: tiny\nenvironments: [reach-multiview]\nencoders: [state, keypoint3d]\n"
    text += f"seeds: {seeds}\nevaluation_episodes: 2\noptions: {{{options}}}\n"
    with contextlib.chdir(folder):
        return read_plan(written(folder, text))


@contextlib.contextmanager
def sweeping(folder: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """A sweep in a process of its own, which is over when the block is."""
    command = [sys.executable, "-m", "experiments.sweep", "--plan", "plan.yaml", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.is_file() else []


def kill_each_once(folder: Path, plan: Plan, process: subprocess.Popen) -> dict[str, int]:
    """Kill the worker or, every other time, the training of every run once when it has a checkpoint.

    :return: how many were killed, by run.
    """
    killed: dict[str, int] = {}
    end = time.monotonic() + SECONDS * (1 + 5 * ALL)
    while process.poll() is None and time.monotonic() < end:
        for run in plan.runs():
            place = state.place_file(folder / plan.folder, run)
            if run.label in killed or not any((folder / run.folder).glob("checkpoints/[0-9]*/state.json")):
                continue
            with contextlib.suppress(OSError, ValueError, IndexError):
                worker = json.loads(place.read_text())["pid"]
                victim = worker if len(killed) % 2 else children(worker)[0]
                os.kill(victim, signal.SIGKILL)
                killed[run.label] = victim
        time.sleep(0.05)
    return killed


def require_all_made_as_alone(folder: Path, plan: Plan, tmp_path: Path) -> None:
    """Every run is there once and is, bit for bit, what it is when it is trained alone."""
    alone = tmp_path / "alone"
    alone.mkdir()
    names = {run.folder.name for run in plan.runs()}
    assert {path.name for path in (folder / "runs" / "reach-multiview").iterdir()} == names
    for run in plan.runs():
        with contextlib.chdir(folder):
            assert is_made(run)
        run_in(alone, train.main, run.arguments)
        differ = differing_ends(folder / run.folder, alone / run.folder)
        # One that ray asked to end before the leash did stops in good order: with one more checkpoint on its way.
        assert [what for what in differ if "is there in one of them alone" not in what] == []
        assert latest_step(folder / run.folder / "checkpoints") == latest_step(alone / run.folder / "checkpoints")


def test_whatever_is_killed_each_run_is_made_once_and_as_alone(tmp_path: Path) -> None:
    folder = tmp_path / "swept"
    folder.mkdir()
    plan = tiny_plan(folder, 12 if ALL else 1)
    with sweeping(folder) as process:
        killed = kill_each_once(folder, plan, process)
        assert process.wait(SECONDS) == 0, (folder / "said.txt").read_text()
    said = (folder / "said.txt").read_text()
    assert len(killed) == len(plan.runs())
    assert said.count("its worker was killed") + said.count("killed by SIGKILL") >= len(killed)
    assert f"all {len(killed)} runs are done" in said
    require_all_made_as_alone(folder, plan, tmp_path)
    done = subprocess.run([sys.executable, "-m", "experiments.sweep", "--plan", "plan.yaml"], cwd=folder, check=True,
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert f"{len(killed)} runs, {len(killed)} done before" in done.stdout


def test_a_lost_node_loses_no_run(tmp_path: Path) -> None:
    """Two local ray nodes of one core each, of which one is killed half-way: of the runs, or of the only two."""
    from ray.cluster_utils import Cluster as LocalCluster

    folder = tmp_path / "swept"
    folder.mkdir()
    plan = tiny_plan(folder, 12 if ALL else 1)
    cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        with sweeping(folder, "--address", cluster.address) as process:
            runs = len(plan.runs())

            def half_way() -> bool:
                with contextlib.chdir(folder):
                    if ALL:
                        return sum(entry["status"] == "done" for entry in state_of(plan)) >= runs // 2
                    return any(is_at_work(run, second.node_id) for run in plan.runs())

            assert until(lambda: half_way() or process.poll() is not None, SECONDS * (1 + 3 * ALL))
            cluster.remove_node(second, allow_graceful=False)
            assert process.wait(SECONDS * (1 + 3 * ALL)) == 0, (folder / "said.txt").read_text()
    finally:
        cluster.shutdown()
    assert re.search("again .*its (node was lost|worker was killed)", (folder / "said.txt").read_text())
    require_all_made_as_alone(folder, plan, tmp_path)


def is_at_work(run: PlannedRun, node: str) -> bool:
    """Whether a run that has a checkpoint is at work on a node."""
    with contextlib.suppress(OSError, ValueError):
        place = json.loads(state.place_file(run.plan.folder, run).read_text())
        return place["node"] == node and any(run.folder.glob("checkpoints/[0-9]*/state.json"))
    return False


def state_of(plan: Plan) -> list[dict]:
    path = plan.folder / "sweep.json"
    return json.loads(path.read_text())["runs"] if path.is_file() else []


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        run = tiny_plan(tmp_path, 1).runs()[0]
        assert not has_begun(run)
        train.main(run.arguments)
        assert has_begun(run)
        for path in (run.folder / "checkpoints").iterdir():
            path.rename(path.with_name(f".{path.name}.gone"))
        assert not has_begun(run) and not run.folder.exists()


def test_an_evaluation_on_the_way_is_not_the_one_at_the_end(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        run = tiny_plan(tmp_path, 1).runs()[0]
        for step in (64, 160):
            (run.folder / "checkpoints" / f"{step:09d}").mkdir(parents=True)
            (run.folder / "checkpoints" / f"{step:09d}" / "state.json").write_text("{}")
        summary = {"as trained": {"summary": {"success_at_end": {"k": 1, "n": 2}}}}
        for at, outliers, good in ((64, 0.0, False), (160, 4.0, False), (160, 0.0, True)):
            found = {"checkpoint": at, "seed": 0, "reject_outliers": outliers, "results": summary}
            (run.folder / "eval.json").write_text(json.dumps(found))
            assert is_evaluated(run) == good


def test_listing_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_plan(tmp_path, 1)
    assert run_in(tmp_path, sweep.main, ["--plan", "plan.yaml", "--list"]) is None
    assert "waiting  reach-multiview/tiny-state-ppo-seed0" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    tiny_plan(tmp_path, 1)
    with sweeping(tmp_path, "--address", "127.0.0.1:1") as process:
        assert process.wait(120) == 2
    last = (tmp_path / "said.txt").read_text().strip().splitlines()[-1]
    assert last.startswith("error: no ray cluster at '127.0.0.1:1' can be used") and "ray start --head" in last
