"""The harness that damages, kills and watches: it finds what it looks for, and a little of it runs here."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors

from envs.errors import UserError
from experiments import resume, train
from experiments.pages import TABLES
from experiments.records import record
from experiments.runs import Checkpoints, Run
from experiments.soak import damage as soak_damage
from experiments.soak import kills, recorder
from experiments.soak.__main__ import SECTIONS, SoakConfig, has_failed, main
from experiments.soak.damage import Report, damage
from experiments.soak.endurance import RESOURCES, descendants, growth, sample, warm
from experiments.soak.judge import wrong
from experiments.soak.kills import differences, differing_states
from experiments.soak.kinds import change_kind
from experiments.soak.mutators import STRUCTURED, change_tree
from experiments.soak.patient import Patient
from experiments.soak.states import change_state
from experiments.soak.watch import quiet
from kp3d_rl.storage.trees import pack, unpack
from tests.experiments.conftest import TINY, run_in
from tests.tasks import ALL


def test_damaged_runs_are_refused_in_one_line_or_loaded_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = 200 if ALL else 60  # `make soak` damages ten thousand
    if not ALL:
        monkeypatch.setattr(soak_damage, "TRAININGS", ("ppo", "sac"))
    report = damage(tmp_path / "runs", files, seed=1)
    assert report.failures == [] and sum(report.counts.values()) == files
    assert report.counts["refused"] > 0.4 * files and report.counts["as the file says"] > 0.15 * files
    assert report.after["trained on"] > 0


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    with quiet():
        found = Patient(tmp_path_factory.mktemp("patient"), "ppo")
    yield found
    found.close()


def planted_open(fault: str) -> object:
    true_open = Run.open

    def opened(name: str, *args, **kwargs) -> Run:
        if fault == "traceback":
            raise ValueError("a bug")
        if fault == "lines":
            raise UserError("two\nlines")
        if fault == "code":
            exec("pass")
        if fault == "outside":
            Path("/etc/hostname").open().close()
        if fault == "written":
            (Path(name) / "link" / "file").write_text("changed by way of a link")
        if fault == "hang":
            time.sleep(30)
        if fault == "memory":
            raise MemoryError("cannot allocate 80 TB")
        return true_open(name, *args, **kwargs)

    return opened


@pytest.mark.parametrize(
    ("fault", "message"),
    [("traceback", "ValueError: a bug"), ("lines", "more than a line"), ("code", "caused exec"),
     ("outside", "caused open ('/etc/hostname'"), ("written", "something outside was written"),
     ("hang", "Hangs: no end after 1 seconds"), ("memory", "MemoryError: cannot allocate")],
)  # fmt: skip
def test_planted_faults_are_found(patient: Patient, monkeypatch: pytest.MonkeyPatch, fault: str, message: str) -> None:
    monkeypatch.setattr(Run, "open", planted_open(fault))
    if fault == "hang":
        monkeypatch.setattr(soak_damage, "PATIENCE", 1.0)
    (patient.path / "link").symlink_to(patient.outside)
    report = soak_damage.one(patient, "0")
    assert any(message in failure for failure in report.failures), report.failures
    assert not (patient.path / "link").is_symlink() and patient.outside_is_untouched()


def plant_ends() -> None:
    """In a process that damages: one file ends it, one has it hang beyond Python's reach, one asks for all memory."""
    true_one = soak_damage.one

    def one(patient: Patient, seed: str, tell: Callable[[str], None]) -> Report:
        number = int(seed.split()[-1])
        tell(f"fault {number}")
        if number == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif number == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(60)
        elif number == 2:
            bytearray(soak_damage.MEMORY + (1 << 30))
        return true_one(patient, seed, tell)

    soak_damage.one = one


def test_processes_that_die_or_hang_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_damage, "TRAININGS", ("ppo",))
    monkeypatch.setattr(soak_damage, "PATIENCE", 4.0)
    report = damage(tmp_path, 3, seed=5, plant=plant_ends)
    died, hung, left = report.failures
    assert report.counts == {"died": 3}
    assert "ppo, seed 5, file 0: fault 0: process died of SIGSEGV" in died and "Segmentation fault" in died
    assert "file 1: fault 1: process hangs after" in hung
    assert "file 2: fault 2: process left with exit code 1" in left and "MemoryError" in left


