"""From points or 2D joints to the pose in 3D: the paper's small regressor, and a standard lifter with and without them.

Sources: two fully connected layers, "Regression#1" of the paper; the residual lifter of Martinez, Hossain, Romero,
Little, "A simple yet effective baseline for 3D human pose estimation", ICCV 2017, to which the paper adds the
representation, mapped by a fully connected layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kp3d_rl.options import bounded, check_options


@dataclass(frozen=True)
class RegressionConfig:
    """How regressors are trained, and how large they are.

    :param hidden: units of the small regressor's hidden layer.
    :param lifter: units of each of the lifter's layers.
    :param steps: gradient steps of Adam.
    :param batch_size: samples of each.
    :param learning_rate: at the start; it falls to nothing along a cosine.
    :param weight_decay: decoupled.
    """

    hidden: int = bounded(1024, least=1, most=65_536)
    lifter: int = bounded(512, least=1, most=65_536)
    steps: int = bounded(2000, least=1, most=10_000_000)
    batch_size: int = bounded(256, least=2, most=65_536)
    learning_rate: float = bounded(1e-3, above=0, most=1)
    weight_decay: float = bounded(1e-3, least=0, most=10)

    def __post_init__(self) -> None:
        check_options(self, "regression")


class PoseRegressor(nn.Module):
    """Two fully connected layers: "Regression#1".

    :param inputs: numbers that a pose is told from.
    :param joints: J.
    :param hidden: units between.
    """

    def __init__(self, inputs: int, joints: int, hidden: int = 1024) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 3 * joints))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, inputs) to (B, 3 J)."""
        return self.layers(inputs)


class Lifter(nn.Module):
    """Martinez's residual network on 2D joints, to whose features a code may be added.

    :param inputs: numbers that 2D joints are.
    :param joints: J.
    :param hidden: units of each layer.
    :param code: numbers of the code, which come first in the input; 0 is none.
    """

    def __init__(self, inputs: int, joints: int, hidden: int = 1024, code: int = 0) -> None:
        super().__init__()
        self.code = code
        self.into = nn.Linear(inputs, hidden)
        self.of_code = nn.Linear(code, hidden) if code else None
        self.start = _block(hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), _block(hidden), nn.Linear(hidden, hidden), _block(hidden))
            for _ in range(2)
        )
        self.out = nn.Linear(hidden, 3 * joints)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, code + inputs) to (B, 3 J)."""
        features = self.into(inputs[:, self.code :])
        if self.of_code is not None:
            features = features + self.of_code(inputs[:, : self.code])
        features = self.start(features)
        for block in self.blocks:
            features = features + block(features)
        return self.out(features)


class FittedRegressor(nn.Module):
    """A regressor with the scales of what goes in and comes out; numbers that are NaN are missing.

    :param regressor: on inputs and to outputs of mean 0 and deviation 1.
    :param inputs: (N, D) that it learns from: their means and deviations are kept.
    :param joints: (N, J, 3) likewise.
    """

    def __init__(self, regressor: nn.Module, inputs: Tensor, joints: Tensor) -> None:
        super().__init__()
        self.regressor = regressor
        for name, values in (("inputs", inputs), ("joints", joints.flatten(1))):
            mean = values.nanmean(0)
            self.register_buffer(f"{name}_mean", mean.nan_to_num())
            self.register_buffer(
                f"{name}_scale", (values - mean).square().nanmean(0).sqrt().nan_to_num(1.0).clamp(1e-6)
            )

    def standardised(self, inputs: Tensor) -> Tensor:
        """Inputs (B, D) as the regressor takes them: what is missing (NaN) is average, far outliers are cut."""
        return ((inputs - self.inputs_mean) / self.inputs_scale).nan_to_num(0.0).clamp(-10.0, 10.0)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, D) to (B, J, 3), relative to the root."""
        said = self.regressor(self.standardised(inputs)) * self.joints_scale + self.joints_mean
        joints = said.unflatten(1, (-1, 3))
        return joints - joints[:, :1]


def fit(regressor: nn.Module, inputs: Tensor, joints: Tensor, config: RegressionConfig, seed: int) -> FittedRegressor:
    """Train a regressor by the mean squared error of standardised joints.

    :param regressor: takes (B, D), gives (B, 3 J).
    :param inputs: (N, D).
    :param joints: (N, J, 3) relative to the root.
    :param config: how.
    :param seed: of the batches.
    :raises ValueError: where there is nothing to learn from.
    """
    if len(inputs) < 2 or len(inputs) != len(joints):
        raise ValueError(f"a regressor needs at least two labelled samples, got {len(inputs)} and {len(joints)}")
    fitted = FittedRegressor(regressor, inputs, joints).train()
    wanted = (joints.flatten(1) - fitted.joints_mean) / fitted.joints_scale
    standard = fitted.standardised(inputs)
    optimizer = torch.optim.AdamW(regressor.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        rows = torch.randint(len(inputs), (min(config.batch_size, len(inputs)),), generator=generator)
        loss = (regressor(standard[rows]) - wanted[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return fitted.eval()


def _block(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.5))
