"""How many of its points a number of cameras finds, beside what the formula of independent views says.

Simon et al. (CVPR 2017) count: where each view is right with a probability of its own, and enough of them must be, the
chance that a point is found grows with the number of views as a binomial distribution's tail does
(:func:`kp3d_rl.triangulation.success_of_views`). Views of one hand are not independent: what is hard to see is hard to
see from next to it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from envs.scenes.footage import Footage
from experiments.bootstrapping.filming import TEST_SEED, calibrated, to_rig, truth
from experiments.bootstrapping.judging import EVERY
from kp3d_rl.bootstrapping.detector import KeypointDetector
from kp3d_rl.cameras import Rig
from kp3d_rl.triangulation import RansacConfig, success_of_views, triangulate_robustly

COUNTS = (4, 8, 16, 24)
"""Numbers of cameras."""


def found_by_views(
    detector: KeypointDetector,
    test: Sequence[Footage],
    held_out: int,
    ransac: RansacConfig,
    groups: Sequence[int],
    calibration_noise: float,
    counts: Sequence[int] = COUNTS,
    needed: int = 0,
) -> list[dict[str, Any]]:
    """Triangulate from the first few of the cameras, and from more.

    :param detector: that detects, the first one of a run.
    :param test: sequences whose first ``held_out`` views are left out.
    :param held_out: how many.
    :param ransac: of the triangulation; its threshold is the error with which a detection, or a point, counts as right.
    :param groups: of the keypoints.
    :param calibration_noise: of the cameras.
    :param counts: numbers of cameras; those of which there are fewer, or that are too few to agree, are left out.
    :param needed: views that must agree on a point, where these are more than the triangulation asks for.
    :return: for each of them: ``success``, the share of single detections that are right and sure enough to take part;
        ``formula``;
        ``enough``, the share of the points that enough of the views are right about; ``found``, the share of the points
        that are triangulated right.
    """
    ransac = replace(ransac, least_inliers=max(ransac.least_inliers, needed))
    seen = [_detected(detector, footage, held_out) for footage in test]
    rows, most = [], min(footage.images.shape[1] for footage in test) - held_out
    for count in (count for count in counts if ransac.least_inliers <= count <= most):
        right, enough, found = [], [], []
        for number, (footage, (uv, confidence, true)) in enumerate(zip(test, seen, strict=True)):
            rig = to_rig(footage.rig).select(range(held_out, held_out + count))
            good = ((uv - true).norm(dim=-1) <= ransac.threshold) & (confidence >= ransac.least_confidence)
            good = good[:, :count]
            right.append(good.flatten())
            enough.append((good.sum(1) >= ransac.least_inliers).flatten())
            measured = calibrated(rig, calibration_noise, TEST_SEED + number)
            points = triangulate_robustly(measured, uv[:, :count], confidence[:, :count], ransac, groups).points
            found.append(_is_right(rig, points, torch.as_tensor(footage.points[::EVERY]), ransac.threshold).flatten())
        success, reachable, share = (float(torch.cat(parts).double().mean()) for parts in (right, enough, found))
        formula = success_of_views(count, success, ransac.least_inliers)
        rows.append({"cameras": count, "success": success, "formula": formula, "enough": reachable, "found": share})
    return rows


def _detected(detector: KeypointDetector, footage: Footage, held_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of every fourth frame: detections (T, V, K, 2), confidences (T, V, K), and where the points really are."""
    images = torch.as_tensor(footage.images[::EVERY, held_out:])
    uv, confidence = (x.cpu().unflatten(0, images.shape[:2]) for x in detector.detect(images.flatten(0, 1)))
    return uv, confidence, truth(footage)[::EVERY, held_out:]


def _is_right(rig: Rig, points: Tensor, true: Tensor, threshold: float) -> Tensor:
    """(T, K) whether points are, in the mean over views, no farther from the truth than a detection may be."""
    apart = (rig.project(points)[0] - rig.project(true)[0]).norm(dim=-1).mean(1)
    return apart <= threshold  # NaN, a point that was not found, is not
