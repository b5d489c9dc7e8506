"""The state of random generators."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.errors import UserError
from envs.snapshots.forms import require_form, require_number

_BIT_GENERATORS = {kind.__name__: kind for kind in (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM)}
_BIT_GENERATORS |= {kind.__name__: kind for kind in (np.random.Philox, np.random.SFC64)}
# NumPy believes what it is told, and would read beyond its arrays.
_LIMITS = {"state": 2**128, "inc": 2**128, "uinteger": 2**32, "has_uint32": 2, "pos": 625, "buffer_pos": 5}


def save_random(generator: np.random.Generator) -> dict[str, Any]:
    """The state of a generator. How many children were spawned from it is no part of it.

    :raises UserError: if it is none of NumPy's.
    """
    kind = type(getattr(generator, "bit_generator", generator)).__name__
    if type(generator) is not np.random.Generator or kind not in _BIT_GENERATORS:
        raise UserError(f"the state of a random generator {kind} cannot be saved")
    return _copied(generator.bit_generator.state)


def check_random(state: Any, what: str) -> None:
    """Refuse what no generator can have given.

    :param state: as :func:`save_random` gives it.
    :param what: names it in the message.
    :raises UserError: if it is something else.
    """
    kind = require_form(state, dict, what).get("bit_generator")
    if type(kind) is not str or kind not in _BIT_GENERATORS:
        raise UserError(f"{what}: unknown random generator {str(kind)[:40]!r}; known: {', '.join(_BIT_GENERATORS)}")
    form = _copied(_BIT_GENERATORS[kind](0).state)
    require_form(state, _types(form), what)
    for part in (state, state["state"]):
        for key, value in part.items():
            if type(value) is int:
                require_number(value, int, f"{what}: '{key}'", 0, _LIMITS[key] - 1)


def load_random(env: gym.Env, state: dict[str, Any]) -> None:
    """Put an environment's ``np_random`` into a state that was checked. It stays the same object where it can."""
    kind = _BIT_GENERATORS[state["bit_generator"]]
    if type(env.np_random) is not np.random.Generator or type(env.np_random.bit_generator) is not kind:
        env.np_random = np.random.Generator(kind())
    env.np_random.bit_generator.state = state


def set_random(generator: np.random.Generator, state: Any, what: str) -> None:
    """Put a generator into a state of its own kind.

    :param state: as :func:`save_random` gives it; it is checked.
    :param what: names it in the message.
    :raises UserError: if it is something else.
    """
    check_random(state, what)
    kind = type(generator.bit_generator).__name__
    if state["bit_generator"] != kind:
        raise UserError(f"{what} is that of a generator {state['bit_generator']}, here is a {kind}")
    generator.bit_generator.state = state


def _copied(tree: Any) -> Any:
    """A copy of a bit generator's state, with Python's own numbers."""
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, np.ndarray):
        return tree.copy()
    return tree if isinstance(tree, str) else int(tree)


def _types(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _types(value) for key, value in tree.items()}
    return tree if isinstance(tree, np.ndarray) else type(tree)