@pytest.mark.parametrize(
    ("name", "message"),
    [("policy.safetensors", "accepted although the checksum of policy.safetensors does not fit"),
     ("segments", "accepted although the checksum of ../../segments/")],
)  # fmt: skip
def test_a_load_that_ignores_checksums_is_found(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    def read(path: Path, sums: object, limit: int = 0, name: str | None = None) -> bytes:
        return path.read_bytes()

    monkeypatch.setattr("experiments.runs.checkpoints.read_checked", read)
    monkeypatch.setattr("experiments.runs.segments.read_checked", read)
    target = next(n for n in patient.targets if name in n.parts and f"{patient.newest:09d}" in str(n))
    monkeypatch.setattr(patient, "draw_target", lambda draw: target)
    monkeypatch.setattr(soak_damage, "mutate", lambda data, draw: data[:-4] + b"\0\0\1\1")
    found = [failure for n in range(8) for failure in soak_damage.one(patient, f"{n}").failures]
    assert any(message in failure for failure in found), found


@pytest.mark.parametrize(
    ("part", "message"),
    [("policy", "a model with weights"), ("moments", "moments of the optimisers"), ("groups", "groups of the"),
     ("generators", "the array 'random.numpy.key'"), ("counters", "'training' is not what the file says"),
     ("callbacks", "'parts' is not"), ("physics", ".physics' is not what the file says"),
     ("frames", "frames 'images' of frames-"), ("step", "a model at another step"),
     ("encoder", "options of the encoder")],
)  # fmt: skip
def test_a_load_of_what_no_file_says_is_found(patient: Patient, part: str, message: str) -> None:
    patient.mend()
    patient.built_for = None  # the model of the one before was tampered with
    with quiet():
        loaded = patient.load()
    assert wrong(loaded, changed=False) is None
    optimizer, states = loaded.model.policy.optimizer, loaded.states
    with torch.no_grad():
        if part == "policy":
            next(loaded.model.policy.parameters()).add_(1e-3)
        if part == "moments":
            next(iter(optimizer.state.values()))["exp_avg"].add_(1e-3)
    if part == "groups":
        optimizer.param_groups[0]["betas"] = (0.9, 0.9991)
    if part == "generators":
        states["random"]["numpy"]["key"][5] += 1
    if part == "counters":
        states["training"]["counters"]["updates"] += 1
    if part == "callbacks":
        states["parts"]["rows"]["iterations"] += 1
    if part == "physics":
        _, arrays = pack(states)  # which makes new ones
        name = next(name for name in arrays if name.endswith(".physics"))
        tree = states
        for step in name.split(".")[:-1]:
            tree = tree[int(step) if isinstance(tree, list) else step]
        tree["physics"] = tree["physics"] + 1e-6
    if part == "frames":
        frames = next(stream for stream in loaded.streams if stream.name == "frames")
        frames.rings["images"][3] += 1
    if part == "step":
        loaded.model.num_timesteps += 1
    if part == "encoder":  # in the file, after it was read
        path = patient.path / "checkpoints" / f"{patient.newest:09d}" / "state.json"
        head = json.loads(path.read_text())
        head["encoder"]["heat_scale"] += 1.0
        path.write_text(json.dumps(head))
        patient.sign()
    found = wrong(loaded, changed=False) or ""
    patient.built_for = None
    patient.mend()
    assert message in found


def test_what_files_say_is_changed_so_that_they_can_still_be_read() -> None:
    tree = {"a": 1, "b": [1.5, {"c": "text", "d": None}], "e": {"f": True}}
    tensors = to_safetensors({"x": torch.arange(6.0).reshape(2, 3), "y": torch.tensor(3), "z": torch.zeros(0, 2)})
    files = {".json": json.dumps(tree).encode(), ".yaml": yaml.safe_dump(tree).encode(), ".safetensors": tensors}
    readers = {".json": json.loads, ".yaml": yaml.safe_load, ".safetensors": parse_safetensors}
    for suffix, data in files.items():
        made = [STRUCTURED[suffix](data, random.Random(seed)) for seed in range(200)]
        assert made[:20] == [STRUCTURED[suffix](data, random.Random(seed)) for seed in range(20)]
        assert sum(can_read(readers[suffix], other) for other in made) > 150
        assert len(set(made)) > 80 and sum(other == data for other in made) < 40
        for broken in (b"", b"\xff{", b"[1, 2", b"3"):
            STRUCTURED[suffix](broken, random.Random(0))
    made = [STRUCTURED[".json"](files[".json"], random.Random(seed)) for seed in range(200)]
    assert any(other.count(b'"a": ') == 2 for other in made) and any(b"[" * 2000 in other for other in made)


def can_read(reader: Callable[[bytes], object], data: bytes) -> bool:
    try:
        reader(data)
    except Exception:
        return False
    return True


def test_every_place_of_a_tree_is_changed_at_times() -> None:
    found = set()
    for seed in range(300):
        tree = {"a": [1, 2, {"b": "c"}], "d": 5}
        change_tree(tree, random.Random(seed))
        found |= {name for name, value in {"a": [1, 2, {"b": "c"}], "d": 5}.items() if tree.get(name) != value}
        found |= {"long"} if len(str(tree)) > 10_000 else set()
    assert found == {"a", "d", "long"}


def test_states_are_changed_in_both_files_so_that_they_fit_each_other(patient: Patient) -> None:
    patient.mend()
    folder, said, more, less = patient.path / "checkpoints" / f"{patient.newest:09d}", [], 0, 0
    whole = parse_safetensors((folder / "training.safetensors").read_bytes())
    for seed in [*range(150), *range(20)]:
        said.append(change_state(folder, random.Random(seed)))
        plain = json.loads((folder / "state.json").read_bytes())["state"]
        arrays = parse_safetensors((folder / "training.safetensors").read_bytes())
        if "\ud800" not in str(plain):  # a name that only one of the files can spell
            assert pack(unpack(plain, arrays))[1].keys() == arrays.keys()
        more, less = more + bool(arrays.keys() - whole.keys()), less + bool(whole.keys() - arrays.keys())
        patient.mend()
    assert said[:20] == said[150:] and more > 10 and less > 10
    for what in ("another value", "another array", "another content", "an entry more", "an entry less"):
        assert any(what in one for one in said), what


def test_a_run_is_mended_whatever_has_become_of_it(patient: Patient) -> None:
    patient.mend()
    before = {path: path.read_bytes() for path in sorted(patient.path.rglob("*")) if path.is_file()}
    said = set()
    for seed in range(150):
        said.add(change_kind(patient.path, patient.outside, random.Random(seed), patient.newest, patient.coming))
        patient.sign()
        patient.mend()
        now = sorted(path for path in patient.path.rglob("*") if path.is_symlink() or not path.is_dir())
        assert now == sorted(before) and all(path.read_bytes() == data for path, data in before.items())
        assert patient.outside_is_untouched()
    assert len(said) > 120
    for kind in ("a folder", "a pipe", "a link to itself", "a link to a file outside", "gone", "an empty file"):
        assert any(what.endswith(kind) for what in said), kind


LONGER = [*TINY, "--total-steps", "224", "--log.checkpoint-every", "32", "--log.checkpoints-kept", "0"]


def trained(folder: Path, name: str) -> Path:
    with recorder.recording():
        run_in(folder, train.main, ["--run", name, *LONGER])
    return folder / "runs" / "reach-multiview" / name


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to its end, with its record."""
    return trained(tmp_path_factory.mktemp("recorded"), "alone")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but it stopped at once when the checkpoint of step 96 was there."""

    def prune(checkpoints: Checkpoints, *_: object) -> None:
        if checkpoints.latest() == 96:
            raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "prune", prune)
        trained(folder, "interrupted")
    return folder / "runs" / "reach-multiview" / "interrupted"


