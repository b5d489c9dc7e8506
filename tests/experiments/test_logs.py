"""What is logged, and that it goes on after a kill at any moment as if there had been none."""

from __future__ import annotations

import contextlib
import copy
import csv
import glob
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.logger import CSVOutputFormat, Figure, FormatUnsupportedError, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer import event_file_writer

from envs.errors import UserError
from experiments.logs import RunLogger, complete_record, metrics_logger, weights_and_biases
from experiments.logs.metrics import MetricsFile
from experiments.logs.tensorboard_events import EventFiles
from experiments.logs.values import STEP
from experiments.logs.weights_and_biases import Sent, WandbOutputFormat, find_sent
from experiments.options.config import LogConfig, TrainConfig
from experiments.runs import Run
from kp3d_rl.storage.trees import pack, unpack

ROOT = Path(__file__).parents[2]
OFF = LogConfig(wandb="off")


def a_run(path: Path) -> Run:
    path.mkdir(parents=True, exist_ok=True)
    return Run(path, TrainConfig())


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names end in a count; of files of the same second and process "10" would come before "9"."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10**6))


def log_rollout(logger: Logger, number: int) -> None:
    """A row of numbers as training writes them, with columns that come later; then values that wait for the next."""
    logger.record("rollout/return", number / 3)
    logger.record("rollout/exact", np.float32(number / 3))
    logger.record("note", f'"{number}", said\nin two lines')
    if number >= 3:
        logger.record("evaluation/success", np.float64(0.1 * number))
        logger.record("alpha", number)
    if number >= 5:
        logger.record("beta", number % 2 == 0)
        logger.record("hidden", 1, exclude="csv")
    logger.record(STEP, 10 * number, exclude="tensorboard")
    logger.dump(10 * number)
    logger.record("train/loss", np.float32(number) / np.float32(7))
    for part in range(3):
        logger.record_mean("train/mean", np.float32(number + part) / np.float32(3))


def through_a_file(state: Any) -> Any:
    """The state as a checkpoint gives it back."""
    plain, arrays = pack(state)
    text = json.dumps(plain, allow_nan=False)
    return unpack(json.loads(text), {name: array.clone() for name, array in arrays.items()})


def killed_and_continued(folder: Path, checkpoint: int, kill: int, end: int, torn: str = "") -> Run:
    """A run that is killed after a rollout, and goes on in a copy of what was on the disk then."""
    before, after = a_run(folder / "before"), folder / "after"
    with metrics_logger(before, OFF) as logger:
        for number in range(1, kill + 1):
            log_rollout(logger, number)
            if number == checkpoint:
                state = through_a_file(logger.state())
        shutil.copytree(before.path, after)
    with open(after / "metrics.csv", "a") as file:
        file.write(torn)
    with metrics_logger(a_run(after), OFF, state) as logger:
        for number in range(checkpoint + 1, end + 1):
            log_rollout(logger, number)
    return a_run(after)


def uninterrupted(path: Path, end: int) -> Run:
    run = a_run(path)
    with metrics_logger(run, OFF) as logger:
        for number in range(1, end + 1):
            log_rollout(logger, number)
    return run


