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
            return _bare_adam_step()(self, closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


def _bare_adam_step() -> Callable[..., Any]:
    """Adam's step without the hooks, which this class's own step has run already.

    When the first plain Adam of a process is made, torch wraps ``Adam.step`` itself in the hooks: called from here, it
    would run every hook a second time, on gradients that are clipped already.
    """
    step = torch.optim.Adam.step
    return step.__wrapped__ if getattr(step, "hooked", False) else step
