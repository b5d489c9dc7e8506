"""Environments in worker processes: all cores step and render, observations travel through shared memory.

A worker is a Python process of its own that imports no torch (:mod:`envs.worker`). It is not forked, so it shares no
OpenGL, locks or threads with its parent. Observations lie in an anonymous memory file which the system frees with the
last process that has it open, and a worker ends when the connection to its parent closes: whatever way the parent ends,
nothing is left behind.

A worker that dies is started again; its episodes count as truncated, and attributes that were set are set again. The
environments' random state is lost with it: their next episodes are drawn afresh.

Every command has a number and its answer has the same: what was not waited for, because something else went wrong or
the user interrupted, is never taken for the answer to a later command.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from envs.errors import UserError
from envs.links import Link, ProcessLink, WorkerDied
from envs.snapshots import require_form
from envs.worker import map_arrays, memory_file, require_same_spaces

MOST_DEATHS = 5
"""So many deaths of workers are made up for; the next one ends the run."""
TOGETHER = 60.0
"""Seconds within which the deaths of workers of one other machine count as one: the machine may be lost."""


class Workers:
    """N environments in W processes. Row i of what is handed out belongs to environment i.

    :param constructors: of the N environments; all must have the same spaces, observations must be Dict.
    :param workers: W; neighbouring environments share a process, and its renderer.
    :param link: kind of the connection to a worker, here or on another machine (:mod:`envs.links`, :mod:`envs.remote`).
    :raises UserError: where an environment cannot be made.
    """

    def __init__(
        self, constructors: Sequence[Callable[[], gym.Env]], workers: int, link: Callable[..., Link] = ProcessLink
    ) -> None:
        self.count, self.deaths = len(constructors), 0
        self.memory = memory_file()
        parts = np.array_split(np.arange(self.count), min(workers, self.count))
        self._workers = [
            link({int(row): constructors[row] for row in part}, self, core)
            for part, core in zip(parts, _cores_of(len(parts)), strict=True)
        ]
        self._close = weakref.finalize(self, _close_all, self._workers, self.memory)
        try:
            spaces = [worker.receive() for worker in self._workers]
            require_same_spaces(spaces[0], spaces[1:])
        except WorkerDied as error:
            self.close()
            raise UserError(f"an environment worker died while it started: {error}") from None
        except BaseException:
            self.close()
            raise
        self.observation_space, self.action_space = spaces[0]
        self._deaths: dict[str, float] = {}  # when workers of a machine died, by machine
        self._lost: dict[int, tuple[dict[str, np.ndarray], dict]] = {}  # last observation and info of the new reset
        self._set: dict[tuple[int, str], Any] = {}
        self._arrays = map_arrays(self.observation_space, self.count, self.memory)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def reset(
        self, seeds: Sequence[int | None], options: Sequence[dict | None]
    ) -> tuple[dict[str, np.ndarray], list[dict]]:
        """Start an episode in every environment.

        :param seeds: (N,) None goes on with the environment's own random state.
        :param options: (N,) of the resets.
        :return: (N, ...) observations by name, copies; and (N,) infos.
        """
        asked = [{row: (seeds[row], options[row]) for row in worker.rows} for worker in self._workers]
        answers = self._ask("reset", [(here,) for here in asked])
        self._lost.clear()
        infos = {row: info for answer in answers for row, info in answer.items()}
        return self.observations(), [infos[row] for row in range(self.count)]

    def send_step(self, actions: np.ndarray) -> None:
        """Let every environment step; :meth:`receive_step` waits for them.

        :param actions: (N, ...).
        """
        for worker in self._workers:
            worker.send("step", {row: actions[row] for row in worker.rows if row not in self._lost})

    def receive_step(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict], list[dict | None]]:
        """Wait for what :meth:`send_step` began.

        The episodes of a worker that died, since the last step too, end here as truncated, with reward 0 and
        ``info["worker_died"]``.

        :return: observations as :meth:`reset`; rewards (N,) float32; whether the episode ended (N,); infos; infos of
            the resets, None where the episode goes on.
        :raises UserError: where workers died too often.
        """
        found: dict[int, tuple[float, bool, dict, dict | None]] = {}
        for worker in self._workers:
            try:
                found |= worker.receive()
            except WorkerDied as error:
                self._replace(worker, str(error))
        for row, (last, info) in self._lost.items():
            told = {"TimeLimit.truncated": True, "is_success": False, "worker_died": True}
            found[row] = (0.0, True, told | {"terminal_observation": last}, info)
        self._lost.clear()
        rewards, ended, infos, started = zip(*(found[row] for row in range(self.count)), strict=True)
        return self.observations(), np.array(rewards, np.float32), np.array(ended), list(infos), list(started)

    def observations(self) -> dict[str, np.ndarray]:
        """(N, ...) copies of the newest observations: workers write the next ones to the same memory."""
        return {key: values.copy() for key, values in self._arrays.items()}

    def take(self, observations: Mapping[str, np.ndarray], rows: Sequence[int]) -> None:
        """Keep observations that did not come through shared memory.

        :param observations: (R, ...) by name.
        :param rows: (R,) of whom.
        """
        for key, values in observations.items():
            self._arrays[key][rows] = values

    def ask(self, command: str, rows: Sequence[int], *arguments: Any) -> list[Any]:
        """Ask some environments: ``get``, ``has``, ``set``, ``call``, ``save`` or ``wrapped`` (see Host in worker.py).

        :param command: which.
        :param rows: of whom.
        :param arguments: of the command.
        :return: answers in the order of ``rows``.
        :raises AttributeError: where an environment has no such attribute.
        """
        if command == "set":
            self._set |= {(row, arguments[0]): arguments[1] for row in rows}
        concerned = [[row for row in worker.rows if row in rows] for worker in self._workers]
        answers = self._ask(command, [(here, *arguments) if here else None for here in concerned])
        by_row = {
            row: value
            for here, values in zip(concerned, answers, strict=True)
            for row, value in zip(here, values or (), strict=True)
        }
        return [by_row[row] for row in rows]

    def save(self) -> list[dict[str, Any]]:
        """The states of all environments, as plain values and arrays.

        :return: (N,) of "state" (:mod:`envs.snapshots`) and "lost": the last observation of an episode that died with
            its worker and will end with the next step; else None.
        :raises UserError: where an environment's state cannot be saved.
        """
        states = self.ask("save", range(self.count))
        lost = {row: {key: values.copy() for key, values in last.items()} for row, (last, _) in self._lost.items()}
        return [{"state": state, "lost": lost.get(row)} for row, state in enumerate(states)]

    def load(self, states: Sequence[dict[str, Any]]) -> tuple[dict[str, np.ndarray], list[str | None]]:
        """Put all environments into states that as many environments were in, in however many processes.

        :param states: (N,) as :meth:`save` gave them; entries are checked, the list is not.
        :return: observations as :meth:`reset`, where an episode is lost its last one; and (N,) why a new episode was
            begun, None where the old one goes on.
        :raises UserError: for what is no state of such an environment.
        """
        empty = {key: np.empty(box.shape, box.dtype) for key, box in self.observation_space.spaces.items()}
        for row, state in enumerate(states):
            if state["lost"] is not None:
                require_form(state["lost"], empty, f"environment {row}: 'lost'")
        asked = [({row: states[row]["state"] for row in worker.rows},) for worker in self._workers]
        reasons = {row: reason for answer in self._ask("load", asked) for row, reason in answer.items()}
        self._lost = {
            row: (state["lost"], {})
            for row, state in enumerate(states)
            if state["lost"] is not None and reasons[row] is None
        }
        observations = self.observations()
        for row, (last, _) in self._lost.items():
            for key, values in last.items():
                observations[key][row] = values
        return observations, [reasons[row] for row in range(self.count)]

    def close(self) -> None:
        """End all workers and give the memory back. Idempotent."""
        self._close()

    def _ask(self, command: str, asked: Sequence[tuple | None]) -> list[Any]:
        """One command to every worker for which there is something to ask; a new one in its place is asked again."""
        for worker, arguments in zip(self._workers, asked, strict=True):
            if arguments is not None:
                worker.send(command, *arguments)
        return [
            None if arguments is None else self._insist(worker, command, arguments)
            for worker, arguments in zip(self._workers, asked, strict=True)
        ]

    def _insist(self, worker: Link, command: str, arguments: tuple) -> Any:
        """The answer to a command that was sent, of whoever lives to give it."""
        while True:
            try:
                return worker.receive()
            except WorkerDied as error:
                self._replace(worker, str(error))
                worker.send(command, *arguments)

    def _replace(self, worker: Link, reason: str) -> None:
        """Start a worker again and reset its environments; the next step ends their episodes."""
        now, node = time.monotonic(), worker.node
        if node is None or now - self._deaths.get(node, -TOGETHER) >= TOGETHER:
            self.deaths += 1
            self._deaths |= {} if node is None else {node: now}
        who = f"environment worker {self._workers.index(worker) + 1} of {len(self._workers)} died ({reason})"
        if self.deaths > MOST_DEATHS:
            raise UserError(
                f"{who}, death {self.deaths} of at most {MOST_DEATHS}: is there enough memory for all workers?"
            )
        print(
            f"warning: {who}; it is started again, {len(worker.rows)} episodes count as truncated "
            f"(death {self.deaths} of at most {MOST_DEATHS})",
            file=sys.stderr,
        )
        last = {row: {key: values[row].copy() for key, values in self._arrays.items()} for row in worker.rows}
        try:
            infos = self._restart(worker)
        except WorkerDied as error:
            self._replace(worker, str(error))
        else:
            for row, info in infos.items():
                first, _ = self._lost.get(row, (last[row], None))
                self._lost[row] = (first, info)

    def _restart(self, worker: Link) -> dict[int, dict]:
        """A new process for a worker, with episodes begun; the infos of their resets by row."""
        worker.start()
        worker.receive()
        for (row, name), value in self._set.items():
            if row in worker.rows:
                worker.send("set", [row], name, value)
                worker.receive()
        worker.send("reset", dict.fromkeys(worker.rows, (None, None)))
        return worker.receive()


def _cores_of(workers: int) -> list[int | None]:
    """The core that each worker is kept to; None where there are more cores than workers.

    They all start to work at the same instant, again and again: left to itself, the system was seen to put them onto
    each other's cores, which cost about a tenth of the speed. With cores to spare it does better itself, since it knows
    what else is running.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not cores or workers < len(cores):
        return [None] * workers
    return [cores[number % len(cores)] for number in range(workers)]


def _close_all(workers: Sequence[Link], memory: int) -> None:
    for worker in workers:
        worker.close()
    for worker in workers:
        worker.wait()
    os.close(memory)
