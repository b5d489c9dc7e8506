"""Timing things in turns, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch


def race(entries: Mapping[str, Callable[[], object]], seconds: float, least: int = 5) -> dict[str, float]:
    """Time several things in turns.

    :param entries: what to call, by name.
    :param seconds: how long to go on, for each of them about.
    :param least: calls of each at least.
    :return: median seconds of a call, by name.
    """
    for act in entries.values():
        act()  # the first call pays for compiling and loading
    times: dict[str, list[float]] = {name: [] for name in entries}
    end = time.perf_counter() + seconds * len(entries)
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, act in entries.items():
            started = time.perf_counter()
            act()
            times[name].append(time.perf_counter() - started)
    return {name: float(np.median(measured)) for name, measured in times.items()}


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Inside this context the calling thread, and what it starts, runs on one core; where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_for(device: torch.device | str) -> None:
    """Wait until a GPU has done what it was asked, so that a clock can be read; a CPU always has.

    :param device: where the networks are.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
