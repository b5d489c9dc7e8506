"""Where the time of a training step goes: wall time by stage, without overlap."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from experiments.bench.timing import wait_for


class Stages:
    """Adds up the time spent in methods of some objects; what one stage calls of another counts for that one alone.

    :param device: of the networks. A GPU is waited for where a stage begins and ends, since it is only asked to compute
        and what comes next would have to wait for it.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []
        self._undo: list[Callable[[], None]] = []

    def watch(self, stage: str, owner: Any, method: str) -> None:
        """Have calls of a method count for a stage.

        :param stage: its name.
        :param owner: object or class whose method is replaced, until :meth:`stop`, by one that takes the time.
        :param method: its name.
        """
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.counted(stage):
                return inner(*args, **kwargs)

        if isinstance(owner, type):
            setattr(owner, method, timed)
            self._undo.append(lambda: setattr(owner, method, inner))
        else:
            object.__setattr__(owner, method, timed)
            self._undo.append(lambda: object.__delattr__(owner, method))

    def stop(self) -> None:
        """Watch no longer."""
        while self._undo:
            self._undo.pop()()

    @contextlib.contextmanager
    def counted(self, stage: str) -> Iterator[None]:
        """Inside this context time counts for a stage."""
        now = self._now()
        if self._open:
            self._add(self._open[-1][0], now - self._open[-1][1])
        self._open.append((stage, now))
        try:
            yield
        finally:
            now = self._now()
            name, started = self._open.pop()
            self._add(name, now - started)
            if self._open:
                self._open[-1] = (self._open[-1][0], now)

    def shares(self) -> dict[str, float]:
        """Share of each stage, the largest first."""
        total = sum(self.seconds.values())
        return {name: taken / total for name, taken in sorted(self.seconds.items(), key=lambda item: -item[1])}

    def _now(self) -> float:
        wait_for(self.device)
        return time.perf_counter()

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def watched(model: BaseAlgorithm) -> Stages:
    """Take the times of a model's training.

    :param model: of Stable-Baselines3, with keypoints.
    """
    stages = Stages(model.device)
    stages.watch("environments: step, render, transport", model.env, "step")
    stages.watch("policy acts", model.policy, "forward")
    stages.watch("policy acts", model.policy, "predict_values")
    stages.watch("policy acts", model.policy, "_predict")
    extractor = model.policy.features_extractor
    stages.watch("encoder, forward", extractor.encoder, "forward")
    stages.watch("decoder and losses, forward", extractor, "terms")
    stages.watch("optimiser", model.policy.encoder_optimizer, "step")
    stages.watch("backward", torch.Tensor, "backward")
    return stages