def copied(run: Path, folder: Path) -> Path:
    """A run with its record, none of whose files is the original's."""
    shutil.copytree(recorder.record_of(run), recorder.record_of(folder / run.name))
    return Path(shutil.copytree(run, folder / run.name))


def change(path: Path, how: Callable[[bytes], bytes]) -> None:
    before = path.read_bytes()
    path.write_bytes(how(before))
    assert path.read_bytes() != before


def test_records_are_of_checkpoints_as_they_were_written(recorded: Path, interrupted: Path, tmp_path: Path) -> None:
    assert [path.name for path in recorder.records(recorded)] == [f"{step:09d}.0" for step in (0, 32, 96, 160, 224)]
    states = [json.loads((path / "state.json").read_text()) for path in recorder.records(recorded)]
    assert [state["state"]["finished"] for state in states] == [False, False, False, False, True]
    assert all(state["state"]["random"] and state["segments"] for state in states[1:4])
    assert differences(recorded, recorded) == []
    (tmp_path / "half-record" / ".000000032.1.partial").mkdir(parents=True)
    assert recorder.records(tmp_path / "half") == []
    run = copied(interrupted, tmp_path)
    with recorder.recording():  # goes back to a step that is recorded already
        assert resume.main(["--run", str(run), "--checkpoint", "32"]) == 0
    names = [path.name for path in recorder.records(run)]
    assert names == [f"{step:09d}.{number}" for step, number in [(0, 0), (32, 0), (96, 0), (96, 1), (160, 0), (224, 0)]]
    assert differences(run, recorded) == []
    with pytest.raises(UserError, match="unknown program 'trane'"):
        recorder.main(["trane"])


