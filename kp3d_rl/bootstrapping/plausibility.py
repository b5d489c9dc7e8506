"""Which triangulated points cannot be right: before they become labels, what betrays itself is left out.

Source: Simon et al. (CVPR 2017), section 4.2: few inliers, little confidence, bones that are too long or short, points
that run away from the others. (There a person looked over what was left; here nobody does.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kp3d_rl.options import bounded, check_options
from kp3d_rl.triangulation import RobustPoints


@dataclass(frozen=True)
class PlausibilityConfig:
    """What a point, and a frame, must have.

    :param least_inliers: views that agree on a point.
    :param least_confidence: mean of these views' detections.
    :param bone_tolerance: share of a bone's length by which it may leave its limits.
    :param velocity: times the median of its frame that a point may move from one frame to the next.
    :param velocity_slack: metres that it may move in any case.
    :param least_points: share of the points that a frame must keep; at least one it must keep in any case.
    """

    least_inliers: int = bounded(4, least=2, most=1000)
    least_confidence: float = bounded(0.5, least=0, most=1)
    bone_tolerance: float = bounded(0.3, least=0, most=100)
    velocity: float = bounded(4.0, above=0, most=1e6)
    velocity_slack: float = bounded(0.01, least=0, most=1e6)
    least_points: float = bounded(0.6, least=0, most=1)

    def __post_init__(self) -> None:
        check_options(self, "plausibility")


@dataclass(frozen=True)
class Verdict:
    """What is left of the frames of a sequence.

    :param points: (T, K, 3) world metres, NaN where a point was not found or is refused.
    :param accepted: (T,) bool, frames that keep enough points.
    :param refused: how many points each check refused that those before it had not.
    """

    points: Tensor
    accepted: Tensor
    refused: dict[str, int]


def judge(
    found: RobustPoints,
    confidence: Tensor,
    config: PlausibilityConfig,
    groups: Sequence[int],
    bones: Sequence[tuple[int, int]] = (),
    limits: Tensor | None = None,
) -> Verdict:
    """Leave out what cannot be, of consecutive frames.

    Where a bone is impossible, the whole group of its farther end is refused: which of a finger's points is wrong,
    its length does not say.

    :param found: triangulated points (T, K, 3), from V views.
    :param confidence: (T, V, K) of the detections.
    :param config: what must hold.
    :param groups: K numbers, equal for points that are decided together.
    :param bones: pairs of points.
    :param limits: (bones, 2) least and greatest lengths, metres.
    """
    inliers = found.inliers
    count = inliers.sum(-2)
    mean = (confidence.nan_to_num() * inliers).sum(-2) / count.clamp(min=1)
    good, refused = found.found, {}
    checks = {
        "not found": good,
        "few inliers": count >= config.least_inliers,
        "little confidence": mean >= config.least_confidence,
    }
    if bones and limits is not None:
        checks["bone length"] = ~_impossible(found.points, config, groups, bones, limits)
    checks["velocity"] = ~_runaway(found.points, config)
    kept = torch.ones_like(good)
    for name, passed in checks.items():
        refused[name] = int((kept & ~passed).sum())
        kept = kept & passed
    accepted = kept.any(-1) & (kept.double().mean(-1) >= config.least_points)
    return Verdict(torch.where(kept.unsqueeze(-1), found.points, torch.nan), accepted, refused)


def _impossible(
    points: Tensor, config: PlausibilityConfig, groups: Sequence[int], bones: Sequence[tuple[int, int]], limits: Tensor
) -> Tensor:
    """(T, K) bool: points of groups to which an impossible bone leads."""
    first, second = torch.tensor(bones, device=points.device).T
    length = (points[:, first] - points[:, second]).norm(dim=-1)
    low, high = limits.to(points).T
    wrong = (length < low * (1.0 - config.bone_tolerance)) | (length > high * (1.0 + config.bone_tolerance))
    number = torch.tensor([sorted(set(groups)).index(group) for group in groups], device=points.device)
    refused = torch.zeros(len(points), int(number.max()) + 1, dtype=points.dtype, device=points.device)
    refused.index_add_(1, number[second], wrong.to(points.dtype))  # NaN is no length, and not wrong
    return refused[:, number] > 0


def _runaway(points: Tensor, config: PlausibilityConfig) -> Tensor:
    """(T, K) bool: points that move much faster than the others both from the frame before and to the next."""
    step = (points[1:] - points[:-1]).norm(dim=-1)  # (T - 1, K)
    limit = config.velocity * step.nanmedian(-1, keepdim=True).values + config.velocity_slack
    fast = step > limit
    edge = torch.ones_like(fast[:1])
    if len(points) < 2:
        return torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    from_before, to_next = torch.cat([edge, fast]), torch.cat([fast, edge])
    unknown = torch.cat([edge, step.isnan()]), torch.cat([step.isnan(), edge])
    both = (from_before | unknown[0]) & (to_next | unknown[1])
    seen = torch.cat([~edge, fast]) | torch.cat([fast, ~edge])  # at least one of the two was really seen
    return both & seen
