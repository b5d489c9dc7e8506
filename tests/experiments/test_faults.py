"""What can go wrong while a run writes, and what it says of it: full disks, crashes in any place, two at a time."""

from __future__ import annotations

import errno
import functools
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.buffers import FrameBuffer, Stream
from envs.errors import UserError
from experiments import pretrain, resume
from experiments.runs import Checkpoints, Run
from kp3d_rl.storage import files
from tests.experiments.conftest import TINY, TINY_PRETRAIN, run_in

ROOT = Path(__file__).parents[2]


class PowerCut(BaseException):
    """Nothing after this runs; what is on the disk is what the next process finds."""


def small_run(folder: Path, kept: int = 2) -> tuple[Checkpoints, Callable[[int], None], FrameBuffer]:
    """Checkpoints of a module whose weights say the step, with a ring of frames that do too."""
    module, ring = torch.nn.Linear(2, 2), FrameBuffer(6)
    (folder / "config.yaml").write_text("env: none\n")
    checkpoints = Checkpoints(folder)

    def write(step: int) -> None:
        with torch.no_grad():
            module.weight.fill_(step)
        ring.add({"images": np.full((4, 1, 2, 2, 3), step, np.uint8)})
        checkpoints.write(step, module, {}, {"step": step, "frames": ring.added}, ring.streams())
        checkpoints.prune(kept)

    return checkpoints, write, ring


def require_whole(folder: Path) -> int:
    """The newest checkpoint must be readable, of one piece, and its frames there; its step."""
    checkpoints = Checkpoints(folder)
    found = checkpoints.read()
    assert found.step == found.state["step"] == found.policy["weight"][0, 0]
    ring = FrameBuffer(6)
    streams = ring.expect(found.state["frames"], {"images": np.zeros((1, 1, 2, 2, 3), np.uint8)})
    checkpoints.store.fill(streams, found.segments)
    assert (ring.last(4)["images"] == found.step).all()
    return found.step


def test_frames_that_no_training_stores_are_refused(tmp_path: Path) -> None:
    store, ring = Checkpoints(tmp_path).store, np.zeros((6, 3), np.float32)
    honest, hostile = (Stream("replay-0", count, {"state": ring}) for count in (2, 4))
    store.fill([honest], store.append([honest]))
    ring[3, 1] = np.nan
    segments = store.append([hostile])
    with pytest.raises(files.DamagedError, match="'state' is not finite"):
        store.fill([hostile], segments)


CALLS = ("replace", "fsync", "open", "rename", "unlink", "rmdir", "mkdir", "link")
"""What the process dies at, of the file system."""


def crashing(patch: pytest.MonkeyPatch, moment: int, action: Callable[[], object]) -> bool:
    """Have the process die at one of its calls to the file system; False where it comes to its end before."""
    count = [0]

    def dying(true: Callable) -> Callable:
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] > moment:
                raise PowerCut
            return true(*args, **kwargs)

        return call

    with patch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, dying(getattr(os, name)))
        try:
            action()
        except PowerCut:
            return True
    return False


