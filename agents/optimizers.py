"""Adam with a learning rate of its own for the encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class ScaledAdam(torch.optim.Adam):
    """Adam whose parameter groups may carry an ``lr_scale``, a factor on whatever learning rate is set.

    SB3 writes the scheduled rate into every group before each update, so a group's own ``lr`` would not last. The
    factor is applied during the step alone.
    """

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update with each group's rate times its ``lr_scale`` (1 where there is none)."""
        rates = [group["lr"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["lr"] = group["lr"] * group.get("lr_scale", 1.0)
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
