"""Pictures of what an encoder sees: the views, the keypoints in them, and what the decoder makes of the keypoints."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from agents.extractors import KeypointExtractor
from experiments.runs import Run
from kp3d_rl.drawing import draw_keypoints, sheet
from kp3d_rl.keypoint3d import Keypoint3D, Keypoints
from kp3d_rl.reconstruction import KeypointDecoder

PIXELS = 256
"""Height of a view in the pictures."""


def save_picture(run: Run, model: BaseAlgorithm) -> Path | None:
    """Write ``pictures/<step>.png`` of the views that the policy sees now.

    :param run: whose folder it goes to.
    :param model: in training.
    :return: the file; None for policies without keypoints or before the first observation.
    """
    extractor = getattr(model.policy, "features_extractor", None)
    if not isinstance(extractor, KeypointExtractor) or model._last_obs is None:
        return None
    observation = {key: torch.as_tensor(value[:1], device=model.device) for key, value in model._last_obs.items()}
    images, poses = observation["images"], observation.get("camera_poses")
    picture = keypoint_sheet(extractor.encoder, model.policy.decoder, images, poses)
    return write_picture(run, model.num_timesteps, picture)


def write_picture(run: Run, step: int, picture: np.ndarray) -> Path:
    """Write ``pictures/<step>.png``.

    :param run: whose folder it goes to.
    :param step: of the training.
    :param picture: (H, W, 3) uint8.
    """
    path = run.path / "pictures" / f"{step:09d}.png"
    path.parent.mkdir(exist_ok=True)
    iio.imwrite(path, picture)
    return path


@torch.no_grad()
def keypoint_sheet(
    encoder: Keypoint3D, decoder: KeypointDecoder, images: Tensor, camera_poses: Tensor | None = None
) -> np.ndarray:
    """Three rows: views, views with keypoints, reconstructions.

    :param encoder: finds the keypoints.
    :param decoder: draws the views from them.
    :param images: (1, V, H, W, 3) uint8.
    :param camera_poses: (1, V, 4, 4) where cameras move.
    :return: one uint8 image.
    """
    keypoints = encoder(images, camera_poses)
    views = list(images[0].cpu().numpy())
    rows = [
        views,
        overlays(encoder, keypoints, views, camera_poses),
        reconstructions(encoder, decoder, keypoints, camera_poses),
    ]
    return sheet(rows, ["views", "fused keypoints, projected", "reconstruction from the keypoints"], PIXELS)


@torch.no_grad()
def overlays(
    encoder: Keypoint3D,
    keypoints: Keypoints,
    views: list[np.ndarray],
    camera_poses: Tensor | None = None,
    pixels: int = PIXELS,
) -> list[np.ndarray]:
    """Views, enlarged, with the keypoints of the first frame of a batch drawn in.

    Where there is depth, the fused 3D points are projected into each view: a keypoint that sits on nothing in some
    view shows at once. In two dimensions each view shows its own points.

    :param views: (h, w, 3) uint8 each, the encoder's views at their own or at a higher resolution.
    :param pixels: views lower than that are enlarged, by a whole factor, to about that height.
    """
    rig = encoder.rig if camera_poses is None else encoder.rig.with_poses(camera_poses)
    flat = encoder.config.dimensions == "2d"
    uv = keypoints.uv[0] if flat else rig.project(keypoints.points)[0][0]
    confidence = keypoints.confidence[0].cpu().numpy()
    drawn = []
    for number, view in enumerate(views):
        factor = view.shape[0] / encoder.height
        scale = max(1, round(pixels / view.shape[0]))
        drawn.append(draw_keypoints(view, uv[number].cpu().numpy() * factor, confidence[number], scale))
    return drawn


@torch.no_grad()
def reconstructions(
    encoder: Keypoint3D, decoder: KeypointDecoder, keypoints: Keypoints, camera_poses: Tensor | None = None
) -> list[np.ndarray]:
    """What the decoder draws of the first frame of a batch.

    :param encoder: that found the keypoints.
    :param decoder: of the same policy.
    :param keypoints: of a batch.
    :param camera_poses: (B, V, 4, 4) where cameras move.
    :return: (H, W, 3) uint8 for each view.
    """
    every = torch.arange(encoder.num_views, device=keypoints.points.device)
    drawn = decoder(keypoints, encoder, every, camera_poses)[0].permute(0, 2, 3, 1)
    return list((drawn.clamp(0, 1) * 255).round().byte().cpu().numpy())