def test_a_crash_in_any_place_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies at each of its calls to the file system in turn, before and in the middle of each."""
    outcomes, moment, died = [], 0, True
    while died:
        folder = tmp_path / str(moment)
        folder.mkdir()
        _, write, _ = small_run(folder)
        for step in (10, 20, 30):
            write(step)
        died = crashing(monkeypatch, moment, functools.partial(write, 40))
        outcomes.append(require_whole(folder))
        _, again, _ = small_run(folder)  # the next process writes over whatever was left
        again(50)
        assert require_whole(folder) == 50 and not list(folder.rglob("*.partial"))
        moment += 1
    assert outcomes[0] == 30 and outcomes[-1] == 40 and moment > 20
    assert outcomes == sorted(outcomes)  # there is one instant at which the new one takes the old one's place


@pytest.mark.parametrize("action", ["write again", "give up frames", "prune"])
def test_a_crash_while_checkpoints_are_replaced_or_deleted_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    moment, died = 0, True
    while died:
        folder = tmp_path / str(moment)
        folder.mkdir()
        checkpoints, write, _ = small_run(folder, kept=0)
        for step in (10, 20, 30):
            write(step)
        died = crashing(monkeypatch, moment, {
            "write again": functools.partial(write, 30),
            "give up frames": functools.partial(checkpoints.give_up_frames, {"finished": True}),
            "prune": functools.partial(checkpoints.prune, 1),
        }[action])  # fmt: skip
        found = Checkpoints(folder)
        found.recover()
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        steps = [30] if action == "prune" and not died else found.steps()
        assert steps[-1] == 30 and names == [*(f"{step:09d}" for step in steps), "latest"]
        assert action == "prune" or steps == [10, 20, 30]
        assert [found.read(step).policy["weight"][0, 0] for step in steps] == steps
        moment += 1
    assert moment > 8


def test_who_goes_back_in_vain_loses_nothing(tmp_path: Path) -> None:
    checkpoints, write, _ = small_run(tmp_path, kept=0)
    for step in (10, 20, 30, 40):
        write(step)
    checkpoints.go_back(20)
    assert checkpoints.steps() == [10, 20, 30, 40] and checkpoints.latest() == 20 and checkpoints.read().step == 20
    checkpoints.go_back(40)
    assert require_whole(tmp_path) == 40
    checkpoints.go_back(20)
    write(30)  # its time comes again, and that of 40 will
    assert checkpoints.steps() == [10, 20, 30] and checkpoints.read().step == 30


def test_the_beginning_can_be_the_newest(tmp_path: Path) -> None:
    checkpoints, write, _ = small_run(tmp_path, kept=0)
    for step in (0, 10):
        write(step)
    checkpoints.go_back(0)
    assert checkpoints.latest() == 0 and checkpoints.read().step == 0


def test_a_damaged_checkpoint_of_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    checkpoints, write, _ = small_run(tmp_path, kept=0)
    for step in (10, 20, 30):
        write(step)
    (checkpoints.path(20) / "state.json").write_bytes(b"{")
    checkpoints.give_up_frames({"finished": True})
    assert (checkpoints.path(20) / "state.json").read_bytes() == b"{" and checkpoints.steps() == [10, 20, 30]
    assert [checkpoints.read(step).state for step in (10, 30)] == [{"finished": True}] * 2
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, write, _ = small_run(tmp_path, kept=1)
    write(10)
    true_read = files.read_sums

    def slow(folder: Path) -> dict[str, str]:
        sums = true_read(folder)
        if folder.name == "000000010":
            write(20)
        return sums

    monkeypatch.setattr("experiments.runs.checkpoints.read_sums", slow)
    assert Checkpoints(tmp_path).read().step == 20
    with pytest.raises(UserError, match="has no checkpoint at step 10, only at 20"):
        Checkpoints(tmp_path).read(10)


def test_a_mapping_per_two_bytes_is_too_many(tmp_path: Path) -> None:
    with pytest.raises(files.DamagedError, match="big.json is damaged: more than 1000000 values"):
        files.parse_json(b"[" + b"{}," * 700_000 + b"{}]", "big.json")
    assert len(files.parse_json(b"[" + b"0," * 100_000 + b"0]", "large.json")) == 100_001


@pytest.mark.parametrize(
    ("last", "every", "kept"),
    [(0, 0, range(10, 110, 10)), (1, 0, [100]), (2, 0, [90, 100]), (3, 0, [80, 90, 100]), (5, 0, range(60, 110, 10)),
     (1, 30, [10, 30, 60, 90, 100])],
)  # fmt: skip
def test_as_many_checkpoints_are_kept_as_the_user_says_with_their_frames_and_no_others(
    tmp_path: Path, last: int, every: int, kept: Sequence[int]
) -> None:
    checkpoints, write, _ = small_run(tmp_path, kept=0)
    for step in range(10, 110, 10):
        write(step)
        checkpoints.prune(last, every)
    assert checkpoints.steps() == list(kept)
    needed = {segment.name for step in kept for segment in checkpoints.read(step).segments}
    assert {path.name for path in (tmp_path / "segments").iterdir()} == needed
    for step in kept:
        (tmp_path / "checkpoints" / "latest").write_text(f"{step:09d}")
        assert require_whole(tmp_path) == step


def test_frames_of_a_checkpoint_that_cannot_be_read_are_left_alone(tmp_path: Path) -> None:
    checkpoints, write, _ = small_run(tmp_path)
    write(10)
    write(20)
    frames = {path.name for path in (tmp_path / "segments").iterdir()}
    (checkpoints.path(20) / "state.json").write_bytes(b"{")
    write(30)
    assert frames <= {path.name for path in (tmp_path / "segments").iterdir()} and require_whole(tmp_path) == 30


def test_of_a_finished_run_the_weights_stay_and_the_frames_go(tmp_path: Path) -> None:
    checkpoints, write, _ = small_run(tmp_path)
    for step in (10, 20, 30):
        write(step)
    checkpoints.give_up_frames({"finished": True})
    assert not list((tmp_path / "segments").iterdir())
    for step in (20, 30):
        found = checkpoints.read(step)
        assert found.state == {"finished": True} and found.policy["weight"][0, 0] == step
        sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=checkpoints.path(step), capture_output=True)
        assert sums.returncode == 0


def test_half_written_files_are_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies in the middle of a write."""
    _, write, _ = small_run(tmp_path)
    write(10)

    def half(file: int) -> None:
        os.truncate(file, os.fstat(file).st_size // 2)
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", half)
        with pytest.raises(PowerCut):
            write(20)
    assert require_whole(tmp_path) == 10
    write(30)
    assert require_whole(tmp_path) == 30


def test_a_full_disk_leaves_what_stood_there_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, write, _ = small_run(tmp_path)
    write(10)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(20)
    assert require_whole(tmp_path) == 10
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    write(30)
    assert require_whole(tmp_path) == 30 and checkpoints.latest() == 30


def launch(folder: Path, *arguments: str, largest: int | None = None, **more: str) -> subprocess.CompletedProcess:
    """A program of ours in a process of its own, in which no file can grow beyond so many bytes."""

    def limit() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    own = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=own, capture_output=True, text=True, preexec_fn=limit
    )


