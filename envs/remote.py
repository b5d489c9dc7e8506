"""Workers on other machines: ray actors that step and render there, while learning stays here.

A worker is what it is on this machine (:class:`envs.worker.Host`); only its observations come with its answers instead
of through shared memory. An actor ends with the process that made it, and one whose node is lost is a worker that died:
it is started again on a node that is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import pickle
import platform
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym

from envs.decimation import WORKER
from envs.errors import UserError
from envs.links import PATIENCE, PipeLink, Pool
from envs.worker import Host, memory_file, serve

SAME = ("mujoco", "numpy", "gymnasium", "mujoco-warp", "metaworld")
"""Packages whose version may change what an environment does."""
PATIENCE_WITH_A_MESSAGE = 30.0
"""Seconds in which a message that has begun must go on."""
WAITING, MOST_WAITING = 20.0, 600.0
"""Seconds until it is said that a worker waits for a node, and until that is an error."""
LOOK = 1.0
"""Seconds between two looks whether ray has lost a worker that does not answer."""
_QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


def versions() -> dict[str, str]:
    """Of what must be the same on all machines, and a digest of this package's files."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    found = {"python": platform.python_version(), "code of the environments": digest.hexdigest()[:12]}
    for package in SAME:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


class RemoteHost:
    """The process of some environments on a node."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the business of the process that learns

    def serve(self, address: tuple[str, int], key: bytes, path: Sequence[str], expected: Mapping[str, str]) -> None:
        """Connect to the process that learns and do as it commands, until it closes the connection.

        :param address: where it listens.
        :param key: that both ends have to know.
        :param path: where it looks for modules.
        :param expected: versions that it has.
        """

        def make(recipe: bytes) -> Host:
            require_same(expected)
            sys.path.extend(folder for folder in path if folder not in sys.path)
            modules, constructors, count = cloudpickle.loads(recipe)
            os.environ[WORKER] = str(next(iter(constructors)))
            return Host(modules, constructors, count, memory_file())

        import ray

        end = socket.create_connection(address, ANSWER)
        end.settimeout(None)
        pipe = connection(end)
        answer_challenge(pipe, key)
        deliver_challenge(pipe, key)
        pipe.send((os.getpid(), ray.get_runtime_context().get_node_id()))
        serve(pipe, make, show=True)


def require_same(expected: Mapping[str, str]) -> None:
    """Refuse versions that would make other episodes.

    :param expected: those of the process that learns.
    :raises UserError: with the first that differs.
    """
    here = versions()
    for name, wanted in expected.items():
        if here.get(name) != wanted:
            raise UserError(f"node {socket.gethostname()} has {name} {here.get(name)}, here it is {wanted}")


def connection(end: socket.socket, patience: float | None = None) -> Connection:
    """A connection of a socket, which no longer is one; small messages go at once, and it notices a dead other end.

    :param end: connected, without a time limit of its own.
    :param patience: seconds after which a message that does not go on is an error; None: never.
    """
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if patience is not None:
        limit = struct.pack("ll", int(patience), 0)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return Connection(end.detach())


class RayLink(PipeLink):
    """A worker that is a ray actor, on whichever node has a core for it.

    Ray finds the place and watches the process. Commands and answers go by a connection of their own: at each step,
    ray's store of objects would cost more than small environments take.

    :param constructors, pool: as of every link.
    :param core: of no meaning here.
    """

    def __init__(self, constructors: Mapping[int, Callable[[], gym.Env]], pool: Pool, core: int | None) -> None:
        super().__init__(constructors, pool)
        import ray

        self._ray, self._pool, self._node = ray, pool, None
        self.start(cores=1)

    @property
    def pid(self) -> int:
        """Process id on its node."""
        return self._pid

    @property
    def node(self) -> str | None:
        """Ray's name of its node."""
        return self._node

    def start(self, cores: int = 0) -> None:
        """Begin, or begin again.

        :param cores: that it waits for; in place of a worker that was lost it shares one, since none may be left.
        """
        make = self._ray.remote(num_cpus=cores, max_restarts=0, scheduling_strategy="SPREAD")(RemoteHost)
        self._cluster, self._key = cluster_now(self._ray), os.urandom(32)
        self.pipe, self.number = None, 0
        self._server = socket.create_server((self._ray.util.get_node_ip_address(), 0))
        self._server.settimeout(LOOK)
        self.actor = make.remote()
        address = self._server.getsockname()
        self._serving = self.actor.serve.remote(address, self._key, list(sys.path), versions())

    def wait(self) -> None:
        """Wait for its end, and end it if that takes too long."""
        self._server.close()
        if self._cluster == cluster_now(self._ray):
            self._ray.wait([self._serving], timeout=PATIENCE)
            self._ray.kill(self.actor)

    def _connect(self) -> None:
        """Wait for it to call, and hand it the recipe; others who call are not heard."""
        said, started = False, time.monotonic()
        while self.pipe is None:
            with contextlib.suppress(TimeoutError, EOFError, OSError, AuthenticationError):
                end, _ = self._server.accept()
                end.settimeout(None)
                pipe = connection(end, PATIENCE_WITH_A_MESSAGE)
                deliver_challenge(pipe, self._key)
                answer_challenge(pipe, self._key)
                self._pid, self._node = pipe.recv()
                self.pipe = pipe
            self._require_serving()
            waited = time.monotonic() - started
            if self.pipe is None and waited > MOST_WAITING:
                raise UserError(f"no node had a free core for a worker in {MOST_WAITING / 60:.0f} minutes")
            if self.pipe is None and waited > WAITING and not said:
                print("waiting for a node with a free core for a worker", file=sys.stderr, flush=True)
                said = True
        self._server.close()
        self._write(self.recipe)

    def _require_serving(self) -> None:
        """Look whether ray has lost it: of a node without power, the connection says nothing.

        :raises EOFError: where it has.
        """
        ready, _ = self._ray.wait([self._serving], timeout=0)
        if ready and (self.pipe is None or not self.pipe.poll()):
            raise EOFError

    def _read(self) -> tuple[int, str, Any]:
        """The next answer, with the observations that come with it."""
        if self.pipe is None:
            self._connect()
        while not self.pipe.poll(LOOK):
            self._require_serving()
        answer, observations = pickle.loads(self.pipe.recv_bytes())
        if observations:
            self._pool.take(observations, self.rows)
        return cloudpickle.loads(answer)

    def _end(self) -> str:
        if self.pipe is not None:
            self.pipe.close()
        self.wait()
        try:
            self._ray.get(self._serving)
        except self._ray.exceptions.RayTaskError as error:
            return f"it could not begin: {str(error).strip().splitlines()[-1]}"
        except self._ray.exceptions.RayError as error:
            if "ModuleNotFoundError" in str(error):
                return "a node cannot load the project: install it there"
        return "its process or its node was lost"


