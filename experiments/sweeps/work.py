"""What a node of the cluster does for a run: look whether it may, then make what is missing of it.

Ray sends this module to the nodes as it is, so that one on which the project is missing can say so: nothing but the
standard library is imported before that is known.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BUSY = 20.0
"""Seconds that a training which was cut off may take to let go of its run folder."""
PATIENCE = 60.0
"""Seconds that a training may take to write a checkpoint when the sweep is stopped."""


@dataclass(frozen=True)
class Task:
    """What is to be done for one run.

    :param label: environment and name of the run.
    :param root: absolute path of the folder that has ``runs``, the same on all nodes.
    :param plan: file of the plan, from there.
    :param folder: of the run, from there.
    :param log: file that programs print to, from there.
    :param place: file that says where the run is at work, from there.
    :param cores: of the run.
    :param token: file that every node has to see, from the root, and what is in it.
    :param expected: versions, and digest of the code, that the node must have.
    :param backend: renderer that the node must choose, by the one that is asked for.
    """

    label: str
    root: str
    plan: str
    folder: str
    log: str
    place: str
    cores: int
    token: tuple[str, str]
    expected: Mapping[str, str]
    backend: tuple[str, str] | None


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt.

    :param label: of the run.
    :param node: ray's name of the node.
    :param host: its own.
    :param seconds: that it took.
    :param refused: why the node must not do it; the run is not to blame.
    :param failed: why it failed.
    :param stopped: whether it was asked to stop.
    """

    label: str
    node: str
    host: str
    seconds: float
    refused: str | None = None
    failed: str | None = None
    stopped: bool = False


def work(task: Task) -> Outcome:
    """Do what is missing of a run on this node.

    :param task: the run.
    """
    import ray

    started, host = time.monotonic(), socket.gethostname()
    node = ray.get_runtime_context().get_node_id()

    def outcome(**what: object) -> Outcome:
        return Outcome(task.label, node, host, round(time.monotonic() - started, 1), **what)  # type: ignore[arg-type]

    problem = problem_of_node(task)
    if problem:
        return outcome(refused=problem)
    os.chdir(task.root)
    write_place(task, host, node)
    try:
        wait_until_free(Path(task.folder))
        return outcome(failed=run_single(task))
    except KeyboardInterrupt:
        return outcome(stopped=True)


def problem_of_node(task: Task) -> str | None:
    """Why this node cannot do what the others do; None where it can."""
    token, said = task.token
    try:
        found = Path(task.root, token).read_text()
    except OSError:
        return f"it does not see {task.root}: the folder must be shared, at the same path"
    if found != said:
        return f"another folder is at {task.root}: it must be the shared one"
    try:
        from experiments.sweeps.nodes import backend_of, description

        here = description()
    except Exception as error:  # also code that somebody is at work on
        return f"it cannot load the project ({type(error).__name__}: {error}): install it there for {sys.executable}"
    for name, wanted in task.expected.items():
        if here.get(name) != wanted:
            return f"it has {name} {here.get(name)}, the others have {wanted}"
    if task.backend is not None and backend_of(task.backend[0]) != task.backend[1]:
        wanted = {"gl": "it has no OpenGL: install libegl1 and libgl1-mesa-dri there", "warp": "it renders by OpenGL"}
        return f"{wanted[task.backend[1]]}, or name a renderer for all in the plan's options (render.backend: warp)"
    return None


def write_place(task: Task, host: str, node: str) -> None:
    """Say where the run is at work."""
    place = Path(task.place)
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps({"run": task.label, "host": host, "node": node, "pid": os.getpid()}))
    partial.replace(place)


def wait_until_free(folder: Path) -> None:
    """Wait for a training that is being cut off to let go of the run folder."""
    from experiments.runs.folder import is_locked

    until = time.monotonic() + BUSY
    while is_locked(folder) and time.monotonic() < until:
        time.sleep(0.2)


def run_single(task: Task) -> str | None:
    """Make what is missing of the run, on its cores, in a process that ends with this one.

    :return: why it failed; None where it did not.
    :raises KeyboardInterrupt: where the sweep is stopped, after the training has.
    """
    cores = str(task.cores)
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), cores)
    command = [sys.executable, "-m", "experiments.sweeps.leash", str(os.getpid())]
    command += ["experiments.sweeps.single", task.plan, task.label]
    Path(task.log).parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "ab") as log:
        start = log.tell()
        # Ctrl-C reaches the whole group: a training that is told to stop twice does so at once.
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            code = child.wait()
        except BaseException:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
    return None if code == 0 else reason(code, Path(task.log), start)


def reason(code: int, log: Path, start: int) -> str:
    """Why a program failed, in one line.

    :param code: that it ended with.
    :param log: that it printed to,
    :param start: from this byte on.
    """
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {code}"
