"""The auxiliary losses of Keypoint3D as pure functions; a weighted sum keeps every term under its name.

Source: Chen, Abbeel, Pathak, "Unsupervised Learning of Visual 3D Keypoints for Control", ICML 2021, section 3, with the
constants of the original code. Distances are taken in workspace units (half a workspace side is 1), so that one set of
weights serves small and large scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kp3d_rl.options import bounded, check_options


@dataclass(frozen=True)
class LossWeights:
    """What each term counts for in the total; 0 switches a term off.

    :param reconstruction: weight of the mean squared error of the decoded views (pixel values in [0, 1]).
    :param multiview: weight of the disagreement between the views' 3D points.
    :param separation: weight of the penalty on keypoints in one place.
    :param coverage: weight of the penalty on foreground that no heat map covers (needs a background image).
    :param variance: weight of the heat maps' variance.
    :param equivariance: weight of how far keypoints of views that are turned, scaled and moved are from where those of
        the views as they are go.
    """

    reconstruction: float = bounded(50.0, least=0, most=1_000_000)
    multiview: float = bounded(20.0, least=0, most=1_000_000)
    separation: float = bounded(0.2, least=0, most=1_000_000)
    coverage: float = bounded(1.0, least=0, most=1_000_000)
    variance: float = bounded(2.0, least=0, most=1_000_000)
    equivariance: float = bounded(0.0, least=0, most=1_000_000)

    def __post_init__(self) -> None:
        check_options(self, "loss")


def reconstruction_loss(reconstruction: Tensor, images: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of decoded views.

    :param reconstruction: (..., 3, H, W) in [0, 1].
    :param images: the true views, same shape and range.
    :param weights: (..., H, W) what each pixel counts for (:func:`pixel_weights`); None: all the same.
    :return: scalar.
    """
    squared = (reconstruction - images) ** 2
    return torch.mean(squared if weights is None else squared * weights.unsqueeze(-3))


def pixel_weights(images: Tensor, floor: float = 0.3) -> Tensor:
    """Weights that let a small thing count beside a big one: the inverse of each pixel's variance over time.

    Where an arm comes and goes, errors are frequent and cheap; where now and then a ball is seen, they are rare and
    dear. This is the Gaussian likelihood of the views with one variance per pixel, scaled to keep the mean image's
    loss, and never below 1.

    :param images: (N, V, H, W, 3) uint8 frames of different instants.
    :param floor: added to every variance, in units of the mean one, so that still pixels do not count without bound.
    :return: (V, H, W), at least 1.
    """
    variance = _variance(images).mean(-1)
    mean = variance.mean()
    if mean <= 0:
        return torch.ones_like(variance)
    weights = 1.0 / (variance + floor * mean)
    return (weights * mean / (weights * variance).mean()).clamp(min=1.0)


def _variance(images: Tensor, chunk: int = 64) -> Tensor:
    """(N, ...) uint8 -> (...) variance over N of the values in [0, 1]; as floats, all frames would need gigabytes."""
    total = torch.zeros(images.shape[1:], dtype=torch.int64, device=images.device)
    squares = torch.zeros_like(total)
    for part in images.split(chunk):
        values = part.int()
        total += values.sum(0)
        squares += values.square().sum(0)
    count = len(images)
    return ((squares * count - total.square()).double() / (255.0 * count) ** 2).float()


def multiview_loss(points: Tensor) -> Tensor:
    """Mean squared difference between what the cameras say of the same keypoint.

    Every ordered pair of cameras counts and the second of each pair is held fixed, as in the original; the value is
    the plain mean over pairs, the gradient that of pulling each view towards the others.

    :param points: (..., V, K, 3) each view's own estimate, workspace units.
    :return: scalar; 0 for a single view, which has nothing to disagree with.
    """
    views = points.shape[-3]
    if views < 2:
        return points.new_zeros(())
    difference = points.unsqueeze(-3) - points.detach().unsqueeze(-4)
    return (difference**2).sum() / (difference[..., 0, :, :, :].numel() * (views - 1))