@pytest.mark.parametrize(
    ("part", "message"),
    [("weights", "record 000000096.0: policy.safetensors (log_std)"),
     ("arrays", "record 000000096.0: training.safetensors (training.observation.proprio)"),
     ("state", "record 000000096.0: state.json (state.parts.rows.iterations)"),
     ("frames", "record 000000096.0: state.json (segments.0.sha256)"), ("record", "record 000000097.0 has none to be"),
     ("no record", "no checkpoint of alone was recorded"), ("point", "TensorBoard: evaluation/return at step 224"),
     ("checkpoint", "checkpoint 000000032 is there in one of them alone"),
     ("last weights", "checkpoint 000000224: policy.safetensors (log_std)"), ("rows", "metrics.csv")],
)  # fmt: skip
def test_differences_between_runs_are_found(recorded: Path, tmp_path: Path, part: str, message: str) -> None:
    run = copied(recorded, tmp_path)
    record, end = recorder.record_of(run) / "000000096.0", run / "checkpoints" / "000000224"
    head = json.loads((record / "state.json").read_text())
    if part in ("weights", "last weights"):
        change((end if "last" in part else record) / "policy.safetensors", plus_one("log_std"))
    if part == "arrays":
        change(record / "training.safetensors", plus_one("training.observation.proprio"))
    if part == "state":
        head["state"]["parts"]["rows"]["iterations"] += 1
    if part == "frames":
        head["segments"][0]["sha256"] = "0" * 64
    (record / "state.json").write_text(json.dumps(head))
    if part == "record":
        record.rename(record.with_name("000000097.0"))
    if part == "no record":
        shutil.rmtree(recorder.record_of(run))
    if part == "point":
        (events,) = (run / "tensorboard").iterdir()
        change(events, lambda data: without_last(data, b"evaluation/return"))
    if part == "checkpoint":
        shutil.rmtree(run / "checkpoints" / "000000032")
    if part == "rows":
        change(run / "metrics.csv", lambda data: data.replace(b"160", b"161"))
    (found,) = differences(run, recorded)
    assert message in found


def plus_one(name: str) -> Callable[[bytes], bytes]:
    def how(data: bytes) -> bytes:
        tensors = parse_safetensors(data)
        return to_safetensors(tensors | {name: tensors[name] + 1})

    return how


def without_last(data: bytes, name: bytes) -> bytes:
    """An event file without the last event that has a name in it."""
    events, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little") + 16  # with length and two checksums
        events.append(data[at : at + size])
        at += size
    last = max(number for number, event in enumerate(events) if name in event)
    return b"".join(events[:last] + events[last + 1 :])


@pytest.mark.parametrize(
    ("lost", "message"),
    [(None, ""), ("experiments.training.checkpointing.load_random_state", "random.torch"),
     ("experiments.training.recording.Rows.load_state", "state.parts.rows.iterations"),
     ("torch.optim.Adam.load_state_dict", "optimizer.safetensors ("),
     ("agents.vec_env.NormalizeReward.load_state", "training.environments.rewards.")],
)  # fmt: skip
def test_what_a_training_forgets_is_found(
    recorded: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str | None, message: str
) -> None:
    monkeypatch.setattr(kills, "MOST", 1000)
    run = copied(interrupted, tmp_path)
    if lost is not None:
        monkeypatch.setattr(lost, lambda *_: None)
    with recorder.recording():
        assert resume.main(["--run", str(run)]) == 0
    found = differing_states(run, recorded)
    assert any(message in difference for difference in found) if lost else found == [], found
    assert all(difference.startswith(("record 000000160.0: ", "record 000000224.0: ")) for difference in found)


