"""The connection to a worker that steps environments: a process of this machine. (Elsewhere: :mod:`envs.remote`.)"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, Protocol

import cloudpickle
import gymnasium as gym
import numpy as np

from envs import registry
from envs.decimation import WORKER
from envs.errors import UserError

PATIENCE = 5.0
"""Seconds that a worker gets to close its environments."""


class WorkerDied(Exception):
    """Nobody is at a worker's end of the connection."""


class Pool(Protocol):
    """What a link must know of the workers' pool (:class:`envs.workers.Workers`)."""

    count: int
    """Of all environments."""
    memory: int
    """File descriptor of the memory for observations."""

    def take(self, observations: Mapping[str, np.ndarray], rows: Sequence[int]) -> None:
        """Keep observations that did not come through shared memory."""


class Link(ABC):
    """A worker as its pool sees it. Commands are answered in their order; each has a number, and so has its answer.

    :param constructors: of the worker's environments, by row.
    :param pool: to which it belongs.
    """

    def __init__(self, constructors: Mapping[int, Callable[[], gym.Env]], pool: Pool) -> None:
        self.rows = list(constructors)
        self.number = 0
        self.recipe = cloudpickle.dumps((registry.task_modules(), constructors, pool.count))

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process, on the machine that it is on."""

    @property
    def node(self) -> str | None:
        """The machine that it is on; None: this one. All workers of one that is lost die together."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Begin, or begin again; the first answer has its environments' spaces."""

    @abstractmethod
    def send(self, command: str, *arguments: Any) -> None:
        """Command something."""

    @abstractmethod
    def receive(self) -> Any:
        """The answer to the newest command, or to what makes the environments.

        :raises WorkerDied: with how it ended.
        """

    @abstractmethod
    def close(self) -> None:
        """Have it end."""

    @abstractmethod
    def wait(self) -> None:
        """Wait for its end, and end it if that takes too long."""


def result(kind: str, value: Any) -> Any:
    """What an answer says.

    :param kind: of answer (:func:`envs.worker.answer`).
    :param value: of it.
    :raises UserError, AttributeError, RuntimeError: what went wrong.
    """
    if kind == "refused":
        raise UserError(value)
    if kind == "absent":
        raise AttributeError(value)
    if kind == "failed":
        raise RuntimeError(f"an environment worker failed:\n{value}")
    return value


class PipeLink(Link):
    """A worker at the other end of a connection: everything but how that comes about.

    :param constructors, pool: as of every link.
    """

    pipe: Connection | None = None

    def send(self, command: str, *arguments: Any) -> None:
        """Command something."""
        self.number += 1
        self._write(cloudpickle.dumps((self.number, command, arguments)))

    def receive(self) -> Any:
        """The answer to the newest command."""
        number = -1
        while number != self.number:  # answers that were not waited for come first
            try:
                number, kind, value = self._read()
            except (EOFError, OSError):
                raise WorkerDied(self._end()) from None
        return result(kind, value)

    def close(self) -> None:
        """Have it end."""
        if self.pipe is not None:
            self.send("close")
            self.pipe.close()

    def _write(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # receive() will say so
            self.pipe.send_bytes(message)

    def _read(self) -> tuple[int, str, Any]:
        """The next answer: number, kind and value.

        :raises EOFError, OSError: where nobody is there any more.
        """
        self.pipe.poll(None)  # an interrupt while waiting loses nothing, one while reading would
        return cloudpickle.loads(self.pipe.recv_bytes())

    @abstractmethod
    def _end(self) -> str:
        """How it ended."""


class ProcessLink(PipeLink):
    """A process of this machine; observations come through shared memory.

    :param constructors, pool: as of every link.
    :param core: that it is kept to; None: any.
    """

    def __init__(self, constructors: Mapping[int, Callable[[], gym.Env]], pool: Pool, core: int | None) -> None:
        super().__init__(constructors, pool)
        self._core, self._memory = core, pool.memory
        self.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def start(self) -> None:
        """Begin, or begin again."""
        self.pipe, theirs = Pipe()
        # Ctrl-C, and a signal to end, reach the whole group; the parent decides what they mean, and hangs up.
        deaf = "import signal; [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)]"
        work = "from envs import worker; worker.main(*map(int, sys.argv[1:]))"
        code = f"{deaf}; import sys; sys.path[:] = {sys.path!r}; {work}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno()), str(self._memory)],
            pass_fds=(theirs.fileno(), self._memory),
            env=os.environ | {"OMP_NUM_THREADS": "1", WORKER: str(self.rows[0])},
        )
        theirs.close()
        if self._core is not None:
            os.sched_setaffinity(self.process.pid, {self._core})
        self.number = 0  # of the newest command; what makes the environments is the first
        self._write(self.recipe)

    def wait(self) -> None:
        """Wait for its end, and end it if that takes too long."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _end(self) -> str:
        self.pipe.close()
        self.wait()
        code = self.process.returncode
        if code < 0:
            hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            return f"killed by {signal.Signals(-code).name}{hint}"
        return f"exit code {code}"
