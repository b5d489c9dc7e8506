"""The seam: how an auxiliary loss trains an encoder inside Stable-Baselines3's own ``train()``, with SB3 unmodified.

SB3 offers no hook between a minibatch's forward pass and ``loss.backward()``. But it always runs the feature extractor
on the minibatch, so the extractor computes the auxiliary loss there and ties it to its features by an identity function
whose backward pass hands the loss a gradient of exactly 1. One ``backward()`` then trains policy and encoder, one
optimiser step applies both, and the policy's own gradient is what it would have been.

When the loss is attached is decided by :meth:`AuxiliaryLoss.wanted`: gate open, module in training mode, gradients
enabled. Rollouts, prediction and evaluation fail at least one of the three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from agents.finite import NonFiniteError

Terms = Mapping[str, Tensor]


class _CarryGradient(torch.autograd.Function):
    """Identity on the features; in the backward pass the loss receives gradient 1."""

    @staticmethod
    def forward(ctx, features: Tensor, loss: Tensor) -> Tensor:  # noqa: ANN001
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN001
        return gradient, gradient.new_ones(())


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; the gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx, features: Tensor, scale: float) -> Tensor:  # noqa: ANN001
        ctx.scale = scale
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001
        return gradient * ctx.scale, None


def carry_gradient(features: Tensor, loss: Tensor) -> Tensor:
    """Tie a loss to features: whatever back-propagates through the features trains the loss too, with weight 1.

    :param features: any shape; returned with unchanged values.
    :param loss: scalar with a graph.
    """
    return _CarryGradient.apply(features, loss)


def scale_gradient(features: Tensor, scale: float) -> Tensor:
    """Let only a share of the gradient through.

    :param features: any shape; returned with unchanged values.
    :param scale: factor on the gradient; 1 leaves it, 0 stops it.
    """
    if scale == 0:
        return features.detach()
    return features if scale == 1 else _ScaleGradient.apply(features, scale)


class AuxiliaryLoss:
    """Gate, total and record of an auxiliary loss; owned by a policy, opened and closed by its callback.

    :param total: turns named terms into the scalar that is trained on.
    :param parameters: what the loss trains (encoder and decoder).

    ``scale`` multiplies the total (a schedule's business), ``calls`` counts the minibatches that carried the loss.
    """

    def __init__(self, total: Callable[[Terms], Tensor], parameters: Iterable[nn.Parameter]) -> None:
        self.total = total
        self.parameters = list(parameters)
        self.is_open = False
        self.scale = 1.0
        self.calls = 0
        self.record: dict[str, list[float]] = {}
        self.measure_next = False
        self.measured: list[Tensor | None] | None = None

    def wanted(self, module: nn.Module) -> bool:
        """Whether this forward pass is one that trains.

        :param module: the feature extractor that asks.
        """
        return self.is_open and module.training and torch.is_grad_enabled()

    def loss(self, terms: Terms) -> Tensor:
        """Weigh, scale and record the terms of a minibatch.

        :param terms: named scalars.
        :return: the scalar to train on.
        :raises NonFiniteError: if a term is NaN or Inf.
        """
        self.calls += 1
        for name, value in terms.items():
            number = float(value.detach())
            if not math.isfinite(number):
                raise NonFiniteError(f"the loss term '{name}' is {number}")
            self.record.setdefault(name, []).append(number)
        return self.scale * self.total(terms)

    def mean_terms(self) -> dict[str, float]:
        """Mean of every term since the last call."""
        means = {name: sum(values) / len(values) for name, values in self.record.items()}
        self.record.clear()
        return means

    def attach(self, features: Tensor, terms: Terms) -> Tensor:
        """Tie the loss to the features of the same minibatch.

        :param features: (B, F) what the policy will see.
        :param terms: named scalars.
        :return: the features, unchanged in value.
        """
        loss = self.loss(terms)
        if self.measure_next:
            self.measured = list(torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True))
            self.measure_next = False
        return carry_gradient(features, loss)

    def gradient_norms(self) -> dict[str, float] | None:
        """Norms of the two gradients on the trained parameters, for the minibatch that was measured.

        The auxiliary gradient was taken on its own in :meth:`attach`; the policy's is what ``backward()`` added to it.

        :return: ``auxiliary`` and ``policy``; None if nothing was measured since the last call.
        """
        if self.measured is None:
            return None
        pairs = [(p.grad, own) for p, own in zip(self.parameters, self.measured, strict=True) if p.grad is not None]
        self.measured = None
        own = [auxiliary for _, auxiliary in pairs if auxiliary is not None]
        rest = [total if auxiliary is None else total - auxiliary for total, auxiliary in pairs]
        return {"auxiliary": global_norm(own), "policy": global_norm(rest)}


def global_norm(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm over all entries of all tensors.

    :param tensors: gradients, any shapes.
    """
    norms = [torch.linalg.vector_norm(t) for t in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
