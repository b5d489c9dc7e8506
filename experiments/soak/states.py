"""Changes of a checkpoint's state that go through both of its files, plain values and arrays, and fit each other.

A change of one file can neither add an array nor take one away: both files must agree. Who knows the format can.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.torch import load, save

from experiments.runs.contents import to_json
from experiments.soak.mutators import HOSTILE
from kp3d_rl.storage.trees import pack, unpack

KEYS = (
    "opt.timestep", "opt.gravity", "body_pos", "body_mass", "geom_size", "actuator_gear", "lost", "model", "gauss",
    "\ud800", "../x", "array", "", "a" * 5000,
)  # fmt: skip
"""Names of entries that somebody might hope are taken: fields of MuJoCo's model, states of other kinds."""
_SHAPES = ((), (0,), (1,), (3,), (3, 3), (2, 0), (624,), (5056,))
_NUMBERS = (
    0, 1, -1, 624, 1 << 31, (1 << 53) + 1, 1 << 63, -(10**30), 0.0, -0.0, 0.5, 1e-12, 1e6, 1e200, -1e308, 5e-324,
    float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
_DTYPES = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.int8, np.bool_)


def change_state(folder: Path, draw: Random) -> str:
    """Change a place of a checkpoint's state.

    :param folder: of the checkpoint, which is whole.
    :param draw: decides where and how.
    :return: what was done, in words.
    """
    head = json.loads((folder / "state.json").read_bytes())
    state = unpack(head["state"], load((folder / "training.safetensors").read_bytes()))
    *path, key = draw.choice(list(places(state)))
    holder = state
    for step in path:
        holder = holder[step]
    what = draw.choice(_CHANGES)(holder, key, draw)
    head["state"], arrays = pack(state)
    with contextlib.suppress(UnicodeEncodeError):  # of a name that only JSON can spell
        (folder / "training.safetensors").write_bytes(save(arrays))
    (folder / "state.json").write_bytes(to_json(head))
    return f"state of {folder.name}: {what} at {'.'.join(map(str, (*path, key)))[:200]}"


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a tree, mappings and lists among them."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def _set_scalar(holder: Any, key: Any, draw: Random) -> str:
    holder[key] = draw.choice((*_NUMBERS, None, True, {}, [], draw.choice(HOSTILE).decode("latin-1")))
    return "another value"


def _set_array(holder: Any, key: Any, draw: Random) -> str:
    holder[key] = _array(draw)
    return "another array"


def _fill_array(holder: Any, key: Any, draw: Random) -> str:
    """The same type and shape with other numbers, where it is an array."""
    if not isinstance(holder[key], np.ndarray):
        return _set_scalar(holder, key, draw)
    holder[key] = _filled(holder[key].shape, holder[key].dtype, draw)
    return "another content"


def _add_entry(holder: Any, key: Any, draw: Random) -> str:
    value = draw.choice((_array(draw), draw.choice(_NUMBERS), {}))
    inside = holder[key] if isinstance(holder[key], (dict, list)) else holder
    if isinstance(inside, list):
        inside.append(value)
    else:
        inside[draw.choice(KEYS)] = value
    return "an entry more"


def _delete(holder: Any, key: Any, draw: Random) -> str:
    del holder[key]
    return "an entry less"


def _array(draw: Random) -> np.ndarray:
    return _filled(draw.choice(_SHAPES), np.dtype(draw.choice(_DTYPES)), draw)


def _filled(shape: tuple[int, ...], dtype: np.dtype, draw: Random) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.full(shape, float(draw.choice(_NUMBERS))).astype(dtype)


_CHANGES: tuple[Callable[[Any, Any, Random], str], ...] = (_set_scalar, _set_array, _fill_array, _add_entry, _delete)