def rows_of(run: Run) -> list[dict[str, str]]:
    with open(run.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def raw_events(run: Run) -> list[Event]:
    """All events of all files, read without TensorBoard's readers: length, checksum, data, checksum."""
    events = []
    for path in sorted((run.path / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            assert at + 16 + size <= len(data), "half an event"
            events.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return events


def points(run: Run) -> list[tuple[str, int, float]]:
    return sorted(
        (value.tag, event.step, value.tensor.float_val[0] if value.tensor.float_val else value.simple_value)
        for event in raw_events(run)
        for value in event.summary.value
    )


def shown(accumulator: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in tags}


def accumulator(run: Run) -> EventAccumulator:
    return EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})


# -- all logs together -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", ["", "9.5,0.25", '0.1,"in two\n', "\n"])
@pytest.mark.parametrize(("checkpoint", "kill"), [(2, 2), (2, 4), (2, 6), (4, 5), (6, 7)])
def test_a_kill_leaves_no_trace_in_the_logs(tmp_path: Path, checkpoint: int, kill: int, torn: str) -> None:
    whole = uninterrupted(tmp_path / "whole", 8)
    continued = killed_and_continued(tmp_path, checkpoint, kill, 8, torn)
    assert (continued.path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()
    rows = rows_of(continued)
    assert rows == rows_of(whole) and [int(row[STEP]) for row in rows] == list(range(10, 90, 10))
    assert points(continued) == points(whole)
    assert shown(accumulator(continued)) == shown(accumulator(whole))


def test_a_kill_before_the_first_row_and_a_kill_after_a_kill(tmp_path: Path) -> None:
    run, whole = a_run(tmp_path / "run"), uninterrupted(tmp_path / "whole", 6)
    with metrics_logger(run, OFF) as logger:
        states = [through_a_file(logger.state())]
        log_rollout(logger, 1)
    for first, last in ((1, 4), (3, 5), (3, 6)):
        with metrics_logger(run, OFF, states[-1]) as logger:
            for number in range(first, last + 1):
                log_rollout(logger, number)
                if number == 2:
                    states.append(through_a_file(logger.state()))
    assert (run.path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()
    assert points(run) == points(whole)


def test_a_training_that_starts_anew_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    run = uninterrupted(tmp_path / "run", 5)
    (run.path / "tensorboard" / "notes.txt").write_text("mine")
    once = uninterrupted(run.path, 2)
    whole = uninterrupted(tmp_path / "whole", 2)
    assert (once.path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()
    assert (run.path / "tensorboard" / "notes.txt").read_text() == "mine"
    (run.path / "tensorboard" / "notes.txt").unlink()
    assert points(once) == points(whole)


def test_values_that_wait_keep_their_types_and_means_go_on(tmp_path: Path) -> None:
    values = {"int": 3, "float": 0.1, "text": "some", "bool": True, "nothing": None}
    values |= {"single": np.float32(0.1), "double": np.float64(0.1), "half": np.float16(0.1)}
    values |= {"whole": np.int64(7), "truth": np.bool_(True)}
    with metrics_logger(a_run(tmp_path / "a"), OFF) as logger:
        for name, value in values.items():
            logger.record(name, value, exclude=("csv", "tensorboard") if name == "int" else None)
        logger.record_mean("mean", np.float32(0.1))
        logger.record_mean("mean", np.float32(0.7))
        logger.record("figure", Figure(None, close=False), exclude="csv")
        state = through_a_file(logger.state())
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        with metrics_logger(a_run(tmp_path / "b"), OFF, state) as continued:
            for name, value in values.items():
                assert type(continued.name_to_value[name]) is type(value), name
                assert continued.name_to_value[name] == value, name
            assert continued.name_to_excluded["int"] == ("csv", "tensorboard")
            assert "figure" not in continued.name_to_value
            for one in (logger, continued):
                one.record_mean("mean", np.float32(0.4))
            first, second = (one.name_to_value["mean"] for one in (logger, continued))
            assert (
                type(first) is type(second)
                and first.tobytes() == second.tobytes()
                and logger.name_to_count["mean"] == 3
            )
            del logger.name_to_value["figure"], logger.name_to_excluded["figure"]
            logger.dump(5)
            continued.dump(5)
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


def test_a_state_is_plain_values_of_its_own(tmp_path: Path) -> None:
    with metrics_logger(a_run(tmp_path), OFF) as logger:
        log_rollout(logger, 1)
        state = logger.state()
        before = copy.deepcopy(state)
        log_rollout(logger, 2)
        log_rollout(logger, 3)
        assert state == before
    assert state["metrics"]["rows"] == 1 and state["tensorboard"]["step"] == 10 and state["wandb"] is None


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Places of a tree: container and key."""
    for key, value in list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from nodes(value)


STRANGE = [None, True, -1, 0, 1, 5, 10**40, 1.5, float("nan"), "", "a", "../x", "a\nb", "\ud800", [], ["a"], ["a", "a"],
           {}, {"a": 1}, {"a": "b"}, {1: 2}, np.zeros(()), np.zeros(3), np.array("x"), np.array(None), b"x", (1,),
           object()]  # fmt: skip


def mutate(state: Any, chance: random.Random) -> None:
    container, key = chance.choice(list(nodes(state)))
    kind = chance.randrange(4)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[chance.choice(["a", "../x", "a\nb", "\ud800", "", "wandb", 3])] = container.pop(key)
    elif kind == 2 and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    else:
        container[key] = copy.deepcopy(chance.choice(STRANGE))


def test_a_damaged_state_is_refused_in_one_line_or_does_no_harm(tmp_path: Path) -> None:
    run, chance, refused = uninterrupted(tmp_path / "run", 1), random.Random(0), 0
    with metrics_logger(run, OFF) as logger:
        for number in range(1, 4):
            log_rollout(logger, number)
        state = logger.state()
    saved = (run.path / "metrics.csv").read_bytes()
    for _ in range(400):
        (run.path / "metrics.csv").write_bytes(saved)
        broken = copy.deepcopy(state)
        for _ in range(chance.randrange(1, 4)):
            mutate(broken, chance)
        try:
            with metrics_logger(run, OFF, broken) as logger:
                log_rollout(logger, 4)
        except UserError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 600
            refused += 1
    assert 200 < refused < 400
    for strange in STRANGE[1:]:
        with pytest.raises(UserError), metrics_logger(run, OFF, strange):
            pass


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("metrics.rows", -1), ("metrics.rows", True), ("metrics.rows", 1 << 62), ("metrics.columns", []),
        ("metrics.columns", ["a", "a"]), ("metrics.columns", ["\ud800"]), ("metrics.extra", 1),
        ("tensorboard.step", 1.0), ("tensorboard.step", 1 << 62), ("tensorboard.step", -1),
        ("tensorboard.files.events.out.tfevents.1.x", -1), ("tensorboard.files.events.out.tfevents.1.x", 1 << 70),
        ("wandb", "../x"), ("wandb", "*"), ("wandb", ""), ("wandb", 7), ("pending.values.train/loss", 1 << 63),
        ("pending.values.train/loss", [1]), ("pending.values.train/loss", np.zeros(2)),
        ("pending.values.train/loss", "\ud800"), ("pending.values.train/loss", np.array("text")),
        ("pending.values.other", 1.0), ("pending.counts.other", 1), ("pending.counts.train/mean", 0),
        ("pending.values.train/mean", "no number"), ("pending.excluded.train/mean", "csv"),
        ("pending.excluded.train/mean", [1]), ("pending.excluded", None),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused_and_nothing_touched(tmp_path: Path, place: str, value: Any) -> None:
    run = a_run(tmp_path)
    with metrics_logger(run, OFF) as logger:
        log_rollout(logger, 1)
        state = logger.state()
        log_rollout(logger, 2)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    tree, (*folders, last) = state, place.split(".", 2)
    for folder in folders:
        tree = tree[folder]
    tree[last] = value
    with pytest.raises(UserError, match="the checkpoint is damaged") as error, metrics_logger(run, OFF, state):
        pass
    assert len(str(error.value).splitlines()) == 1
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


# -- metrics.csv -------------------------------------------------------------------------------------------------------


def test_the_file_reads_as_the_one_that_stable_baselines_writes(tmp_path: Path) -> None:
    ours, theirs = MetricsFile(tmp_path / "metrics.csv"), CSVOutputFormat(str(tmp_path / "theirs.csv"))
    rows = [{"a": 1 / 3, "b": 2, "note": 'say "x, y"'}, {"a": 1e-7, "c": True}, {"d": np.float64(2 / 3), "b": None}]
    for row in rows:
        for output in (ours, theirs):
            output.write(row | {"hidden": 1}, {"hidden": ("csv",), "a": ("tensorboard",)}, 0)
    theirs.close()
    with open(tmp_path / "theirs.csv") as file:
        assert rows_of(a_run(tmp_path)) == list(csv.DictReader(file))


def test_numbers_read_back_exactly(tmp_path: Path) -> None:
    for number, row in enumerate(rows_of(uninterrupted(tmp_path, 6)), 1):
        assert float(row["rollout/return"]) == number / 3 and row["note"] == f'"{number}", said\nin two lines'
        assert float(row["rollout/exact"]) == float(np.float32(number / 3))  # exact, not only to 8 digits
        assert row["alpha"] == ("" if number < 3 else str(number))
        assert row["beta"] == ("" if number < 5 else str(number % 2 == 0)) and "hidden" not in row


def test_columns_stand_in_the_order_of_their_first_row(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for row in ({"b": 1, "a": 2}, {"d": 3, "c": 4}, {"a": 5}, {}):
        metrics.write(row, {})
    assert (tmp_path / "metrics.csv").read_text() == "a,b,c,d\n2,1,,\n,,4,3\n5,,,\n,,,\n"


@pytest.mark.parametrize("value", [0.1, 1e16, 5e-324, 1 / 3, float("inf"), 1e-5, 123456789.0, 2.0**70])
def test_equal_numbers_look_equal_whatever_their_type(tmp_path: Path, value: float) -> None:
    single, metrics = np.float32(value), MetricsFile(tmp_path / "metrics.csv")
    metrics.write({"a": value, "b": np.float64(value), "c": single, "d": float(single)}, {})
    (row,) = rows_of(a_run(tmp_path))
    assert row["a"] == row["b"] == str(value) and row["c"] == row["d"]
    assert float(row["a"]) == value and float(row["c"]) == float(single)


def test_names_and_values_with_marks_of_csv_in_them(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    names = {'a"b': 'c"', "d,e": "f,\n", "g\nh": np.arange(3), "ä": [1, 2], "12": "13"}
    metrics.write(names, {})
    continued = MetricsFile(tmp_path / "metrics.csv", metrics.state())
    continued.write(names | {"new": 1}, {})
    first, second = rows_of(a_run(tmp_path))
    assert first == {name: str(value) for name, value in names.items()} | {"new": ""}
    assert second == first | {"new": "1"}
    with pytest.raises(FormatUnsupportedError):
        metrics.write({"x": Figure(None, close=False)}, {})


def test_a_single_column_without_a_value_is_still_a_row(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for row in ({}, {"a": 1}, {}, {"a": 2}):
        metrics.write(row, {})
    assert [row["a"] for row in rows_of(a_run(tmp_path))] == ["1", "", "2"] and metrics.rows == 3
    MetricsFile(tmp_path / "metrics.csv", {"rows": 2, "columns": ["a"]}).write({"b": 3}, {})
    assert [row["b"] for row in rows_of(a_run(tmp_path))] == ["", "", "3"]


def test_a_kill_while_a_column_is_added_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, whole = a_run(tmp_path / "run"), uninterrupted(tmp_path / "whole", 8)

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt), metrics_logger(run, OFF) as logger:
        log_rollout(logger, 1)
        state = through_a_file(logger.state())
        log_rollout(logger, 2)
        before = (run.path / "metrics.csv").read_bytes()
        monkeypatch.setattr(os, "replace", kill)
        log_rollout(logger, 3)
    monkeypatch.undo()
    assert (run.path / "metrics.csv").read_bytes() == before and len(rows_of(run)) == 2
    with metrics_logger(run, OFF, state) as logger:
        for number in range(2, 9):
            log_rollout(logger, number)
    assert (run.path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()
    assert not list(run.path.glob(".*"))


@pytest.mark.parametrize("column", ["a", "b"])
def test_a_full_disk_is_an_error_and_leaves_whole_rows(tmp_path: Path, column: str) -> None:
    """The limit has the system write what fits, then refuse: as on a full disk."""
    with metrics_logger(a_run(tmp_path), OFF) as logger:
        logger.output_formats = logger.output_formats[:1]
        logger.record("a", "x" * 100)
        logger.dump(1)
        before = (tmp_path / "metrics.csv").read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
        try:
            logger.record(column, "y" * 100)
            with pytest.raises(OSError):
                logger.dump(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "metrics.csv").read_bytes() == before and not list(tmp_path.glob(".*"))
        logger.dump(2)  # the row is still there
    assert [row[column] for row in rows_of(a_run(tmp_path))][-1] == "y" * 100


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.write({"a": 1}, {})
    (tmp_path / "metrics.csv").unlink()
    with pytest.raises(FileNotFoundError):
        metrics.write({"a": 1}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "1 rows, at the checkpoint it had 2"),
        (b"a,b\n1,2\n3,4", "1 rows, at the checkpoint it had 2"),
        (b'a,b\n1,"2\n3,4\n', "0 rows, at the checkpoint it had 2"),
        (b"", "columns"),
        (b"b,a\n1,2\n3,4\n", "columns"),
        (b"a\n1\n2\n", "columns"),
        (b"a,b\r\n1,2\r\n3,4\r\n", "columns"),
        (b"a,b\n1,2\n3\n", "does not fit"),
        (b"a,b\n1,2,5\n3,4\n", "does not fit"),
        (b"a,b,c\n1,2,\n3,4,5\n", "does not fit"),
        (b'a,b\n1,2\n3,4"4"\n', "damaged"),
        (b"a,b\n1,2\n\xff\xfe\n", "decode"),
        (bytes(range(256)), "decode"),
        (None, "cannot be read"),
    ],
)
def test_another_file_is_refused_in_one_line_and_left_alone(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        MetricsFile(path, {"rows": 2, "columns": ["a", "b"]})
    assert "metrics.csv" in str(error.value) and "\n" not in str(error.value)
    assert (path.read_bytes() if path.exists() else None) == content


def test_a_folder_or_a_link_is_no_metrics_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "real").write_text("a\n1\n2\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("folder", "link"):
        with pytest.raises(UserError, match="not a regular file|cannot be read"):
            MetricsFile(tmp_path / name, {"rows": 1, "columns": ["a"]})
    assert (tmp_path / "real").read_text() == "a\n1\n2\n"


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def test_events_after_the_checkpoint_are_cut_and_an_open_tensorboard_forgets_them(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = a_run(tmp_path)
    with metrics_logger(run, OFF) as logger:
        for number in range(1, 6):
            log_rollout(logger, number)
            if number == 2:
                state = logger.state()
        watching = accumulator(run)
        assert [step for step, _ in shown(watching)["rollout/return"]] == [10, 20, 30, 40, 50]
    (size,) = state["tensorboard"]["files"].values()
    with metrics_logger(run, OFF, state) as logger:
        first, second = sorted((run.path / "tensorboard").iterdir())
        assert first.stat().st_size == size and second.name not in state["tensorboard"]["files"]
        assert [step for step, _ in shown(watching)["rollout/return"]] == [10, 20]
        log_rollout(logger, 3)
        assert capsys.readouterr().err == ""
        assert [step for step, _ in shown(watching)["rollout/return"]] == [10, 20, 30]
        assert sorted(logger.state()["tensorboard"]["files"]) == [first.name, second.name]
    starts = [event.step for event in raw_events(run) if event.session_log.status == SessionLog.START]
    assert starts == [21]


def test_only_event_files_of_the_folder_are_touched(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, outside = tmp_path / "tensorboard", tmp_path / "events.out.tfevents.9.outside"
    (folder / "events.out.tfevents.5.folder").mkdir(parents=True)
    outside.write_text("outside")
    kept = {"notes.txt": "abc", "events.out.tfevents": "abc", "my.events.out.tfevents.1.x": "abc"}
    files = {
        "events.out.tfevents.1.long": "abcdef",
        "events.out.tfevents.2.short": "a",
        "events.out.tfevents.3.new": "a",
    }
    for name, text in (kept | files).items():
        (folder / name).write_text(text)
    (folder / "events.out.tfevents.4.link").symlink_to(outside)
    sizes = dict.fromkeys(list(files)[:2], 3) | {"events.out.tfevents.4.link": 2, "events.out.tfevents.6.gone": 3}
    events = EventFiles(folder, {"files": sizes, "step": 7})
    events.close()
    said = capsys.readouterr().err
    assert "events.out.tfevents.2.short (and 2 more) lacks events" in said and said.count("\n") == 1
    assert {name: (folder / name).read_text() for name in kept} == kept and outside.read_text() == "outside"
    assert (folder / "events.out.tfevents.1.long").read_text() == "abc"
    assert (folder / "events.out.tfevents.2.short").read_text() == "a"
    assert not (folder / "events.out.tfevents.3.new").exists() and (folder / "events.out.tfevents.5.folder").is_dir()
    assert not (folder / "events.out.tfevents.6.gone").exists()
    (tmp_path / "elsewhere").symlink_to(folder)
    with pytest.raises(UserError, match="is a link"):
        EventFiles(tmp_path / "elsewhere", {"files": {}, "step": None})
    assert (folder / "events.out.tfevents.1.long").exists()


@pytest.mark.parametrize(
    "name",
    ["../events.out.tfevents.1.x", "/tmp/events.out.tfevents.1.x", "events.out.tfevents.1/../x", "a/b", "..", "",
     "events.out.tfevents.1\\x", "events.out.tfevents.1\0x", "metrics.csv", "events.out.tfevents.", "."],
)  # fmt: skip
def test_a_state_that_names_other_files_is_refused(tmp_path: Path, name: str) -> None:
    run = uninterrupted(tmp_path, 2)
    with metrics_logger(run, OFF) as logger:
        state = logger.state()
    before = sorted(path.name for path in (run.path / "tensorboard").iterdir())
    state["tensorboard"]["files"][name] = 0
    with pytest.raises(UserError, match="plain name") as error, metrics_logger(run, OFF, state):
        pass
    assert len(str(error.value).splitlines()) == 1
    assert sorted(path.name for path in (run.path / "tensorboard").iterdir()) == before


# -- Weights & Biases --------------------------------------------------------------------------------------------------


class StandIn:
    """W&B's client: what it was asked for and what it got."""

    def __init__(self, step: int = 0, fails: Exception | None = None) -> None:
        self.asked: dict = {}
        self.logged: list = []
        self.step, self.fails = step, fails
        self.errors = SimpleNamespace(Error=RuntimeError)
        self.env = SimpleNamespace(get_cache_dir=lambda: Path("/proc/nohome/wandb"))
        self.finished = self.waited = False

    def Settings(self, **settings: Any) -> dict:  # noqa: N802
        return settings

    def init(self, **asked: Any) -> StandIn:
        if self.fails is not None:
            raise self.fails
        self.asked = asked
        return self

    def teardown(self) -> None:
        self.waited = True

    def log(self, values: dict, step: int, commit: bool) -> None:
        assert commit and values
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    client = StandIn()
    monkeypatch.setattr(weights_and_biases, "import_wandb", lambda: client)
    monkeypatch.setenv("WANDB_CACHE_DIR", "/nowhere")
    return client


def test_wandb_gets_the_mode_project_name_and_configuration_of_the_run(stand_in: StandIn, tmp_path: Path) -> None:
    run = Run(tmp_path / "some-run", TrainConfig(seed=7))
    output = WandbOutputFormat(run, "online", "my-project")
    output.write({"loss": 0.5, "note": "no number", "single": np.float32(0.1), "truth": np.bool_(True)}, {}, step=12)
    output.close()
    asked = stand_in.asked
    assert (asked["mode"], asked["project"], asked["name"]) == ("online", "my-project", "some-run")
    assert asked["config"]["seed"] == 7 and asked["dir"] == str(tmp_path / "some-run")
    assert asked["id"] == output.id and len(output.id) == 8 and asked["resume"] is None
    assert stand_in.logged == [(12, {"loss": 0.5, "single": float(np.float32(0.1)), "truth": 1.0})]
    assert stand_in.finished


def test_wandb_gets_each_step_once_and_whole(stand_in: StandIn, tmp_path: Path) -> None:
    output = WandbOutputFormat(a_run(tmp_path), "offline", "p")
    for step, name in ((1, "a"), (2, "a"), (2, "b"), (3, "a")):
        output.write({name: step}, {}, step)
    assert [step for step, _ in stand_in.logged] == [1, 2] and stand_in.logged[1] == (2, {"a": 2.0, "b": 2.0})
    output.close()
    assert stand_in.logged[2:] == [(3, {"a": 3.0})]


@pytest.mark.parametrize(("reached", "expected"), [(0, [1, 2, 3, 4]), (3, [3, 4]), (4, [4]), (5, [])])
def test_the_server_gets_what_it_lacks(stand_in: StandIn, tmp_path: Path, reached: int, expected: list[int]) -> None:
    stand_in.step = reached  # the step that a resumed run goes on with
    output = WandbOutputFormat(a_run(tmp_path), "online", "p", "some-id", [(1, {"a": 1.0}), (2, {"a": 2.0})])
    assert (stand_in.asked["id"], stand_in.asked["resume"]) == ("some-id", "allow")
    for step in (3, 4):
        output.write({"a": step}, {}, step)
    output.close()
    assert stand_in.logged == [(step, {"a": float(step)}) for step in expected]


def test_of_a_step_that_was_sent_in_part_only_the_rest_is_sent() -> None:
    sent = Sent(5, frozenset({"a"}))
    assert sent.has(4, "b") and sent.has(5, "a") and not sent.has(5, "b") and not sent.has(6, "a")
    assert Sent(5).has(5, "b") and not Sent().has(0, "a")


def test_what_an_earlier_process_logged_comes_from_the_file(stand_in: StandIn, tmp_path: Path) -> None:
    run, log = a_run(tmp_path), LogConfig(wandb="offline")
    with metrics_logger(run, log) as logger:
        for number in (1, 2):
            log_rollout(logger, number)
        state = through_a_file(logger.state())
        log_rollout(logger, 3)
    live, stand_in.logged = stand_in.logged, []
    assert not stand_in.waited
    assert state["wandb"] == stand_in.asked["id"]
    with metrics_logger(run, log, state) as logger:
        log_rollout(logger, 3)
        assert logger.state()["wandb"] == state["wandb"] == stand_in.asked["id"]
        assert stand_in.waited  # for the files of the first, which this process might have written itself
    assert stand_in.logged == live and [step for step, _ in live] == [10, 20, 30]  # the same numbers, to the last bit


def test_wandb_that_fails_offline_is_a_warning_and_online_an_error(
    stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stand_in.fails = RuntimeError("no\nfolder")
    with metrics_logger(a_run(tmp_path), LogConfig(wandb="offline")) as logger:
        log_rollout(logger, 1)
        assert logger.state()["wandb"] is None
    assert capsys.readouterr().err == "warning: Weights & Biases is off: no folder\n"
    with (
        pytest.raises(UserError, match="no folder Without: --log.wandb offline"),
        metrics_logger(a_run(tmp_path), LogConfig(wandb="online")),
    ):
        pass


def test_files_that_cannot_be_read_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "offline-run-1-some" / "run-some.wandb"
    path.parent.mkdir()
    path.write_bytes(b"something else")
    assert find_sent(tmp_path, "some", [(3, {}), (7, {})]) == Sent(7)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: Weights & Biases: earlier") and warning.count("\n") == 1
    path.write_bytes(b"")
    assert find_sent(tmp_path, "some", [(7, {})]) == Sent(-1, frozenset()) and not capsys.readouterr().err
    assert find_sent(tmp_path / "none", "some", []) == Sent(-1, frozenset())


def as_leveldb_log(records: list[bytes]) -> bytes:
    """The format of W&B's files, as LevelDB's documentation has it, with W&B's header and plain CRC-32."""
    data = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    for record in records:
        first, rest = True, record
        while first or rest:
            left = 32768 - len(data) % 32768
            if left < 7:
                data += bytes(left)
                continue
            chunk, rest = rest[: left - 7], rest[left - 7 :]
            kind = {(True, False): 1, (True, True): 2, (False, True): 3, (False, False): 4}[first, bool(rest)]
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + chunk), len(chunk), kind) + chunk
            first = False
    return data


def test_a_file_of_wandb_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    chance, records, path = random.Random(0), [], tmp_path / "run-some.wandb"
    for step in range(300):
        record = Record()
        record.history.step.num = step
        record.history.item.add(key="some/number", value_json="0." + "1" * chance.choice([1, 50, 500, 40000]))
        record.history.item.add(nested_key=["a", "b"], value_json="1")
        records.append(record.SerializeToString())
        if step % 10 == 0:
            records.append(Record(summary={}).SerializeToString())
    # Rests of a block from which no or only an empty chunk fits.
    for rest in range(9):
        used = len(as_leveldb_log(records)) % 32768
        records.append(Record(uuid="x" * (32768 - used - 7 - rest - 4)).SerializeToString())
        records.append(records[0])
    data = as_leveldb_log(records)
    path.write_bytes(data)
    expected = [(step, frozenset({"some/number", "a.b"})) for step in [*range(300), *[0] * 9]]
    assert list(weights_and_biases.read_history(path)) == expected
    for at in [*range(20), *(chance.randrange(len(data)) for _ in range(30))]:
        path.write_bytes(data[:at])
        found = list(weights_and_biases.read_history(path))
        assert found == expected[: len(found)]
        path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        with contextlib.suppress(ValueError) if at < 7 else contextlib.nullcontext():
            found = list(weights_and_biases.read_history(path))
            assert found == expected[: len(found)]


KILLED = """
import json, os, signal, sys, time
from pathlib import Path
from experiments.options.config import LogConfig, TrainConfig
from experiments.logs import metrics_logger
from experiments.runs import Run
from tests.experiments.test_logs import log_wide_row

path, states = Path(sys.argv[1]), {}
with metrics_logger(Run(path, TrainConfig()), LogConfig(wandb="offline")) as logger:
    for number in range(1, 61):
        log_wide_row(logger, number)
        if number in (10, 60):
            states[number] = logger.state()
    (path / "states.json").write_text(json.dumps(states))
    for _ in range(1200):
        if sum(file.stat().st_size for file in path.glob("wandb/*/*.wandb")) > 1 << 16:
            break
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def log_wide_row(logger: RunLogger, number: int) -> None:
    """Many numbers: W&B's writer keeps its last block to itself, and a row should not be less than one."""
    for column in range(60):
        logger.record(f"some/number_{column}", number / (3 + column))
    logger.record(STEP, 10 * number)
    logger.dump(10 * number)


def wandb_history(path: str) -> list[tuple[int, dict[str, float]]]:
    """History records of a file, by W&B's own reader where this version has one, else chunk by chunk without checks."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, buffer = Path(path).read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + size > len(data):
            break
        buffer += data[at + 7 : at + 7 + size]
        if kind in (1, 4):
            whole.append(buffer)
            buffer = b""
        at += 7 + size
    history = [record.history for record in map(Record.FromString, whole) if record.HasField("history")]
    return [
        (one.step.num, {"/".join([item.key, *item.nested_key]).strip("/"): json.loads(item.value_json)
                        for item in one.item}) for one in history
    ]  # fmt: skip


def killed_while_logging(killed: Path) -> dict[str, Any]:
    """A process that logs 60 rows to W&B and is killed; the states of its logs at the tenth and the last."""
    killed.mkdir(exist_ok=True)
    # No home folder either: W&B must neither fail nor write its logs of itself to the terminal.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "WANDB_"))}
    environment |= {"HOME": "/proc/nohome", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(killed)], env=environment, capture_output=True, text=True, cwd=killed.parent
    )
    assert done.returncode == -signal.SIGKILL and not done.stderr, done.stderr
    return json.loads((killed / "states.json").read_text())


def test_a_record_that_a_kill_at_the_very_end_left_incomplete_is_completed(tmp_path: Path) -> None:
    run, states = a_run(tmp_path / "killed"), killed_while_logging(tmp_path / "killed")
    (file,) = glob.glob(str(run.path / "wandb/offline-run-*/*.wandb"))
    assert len(wandb_history(file)) < 60
    for _ in range(2):  # a second time there is nothing to do
        complete_record(run, states["60"])
        weights_and_biases.import_wandb().teardown()
        files = sorted(glob.glob(str(run.path / "wandb/offline-run-*/*.wandb")), key=os.path.getmtime)
        assert [step for file in files for step, _ in wandb_history(file)] == list(range(10, 610, 10))
        assert len(files) == 2 and len(rows_of(run)) == 60


def test_an_offline_record_has_each_step_once_after_a_kill(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    states = killed_while_logging(killed)
    run, log = a_run(killed), LogConfig(wandb="offline")
    (file,) = glob.glob(str(run.path / "wandb/offline-run-*/*.wandb"))
    reached = [step for step, _ in wandb_history(file)]
    assert reached == list(range(10, 10 * len(reached) + 10, 10)) and 10 < len(reached) < 60
    # First some rows before the checkpoint were lost; then W&B has many rows after it, from this very process even.
    for checkpoint, end in ((60, 64), (10, 66)):
        with metrics_logger(run, log, states[str(checkpoint)]) as logger:
            for number in range(checkpoint + 1, end + 1):
                log_wide_row(logger, number)
    weights_and_biases.import_wandb().teardown()  # waits for the files
    files = sorted(glob.glob(str(run.path / "wandb/offline-run-*/*.wandb")), key=os.path.getmtime)
    assert len(files) == 3 and {Path(file).name for file in files} == {f"run-{states['10']['wandb']}.wandb"}
    union = [row for file in files for row in wandb_history(file)]
    assert [step for step, _ in union] == list(range(10, 670, 10))
    for (step, logged), row in zip(union, rows_of(run), strict=True):
        assert logged["_step"] == step == int(row[STEP])
        assert all(logged[name] == float(value) for name, value in row.items())


def test_wandb_writes_its_own_logs_where_it_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_CACHE_DIR", raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", "x")  # so that it is taken away again afterwards
    monkeypatch.delenv("WANDB_CACHE_DIR")
    usable = SimpleNamespace(env=SimpleNamespace(get_cache_dir=lambda: tmp_path / "usable"))
    weights_and_biases.make_cache(usable, tmp_path / "a")
    assert "WANDB_CACHE_DIR" not in os.environ and (tmp_path / "usable").is_dir()
    weights_and_biases.make_cache(StandIn(), tmp_path / "a")
    assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "a")
