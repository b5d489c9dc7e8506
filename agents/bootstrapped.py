"""Keypoints that a detector finds in each view and geometry puts together: bootstrapped before, not trained any more.

The detector is that of :mod:`kp3d_rl.bootstrapping`; its detections are triangulated robustly in every step.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import gymnasium as gym
import torch
from torch import Tensor

from agents.extractors import Observation, ViewExtractor, each_instant, frame_stack, stacked, with_changes, with_proprio
from agents.scene import Scene
from envs.errors import UserError
from kp3d_rl.bootstrapping.detector import DetectorConfig, KeypointDetector
from kp3d_rl.cameras import Rig
from kp3d_rl.networks import Precision
from kp3d_rl.triangulation import RansacConfig, triangulate, triangulate_robustly

RANSAC = RansacConfig(threshold=3.0, least_inliers=2, least_confidence=0.1)
"""Few cameras watch a policy: two that agree must do."""
LEAST_APART = 1e-3
"""Metres between two cameras that are not in one place."""


class BootstrappedExtractor(ViewExtractor):
    """Triangulated keypoints in workspace units, their confidences, and ``proprio``: the policy's whole input.

    A keypoint that no two views agree on is where their rays are nearest to each other, with a confidence of 0.

    :param observation_space: Dict with ``images``, optionally ``proprio`` and ``camera_poses``.
    :param scene: the environment's cameras and box.
    :param keypoints: K of the detector.
    :param detector: its options.
    """

    def __init__(
        self, observation_space: gym.spaces.Dict, scene: Scene, keypoints: int, detector: DetectorConfig
    ) -> None:
        proprio = observation_space.spaces.get("proprio")
        count = frame_stack(observation_space) * 4 * keypoints
        super().__init__(observation_space, count + (proprio.shape[0] if proprio else 0))
        places = scene.rig.centres
        if len(places) < 2 or float((places - places[0]).abs().max()) < LEAST_APART:
            raise UserError("bootstrapped keypoints are triangulated: they need at least two cameras at two places")
        self.scene = scene
        self.detector = KeypointDetector(keypoints, detector).requires_grad_(False)

    @property
    def learns(self) -> bool:
        """Nothing here does."""
        return False

    @torch.no_grad()
    def encode(self, observations: Observation, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Keypoints as the policy reads them.

        :param observations: as in :meth:`forward`.
        :param augment: changes nothing: nothing here is trained.
        :return: (B, features_dim), and the points of the newest frame (B, K, 3), world metres.
        """
        count = frame_stack(self._observation_space)
        images = each_instant(stacked(observations))  # (B S, V, H, W, 3)
        uv, confidence = (x.unflatten(0, images.shape[:2]) for x in self.detector.detect(images.flatten(0, 1)))
        rig = self.scene.rig
        if "camera_poses" in observations:
            rig = rig.with_poses(observations["camera_poses"].repeat_interleave(count, 0))
        points, sure = put_together(rig.to(uv.device), uv, confidence)
        workspace = self.scene.workspace.to(points.device, points.dtype)
        described = torch.cat([workspace.normalise(points).clamp(-2.0, 2.0), sure.unsqueeze(-1)], -1).flatten(1)
        return with_proprio(with_changes(described.float(), count), observations), points[::count]

    @contextlib.contextmanager
    def in_precision(self, precision: Precision) -> Iterator[None]:
        """See :meth:`ViewExtractor.in_precision`."""
        before = self.detector.config
        self.detector.config = dataclasses.replace(before, precision=precision)
        try:
            yield
        finally:
            self.detector.config = before


def put_together(rig: Rig, uv: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Points of what several views detect, all of them finite.

    :param rig: V cameras, batch dimensions broadcast.
    :param uv: (B, V, K, 2) pixels.
    :param confidence: (B, V, K).
    :return: (B, K, 3) world metres, and how sure they are (B, K): the mean confidence of the views that agree.
    """
    confidence = confidence.nan_to_num()
    found = triangulate_robustly(rig, uv, confidence, RANSAC)
    count = found.inliers.sum(-2)
    sure = (confidence * found.inliers).sum(-2) / count.clamp(min=1)
    guess = triangulate(rig, uv, confidence.clamp(min=1e-3)).to(found.points.dtype)
    points = torch.where(found.found.unsqueeze(-1), found.points, guess)
    return points.nan_to_num(nan=0.0), sure
