"""Optimizers of convolutional networks.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024: the step of a matrix of weights
is its momentum made orthogonal, so that no direction learns much faster than others. PyTorch has it for matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MATRIX_SHARE = 3.0
"""Times the rate of all other parameters is that of matrices: Muon's steps and Adam's differ in length."""


class ConvolutionMuon:
    """Muon on the kernels of convolutions, as matrices of filters times what one filter sees; Adam on all else.

    The first and the last convolution are left to Adam, as the authors advise.

    :param network: whose parameters are trained; they may lie in either memory format, and must stay where they are.
    :param learning_rate: of the kernels.
    """

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        named = dict(network.named_parameters())
        hidden = [name for name, parameter in named.items() if parameter.dim() == 4][1:-1]
        self._kernels = {name: named[name] for name in hidden}
        self._views = {name: nn.Parameter(_as_matrix(kernel)) for name, kernel in self._kernels.items()}
        self._others = {name: parameter for name, parameter in named.items() if name not in self._kernels}
        self._muon = torch.optim.Muon(self._views.items(), lr=learning_rate, weight_decay=0.0)
        self._adam = torch.optim.Adam(self._others.values(), lr=learning_rate / MATRIX_SHARE)
        self.set_rate(learning_rate)

    def set_rate(self, learning_rate: float) -> None:
        """From the next step on.

        :param learning_rate: of the kernels; the others' is :data:`MATRIX_SHARE` times less.
        """
        for optimizer, rate in ((self._muon, learning_rate), (self._adam, learning_rate / MATRIX_SHARE)):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in (*self._kernels.values(), *self._others.values()):
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients that the network's parameters have."""
        for name, view in self._views.items():
            kernel = self._kernels[name]
            view.grad = None if kernel.grad is None else _as_matrix(_laid_out_like(kernel.grad, kernel))
        self._muon.step()
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """What the coming steps depend on, as tensors by name."""
        state = {}
        for optimizer, parameters in ((self._muon, self._views), (self._adam, self._others)):
            for name, parameter in parameters.items():
                state |= {f"{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state` gave.

        :param state: without an entry of a parameter that has made no step yet.
        :raises KeyError: where part of a parameter's entry is missing.
        :raises ValueError: where it is of another network.
        """
        for optimizer, parameters, keys in (
            (self._muon, self._views, ("momentum_buffer",)),
            (self._adam, self._others, ("step", "exp_avg", "exp_avg_sq")),
        ):
            for name, parameter in parameters.items():
                if any(f"{key}.{name}" in state for key in keys):
                    optimizer.state[parameter] = {key: _taken(state, key, name, parameter) for key in keys}


def _taken(state: dict[str, Tensor], key: str, name: str, parameter: Tensor) -> Tensor:
    """A copy of an entry, where the parameter is; Adam counts its steps on the CPU."""
    value = state[f"{key}.{name}"].clone()
    if key == "step":
        return value
    if value.shape != parameter.shape:
        raise ValueError(f"{key}.{name} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
    return value.to(parameter.device)


def _as_matrix(kernel: Tensor) -> Tensor:
    """(F, C, h, w) as (F, C h w) or (F, h w C) in the same memory: the order of columns makes no difference to Muon."""
    if kernel.is_contiguous():
        return kernel.detach().view(len(kernel), -1)
    return kernel.detach().permute(0, 2, 3, 1).view(len(kernel), -1)


def _laid_out_like(gradient: Tensor, kernel: Tensor) -> Tensor:
    plain = kernel.is_contiguous()
    return gradient.contiguous(memory_format=torch.contiguous_format if plain else torch.channels_last)