def cluster_now(ray: Any) -> str | None:
    """Which cluster this process has joined; None: none, or no longer.

    :param ray: the module.
    """
    return ray.get_runtime_context().get_job_id() if ray.is_initialized() else None


def join(address: str) -> int:
    """Join a cluster whose nodes are to step environments.

    :param address: "host:port" of its head, or "auto" for the one that runs on this machine.
    :return: its cores.
    :raises UserError: where ray is missing, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
    except ImportError:
        raise UserError("nodes need ray: pip install -c constraints.txt 'kp3d_rl[cluster]'") from None
    if not ray.is_initialized():
        try:
            require_answer(address)
            ray.init(address=address, **_QUIET)
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is of the first
            raise UserError(f"no ray cluster at '{address}' can be used: {said_first(error)}; {ADVICE}") from None
    return int(ray.cluster_resources().get("CPU", 0))


ADVICE = "on its head type `ray start --head`, on other nodes `ray start --address=<head>:6379`"
ANSWER = 10.0
"""Seconds in which a cluster's head must answer."""


def said_first(error: Exception) -> str:
    """The first line of an error."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require_answer(address: str) -> None:
    """Refuse an address at which nothing answers, which ray itself would ask for minutes.

    :param address: "host:port", "auto" or what else ray takes.
    :raises OSError: where nothing answers.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "://" not in host:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
