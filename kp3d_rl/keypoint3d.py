"""Keypoint3D: 3D keypoints from several cameras, learnt by reconstructing the views.

Source: Chen, Abbeel, Pathak, "Unsupervised Learning of Visual 3D Keypoints for Control", ICML 2021.

The chain, each step a function of the module named after it::

    views -> heat maps -> (u, v), depth, spread -> 3D points per view -> fused keypoints        (Keypoint3D)
    fused keypoints -> (u, v) in every view -> Gaussian maps -> foreground over background      (reconstruction.py)

These choices differ from the original on purpose. Depth is bounded by where each camera sees the workspace box, not by
twice a typed mean depth; it starts from where the views' rays meet, is corrected from what a keypoint attends to, and
counts for less than the place in the image when the views are fused. The decoder draws a foreground layer with an
opacity over the known background image, so that the background costs no capacity and every difference from it must be
explained by keypoints; heat maps are asked to cover those differences, and each to keep to one place. Heat maps are
standardised, rare sights weigh more, and some views are drawn from their own keypoints (an option each): small things
such as a target are found late or never without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from kp3d_rl.cameras import Rig, Workspace
from kp3d_rl.geometry import RAYS_ALONE, agreeing_views, fuse
from kp3d_rl.heatmaps import soft_argmax, softmax2d, spread, standardise
from kp3d_rl.losses import LossWeights
from kp3d_rl.networks import LAYERS, DepthKind, Precision, ViewEncoder, convolve_in, grids
from kp3d_rl.options import bounded, check_options

SCENE_BUFFERS = ("intrinsics", "world_from_camera", "centre", "half_extents")
"""What stands among an encoder's weights and is not learnt: the cameras and the box that it was built for."""


@dataclass(frozen=True)
class Keypoint3DConfig:
    """What a user would vary or ablate.

    :param keypoints: K, the number of keypoints.
    :param dimensions: "3d", or "2d": the heat-map bottleneck per view without depth, fusion or consistency.
    :param view_weights: one network "shared" by all views, or one network "per_view".
    :param layers: convolutions, "fast" (stride 4) or "paper" (stride 8, the original's).
    :param width: filters of the encoder's first layer.
    :param decoder_width: filters of the decoder at the heat maps' resolution.
    :param heat_scale: factor on the heat logits before the softmax (original: 5).
    :param standardise: bring each heat map's logits to mean 0 and deviation 1 first (original: no).
    :param noise: noise on (u, v) in the unsupervised pass, in units of the heat map's own spread (original: 0.05).
    :param gaussian_width: width of the decoder's Gaussians in heat-map cells at the workspace's centre (original: 1.5).
    :param confidence: weigh cameras in the fusion, and Gaussian heights, by the keypoints' confidence.
    :param background: draw over the background image; off, the decoder has to draw everything.
    :param decoded_views: how many views, drawn anew for each batch, are decoded in training; 0 is all of them.
    :param weigh_pixels: let an error on what is not background count by the inverse of that pixel's variance over time
        (original: all the same).
    :param outside: weight, in reconstruction and coverage, of what cannot be in the workspace box by what all views
        show (:mod:`kp3d_rl.hull`), where cameras stand still; the rest has weight 1. A long arm that reaches in from
        without draws keypoints off otherwise, and views agree on none of them.
    :param weigh_coverage: let coverage too count what ``weigh_pixels`` says, so that small things draw more heat.
    :param own_view: share of a training batch in which each view is drawn from its own keypoints, not from the fused
        ones. A small object is found in 2D first, long before the views' depths agree well enough to hit it together.
    :param random_shift: pixels by which the views of a training batch are shifted at random, as in DrQ
        (:mod:`kp3d_rl.augmentation`); the encoder is told the offsets, so that its geometry stays exact; 0: not at all.
        PPO's own minibatches are not shifted, since a policy ratio needs the features of the rollout.
    :param depth: "triangulated", where the rays of all views meet, corrected by a small network from what a keypoint
        attends to in its own view; "attended", by that network alone, so that each view is on its own; or "map", the
        expectation of a depth map, as in the original.
    :param depth_trust: what a view's depth counts for in the fusion, relative to its place in the image (original: 1).
    :param precision: of the convolutions; "auto" takes bfloat16 where it is faster, up to twice.
    :param multiview_rise: gradient steps over which the multi-view weight rises from a tenth to its value. At full
        weight from the start, views agree on big things and a keypoint that one view moves to a small one is pulled
        back; at a low weight to the end, they stay further apart.
    :param loss: weights of the loss terms.
    """

    keypoints: int = bounded(16, least=1, most=1024)
    dimensions: Literal["3d", "2d"] = "3d"
    view_weights: Literal["shared", "per_view"] = "shared"
    layers: Literal["fast", "paper"] = "fast"
    width: int = bounded(16, least=1, most=1024)
    decoder_width: int = bounded(32, least=1, most=1024)
    heat_scale: float = bounded(3.0, above=0, most=10_000)
    standardise: bool = True
    noise: float = bounded(0.05, least=0, most=100)
    gaussian_width: float = bounded(1.5, above=0, most=1000)
    confidence: bool = True
    background: bool = True
    decoded_views: int = bounded(1, least=0, most=1024)
    weigh_pixels: bool = True
    weigh_coverage: bool = False
    outside: float = bounded(1.0, least=0, most=1)
    own_view: float = bounded(0.5, least=0, most=1)
    random_shift: int = bounded(0, least=0, most=1024)
    depth: DepthKind = "triangulated"
    depth_trust: float = bounded(0.1, above=0, most=1)
    precision: Precision = "auto"
    multiview_rise: int = bounded(1000, least=0, most=1_000_000_000)
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        check_options(self, "encoder")

    def loss_at(self, step: int) -> LossWeights:
        """The weights of the loss terms after so many gradient steps.

        :param step: gradient steps done.
        """
        share = min(1.0, max(0.1, step / max(1, self.multiview_rise)))
        return dataclasses.replace(self.loss, multiview=share * self.loss.multiview)


