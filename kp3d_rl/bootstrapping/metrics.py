"""How well keypoints are found in images: PCK and the area under its curve."""

from __future__ import annotations

from torch import Tensor


def box_sizes(uv: Tensor) -> Tensor:
    """The longer side of the box round the keypoints of each image.

    :param uv: (N, K, 2) true pixels; images with NaN count for nothing.
    :return: (N,) pixels, NaN for these.
    """
    return (uv.amax(-2) - uv.amin(-2)).amax(-1)


def pck(distance: Tensor, size: Tensor, share: float) -> float:
    """Percentage of correct keypoints, as a share: those found within a share of the box's size.

    :param distance: (N, K) from the truth, pixels; NaN where nothing was found, which is not correct.
    :param size: (N,) of the box, NaN for images that do not count.
    :param share: of the size.
    :return: from 0 to 1; NaN where no image counts.
    """
    counts = ~size.isnan()
    if not bool(counts.any()):
        return float("nan")
    return float((distance[counts] < share * size[counts].unsqueeze(-1)).double().mean())


def area_under_curve(distance: Tensor, size: Tensor, most: float) -> float:
    """Mean of PCK over all shares from 0 to the largest: exact, not by steps.

    Each keypoint adds to the curve from its own relative distance on.

    :param distance: as for :func:`pck`.
    :param size: likewise.
    :param most: the largest share.
    """
    counts = ~size.isnan()
    if not bool(counts.any()):
        return float("nan")
    relative = distance[counts] / size[counts].unsqueeze(-1)
    return float((1.0 - relative / most).clamp(min=0.0).nan_to_num(nan=0.0).double().mean())
