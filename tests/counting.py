"""An environment that counts, for what has to do with processes and not with cameras; it imports no torch."""

from __future__ import annotations

import io
import json
import sys
import threading
from typing import Any

import gymnasium as gym
import numpy as np

from envs.errors import UserError
from envs.snapshots import check_random, load_random, require_form, require_number, save_random


class CountingEnv(gym.Env):
    """Shows how many steps it has made: in a tiny image, in ``proprio`` and as the reward.

    :param length: steps of an episode; the last one ends in success and truncation.
    :param fails: "refuse" and "crash" in ``make``, "step" in every step, "once" in the first, "end" with a pipe's error
        and "unsendable" with an info that cannot be pickled: when and how something goes wrong.
    :param size: of the images.
    """

    observation_space = gym.spaces.Dict(
        images=gym.spaces.Box(0, 255, (2, 3, 3, 3), np.uint8), proprio=gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    )
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int = 5, fails: str = "", size: int = 3) -> None:
        if fails == "refuse":
            raise UserError("this environment cannot be made")
        if fails == "crash":
            raise ZeroDivisionError("a bug")
        self.length, self.fails, self.steps, self.episode_seed = length, fails, 0, -1.0
        if size != 3:
            images = gym.spaces.Box(0, 255, (2, size, size, 3), np.uint8)
            self.observation_space = gym.spaces.Dict({**self.observation_space.spaces, "images": images})

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.steps, self.episode_seed = 0, float(self.np_random.integers(1000))
        return self._observe(), {"seed": seed, "options": options}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        if self.fails in ("step", "once"):
            self.fails = "" if self.fails == "once" else self.fails
            raise ZeroDivisionError("a bug in step")
        if self.fails == "end":
            raise EOFError("the environment's own file ended")
        self.steps += 1
        over = self.steps >= self.length
        info = {"is_success": over} | ({"lock": threading.Lock()} if self.fails == "unsendable" else {})
        return self._observe(), float(self.steps + action[0]), False, over, info

    def save_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "episode_seed": self.episode_seed, "random": save_random(self.np_random)}

    def load_state(self, state: Any) -> dict[str, np.ndarray]:
        require_form(state, {"steps": int, "episode_seed": float, "random": None}, "the count")
        require_number(state["steps"], int, "steps", 0, self.length)
        check_random(state["random"], "the count")
        load_random(self, state["random"])
        self.steps, self.episode_seed = state["steps"], state["episode_seed"]
        return self._observe()

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.steps, np.uint8)

    def has_torch(self, *, also: str = "sys") -> tuple[bool, bool]:
        """Whether torch, and another module, are imported in this process."""
        return "torch" in sys.modules, also in sys.modules

    def _observe(self) -> dict[str, np.ndarray]:
        images = np.full((2, 3, 3, 3), self.steps, np.uint8)
        return {"images": images, "proprio": np.array([self.steps, self.episode_seed], np.float32)}


def through_files(state: Any) -> Any:
    """A state as it comes back from JSON and an archive of arrays that holds no pickles."""
    arrays: dict[str, np.ndarray] = {}

    def take_out(tree: Any) -> Any:
        if type(tree) is np.ndarray:
            arrays[f"a{len(arrays)}"] = tree
            return {"array": f"a{len(arrays) - 1}"}
        if type(tree) is dict:
            return {key: take_out(value) for key, value in tree.items() if type(key) is str or 1 / 0}
        if type(tree) is list:
            return [take_out(value) for value in tree]
        assert tree is None or type(tree) in (bool, int, float, str), f"{tree!r} is no plain value"
        return tree

    text, file = json.dumps(take_out(state), allow_nan=False), io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        return json.loads(text, object_hook=lambda tree: found[tree["array"]] if set(tree) == {"array"} else tree)


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two trees differ: in types, shapes or any bit."""
    if type(one) is not type(other):
        return [f"{name}: {type(one).__name__} is not {type(other).__name__}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name}: {sorted(one)} are not {sorted(other)}"]
        return [found for key in one for found in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{name}: {len(one)} are not {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for index, (a, b) in pairs for found in differences(a, b, f"{name}.{index}")]
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    else:
        same = one == other
    return [] if same else [f"{name}: {str(one)[:60]} is not {str(other)[:60]}"]


def spoilt(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """Copies of a tree, each with one value replaced by something that does not belong there."""
    bad = [None, True, -1, 2**200, 1.5, float("nan"), "x", [], {}, [[0]], {"x": 1}, np.zeros(3), np.zeros(0, object)]
    bad.append(np.full((2, 2), np.nan))
    found = [(f"{path} = {value!r}", value) for value in bad]
    if isinstance(tree, dict):
        found.append((f"{path} without its first entry", dict(list(tree.items())[1:])))
        found.append((f"{path} with another entry", tree | {"more": 1}))
        for key, part in tree.items():
            found += [(where, tree | {key: value}) for where, value in spoilt(part, f"{path}.{key}")]
    if isinstance(tree, list):
        found.append((f"{path} with another entry", [*tree, 1]))
        for index, part in enumerate(tree[:2]):
            rest = tree[:index], tree[index + 1 :]
            found += [(where, [*rest[0], value, *rest[1]]) for where, value in spoilt(part, f"{path}.{index}")]
    if isinstance(tree, np.ndarray):
        found.append((f"{path} as another type", tree.astype(np.float16)))
        found.append((f"{path} longer", np.concatenate([tree.ravel(), tree.ravel()])))
    return found
