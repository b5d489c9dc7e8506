"""Gradient clipping by group.

SB3's PPO clips all of a policy's parameters by one common norm, so a large auxiliary gradient would shrink the policy's
to nothing. Here SB3's own clipping is switched off (``max_grad_norm = inf``) and a hook on the optimiser clips the
policy and the encoder with its decoder each on its own, as the original does (2.0, and max(5, 15 - 0.01 n)). SAC and
TQC, which SB3 does not clip at all, get the same on both of their optimisers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import nn
from torch.utils.hooks import RemovableHandle

from agents.seam import global_norm
from kp3d_rl.options import bounded, check_options


@dataclass(frozen=True)
class ClipConfig:
    """Largest gradient norms.

    :param policy: of actor and critic; of each on its own where they have an optimiser each.
    :param encoder: of encoder and decoder together, at the first policy update.
    :param encoder_decay: by how much that falls with every policy update (of SAC and TQC: with every period in which
        the callback logs, about 1,000 environment steps).
    :param encoder_floor: what it does not fall below.
    """

    policy: float = bounded(2.0, above=0, most=1_000_000_000)
    encoder: float = bounded(15.0, above=0, most=1_000_000_000)
    encoder_decay: float = bounded(0.01, least=0, most=1_000_000_000)
    encoder_floor: float = bounded(5.0, above=0, most=1_000_000_000)

    def __post_init__(self) -> None:
        check_options(self, "gradient clip")

    def encoder_at(self, update: int) -> float:
        """Clip of the encoder's group after ``update`` policy updates."""
        return max(min(self.encoder_floor, self.encoder), self.encoder - self.encoder_decay * update)


_INSTALLED: weakref.WeakKeyDictionary[torch.optim.Optimizer, list[RemovableHandle]] = weakref.WeakKeyDictionary()


class GroupClipper:
    """Optimiser step-pre-hook: measures, checks and clips each group of parameters on its own.

    :param policy_parameters: every parameter outside the encoder's group.
    :param encoder_parameters: encoder and decoder.
    :param config: the largest norms.
    :param on_nonfinite: called with the group's name when a gradient is NaN or Inf; expected to raise.
    :param name: of the first group, "policy", or "actor" or "critic" where those have optimisers of their own.
    """

    def __init__(
        self,
        policy_parameters: Iterable[nn.Parameter],
        encoder_parameters: Iterable[nn.Parameter],
        config: ClipConfig,
        on_nonfinite: Callable[[str], None],
        name: str = "policy",
    ) -> None:
        self.groups = {name: list(policy_parameters), "encoder": list(encoder_parameters)}
        self.config = config
        self.on_nonfinite = on_nonfinite
        self.before_clip: Callable[[], None] | None = None
        self.updates = 0
        self.norms: dict[str, list[float]] = {name: [] for name in self.groups}

    def install(self, optimizer: torch.optim.Optimizer) -> None:
        """Hook into an optimiser, in place of a clipper that an aborted training left there.

        Hooks do not survive loading a model, so this is done at every training start.

        :param optimizer: of the policy.
        """
        for earlier in _INSTALLED.pop(optimizer, ()):
            earlier.remove()
        self._handle = optimizer.register_step_pre_hook(self._on_step)
        _INSTALLED[optimizer] = [self._handle]

    def remove(self) -> None:
        """Take the hook out again."""
        self._handle.remove()

    def _on_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.before_clip is not None:
            self.before_clip()
        for name, parameters in self.groups.items():
            limit = self.config.encoder_at(self.updates) if name == "encoder" else self.config.policy
            gradients = [p.grad for p in parameters if p.grad is not None]
            if not gradients:
                continue
            norm = global_norm(gradients)
            if not norm < float("inf"):
                self.on_nonfinite(name)
            self.norms[name].append(norm)
            if norm > limit:
                torch._foreach_mul_(gradients, limit / (norm + 1e-6))

    def mean_norms(self) -> dict[str, float]:
        """Mean gradient norm of each group, before clipping, since the last call."""
        means = {name: sum(values) / len(values) for name, values in self.norms.items() if values}
        for values in self.norms.values():
            values.clear()
        return means


def install_clippers(
    policy: BasePolicy,
    encoder_parameters: Iterable[nn.Parameter],
    config: ClipConfig,
    on_nonfinite: Callable[[str], None],
) -> list[GroupClipper]:
    """Hook a clipper into every optimiser of a policy.

    :param policy: on-policy, with one ``optimizer``, or off-policy, with one each of ``critic`` and ``actor``.
    :param encoder_parameters: encoder and decoder, trained by the policy's or critic's optimiser; may be none.
    :param config: the largest norms.
    :param on_nonfinite: see :class:`GroupClipper`.
    :return: the clipper of the optimiser that trains the encoder comes first.
    """
    if hasattr(policy, "critic"):
        optimizers = {"critic": policy.critic.optimizer, "actor": policy.actor.optimizer}
    else:
        optimizers = {"policy": policy.optimizer}
    encoder = list(encoder_parameters)
    own = {id(parameter) for parameter in encoder}
    clippers = []
    for name, optimizer in optimizers.items():
        rest = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
        clippers.append(GroupClipper(rest, () if clippers else encoder, config, on_nonfinite, name))
        clippers[-1].install(optimizer)
    return clippers
