"""Numbers that are none: NaN and Inf, wherever they come up in a training, become one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from envs.errors import UserError


class NonFiniteError(UserError):
    """NaN or Inf where training needs a number; the message names what and, where known, which environment."""


def require_finite(what: str, values: np.ndarray | dict[str, np.ndarray]) -> Any:
    """Refuse NaN and Inf.

    :param what: "action", "observation" or "reward", for the message.
    :param values: (N, ...) one row per environment, or a dict of such arrays.
    :return: the values.
    :raises NonFiniteError: naming entry and environment.
    """
    for name, array in values.items() if isinstance(values, dict) else [(None, values)]:
        if isinstance(array, torch.Tensor):  # views on a device, which are bytes
            continue
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
            label = what if name is None else f"{what} '{name}'"
            raise NonFiniteError(f"the {label} of environment {', '.join(map(str, bad))} is NaN or Inf")
    return values


def refuse_nonfinite(group: str) -> None:
    """Stop training before the optimiser spreads a NaN into the weights.

    :param group: of parameters, for the message.
    :raises NonFiniteError: always.
    """
    raise NonFiniteError(f"the gradient of the {group} is NaN or Inf")


@contextlib.contextmanager
def refuse_nonfinite_outputs() -> Iterator[None]:
    """Where a policy acts: torch refuses to build a distribution of what is no number, before there is an action.

    :raises NonFiniteError: in place of torch's error, which says a page.
    """
    try:
        yield
    except ValueError as error:
        if "to satisfy the constraint" not in str(error):
            raise
        raise NonFiniteError("the policy's output is NaN or Inf: weights or input are out of range") from None