def separation_loss(points: Tensor, sharpness: float = 1000.0) -> Tensor:
    """Penalty on keypoints that sit in one place: the mean over all pairs, self included, of 1 / (s d^2 + 1).

    :param points: (..., K, 3) keypoints, workspace units.
    :param sharpness: s; with the original's 1000 two keypoints stop repelling at about 0.1 units.
    :return: scalar in (0, 1]; its floor is 1/K, each keypoint's distance to itself.
    """
    squared = ((points.unsqueeze(-2) - points.unsqueeze(-3)) ** 2).sum(-1)
    return torch.mean(1.0 / (sharpness * squared + 1.0))


def coverage_loss(heat: Tensor, foreground: Tensor) -> Tensor:
    """How badly the keypoints together cover what is to be seen: KL divergence of their mean heat map from it.

    Reconstruction alone finds small things late or never: until some keypoint follows a ball, the decoder does best to
    leave the ball out, and until the decoder draws it, nothing asks a keypoint to follow. This term asks at once. With
    :func:`variance_loss`, which lets each heat map cover one place only, keypoints divide the foreground among
    themselves. The two resemble KeypointNet's silhouette and variance losses (Suwajanakorn et al., NeurIPS 2018); its
    silhouette loss keeps keypoints on the object, this one also leaves no part without one.

    :param heat: (..., K, h, w) heat maps, each summing to 1.
    :param foreground: (..., h, w) share of each cell that is foreground, at least 0.
    :return: scalar, at least 0 up to rounding; views that show no foreground add nothing.
    """
    wanted = foreground / foreground.sum((-2, -1), keepdim=True).clamp(min=1e-6)
    covered = heat.mean(-3).clamp(min=1e-5)  # a bounded logarithm: a gradient of at most 1e5 times a cell's share
    return (torch.special.xlogy(wanted, wanted) - wanted * covered.log()).sum((-2, -1)).mean()


def variance_loss(spread: Tensor, height: int, width: int) -> Tensor:
    """Mean variance of the heat maps, in units of half the image's sides (KeypointNet's L_var).

    :param spread: (..., 2) standard deviation along u and v, pixels.
    :param height: of the image, pixels.
    :param width: likewise.
    :return: scalar.
    """
    return (spread / spread.new_tensor([width / 2, height / 2])).square().sum(-1).mean()


def equivariance_loss(found: Tensor, wanted: Tensor, counted: Tensor, height: int, width: int) -> Tensor:
    """How far keypoints of a changed image are from where the change takes those of the image as it was.

    What a keypoint is placed by must then be seen about it: where something leaves the workspace box, or the middle of
    what is seen, is not turned and moved along with an image. Source: Thewlis, Bilen, Vedaldi, "Unsupervised Learning
    of Object Landmarks by Factorized Spatial Embeddings", ICCV 2017.

    :param found: (..., 2) pixels.
    :param wanted: (..., 2) pixels.
    :param counted: (...) bool, which of them a keypoint can be at.
    :param height: of the image, pixels.
    :param width: likewise.
    :return: mean squared distance in units of half the image's sides, over all keypoints, those not counted as 0.
    """
    half = wanted.new_tensor([width / 2, height / 2])
    return (((found - wanted) / half).square().sum(-1) * counted).mean()


def weighted_sum(terms: Mapping[str, Tensor], weights: LossWeights) -> Tensor:
    """Total of the named terms.

    :param terms: scalars by name; each name must be a field of ``weights``.
    :param weights: what each term counts for.
    :return: scalar.
    :raises ValueError: for a term that has no weight.
    """
    total = None
    for name, value in terms.items():
        if not hasattr(weights, name):
            raise ValueError(f"loss term '{name}' has no weight, known: {', '.join(f.name for f in fields(weights))}")
        part = getattr(weights, name) * value
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no loss terms to add")
    return total


# -- checking options --------------------------------------------------------------------------------------------------
