"""What a detector is worth: PCK, area under its curve, errors in 3D, and how right its labels are.

PCK is the share of keypoints that are found within a share of the size of the box round all of them (Yang and
Ramanan, "Articulated Human Detection with Flexible Mixtures of Parts", 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.scenes.footage import Footage
from experiments.bootstrapping.filming import PAPER_SIDE, TEST_SEED, calibrated, to_rig, truth
from kp3d_rl.bootstrapping.detector import KeypointDetector
from kp3d_rl.bootstrapping.metrics import area_under_curve, box_sizes, pck
from kp3d_rl.triangulation import RansacConfig, triangulate_robustly

SHARES = (0.05, 0.1, 0.2)
LABEL_SHARE = 4 / PAPER_SIDE
"""Of the image's side, within which a label counts as right: 4 pixels of the paper's crops."""
EVERY = 4
"""Every so manieth test frame is triangulated."""


@dataclass(frozen=True)
class Judgement:
    """A detector on test sequences.

    :param pck: by share of the box.
    :param auc: area under the curve of PCK from 0 to 0.2, as a share.
    :param images: that it was judged by.
    :param error_mm: median of the distances of triangulated points from the truth.
    :param found: share of the points that were triangulated.
    """

    pck: dict[str, float]
    auc: float
    images: int
    error_mm: float
    found: float


def judge_detector(
    detector: KeypointDetector,
    test: Sequence[Footage],
    held_out: int,
    ransac: RansacConfig,
    groups: Sequence[int],
    calibration_noise: float,
    turn: float = 0.0,
) -> Judgement:
    """Detect in all held-out views, and triangulate from all others.

    :param detector: to be judged.
    :param test: sequences whose first ``held_out`` views it is judged by; points are triangulated from the others.
    :param held_out: how many.
    :param ransac: of the triangulation.
    :param groups: of the keypoints.
    :param calibration_noise: of the cameras that are triangulated from.
    :param turn: degrees by which images are also seen turned (:meth:`KeypointDetector.detect`).
    """
    apart, boxes, errors, wanted = [], [], [], 0
    for number, footage in enumerate(test):
        images = torch.as_tensor(footage.images)
        uv = in_sight(truth(footage)[:, :held_out].flatten(0, 1), *images.shape[2:4])
        found = detector.detect(images[:, :held_out].flatten(0, 1), turn=turn)[0].cpu()
        apart.append((found - uv).norm(dim=-1))
        boxes.append(box_sizes(uv))
        others = images[::EVERY, held_out:]
        detected = detector.detect(others.flatten(0, 1), turn=turn)
        where, confidence = (x.cpu().unflatten(0, others.shape[:2]) for x in detected)
        rig = to_rig(footage.rig).select(range(held_out, images.shape[1]))
        rig = calibrated(rig, calibration_noise, TEST_SEED + number)
        points = triangulate_robustly(rig, where, confidence, ransac, groups).points
        errors.append((points - torch.as_tensor(footage.points[::EVERY])).norm(dim=-1).flatten())
        wanted += errors[-1].numel()
    distance, size, error = torch.cat(apart), torch.cat(boxes), torch.cat(errors)
    known = ~error.isnan()
    return Judgement(
        {f"{share:g}": pck(distance, size, share) for share in SHARES},
        area_under_curve(distance, size, SHARES[-1]),
        int((~size.isnan()).sum()),
        float(1e3 * error[known].median()) if known.any() else float("nan"),
        float(known.double().sum() / wanted),
    )


def label_precision(labels: Tensor, true: Tensor, side: int) -> float:
    """Share of the labels that are right.

    :param labels: (..., 2) pixels, NaN where there is none.
    :param true: the truth, likewise; a label in a view that hides everything is wrong.
    :param side: of the images, pixels.
    :return: NaN where there is no label.
    """
    given = ~labels.isnan().any(-1)
    near = (labels - true).norm(dim=-1) <= LABEL_SHARE * side
    return float(near[given].double().mean()) if given.any() else float("nan")


def in_sight(uv: Tensor, height: int, width: int) -> Tensor:
    """Pixels (..., 2), NaN where they are not in an image of that size: of these nobody is asked."""
    inside = ((uv >= 0) & (uv <= uv.new_tensor([width, height]))).all(-1, keepdim=True)
    return torch.where(inside, uv, torch.nan)
