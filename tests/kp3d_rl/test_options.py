"""Options that are checked when they are made."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest

from kp3d_rl.losses import LossWeights
from kp3d_rl.options import OptionError, bounded, check_options


@dataclass(frozen=True)
class Options:
    kind: Literal["fast", "exact", "none"] = "fast"
    count: int = bounded(3, least=1, most=10_000)
    rate: float = bounded(0.5, above=0, most=1)
    seed: int | None = bounded(None, least=0, most=9)
    on: bool = True
    name: str = "x"
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        check_options(self, "some")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "fst"}, "some kind must be 'fast', 'exact' or 'none', got 'fst'"),
        ({"kind": ["fast"]}, "some kind must be 'fast', 'exact' or 'none', got ['fast']"),
        ({"count": 0}, "some count must be at least 1 and at most 10,000, got 0"),
        ({"count": 10_001}, "some count must be at least 1 and at most 10,000, got 10001"),
        ({"count": 2.0}, "some count must be a whole number, got 2.0"),
        ({"count": True}, "some count must be a whole number, got True"),
        ({"count": None}, "some count must be a whole number, got None"),
        ({"count": 10**5000}, "some count must be at least 1 and at most 10,000, got a number beyond 64 bits"),
        ({"rate": 0}, "some rate must be above 0 and at most 1, got 0"),
        ({"rate": 1.5}, "some rate must be above 0 and at most 1, got 1.5"),
        ({"rate": float("nan")}, "some rate must be a finite number, got nan"),
        ({"rate": float("-inf")}, "some rate must be a finite number, got -inf"),
        ({"rate": "1"}, "some rate must be a number, got '1'"),
        ({"seed": 10}, "some seed must be at least 0 and at most 9, got 10"),
        ({"on": 1}, "some on must be true or false, got 1"),
        ({"name": "a\nb"}, "some name must be text of at most 4,096 printable characters on one line, got 'a\\nb'"),
        ({"name": "x" * 5000}, "characters on one line, got 'xxx"),
        ({"name": None}, "characters on one line, got None"),
        ({"loss": {}}, "some loss must be options of LossWeights, got {}"),
    ],
)
def test_options_of_another_type_or_out_of_bounds_are_refused(values: dict, message: str) -> None:
    with pytest.raises(OptionError) as error:
        Options(**values)
    assert message in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 200
    assert (error.value.group, error.value.option) == ("some", next(iter(values)))
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # from a worker process


def test_options_within_bounds_pass_numbers_of_numpy_too() -> None:
    made = Options(kind="none", count=np.int64(10_000), rate=np.float32(1.0), seed=9, name="ü😀", loss=LossWeights(1.0))
    assert made.count == 10_000 and Options(rate=1).rate == 1