def test_training_on_a_full_disk_stops_with_one_line_and_goes_on_when_there_is_room(
    tmp_path: Path, tiny_run: Path
) -> None:
    """The segment of the warm-up's frames is the first file that is too large."""
    done = launch(tmp_path, "experiments.train", "--run", "full", *TINY, largest=200_000)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"training stopped at step 32: writing.* failed: File too large", line), line
    assert "last good checkpoint: runs/reach-multiview/full/checkpoints/000000000" in line
    assert "make train RESUME=runs/reach-multiview/full" in line and "Traceback" not in done.stderr
    run = tmp_path / "runs" / "reach-multiview" / "full"
    assert run_in(tmp_path, resume.main, ["--run", str(run)]) == 0
    first, second = (Run.open(str(path)).load().policy for path in (run, tiny_run))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_two_trainings_in_one_folder_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    with Run.open(str(copy)).locked(), pytest.raises(UserError, match="another training is at work in"):
        resume.main(["--run", str(copy)])
    assert resume.main(["--run", str(copy)]) == 0  # the lock is gone with who held it


def test_a_home_that_cannot_be_written_to_is_no_obstacle(tmp_path: Path) -> None:
    options = [option for option in TINY if option not in ("--log.wandb", "off")]
    nowhere = {name: "/proc/nohome" for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    done = launch(tmp_path, "experiments.train", "--run", "homeless", *options, **nowhere)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    run = Run.open(str(tmp_path / "runs" / "reach-multiview" / "homeless"))
    assert run.steps()[-1] == 160
    lean = ("--episodes", "3", "--frames", "4", "--random-encoders", "1", "--autoencoder-steps", "2")
    for program, *more in (("evaluate", "--episodes", "1"), ("probe", *lean), ("video", "--steps", "3")):
        done = launch(tmp_path, f"experiments.{program}", "--run", str(run.path), *more, **nowhere)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_a_pretraining_cannot_be_resumed(workplace: Path, tiny_pretrained: Path) -> None:
    with pytest.raises(UserError, match="is no training run"):
        resume.main(["--run", str(tiny_pretrained)])
    with Run.open(str(tiny_pretrained), kind=object).locked(), pytest.raises(UserError, match="already exists"):
        run_in(workplace, pretrain.main, ["--run", "pretrained", *TINY_PRETRAIN])
