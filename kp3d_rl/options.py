"""Options as frozen dataclasses whose fields say what values make sense: checked when one is made.

No number in a file that came from somewhere may ask for all the memory or all the time there is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal


def bounded(default: Any, *, most: float, least: float | None = None, above: float | None = None) -> Any:
    """A dataclass field that holds a number between bounds, for :func:`check_options`.

    The upper bound is generous for research; it is there so that no number in a file that came from somewhere can ask
    for all the memory or all the time there is.

    :param default: of the field.
    :param most: the largest value.
    :param least: the smallest value; or
    :param above: what the value must be greater than.
    """
    return dataclasses.field(default=default, metadata={"most": most, "least": least, "above": above})


class OptionError(ValueError):
    """An option that is not what it should be.

    :param group: whose option it is, such as "ppo"; may be empty.
    :param option: name of the field.
    :param problem: what is wrong and what would be right, continuing the option's name.
    """

    def __init__(self, group: str, option: str, problem: str) -> None:
        super().__init__(group, option, problem)
        self.group, self.option, self.problem = group, option, problem

    def __str__(self) -> str:
        return f"{self.group} {self.option} {self.problem}".lstrip()


def check_options(options: Any, group: str) -> None:
    """Refuse the first field of a dataclass whose value has another type than annotated or lies out of its bounds.

    :param options: the dataclass, whose numbers have bounds (:func:`bounded`).
    :param group: what it is called in messages; may be empty.
    :raises OptionError: naming the field and what would be right.
    """
    kinds = option_kinds(type(options))
    for field in fields(options):
        value = getattr(options, field.name)
        problem = _problem(value, kinds[field.name], field.metadata)
        if problem:
            raise OptionError(group, field.name, f"must be {problem}, got {_shown(value)}")


@functools.cache
def option_kinds(options: type) -> dict[str, Any]:
    """Types of a dataclass's fields, by name."""
    return typing.get_type_hints(options)


def _problem(value: Any, kind: Any, bounds: Mapping[str, Any]) -> str | None:
    """What a value must be, if it is not that."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):  # with None, the only union that there is
        if value is None:
            return None
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return None if isinstance(value, str) and value in choices else _either(choices)
    if kind is int or kind is float:
        return _number_problem(value, kind, bounds)
    if kind is str:
        fits = isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.isprintable()
        return None if fits else f"text of at most {_LONGEST_TEXT:,} printable characters on one line"
    return None if isinstance(value, kind) else {bool: "true or false"}.get(kind, f"options of {kind.__name__}")


def _number_problem(value: Any, kind: type, bounds: Mapping[str, Any]) -> str | None:
    wanted, name = (numbers.Integral, "a whole number") if kind is int else (numbers.Real, "a number")
    if not isinstance(value, wanted) or isinstance(value, bool):
        return name
    if not isinstance(value, numbers.Integral) and not math.isfinite(value):
        return "a finite number"
    most, least, above = (bounds.get(name) for name in ("most", "least", "above"))
    low = (least is None or value >= least) and (above is None or value > above)
    if low and (most is None or value <= most):
        return None
    return f"{f'above {above:,}' if least is None else f'at least {least:,}'} and at most {most:,}"


def _either(choices: tuple[str, ...]) -> str:
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last


_LONGEST_TEXT = 4096
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def _shown(value: Any) -> str:
    """A value on one line, short enough for a message."""
    if isinstance(value, int) and abs(value) >= 2**64:  # Python refuses to print thousands of digits
        return "a number beyond 64 bits"
    return "".join(c if c.isprintable() else "?" for c in _REPR.repr(value))
