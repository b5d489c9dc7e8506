"""Which frames become labels, and the labels: the best of each stretch of time, projected into every view.

Source: Simon et al. (CVPR 2017), section 4.1, equations 4 to 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kp3d_rl.cameras import Rig, in_front
from kp3d_rl.options import bounded, check_options
from kp3d_rl.triangulation import RobustPoints


@dataclass(frozen=True)
class SelectionConfig:
    """Which frames are taken.

    :param window: frames of which the best one is kept, so that the chosen ones differ.
    :param frames: how many are taken of all windows', the best first.
    """

    window: int = bounded(8, least=1, most=1_000_000)
    frames: int = bounded(450, least=1, most=1_000_000)

    def __post_init__(self) -> None:
        check_options(self, "selection")


def score_frames(found: RobustPoints, confidence: Tensor, points: Tensor) -> Tensor:
    """How sure a frame is: the confidences of all inliers of the points that it keeps, added up.

    :param found: what the views agree on.
    :param confidence: (T, V, K).
    :param points: (T, K, 3), NaN where a point was refused.
    :return: (T,).
    """
    kept = ~points.isnan().any(-1)
    return (confidence.nan_to_num() * found.inliers * kept.unsqueeze(-2)).sum((-2, -1))


def select_frames(
    scores: Sequence[Tensor], accepted: Sequence[Tensor], config: SelectionConfig
) -> list[tuple[int, int]]:
    """The best accepted frame of each window of each sequence, of these the best ones.

    :param scores: of each sequence's frames (T,).
    :param accepted: (T,) bool each.
    :param config: how many.
    :return: (sequence, frame), the best first.
    """
    best = []
    for sequence, (score, ok) in enumerate(zip(scores, accepted, strict=True)):
        usable = torch.where(ok, score, -torch.inf)
        for start in range(0, len(usable), config.window):
            value, at = usable[start : start + config.window].max(0)
            if value > -torch.inf:
                best.append((float(value), sequence, start + int(at)))
    best.sort(key=lambda entry: (-entry[0], entry[1:]))
    return [(sequence, frame) for _, sequence, frame in best[: config.frames]]


def reproject(rig: Rig, points: Tensor, hidden: Tensor) -> Tensor:
    """Labels in every view, also where a point is hidden by other things: to learn those is the gain.

    :param rig: V cameras.
    :param points: (..., K, 3), NaN where there is none.
    :param hidden: (..., V) bool, views in which all of it is hidden: there is nothing to learn.
    :return: (..., V, K, 2) pixels; NaN where there is no label.
    """
    uv, depth = rig.project(points)
    labelled = in_front(depth) & ~hidden.unsqueeze(-1)
    return torch.where(labelled.unsqueeze(-1), uv, torch.nan)
