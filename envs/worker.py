"""A process that steps and renders some environments; started and commanded by :mod:`envs.workers`.

It imports what its environments need and nothing else: no torch. It ends when its parent does, however that ends.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import mmap
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np

from envs import snapshots
from envs.errors import UserError


def memory_file() -> int:
    """File descriptor of memory without a name, which its last user's end frees."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kp3d_rl observations")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def map_arrays(space: gym.spaces.Dict, count: int, memory: int) -> dict[str, np.ndarray]:
    """Arrays for the observations of several environments in memory that processes share.

    :param space: of one environment.
    :param count: N environments.
    :param memory: file descriptor; the file is made as long as it takes.
    :return: (N, ...) by the names of the space.
    """
    sizes = {key: count * int(np.prod(box.shape)) * box.dtype.itemsize for key, box in space.spaces.items()}
    starts = dict(zip(sizes, np.cumsum([0, *(-(-size // 64) * 64 for size in sizes.values())]), strict=False))
    total = max(1, max(starts[key] + size for key, size in sizes.items()))
    if os.fstat(memory).st_size < total:
        os.ftruncate(memory, total)
    whole = mmap.mmap(memory, total)
    return {
        key: np.frombuffer(whole, box.dtype, sizes[key] // box.dtype.itemsize, int(starts[key])).reshape(
            count, *box.shape
        )
        for key, box in space.spaces.items()
    }


def main(connection: int, memory: int) -> None:
    """Make the environments, then do as commanded until the other end closes.

    :param connection: file descriptor of a two-way connection.
    :param memory: file descriptor of the shared memory for observations.
    """
    serve(Connection(connection), lambda recipe: Host(*cloudpickle.loads(recipe), memory))


SHOWING = ("reset", "step", "load")
"""Commands after which there are new observations."""


def serve(pipe: Connection, make: Callable[[bytes], Host], show: bool = False) -> None:
    """Make the environments, then do as commanded until the other end closes.

    :param pipe: to whoever commands; a recipe comes first.
    :param make: makes the environments of a recipe.
    :param show: whether answers hold the new observations, too, for who shares no memory.
    """
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the other end closed, or is no more
        recipe = pipe.recv_bytes()
        host, answer = answered(0, lambda: make(recipe), lambda host: host.spaces)
        name = ""
        while True:
            if show:  # in one message: who is interrupted between two would take the second for another answer
                newest = host.newest() if host is not None and name in SHOWING else {}
                answer = pickle.dumps((answer, newest), pickle.HIGHEST_PROTOCOL)
            pipe.send_bytes(answer)
            if host is None:
                return
            number, name, arguments = cloudpickle.loads(pipe.recv_bytes())
            if name == "close":
                break
            _, answer = answered(number, functools.partial(getattr(host, name), *arguments), lambda value: value)
        host.close()


class NoSuchAttribute(AttributeError):
    """An environment was asked for something that it does not have."""


class Host:
    """The environments of this process, and what can be asked of them.

    :param modules: to import first: they register tasks.
    :param constructors: of the environments here, by their number among all of them: their row in the shared arrays.
    :param count: of all environments.
    :param memory: file descriptor.
    """

    def __init__(self, modules: Sequence[str], constructors: Mapping[int, Any], count: int, memory: int) -> None:
        snapshots.take_over_warnings()
        for module in modules:
            importlib.import_module(module)
        self.envs: dict[int, gym.Env] = {row: make() for row, make in constructors.items()}
        self.spaces, *others = ((env.observation_space, env.action_space) for env in self.envs.values())
        require_same_spaces(self.spaces, others)
        self.arrays = map_arrays(self.spaces[0], count, memory)

    def reset(self, asked: Mapping[int, tuple[int | None, dict | None]]) -> dict[int, dict]:
        """Start episodes; seed and options by row. Observations go to the shared arrays, infos come back."""
        return {row: self._reset(row, seed=seed, options=options) for row, (seed, options) in asked.items()}

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, tuple[float, bool, dict, dict | None]]:
        """Step; an episode that ended starts anew, its last observation is in the info as SB3 expects it.

        :return: by row: reward, whether the episode ended, info, and the info of the new episode's reset.
        """
        found = {}
        for row, action in actions.items():
            observation, reward, terminated, truncated, info = self.envs[row].step(action)
            info = info | {"TimeLimit.truncated": truncated and not terminated}
            started = None
            if terminated or truncated:
                info["terminal_observation"] = observation
                started = self._reset(row)
            else:
                self._show(row, observation)
            found[row] = (float(reward), bool(terminated or truncated), info, started)
        return found

    def get(self, rows: Sequence[int], name: str) -> list[Any]:
        """An attribute of some environments."""
        return [self._find(row, name) for row in rows]

    def has(self, rows: Sequence[int], name: str) -> list[bool]:
        """Whether some environments have an attribute."""
        return [self.envs[row].has_wrapper_attr(name) for row in rows]

    def set(self, rows: Sequence[int], name: str, value: Any) -> list[None]:
        """Set an attribute of some environments, on the wrapper that has it."""
        return [self.envs[row].set_wrapper_attr(name, value) and None for row in rows]

    def call(self, rows: Sequence[int], name: str, arguments: tuple, options: dict) -> list[Any]:
        """Call a method of some environments."""
        return [self._find(row, name)(*arguments, **options) for row in rows]

    def wrapped(self, rows: Sequence[int], name: str) -> list[bool]:
        """Whether some environments are wrapped in a class, by module and name: to import it here could cost torch."""
        return [any(name in map(full_name, type(layer).__mro__) for layer in _layers(self.envs[row])) for row in rows]

    def save(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The states of some environments."""
        return [snapshots.save(self.envs[row], row) for row in rows]

    def load(self, states: Mapping[int, Any]) -> dict[int, str | None]:
        """Put environments into states, by row; their observations go to the shared arrays.

        :return: by row: why a new episode was begun, None where the old one goes on.
        """
        reasons = {}
        for row, state in states.items():
            observation, reasons[row] = snapshots.load(self.envs[row], row, state)
            self._show(row, observation)
        return reasons

    def newest(self) -> dict[str, np.ndarray]:
        """The newest observations of the environments here, in their order: (R, ...) by name."""
        return {key: array[list(self.envs)] for key, array in self.arrays.items()}

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs.values():
            env.close()

    def _find(self, row: int, name: str) -> Any:
        if not self.envs[row].has_wrapper_attr(name):
            raise NoSuchAttribute(f"environment {row} has no attribute '{name}'")
        return self.envs[row].get_wrapper_attr(name)

    def _reset(self, row: int, **arguments: Any) -> dict:
        observation, info = self.envs[row].reset(**arguments)
        self._show(row, observation)
        return info

    def _show(self, row: int, observation: Mapping[str, np.ndarray]) -> None:
        for key, array in self.arrays.items():
            array[row] = observation[key]


def full_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def require_same_spaces(spaces: tuple[gym.Space, gym.Space], others: Iterable[tuple[gym.Space, gym.Space]]) -> None:
    """Refuse environments that cannot share arrays.

    :param spaces: of observations and actions, of one environment.
    :param others: of other environments.
    :raises UserError: with the first that differs.
    """
    for other in others:
        for what, one, another in zip(("observations", "actions"), spaces, other, strict=True):
            if one != another:
                raise UserError(f"environments side by side need the same {what}, got {one} and {another}")


def _layers(env: gym.Env) -> Iterator[gym.Env]:
    """An environment, what it wraps, and so on."""
    while True:
        yield env
        if not isinstance(env, gym.Wrapper):
            return
        env = env.env


def answered(number: int, act: Callable[[], Any], tell: Callable[[Any], Any]) -> tuple[Any, bytes]:
    """Act.

    :param number: of the command.
    :param act: does it.
    :param tell: what is to be told of the result.
    :return: the result, None where something went wrong; and the answer: number, kind, and what is told.
    """
    try:
        result = act()
        return result, cloudpickle.dumps((number, "done", tell(result)))
    except UserError as error:
        return None, cloudpickle.dumps((number, "refused", str(error)))
    except NoSuchAttribute as error:
        return None, cloudpickle.dumps((number, "absent", str(error)))
    except Exception:
        return None, cloudpickle.dumps((number, "failed", traceback.format_exc()))
