"""From keypoints back to the views: Gaussian maps, decoder, and the auxiliary losses of a batch.

Source: Chen, Abbeel, Pathak, ICML 2021, section 3; :mod:`kp3d_rl.keypoint3d` says where this departs from it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kp3d_rl.augmentation import AffineChange
from kp3d_rl.fused import layered_error
from kp3d_rl.heatmaps import gaussian_maps, pool_to_cells
from kp3d_rl.hull import VisualHull
from kp3d_rl.keypoint3d import Keypoint3D, Keypoints
from kp3d_rl.losses import (
    coverage_loss,
    equivariance_loss,
    multiview_loss,
    pixel_weights,
    separation_loss,
    variance_loss,
)
from kp3d_rl.networks import LAYERS, ViewDecoder, convolve_in, to_input

FOREGROUND = 0.1
"""Difference from the background, of a full colour channel, from which on a pixel shows something."""


EQUIVARIANCE_SHARE = 4
"""One in so many frames of a batch is looked at a second time, changed: it costs a sixth of a step more."""
TURN, SCALE, SHIFT = 30.0, 1.2, 0.1
"""By how much at most: degrees, factor, share of the image's sides; what the task shows stays mostly in the image."""


class KeypointDecoder(nn.Module):
    """Reconstructs views from keypoints alone: the bottleneck that makes them mean something.

    :param encoder: the encoder whose rig and grids are used; not owned (its weights are not part of this module).
    :param background: (V, H, W, 3) uint8 render of the scene without anything that moves, or None.
    """

    def __init__(self, encoder: Keypoint3D, background: Tensor | None) -> None:
        super().__init__()
        self.config = config = encoder.config
        self.rows, self.columns = encoder.rows, encoder.columns
        self.height, self.width, self.num_views = encoder.height, encoder.width, encoder.num_views
        networks = 1 if config.view_weights == "shared" else encoder.num_views
        self.has_background = background is not None and config.background
        self.views = nn.ModuleList(
            ViewDecoder(
                config.keypoints,
                config.decoder_width,
                LAYERS[config.layers],
                background_logit=-2.0 if self.has_background else 2.0,
            )
            for _ in range(networks)
        )
        shape = (encoder.num_views, 3, encoder.height, encoder.width)
        pixels = background.permute(0, 3, 1, 2).float() / 255.0 if self.has_background else torch.full(shape, 0.5)
        if tuple(pixels.shape) != shape:
            raise ValueError(f"background of shape {tuple(background.shape)} does not fit {shape} (V, 3, H, W)")
        self.register_buffer("background", pixels.contiguous())
        self.register_buffer("pixel_weights", torch.ones(shape[0], *shape[2:]))
        carves = self.has_background and config.outside < 1
        self.hull = VisualHull(encoder.rig, encoder.workspace) if carves else None

    def weigh_pixels(self, images: Tensor) -> None:
        """Let rare sights count more, if the configuration says so and there is a background to tell them from.

        :param images: (N, V, H, W, 3) uint8 frames of many instants.
        """
        if self.config.weigh_pixels and self.has_background:
            self.pixel_weights.copy_(pixel_weights(images))

    @property
    def has_looked(self) -> bool:
        """Whether any pixel has a weight of its own."""
        return bool((self.pixel_weights != 1.0).any())

    def seen(self, images: Tensor) -> Tensor:
        """Where views differ from the background.

        :param images: (B, V, 3, H, W) uint8, all views.
        :return: (B, V, H, W) bool.
        """
        background = (self.background * 255.0).round().to(torch.uint8)
        # In bytes, which is several times faster than in floats; a difference of bytes would wrap around.
        difference = torch.maximum(images, background) - torch.minimum(images, background)
        return difference.amax(2) > 255.0 * FOREGROUND

    def relevance(self, seen: Tensor) -> Tensor:
        """What an error counts for, by where in the room it can be.

        :param seen: (B, V, H, W) bool, as :meth:`seen` gives it.
        :return: the same shape: :attr:`Keypoint3DConfig.outside` where something is seen that cannot be in the
            workspace box, else 1.
        """
        if self.hull is None:
            return torch.ones_like(seen, dtype=torch.float32)
        return torch.where(seen & ~self.hull(seen), self.config.outside, 1.0)

    def foreground(self, images: Tensor) -> Tensor:
        """Where views differ from the background, and what that counts for.

        :param images: (B, V, 3, H, W) uint8, all views.
        :return: (B, V, H, W), 0 where nothing is seen, else the :meth:`relevance`.
        """
        seen = self.seen(images)
        return seen.float() if self.hull is None else seen * self.relevance(seen)

    def wanted(self, foreground: Tensor) -> Tensor:
        """What heat maps are to cover.

        :param foreground: (B, V, H, W) as :meth:`foreground` gives it.
        :return: the same shape, at least 0.
        """
        return foreground * self.pixel_weights if self.config.weigh_coverage else foreground

    def forward(
        self,
        keypoints: Keypoints,
        encoder: Keypoint3D,
        views: Tensor,
        camera_poses: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Tensor:
        """Reconstruct some of the views.

        :param keypoints: of a batch B.
        :param encoder: gives the cameras.
        :param views: (n,) indices of the views to draw.
        :param camera_poses: (B, V, 4, 4) where cameras move.
        :param own: (B,) bool, where each view is drawn from its own keypoints instead of the fused ones.
        :return: (B, n, 3, H, W) in [0, 1].
        """
        return self.draw(self.gaussian_maps(keypoints, encoder, views, camera_poses, own), views)

    def draw(self, maps: Tensor, views: Tensor) -> Tensor:
        """Draw some of the views from what the networks read.

        :param maps: (B, n, K, h, w) at the resolution of the heat maps.
        :param views: (n,) indices of the views.
        :return: (B, n, 3, H, W) in [0, 1].
        """
        layers = torch.sigmoid(self.layers(maps, views).float())  # eight bits of colour are more than bfloat16 holds
        colour, opacity = layers[:, :, :3], layers[:, :, 3:]
        return opacity * colour + (1.0 - opacity) * self.background[views]

    def error(self, maps: Tensor, images: Tensor, views: Tensor, foreground: Tensor | None = None) -> Tensor:
        """The reconstruction error of what :meth:`draw` would draw, at a fraction of the cost.

        Errors count by :attr:`pixel_weights` where a view differs from the background, elsewhere by 1: to weigh the
        background too would punish a first, blurred drawing of a rare thing more than leaving it out.

        :param maps: (B, n, K, h, w) at the resolution of the heat maps.
        :param images: (B, n, 3, H, W) uint8, the true views.
        :param views: (n,) indices of the views.
        :param foreground: (B, n, H, W) what the foreground counts for (:meth:`foreground`); None: all of it alike.
        :return: scalar.
        """
        background, weights = self.background[views], self.pixel_weights[views]
        if foreground is not None and self.hull is not None:
            weights = weights * foreground
        return layered_error(self.layers(maps, views), background, images, weights, FOREGROUND)

    def layers(self, maps: Tensor, views: Tensor) -> Tensor:
        """Logits of the foreground's colour and opacity.

        :param maps, views: as in :meth:`draw`.

        :return: (B, n, 4, H, W).
        """
        size = (self.height, self.width)
        with convolve_in(self.config.precision, maps.device):
            if len(self.views) == 1:
                return self.views[0](maps.flatten(0, 1), size).unflatten(0, (-1, len(views)))
            drawn = [self.views[view](maps[:, n], size) for n, view in enumerate(views.tolist())]
            return torch.stack(drawn, 1)

    def gaussian_maps(
        self,
        keypoints: Keypoints,
        encoder: Keypoint3D,
        views: Tensor,
        camera_poses: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Tensor:
        """One Gaussian per keypoint and view: width goes with 1/depth, height with confidence.

        :param keypoints, encoder, views, camera_poses, own: as in :meth:`forward`.
        :return: (B, n, K, h, w).
        """
        config = self.config
        rig = encoder.rig if camera_poses is None else encoder.rig.with_poses(camera_poses)
        rig = rig.select(views)
        sigma = torch.full_like(keypoints.depth[:, views], config.gaussian_width * self.rows.stride)
        if config.dimensions == "3d":
            points = keypoints.points[:, None].expand(-1, len(views), -1, -1)
            if own is not None:
                points = torch.where(own[:, None, None, None], keypoints.view_points[:, views], points)
            uv, depth = rig.project_each(points)
            _, reference = rig.project(encoder.workspace.centre[None, :])
            # Points behind or inside a camera keep a finite width; the projection itself is never clamped.
            sigma = sigma * reference / torch.maximum(depth, 0.1 * reference)
        else:
            uv = keypoints.uv[:, views]
        confidence = keypoints.confidence[:, views]
        height = confidence * config.keypoints / 2 if config.confidence else torch.ones_like(confidence)
        return gaussian_maps(uv, sigma, height, self.rows, self.columns)


def auxiliary_terms(
    encoder: Keypoint3D,
    decoder: KeypointDecoder,
    keypoints: Keypoints,
    images: Tensor,
    camera_poses: Tensor | None = None,
) -> dict[str, Tensor]:
    """The unsupervised losses of a batch under their names, unweighted.

    :param encoder: the encoder that made ``keypoints``.
    :param decoder: reconstructs the views.
    :param keypoints: noise-free keypoints of the batch; the spread-sized noise is added here.
    :param images: (B, V, H, W, 3) uint8 the batch itself.
    :param camera_poses: (B, V, 4, 4) where cameras move.
    :return: ``reconstruction``, ``separation`` and ``variance``, with a background ``coverage``, in three dimensions
        ``multiview``, and where it has a weight ``equivariance``.
    """
    config, workspace = encoder.config, encoder.workspace
    noisy = encoder.with_noise(keypoints, camera_poses)
    views = views_to_decode(config.decoded_views, encoder.num_views, images.device)
    planes = images.permute(0, 1, 4, 2, 3).contiguous()
    own = torch.rand(len(images), device=images.device) < config.own_view
    maps = decoder.gaussian_maps(noisy, encoder, views, camera_poses, own)
    foreground = decoder.foreground(planes) if decoder.has_background else None
    counted = None if foreground is None else foreground[:, views]
    terms = {"reconstruction": decoder.error(maps, planes[:, views], views, counted)}
    if config.dimensions == "3d":
        points = workspace.normalise(noisy.view_points)
        terms["multiview"] = multiview_loss(points)
        terms["separation"] = separation_loss(points.mean(-3))
    else:
        size = noisy.uv.new_tensor([encoder.width / 2, encoder.height / 2])
        terms["separation"] = separation_loss(noisy.uv / size)
    terms["variance"] = variance_loss(keypoints.spread, encoder.height, encoder.width)
    if foreground is not None:
        cells = pool_to_cells(decoder.wanted(foreground), encoder.rows, encoder.columns, keypoints.offset)
        terms["coverage"] = coverage_loss(keypoints.heat, cells)
    if config.loss.equivariance:
        terms["equivariance"] = equivariance_term(encoder, keypoints, images)
    return terms


def equivariance_term(encoder: Keypoint3D, keypoints: Keypoints, images: Tensor) -> Tensor:
    """The encoder's keypoints in views that are turned, scaled and moved at random, against those in the views.

    The first quarter of the batch is looked at again, which is enough and cheap. Gradients go through both: the views
    as they are can be told by their backgrounds, so the encoder could go on as before in those.

    :param encoder, keypoints, images: as in :func:`auxiliary_terms`.
    :return: scalar.
    """
    rows = slice(0, max(1, len(images) // EQUIVARIANCE_SHARE))
    seen, uv = images[rows], keypoints.uv[rows]
    height, width = encoder.height, encoder.width
    change = AffineChange.drawn((uv.shape[0] * uv.shape[1], height, width), TURN, SCALE, SHIFT)
    changed = change.images(to_input(seen.flatten(0, 1))).contiguous(memory_format=torch.channels_last)
    found, wanted = encoder.find_in_views(changed).flatten(0, 1), change.points(uv.flatten(0, 1), height, width)
    can_be_there = encoder.columns.reaches(wanted[..., 0]) & encoder.rows.reaches(wanted[..., 1])
    return equivariance_loss(found, wanted, can_be_there, height, width)


def views_to_decode(count: int, views: int, device: torch.device) -> Tensor:
    """Indices of the views to reconstruct: all, or ``count`` drawn anew.

    :param count: how many; 0 is all.
    :param views: V.
    :param device: of the indices.
    :return: (n,), ascending.
    """
    if count == 0 or count >= views:
        return torch.arange(views, device=device)
    return torch.randperm(views)[:count].sort().values.to(device)


def reconstruction_quality(
    drawn: Tensor, images: Tensor, prefix: str, decoder: KeypointDecoder | None = None
) -> dict[str, float]:
    """How far drawn views are from the true ones, beside how far the mean image is.

    :param drawn: (N, V, 3, H, W) in [0, 1].
    :param images: (N, V, H, W, 3) uint8.
    :param prefix: before each name.
    :param decoder: says what errors count for (:meth:`KeypointDecoder.relevance`); None: all alike.
    :return: mean squared ``reconstruction`` and ``mean_image``, and ``reconstruction_ratio`` of the two.
    """
    target = images.permute(0, 1, 4, 2, 3).float() / 255.0
    counts = torch.ones(())
    if decoder is not None:
        counts = decoder.relevance(decoder.seen(images.permute(0, 1, 4, 2, 3))).unsqueeze(2)
    error, mean = (float(torch.mean(counts * (guess - target) ** 2)) for guess in (drawn, target.mean(0)))
    ratio = error / max(mean, 1e-12)
    return {f"{prefix}/reconstruction": error, f"{prefix}/mean_image": mean, f"{prefix}/reconstruction_ratio": ratio}
