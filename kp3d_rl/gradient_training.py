"""Gradient steps that can be stopped anywhere and gone on with bit for bit: what trainings without a policy share."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kp3d_rl.optimizers import ConvolutionMuon


class GradientTraining(ABC):
    """Steps of Muon along a cosine on a network; what was done so far can be saved and taken up again.

    Attributes: ``step``, how many were made; ``loss``, the mean of the last ones; ``terms``, the last piece's loss
    terms by name, not weighted, where :meth:`batch_loss` sets them; ``seconds`` that the steps took; ``generator``,
    which all that is random is drawn from.

    :param network: that learns.
    :param steps: how many there will be.
    :param learning_rate: of Muon, at the start; it falls to nothing along a cosine.
    :param seed: with the same one a training is the same again.
    :param clip: norm that the gradient is cut to; None leaves it.
    :param parts: of how many pieces a batch is, whose gradients are added up.
    """

    def __init__(
        self,
        network: nn.Module,
        steps: int,
        learning_rate: float,
        seed: int,
        clip: float | None = None,
        parts: int = 1,
    ) -> None:
        self.network, self.steps, self.learning_rate, self.clip, self.parts = network, steps, learning_rate, clip, parts
        self.optimizer = ConvolutionMuon(network, learning_rate)
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.loss, self.seconds = 0, float("nan"), 0.0
        self.terms: dict[str, Tensor] = {}

    @abstractmethod
    def batch_loss(self) -> Tensor:
        """The loss of a piece of a batch, drawn from :attr:`generator`."""

    @property
    def finished(self) -> bool:
        """Whether all steps are made."""
        return self.step >= self.steps

    def advance(self) -> float:
        """One gradient step.

        :return: its loss.
        """
        share = 0.5 * (1.0 + math.cos(math.pi * self.step / self.steps))
        self.optimizer.set_rate(share * self.learning_rate)
        started = time.monotonic()
        self.network.train()
        self.optimizer.zero_grad()
        value = 0.0
        for _ in range(self.parts):
            loss = self.batch_loss() / self.parts
            loss.backward()
            value += float(loss.detach())
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.monotonic() - started
        self.loss = value if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * value
        return value

    def state(self) -> dict[str, Tensor]:
        """All that the coming steps depend on beside the data, as tensors by name."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        state |= {f"optimizer.{name}": value for name, value in self.optimizer.state().items()}
        state |= {f"term.{name}": value for name, value in self.terms.items()}
        numbers = {"step": self.step, "loss": self.loss, "seconds": self.seconds}
        state |= {name: torch.tensor(float(value), dtype=torch.float64) for name, value in numbers.items()}
        return state | {"generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state` gave; the steps from there on are those that would have come.

        :raises ValueError: where it is of another network.
        """
        try:
            weights = {name: state[f"network.{name}"] for name in self.network.state_dict()}
            self.network.load_state_dict(weights)
            self.optimizer.load_state({name.removeprefix("optimizer."): value for name, value in state.items()})
            self.step, self.loss, self.seconds = (float(state[name]) for name in ("step", "loss", "seconds"))
            self.step = int(self.step)
            self.generator.set_state(state["generator"])
            terms = {name: value for name, value in state.items() if name.startswith("term.")}
            self.terms = {name.removeprefix("term."): value for name, value in terms.items()}
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"this is no state of such a training: {str(error).splitlines()[0]}") from None
