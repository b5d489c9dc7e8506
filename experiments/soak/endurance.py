"""A long training whose memory, open files, threads and shared memory are watched: none of them may grow."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.memory import MEGABYTE, proportional_set_size
from experiments.training.progress import Progress

Row = dict[str, Any]
RESOURCES = ("megabytes", "shared_megabytes", "open_files", "threads", "processes")
"""What is watched, over the training process and all that it started."""
ENDLESS = 100_000_000
"""Environment steps of a training that does not end by itself."""


def endurance(
    minutes: float, warmup: float, warmup_steps: int, arguments: Sequence[str] = (), seconds: float = 10.0
) -> list[Row]:
    """Watch a training with everything switched on that is by default: evaluations, pictures, checkpoints, W&B offline.

    :param minutes: of the run.
    :param warmup: minutes at its beginning that do not count.
    :param warmup_steps: that have to be in a checkpoint before anything counts: until then buffers are being filled,
        however long the machine takes.
    :param arguments: of ``experiments.train``, beside its length.
    :param seconds: between two samples.
    :return: for each resource how it began, ended and grew: medians of the first and the last sixth of what counts;
        then eight marks over time.
    :raises RuntimeError: where the training ends by itself or does not come to the end of its warm-up.
    """
    show = Progress("endurance", "seconds", 60.0)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.train", "--total-steps", str(ENDLESS), *arguments]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        samples, started = [], time.monotonic()
        try:
            while (elapsed := time.monotonic() - started) < 60 * minutes:
                time.sleep(seconds)
                if process.poll() is not None:
                    raise RuntimeError(f"the training ended by itself with exit code {process.returncode}")
                progress = {"minute": elapsed / 60, "steps": _steps_done(Path(folder))}
                samples.append(progress | sample(process.pid))
                show(round(elapsed), round(60 * minutes))
        finally:
            for pid in descendants(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
    return [*growth(warm(samples, warmup, warmup_steps), minutes), *_marks(samples)]


def warm(samples: Sequence[Row], warmup: float, warmup_steps: int) -> list[Row]:
    """Those samples that count.

    :param samples: from the beginning on.
    :param warmup, warmup_steps: see :func:`endurance`.
    :raises RuntimeError: where none does.
    """
    found = [s for s in samples if s["minute"] >= warmup and s["steps"] >= warmup_steps]
    if not found:
        raise RuntimeError(f"{samples[-1]['steps']} steps in {samples[-1]['minute']:.0f} minutes: still warming up")
    return found


def growth(samples: Sequence[Row], minutes: float) -> list[Row]:
    """How much each resource grew.

    :param samples: after the warm-up.
    :param minutes: of the run, for the record.
    """
    part = max(1, len(samples) // 6)
    rows = []
    for name in RESOURCES:
        first, last = (statistics.median(s[name] for s in some) for some in (samples[:part], samples[-part:]))
        grown = last / first - 1.0 if first else float(last > 0)
        about = {"minutes": minutes, "warmup": samples[0]["minute"], "steps": samples[-1]["steps"]}
        rows.append({"what": name, "first": first, "last": last, "growth": grown} | about)
    return rows


def sample(pid: int) -> Row:
    """What a process and all its descendants hold now.

    :param pid: of the process.
    :return: a number for each of :data:`RESOURCES`.
    """
    pids = descendants(pid)
    return {
        "megabytes": sum(map(proportional_set_size, pids)) / MEGABYTE,
        "shared_megabytes": sum(map(_shared, pids)) / MEGABYTE,
        "open_files": sum(_count(f"/proc/{one}/fd") for one in pids),
        "threads": sum(_count(f"/proc/{one}/task") for one in pids),
        "processes": len(pids),
    }


def descendants(pid: int) -> list[int]:
    """A process and all that it started, and those did, while they live."""
    found = [pid]
    for parent in found:  # grows on the way
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except OSError:  # gone meanwhile
                continue
    return found


def _marks(samples: Sequence[Row], count: int = 8) -> list[Row]:
    places = [round(i * (len(samples) - 1) / (count - 1)) for i in range(count)]
    return [{"what": "over time"} | samples[place] for place in sorted(set(places))]


def _shared(pid: int) -> int:
    """Bytes of memory that is shared with other processes and is no file's; each process counts its share."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Shmem:"))


def _count(folder: str) -> int:
    try:
        return len(list(Path(folder).iterdir()))
    except OSError:
        return 0


def _steps_done(folder: Path) -> int:
    found = [int(path.name) for path in folder.glob("runs/*/*/checkpoints/[0-9]*")]
    return max(found, default=0)