@dataclass(frozen=True)
class Keypoints:
    """What the encoder says of a batch; leading dimensions B, views V, keypoints K.

    Positions are in the workspace's frame: the world's, or where the workspace follows a body, with its position as the
    origin and the world's axes.

    :param uv: (B, V, K, 2) pixels, each view's own: of the rig's image, also where the encoder saw a window of it.
    :param depth: (B, V, K) metres along each view's optical axis.
    :param spread: (B, V, K, 2) standard deviation of the heat map along u and v, pixels.
    :param confidence: (B, V, K) share of each view's attention, sums to 1 over K.
    :param view_points: (B, V, K, 3) metres, each view's own.
    :param points: (B, K, 3) metres, fused over the present views.
    :param present: (V,) bool, which views count.
    :param heat: (B, V, K, h, w) each view's heat maps, summing to 1, on the cells of what the encoder saw.
    :param offset: (B, V, 2) pixels, (left, top) of what the encoder saw in the rig's image.
    """

    uv: Tensor
    depth: Tensor
    spread: Tensor
    confidence: Tensor
    view_points: Tensor
    points: Tensor
    present: Tensor
    heat: Tensor
    offset: Tensor

    def rows(self, rows: slice) -> Keypoints:
        """Those of some samples of the batch.

        :param rows: which.
        """
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "present"}
        return Keypoints(**{name: values[rows] for name, values in kept.items()}, present=self.present)

    @property
    def fused_confidence(self) -> Tensor:
        """(B, K) mean over the present views, times K: 1 is an average keypoint."""
        counted = self.confidence * self.present.unsqueeze(-1)
        return counted.sum(-2) / self.present.sum() * self.confidence.shape[-1]


def to_network_layout(images: Tensor) -> Tensor:
    """Camera images as the networks want them.

    The permuted view of a contiguous HWC batch is already torch's channels-last layout, so nothing is copied but the
    conversion to float.

    :param images: (B, V, H, W, 3) uint8.
    :return: (B V, 3, H, W) float in [0, 1], channels last in memory.
    :raises ValueError: for another shape or type.
    """
    if images.dtype != torch.uint8 or images.dim() != 5 or images.shape[-1] != 3:
        raise ValueError(f"images must be (B, V, H, W, 3) uint8, got {tuple(images.shape)} {images.dtype}")
    return images.flatten(0, 1).permute(0, 3, 1, 2).float().div_(255.0)


