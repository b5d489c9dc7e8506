"""Trees of plain values and arrays, as states are: to JSON and tensors and back, and what form they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kp3d_rl.storage.files import DamagedError

Tree = Any
"""Dicts with text as keys, lists, None, bools, numbers, texts, and NumPy arrays."""

_ARRAY = "array"
_PLAIN = (bool, int, float, str, type(None))


def pack(tree: Tree, name: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """Take the arrays out of a tree.

    :param tree: plain values and arrays; a dict with the only key "array" cannot be told from an array.
    :param name: of the tree, in front of its arrays' names.
    :return: the tree with ``{"array": <name>}`` in place of each array, and the arrays by name.
    :raises TypeError: for values of other types: a bug of whoever made the tree.
    """
    if isinstance(tree, np.ndarray):
        return {_ARRAY: name}, {name: torch.from_numpy(np.array(tree, order="C"))}
    if isinstance(tree, dict):
        parts = {key: pack(value, f"{name}.{key}" if name else key) for key, value in tree.items()}
        plain: Any = {key: part for key, (part, _) in parts.items()}
    elif isinstance(tree, list):
        parts = {index: pack(value, f"{name}.{index}") for index, value in enumerate(tree)}
        plain = [part for part, _ in parts.values()]
    elif type(tree) in _PLAIN:
        return tree, {}
    else:
        raise TypeError(f"'{name}' is {type(tree).__name__}: a state is made of plain values and arrays")
    return plain, {key: value for _, arrays in parts.values() for key, value in arrays.items()}


def unpack(plain: Any, arrays: Mapping[str, torch.Tensor], name: str = "") -> Tree:
    """Undo :func:`pack`; a tree may use only the arrays that its own places name.

    :raises DamagedError: where an array is missing or another place's.
    """
    if isinstance(plain, dict) and set(plain) == {_ARRAY}:
        if plain[_ARRAY] != name or name not in arrays:
            raise DamagedError(f"the array at '{name}' is missing")
        try:
            return arrays[name].numpy()
        except TypeError:  # bfloat16 and the like
            raise DamagedError(f"the array at '{name}' is of {arrays[name].dtype}, which no state is") from None
    if isinstance(plain, dict):
        return {key: unpack(value, arrays, f"{name}.{key}" if name else key) for key, value in plain.items()}
    if isinstance(plain, list):
        return [unpack(value, arrays, f"{name}.{index}") for index, value in enumerate(plain)]
    return plain


def require_like(tree: Tree, pattern: Tree, name: str = "state") -> None:
    """Refuse a tree whose form is not a pattern's.

    Dicts need the same keys, arrays the same types and shapes, all else the same types. A list in the pattern holds one
    pattern for all entries of a list of any length; an array in the pattern with 0 rows allows any number of rows; a
    function in the pattern checks its place itself.

    :param tree: what was read.
    :param pattern: what it should look like.
    :param name: of the tree, for the message.
    :raises DamagedError: naming the place and both.
    """
    if callable(pattern):
        pattern(tree, name)
    elif isinstance(pattern, dict):
        _require_keys(tree, pattern, name)
        for key, part in pattern.items():
            require_like(tree[key], part, f"{name}.{key}")
    elif isinstance(pattern, list):
        if not isinstance(tree, list):
            raise DamagedError(f"'{name}' is {describe(tree)} where a list is expected")
        for index, value in enumerate(tree):
            require_like(value, pattern[0], f"{name}.{index}")
    elif isinstance(pattern, np.ndarray):
        _require_array(tree, pattern, name)
    elif type(tree) is not type(pattern):
        raise DamagedError(f"'{name}' is {describe(tree)} where {describe(pattern)} is expected")


def require_size(tree: Tree, name: str) -> None:
    """A pattern for :func:`require_like`: a count, which arithmetic with other counts keeps within 64 bits."""
    if type(tree) is not int or not 0 <= tree < 1 << 62:
        raise DamagedError(f"'{name}' is {describe(tree)} where a count is expected")


def anything(tree: Tree, name: str) -> None:
    """A pattern for :func:`require_like`: whoever takes it checks it."""


def require_mapping(tree: Tree, name: str) -> None:
    """A pattern for :func:`require_like`: a mapping, whose entries whoever takes it checks."""
    if not isinstance(tree, dict):
        raise DamagedError(f"'{name}' is {describe(tree)} where a mapping is expected")


def describe(value: Any) -> str:
    """What kind of value something is, in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array {tuple(value.shape)} of {value.dtype}"
    names = {dict: "a mapping", list: "a list", str: "a text", int: "a whole number", float: "a number", bool: "a bool"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def _require_keys(tree: Tree, pattern: dict[str, Any], name: str) -> None:
    if not isinstance(tree, dict):
        raise DamagedError(f"'{name}' is {describe(tree)} where a mapping is expected")
    for missing in sorted(pattern.keys() - tree.keys()):
        raise DamagedError(f"'{name}.{missing}' is missing")
    for extra in sorted(map(str, tree.keys() - pattern.keys())):
        raise DamagedError(f"'{name}.{extra[:80]}' is not known")


def _require_array(tree: Tree, pattern: np.ndarray, name: str) -> None:
    free = pattern.ndim > 0 and len(pattern) == 0
    fits = isinstance(tree, np.ndarray) and tree.dtype == pattern.dtype and tree.ndim == pattern.ndim
    if not fits or tree.shape[free:] != pattern.shape[free:]:
        raise DamagedError(f"'{name}' is {describe(tree)} where {describe(pattern)} is expected")
