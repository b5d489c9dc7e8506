"""How KeypointNet is trained: on random pairs of views of random objects; and its supervised counterpart.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kp3d_rl.cameras import Rig
from kp3d_rl.gradient_training import GradientTraining
from kp3d_rl.heatmaps import pool_to_cells, spread
from kp3d_rl.keypointnet.losses import (
    KeypointNetLossWeights,
    axis_tips,
    consistency_loss,
    hinge_separation_loss,
    orientation_loss,
    relative_pose_loss,
    silhouette_loss,
)
from kp3d_rl.keypointnet.network import FoundKeypoints, KeypointNet, rightness
from kp3d_rl.losses import variance_loss
from kp3d_rl.networks import to_input
from kp3d_rl.options import bounded, check_options


@dataclass(frozen=True)
class ViewsOfObjects:
    """S objects, each seen from N places, as a network takes them.

    :param images: (S, N, H, W, 3) uint8.
    :param masks: (S, N, H, W) bool, where the object is.
    :param poses: (S, N, 4, 4) world_from_camera in the object's frame, float32.
    :param intrinsics: (3, 3) of every camera.
    :param distance: of the cameras from the origin, about: from there on the network's depths count.
    :param landmarks: (S, L, 3) exact places of parts; only supervised training, and judging, look at them.
    """

    images: Tensor
    masks: Tensor
    poses: Tensor
    intrinsics: Tensor
    distance: float
    landmarks: Tensor

    def __post_init__(self) -> None:
        shape, sides = self.images.shape[:2], self.images.shape[2:4]
        if self.images.dim() != 5 or self.masks.shape != (*shape, *sides) or self.poses.shape != (*shape, 4, 4):
            shapes = f"{tuple(self.images.shape)}, {tuple(self.masks.shape)} and {tuple(self.poses.shape)}"
            raise ValueError(f"views must be (S, N, H, W, 3), (S, N, H, W) and (S, N, 4, 4), not {shapes}")
        if shape[0] < 1 or shape[1] < 2:
            raise ValueError(f"pairs of views need an object and two views of it, got {shape[0]} with {shape[1]} views")

    def __len__(self) -> int:
        return len(self.images)

    def rig(self, objects: Tensor, views: Tensor) -> Rig:
        """Cameras of some views.

        :param objects: (B,) indices.
        :param views: (B, V) indices.
        :return: V cameras with poses (B, V, 4, 4).
        """
        poses = self.poses[objects.unsqueeze(1), views]
        intrinsics = self.intrinsics.expand(views.shape[1], 3, 3)
        return Rig.from_arrays(intrinsics, poses, *self.images.shape[2:4], torch.float32)


@dataclass(frozen=True)
class KeypointNetTrainingConfig:
    """How a network is trained.

    :param steps: gradient steps.
    :param batch_size: pairs of views of each.
    :param accumulate: pieces that a batch is computed in; more need less memory and give the same gradients.
    :param learning_rate: of Muon, at the start; it falls to nothing along a cosine.
    :param clip: norm that the gradient is cut to.
    :param noise: standard deviation of what is added to the keypoints before their rotation is estimated.
    :param near: square of the distance up to which keypoints are too near to each other.
    :param guided: share of the steps for which the network is told which way an object really faces; from there on
        it is told what its orientation network says.
    :param supervised: learn the landmarks instead, to compare.
    :param loss: what each term counts for.
    """

    steps: int = bounded(2500, least=1, most=10_000_000)
    batch_size: int = bounded(64, least=1, most=65_536)
    accumulate: int = bounded(1, least=1, most=65_536)
    learning_rate: float = bounded(0.02, above=0, most=1)
    clip: float = bounded(5.0, above=0, most=1e6)
    noise: float = bounded(0.1, least=0, most=10)
    near: float = bounded(0.05, least=0, most=10)
    guided: float = bounded(0.225, least=0, most=1)
    supervised: bool = False
    loss: KeypointNetLossWeights = field(default_factory=KeypointNetLossWeights)

    def __post_init__(self) -> None:
        check_options(self, "training")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"training batch_size must be a multiple of accumulate, got {self.batch_size} and {self.accumulate}"
            )


class KeypointNetTraining(GradientTraining):
    """The gradient steps on a network.

    :param network: that learns.
    :param data: objects to learn from.
    :param config: how.
    :param seed: of pairs and noise: with the same one a training is the same again.
    """

    def __init__(
        self, network: KeypointNet, data: ViewsOfObjects, config: KeypointNetTrainingConfig, seed: int
    ) -> None:
        super().__init__(network, config.steps, config.learning_rate, seed, config.clip, config.accumulate)
        landmarks = data.landmarks.shape[-2]
        if config.supervised and network.config.keypoints != landmarks:
            raise ValueError(
                f"to learn {landmarks} landmarks takes {landmarks} keypoints, not {network.config.keypoints}"
            )
        self.data, self.config = data, config

    def batch_loss(self) -> Tensor:
        """See :meth:`GradientTraining.batch_loss`."""
        count = self.config.batch_size // self.config.accumulate
        objects = torch.randint(len(self.data), (count,), generator=self.generator)
        views = torch.rand(count, self.data.images.shape[1], generator=self.generator).topk(2).indices
        terms = self._terms(objects, views)
        self.terms = {name: value.detach() for name, value in terms.items()}
        weights = self.config.loss
        return sum(getattr(weights, name) * value if hasattr(weights, name) else value for name, value in terms.items())

    def _terms(self, objects: Tensor, views: Tensor) -> dict[str, Tensor]:
        """Loss terms of pairs (B,) and (B, 2)."""
        network, device = self.network, next(self.network.parameters()).device
        assert isinstance(network, KeypointNet)
        rig = self.data.rig(objects, views).to(device)
        images = to_input(self.data.images[objects.unsqueeze(1), views].to(device).flatten(0, 1))
        tips = network.orientation(images).unflatten(0, views.shape)
        guided = self.step < self.config.guided * self.config.steps
        right = rightness(axis_tips(rig) if guided else tips.detach(), rig.width)
        found = network(images, right.flatten())
        points = points_of(found, rig, self.data.distance)
        terms = {"orientation": orientation_loss(rig, tips)}
        if self.config.supervised:
            wanted = self.data.landmarks[objects].to(device, torch.float32).unsqueeze(1)
            return terms | {"landmarks": (points - wanted).square().sum(-1).mean()}
        masks = self.data.masks[objects.unsqueeze(1), views].to(device).float()
        return terms | self._own_terms(rig, found, points, masks)

    def _own_terms(self, rig: Rig, found: FoundKeypoints, points: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The terms that need no landmarks."""
        assert isinstance(self.network, KeypointNet)
        grids = self.network.network.grids(rig.height, rig.width)
        cells = pool_to_cells(masks, *grids, masks.new_zeros(2))
        uv, heat = (x.unflatten(0, points.shape[:2]) for x in (found.uv, found.heat))
        return {
            "consistency": consistency_loss(rig, uv, points),
            "pose": relative_pose_loss(points, self.config.noise, self.generator),
            "separation": hinge_separation_loss(points, self.config.near),
            "silhouette": silhouette_loss(heat, cells),
            "variance": variance_loss(spread(heat, *grids), rig.height, rig.width),
        }


def points_of(found: FoundKeypoints, rig: Rig, distance: float) -> Tensor:
    """Keypoints in space.

    :param found: in B * V images, the views of a batch together.
    :param rig: V cameras with poses (B, V, 4, 4).
    :param distance: that depths count from.
    :return: (B, V, K, 3) in the frame of the rig's poses.
    """
    shape = rig.world_from_camera.shape[:2]
    uv, depth = found.uv.unflatten(0, shape), found.depth.unflatten(0, shape)
    return rig.unproject(uv, depth + distance)