class Keypoint3D(nn.Module):
    """Encoder: synchronized views in, 3D keypoints with confidences out.

    :param config: sizes and options.
    :param rig: the cameras, (V, 3, 3) intrinsics and (V, 4, 4) poses.
    :param workspace: the box that the keypoints live in; bounds the depths.
    :param moving: whether cameras move, so that each call needs their poses; those of the rig are of one instant.
    """

    def __init__(self, config: Keypoint3DConfig, rig: Rig, workspace: Workspace, moving: bool = False) -> None:
        super().__init__()
        self.config, self.moving = config, moving
        networks = 1 if config.view_weights == "shared" else rig.num_views
        layers = LAYERS[config.layers]
        self.views = nn.ModuleList(
            ViewEncoder(config.keypoints, config.width, layers, config.depth) for _ in range(networks)
        )
        self.rows, self.columns = grids(layers, rig.height, rig.width)
        self.height, self.width, self.num_views = rig.height, rig.width, rig.num_views
        scene = (rig.intrinsics, rig.world_from_camera, workspace.centre, workspace.half_extents)
        for name, value in zip(SCENE_BUFFERS, scene, strict=True):
            self.register_buffer(name, value.clone())
        # Not part of the state: it says what is seen now, not what was learnt.
        self.tolerance = 0.0
        self.register_buffer("present", torch.ones(rig.num_views, dtype=torch.bool), persistent=False)

    @property
    def rig(self) -> Rig:
        """The cameras at their resting poses, on the module's device."""
        return Rig(self.intrinsics, self.world_from_camera, self.height, self.width)

    @property
    def workspace(self) -> Workspace:
        """The keypoints' box, on the module's device."""
        return Workspace(self.centre, self.half_extents)

    @contextlib.contextmanager
    def without(self, view: int) -> Iterator[None]:
        """Inside this context one camera is missing: its view has no weight in the fused keypoints.

        What that view shows still runs through the network and comes back as that view's own estimate. Contexts nest.

        :param view: index of the camera.
        :raises ValueError: if there is no such camera, or it is the last one present.
        """
        if not 0 <= view < self.num_views:
            raise ValueError(f"there is no view {view}: the cameras count from 0 to {self.num_views - 1}")
        before, self.present = self.present, self.present.clone()  # keypoints found so far keep theirs
        self.present[view] = False
        try:
            if not self.present.any():
                raise ValueError(f"view {view} is the last one present: at least one camera must remain")
            yield
        finally:
            self.present = before

    @contextlib.contextmanager
    def rejecting(self, tolerance: float) -> Iterator[None]:
        """Inside this context a view that contradicts all others has no weight in a keypoint's fusion.

        For cameras that were moved: what lies out of such a view, the network still points to somewhere. Training does
        without, since at its start all views contradict each other.

        :param tolerance: metres by which rays may miss each other (:func:`kp3d_rl.geometry.agreeing_views`).
        :raises ValueError: unless it is positive.
        """
        if not tolerance > 0:
            raise ValueError(f"the tolerance must be positive, got {tolerance}")
        before, self.tolerance = self.tolerance, tolerance
        try:
            yield
        finally:
            self.tolerance = before

    def forward(self, images: Tensor, camera_poses: Tensor | None = None, offset: Tensor | None = None) -> Keypoints:
        """Find the keypoints, noise-free.

        :param images: (B, V, H, W, 3) uint8, all of one instant.
        :param camera_poses: (B, V, 4, 4) world_from_camera, which an encoder with moving cameras has to be given.
        :param offset: (B, V, 2) pixels, (left, top) of the images in the rig's images, where they are windows of those
            (:func:`kp3d_rl.augmentation.random_shift`). What is returned is of the rig's own images: nothing after the
            encoder has to know of windows.
        :raises ValueError: for images of another size or number of views than the rig's, or without poses.
        """
        if self.moving and camera_poses is None:
            raise ValueError("these cameras move: give their poses, (B, V, 4, 4) world_from_camera, with the images")
        expected = (self.num_views, self.height, self.width, 3)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"images of shape {tuple(images.shape[1:])} do not fit the rig's {expected}")
        rig = self.rig if camera_poses is None else self.rig.with_poses(camera_poses)
        heat_logits, features = self._heat_logits_and_features(to_network_layout(images).mul_(2.0).sub_(1.0))
        heat = softmax2d(self._scaled(heat_logits))
        uv, window = soft_argmax(heat, self.rows, self.columns), rig
        if offset is None:
            offset = uv.new_zeros(*uv.shape[:2], 2)
        else:
            window = rig.crop(offset[..., 1], offset[..., 0], self.height, self.width)
        confidence = self._confidence(heat_logits)
        depth = self._depth(window, features, heat, uv, confidence)
        view_points = window.unproject(uv, depth)
        return Keypoints(
            uv=uv + offset.unsqueeze(-2),
            depth=depth,
            spread=spread(heat, self.rows, self.columns),
            confidence=confidence,
            view_points=view_points,
            points=self._fuse(rig, view_points, confidence),
            present=self.present,
            heat=heat,
            offset=offset,
        )

    def find_in_views(self, images: Tensor) -> Tensor:
        """Where the keypoints are in views that no camera has, such as turned ones: each view on its own.

        :param images: (B V, 3, H, W) in [-1, 1], V views of each of B instants one after the other.
        :return: (B, V, K, 2) pixels.
        """
        heat = softmax2d(self._scaled(self._heat_logits_and_features(images)[0]))
        return soft_argmax(heat, self.rows, self.columns)

    def with_noise(self, keypoints: Keypoints, camera_poses: Tensor | None = None) -> Keypoints:
        """The same keypoints with (u, v) displaced by a share of each heat map's own spread.

        A diffuse heat map cannot place its keypoint reliably under this noise, so the reconstruction asks for sharp
        ones. Only the unsupervised pass uses it; the policy reads noise-free keypoints.

        :param keypoints: what :meth:`forward` gave.
        :param camera_poses: as in :meth:`forward`.
        """
        if self.config.noise == 0:
            return keypoints
        noise = (self.config.noise * torch.randn_like(keypoints.uv)).clamp(-1.0, 1.0)
        rig = self.rig if camera_poses is None else self.rig.with_poses(camera_poses)
        uv = keypoints.uv + keypoints.spread * noise
        view_points = rig.unproject(uv, keypoints.depth)
        points = self._fuse(rig, view_points, keypoints.confidence)
        return dataclasses.replace(keypoints, uv=uv, view_points=view_points, points=points)

    def _heat_logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B V, 3, H, W) to (B, V, K, h, w) and (B, V, C, h, w), each view through its own or the shared network."""
        with convolve_in(self.config.precision, images.device):
            if len(self.views) == 1:
                heat, features = (maps.unflatten(0, (-1, self.num_views)) for maps in self.views[0](images))
            else:
                per_view = [net(images[number :: self.num_views]) for number, net in enumerate(self.views)]
                heat, features = (torch.stack(maps, 1) for maps in zip(*per_view, strict=True))
        return heat.float().contiguous(), features.float()

    def _depth(self, rig: Rig, features: Tensor, heat: Tensor, uv: Tensor, confidence: Tensor) -> Tensor:
        """(B, V, K) metres, from each view's features (B, V, C, h, w) and heat maps, and from where the rays meet."""
        near, far = (bound[..., None] for bound in self._depth_range(rig))
        with torch.no_grad():  # what the other views say is a hint, not a way to move their keypoints
            middle = rig.unproject(uv, (0.5 * (near + far)).expand_as(uv[..., 0]))
            _, meeting = rig.project(self._fuse(rig, middle, confidence, RAYS_ALONE))
            triangulated = ((meeting - near) / (far - near).clamp(min=1e-6)).clamp(0.0, 1.0)  # no range: box behind
        asked = features, heat, uv / uv.new_tensor([self.width / 2, self.height / 2]) - 1.0, triangulated
        if len(self.views) == 1:
            relative = self.views[0].relative_depth(*(part.flatten(0, 1) for part in asked)).view_as(triangulated)
        else:
            each = [net.relative_depth(*(part[:, n] for part in asked)) for n, net in enumerate(self.views)]
            relative = torch.stack(each, 1)
        return near + (far - near) * relative

    def _scaled(self, heat_logits: Tensor) -> Tensor:
        """What the softmax over cells is taken of."""
        return self.config.heat_scale * (standardise(heat_logits) if self.config.standardise else heat_logits)

    def _depth_range(self, rig: Rig) -> tuple[Tensor, Tensor]:
        """(..., V) nearest and farthest depth: the box's, widened by a tenth so that the sigmoid reaches its faces."""
        near, far = self.workspace.depth_range(rig)
        margin = 0.1 * (far - near)
        return (near - margin).clamp(min=0.2 * near.clamp(min=1e-3)), far + margin

    def _confidence(self, heat_logits: Tensor) -> Tensor:
        """(B, V, K) softmax over keypoints of the logits' spatial mean (original code); uniform where switched off."""
        mean = heat_logits.mean((-2, -1))
        return torch.softmax(mean if self.config.confidence else torch.zeros_like(mean), dim=-1)

    def _fuse(self, rig: Rig, view_points: Tensor, confidence: Tensor, depth_trust: float | None = None) -> Tensor:
        """Fuse the present views' keypoints, weighted by confidence: (B, V, K, 3) to (B, K, 3)."""
        # Never quite 0 for a view that is present: where all of them were, the missing one would count as much.
        weights = confidence.clamp(min=1e-20) * self.present.unsqueeze(-1)
        rays = torch.nn.functional.normalize(view_points - rig.centres.unsqueeze(-2), dim=-1)
        if self.tolerance:
            there = confidence * self.present.unsqueeze(-1)
            weights = weights * agreeing_views(view_points, there, rays, self.tolerance)
        return fuse(view_points, weights, rays, self.config.depth_trust if depth_trust is None else depth_trust)
