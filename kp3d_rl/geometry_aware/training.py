"""How the representation is learnt: by drawing the skeleton of one view as another camera sees it, both ways at once.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kp3d_rl.geometry_aware.network import turned
from kp3d_rl.geometry_aware.skeleton import SkeletonViews, relative_rotation
from kp3d_rl.gradient_training import GradientTraining
from kp3d_rl.options import bounded, check_options

Task = Literal["synthesis", "autoencoder"]


@dataclass(frozen=True)
class GeometryAwareTrainingConfig:
    """How networks are trained.

    :param steps: gradient steps.
    :param batch_size: pairs of views of each.
    :param learning_rate: of Muon, at the start; it falls to nothing along a cosine.
    :param clip: norm that the gradient is cut to.
    :param consistency: what representation consistency counts for.
    """

    steps: int = bounded(12_000, least=1, most=10_000_000)
    batch_size: int = bounded(64, least=1, most=65_536)
    learning_rate: float = bounded(0.02, above=0, most=1)
    clip: float = bounded(5.0, above=0, most=1e6)
    consistency: float = bounded(1.0, least=0, most=1e6)

    def __post_init__(self) -> None:
        check_options(self, "training")


class GeometryAwareTraining(GradientTraining):
    """The gradient steps on the two networks, or on one that draws what it sees, to compare.

    :param networks: there and back, or one for both; an autoencoder is one.
    :param data: skeletons to learn from; their 3D joints are not looked at.
    :param config: how.
    :param seed: of pairs: with the same one a training is the same again.
    :param task: "synthesis" of other views, or "autoencoder".
    """

    def __init__(
        self,
        networks: nn.ModuleList,
        data: SkeletonViews,
        config: GeometryAwareTrainingConfig,
        seed: int,
        task: Task = "synthesis",
    ) -> None:
        super().__init__(networks, config.steps, config.learning_rate, seed, config.clip)
        if task == "synthesis" and data.uv.shape[1] < 2:
            raise ValueError(f"to learn from pairs takes two views of each pose, got {data.uv.shape[1]}")
        if not len(data):
            raise ValueError("there is no pose to learn from")
        self.networks, self.data, self.config, self.task = networks, data, config, task

    def batch_loss(self) -> Tensor:
        """See :meth:`GradientTraining.batch_loss`."""
        poses = torch.randint(len(self.data), (self.config.batch_size,), generator=self.generator)
        views = torch.rand(len(poses), self.data.uv.shape[1], generator=self.generator).topk(self._views).indices
        uv, rotations = (values[poses.unsqueeze(1), views] for values in (self.data.uv, self.data.rotations))
        device = next(self.networks.parameters()).device
        maps = self.networks[0].maps(uv.to(device))  # type: ignore[operator]
        if self.task == "autoencoder":
            terms = {"drawing": drawing_loss(self.networks[0].decode(self.networks[0].encode(maps[:, 0])), maps[:, 0])}
        else:
            terms = pair_terms(self.networks, maps, rotations.to(device))
        self.terms = {name: value.detach() for name, value in terms.items()}
        return terms["drawing"] + self.config.consistency * terms.get("consistency", 0.0)

    @property
    def _views(self) -> int:
        return 2 if self.task == "synthesis" else 1


def pair_terms(networks: nn.ModuleList, maps: Tensor, rotations: Tensor) -> dict[str, Tensor]:
    """Loss terms of pairs of views, both ways.

    :param networks: from the first view to the second, and back; or one for both.
    :param maps: (B, 2, L, H, W) of the two views.
    :param rotations: (B, 2, 3, 3) world-from-camera.
    :return: "drawing", the mean of both ways' :func:`drawing_loss`, and "consistency".
    """
    there = relative_rotation(rotations[:, 0], rotations[:, 1])
    one, other = networks[0], networks[-1]
    first, second = one.encode(maps[:, 0]), other.encode(maps[:, 1])  # type: ignore[operator]
    forward, backward = turned(first, there), turned(second, there.mT)
    drawn = drawing_loss(one.decode(forward), maps[:, 1])  # type: ignore[operator]
    drawn_back = drawing_loss(other.decode(backward), maps[:, 0])  # type: ignore[operator]
    return {"drawing": 0.5 * (drawn + drawn_back), "consistency": consistency_loss(forward, second)}


def drawing_loss(drawn: Tensor, maps: Tensor) -> Tensor:
    """View synthesis: the squared difference of maps, relative to what drawing nothing would cost.

    :param drawn: (B, L, H, W).
    :param maps: (B, L, H, W) the truth.
    """
    return (drawn - maps).square().sum() / maps.square().sum().clamp(min=1.0)


def consistency_loss(turned_points: Tensor, points: Tensor) -> Tensor:
    """Representation consistency: how far one view's points, turned, are from what the other network finds there.

    :param turned_points: (B, M, 3).
    :param points: (B, M, 3) in the same frame.
    :return: the squared distance relative to the points' own size: small points are no way out.
    """
    size = 0.5 * (turned_points.square().mean() + points.square().mean())
    return (turned_points - points).square().mean() / size.clamp(min=1e-12)
