"""How well keypoints are found in images: PCK and the area under its curve."""

from __future__ import annotations

import torch
from torch import Tensor


def box_sizes(uv: Tensor) -> Tensor:
    """The longer side of the box round the keypoints of each image.

    :param uv: (N, K, 2) true pixels, NaN for those that do not count, such as what is not in the image.
    :return: (N,) pixels, NaN for images in which fewer than two count.
    """
    known = ~uv.isnan().any(-1, keepdim=True)
    high = torch.where(known, uv, -torch.inf).amax(-2)
    low = torch.where(known, uv, torch.inf).amin(-2)
    return torch.where(known.sum((-2, -1)) >= 2, (high - low).amax(-1), torch.nan)


def pck(distance: Tensor, size: Tensor, share: float) -> float:
    """Percentage of correct keypoints, as a share: those found within a share of the box's size.

    :param distance: (N, K) from the truth, pixels; inf where nothing was found, NaN where there is no truth, which does
        not count.
    :param size: (N,) of the box, NaN for images that do not count.
    :param share: of the size.
    :return: from 0 to 1; NaN where nothing counts.
    """
    return _mean((distance < share * size.unsqueeze(-1)).double(), distance, size)


def area_under_curve(distance: Tensor, size: Tensor, most: float) -> float:
    """Mean of PCK over all shares from 0 to the largest: exact, not by steps.

    Each keypoint adds to the curve from its own relative distance on.

    :param distance: as for :func:`pck`.
    :param size: likewise.
    :param most: the largest share.
    """
    relative = distance.double() / size.double().unsqueeze(-1)
    return _mean((1.0 - relative / most).clamp(min=0.0), distance, size)


def _mean(values: Tensor, distance: Tensor, size: Tensor) -> float:
    """Of what counts; NaN where nothing does."""
    counts = ~(distance.isnan() | size.unsqueeze(-1).isnan())
    return float(values[counts].mean()) if bool(counts.any()) else float("nan")
