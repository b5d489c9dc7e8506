"""Forms of states: plain values and arrays of numbers. They may come from anywhere, so they are checked before use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from envs.errors import UserError

PLAIN = (bool, int, float, str, type(None))
"""Types of plain values."""
NUMERIC = "biuf"
"""Kinds of NumPy's types that are numbers."""
_DEEPEST = 16


def require_form(value: Any, form: Any, what: str) -> Any:
    """Refuse a value that does not have the form that is expected.

    :param value: what was read.
    :param form: a type; a dict with the form of every entry; a list that holds the form of all entries of a list of any
        length; an array of the same type and shape; None for whatever it may be.
    :param what: names it in the message.
    :return: the value.
    :raises UserError: naming the place.
    """
    if isinstance(form, dict):
        if type(value) is not dict:
            raise UserError(f"{what} is {described(value)} where a dict is expected")
        for key in [*form.keys() - value.keys(), *value.keys() - form.keys()]:
            raise UserError(f"{what}: entry {str(key)[:80]!r} is {'missing' if key in form else 'unknown'}")
        for key, part in form.items():
            require_form(value[key], part, f"{what}: '{key}'")
    elif isinstance(form, list):
        for index, entry in enumerate(require_form(value, list, what)):
            require_form(entry, form[0], f"{what}: {index}")
    elif isinstance(form, np.ndarray):
        if type(value) is not np.ndarray or value.dtype != form.dtype or value.shape != form.shape:
            raise UserError(f"{what} is {described(value)} where {described(form)} is expected")
    elif form is not None and type(value) is not form:
        raise UserError(f"{what} is {described(value)} where {form.__name__} is expected")
    return value


def require_number(value: Any, kind: type, what: str, least: float = -math.inf, most: float = math.inf) -> Any:
    """Refuse what is no number of a type (int, float) between two others.

    :return: the number.
    :raises UserError: naming it.
    """
    require_form(value, kind, what)
    if not least <= value <= most:  # neither is NaN
        raise UserError(f"{what} is {str(value)[:40]}; it must be between {least} and {most}")
    return value


def require_finite_array(value: Any, form: np.ndarray, what: str) -> np.ndarray:
    """Refuse what is no array of the type and shape of another one, or holds NaN or infinity.

    :return: the array.
    :raises UserError: naming it.
    """
    require_form(value, form, what)
    if not np.isfinite(value).all():
        raise UserError(f"{what} holds NaN or Inf")
    return value


def plain_copy(value: Any, what: str, depth: int = 0) -> Any:
    """A copy of a tree of plain values and arrays of numbers.

    :param value: the tree.
    :param what: names it in the message.
    :param depth: how deep inside of a tree it lies.
    :raises UserError: where it holds anything else.
    """
    if depth > _DEEPEST:
        raise UserError(f"{what} is nested too deeply")
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: plain_copy(part, what, depth + 1) for key, part in value.items()}
    if type(value) is list:
        return [plain_copy(part, what, depth + 1) for part in value]
    if type(value) is np.ndarray and value.dtype.kind in NUMERIC:
        return value.copy()
    if type(value) in PLAIN:
        return value
    raise UserError(f"{what} holds {described(value)}, which is neither a plain value nor an array of numbers")


def described(value: Any) -> str:
    """What a value is, for a message."""
    return f"an array {value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