FAKE = """
import pathlib, sys, time
program, _, name, *_ = sys.argv[1:]
run = pathlib.Path("runs/reach-multiview") / pathlib.Path(name).name
if program == "train":
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "checkpoints" / "latest").touch()
    time.sleep(600)
with open(run / "resumes", "a+") as file:
    number = file.tell()
    file.write("r")
if number == 0:  # as if it imported
    time.sleep(600)
pathlib.Path(f"{run}-record/000000128.{number}").mkdir(parents=True)
print("the run goes on at step 64 of 128", flush=True)
time.sleep(600 if number < 3 else 0)
"""


def test_a_resume_counts_when_it_has_gone_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one is killed in its imports, two when they have gone on, and one comes to its end."""
    (tmp_path / "fake.py").write_text(FAKE)
    moments = iter([(True, 0.0), (False, 2.0), (True, 0.1), (True, 0.1)])
    monkeypatch.setattr(kills, "PROGRAM", (sys.executable, "-S", str(tmp_path / "fake.py")))
    monkeypatch.setattr(kills, "moment", lambda draw, alone: next(moments))
    outcome = kills.kill_again_and_again(tmp_path, "fake", kills.Alone(tmp_path, (), 1.0, 0.5), 4, 0)
    assert (outcome.kills, outcome.resumes, outcome.states, outcome.lost) == (4, 3, 3, 0)
    assert [run.name for run in outcome.finished] == ["fake-0"]


def test_most_kills_come_when_a_process_trains() -> None:
    alone = kills.Alone(Path("alone"), (), 10.0, 6.0)
    draws = [[kills.moment(draw, alone) for _ in range(1000)] for draw in (random.Random(1), random.Random(1))]
    assert draws[0] == draws[1]
    for at_work, least, longest in ((True, 750, 4.0), (False, 150, 10.0)):
        seconds = [after for trains, after in draws[0] if trains == at_work]
        assert len(seconds) > least and 0.98 * longest < max(seconds) < longest and min(seconds) < 0.1


def test_growth_is_told_from_noise() -> None:
    steady = [dict.fromkeys(RESOURCES, 100.0 + (i % 3) * 0.2) | {"minute": 10.0 + i, "steps": 5} for i in range(60)]
    leaking = [row | {"open_files": 20 + i} for i, row in enumerate(steady)]
    assert not any(has_failed(row) for row in growth(steady, 60.0))
    found = {row["what"]: row for row in growth(leaking, 60.0)}
    assert has_failed(found["open_files"]) and not has_failed(found["threads"])
    assert found["open_files"]["first"] == 24.5 and found["open_files"]["last"] == 74.5
    assert found["threads"]["warmup"] == 10.0 and found["threads"]["steps"] == 5


def test_a_warm_up_takes_time_and_steps() -> None:
    samples = [{"minute": float(i), "steps": 100 * i} for i in range(10)]
    assert warm(samples, 3.0, 0) == samples[3:] and warm(samples, 3.0, 550) == samples[6:]
    with pytest.raises(RuntimeError, match="900 steps in 9 minutes: still warming up"):
        warm(samples, 3.0, 1000)


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
    killed = {"what": "ppo", "kills": 3, "in_a_write": 1, "resumes": 3, "states": 9, "lost": 0, "runs": 2,
              "identical": 2, "differences": {}}  # fmt: skip
    monkeypatch.setitem(SECTIONS, "kills", lambda config: [killed])
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("<!-- table soak kills -->\n<!-- end -->\n")
    assert run_in(tmp_path, main, ["--only", "kills", "--seed", "4"]) == 0
    (row,) = json.loads((tmp_path / "docs" / "soak.json").read_text())["runs"]
    assert row["command"] == 'make soak ARGS="--only kills --seed 4"' and row["seed"] == 4 and row["commit"]
    assert "| PPO | 3 | 1 | 3 | 9 | 0 | 2 | 2 |" in (tmp_path / "docs" / "page.md").read_text()
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
