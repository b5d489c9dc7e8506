"""Points from several views: weighted fusion of what each view says, and rigid alignment.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RAYS_ALONE = 0.01
"""Trust in depths that are none, just enough to keep rays that never meet within bounds."""
AGREEMENT = 0.4
"""Of how far all views miss each other, what may be left without the one that errs."""


def fuse(points: Tensor, weights: Tensor, rays: Tensor | None = None, depth_trust: float = 1.0) -> Tensor:
    """Weighted mean over the views.

    Source: Chen, Abbeel, Pathak, "Unsupervised Learning of Visual 3D Keypoints for Control", ICML 2021: weights are
    normalised across cameras.

    A camera knows well where in its image a point is and badly how far away. With ``rays`` an opinion counts in full
    across its ray and by ``depth_trust`` along it: this is the point that minimises the sum over views of
    ``w (|e|^2 - (1 - depth_trust) (r . e)^2)``, e being its offset from the opinion and r the ray. A trust of 1 is the
    plain weighted mean; the nearer it is to 0, the more is this triangulation.

    :param points: (..., V, K, 3), each view's opinion of each point.
    :param weights: (..., V, K), not negative. Where all views of a point weigh 0, they count equally.
    :param rays: (..., V, K, 3) unit vectors from each camera to its points.
    :param depth_trust: in (0, 1].
    :return: (..., K, 3).
    """
    weights = _normalise(weights, -2).unsqueeze(-1)
    if rays is None or depth_trust == 1.0:
        return (points * weights).sum(-3)
    across = torch.eye(3, dtype=points.dtype, device=points.device) - (1.0 - depth_trust) * (
        rays.unsqueeze(-1) * rays.unsqueeze(-2)
    )
    information = weights.unsqueeze(-1) * across
    moment = (information @ points.unsqueeze(-1)).sum(-4)
    return _solve_positive(information.sum(-4), moment.squeeze(-1))


def agreeing_views(points: Tensor, weights: Tensor, rays: Tensor, tolerance: float) -> Tensor:
    """Which views to fuse where one of them contradicts all others: leave-one-out, as RANSAC would with so few views.

    How far rays miss the point nearest to all of them is compared with how far they do without one view. That one is
    left out where all miss by more than the tolerance and the others by less than 0.4 of it: of three views, the two
    that meet. With fewer than three views of any weight nobody can say who errs, and none is left out.

    :param points: (..., V, K, 3), on each view's ray.
    :param weights: (..., V, K), not negative.
    :param rays: (..., V, K, 3) unit vectors from each camera to its points.
    :param tolerance: metres, above 0.
    :return: (..., V, K) 1 or 0, at most one 0 for each point.
    """
    others = 1.0 - torch.eye(weights.shape[-2], dtype=weights.dtype, device=weights.device).unsqueeze(-1)
    together = _miss(points, weights, rays)
    without = _miss(points.unsqueeze(-4), weights.unsqueeze(-3) * others, rays.unsqueeze(-4))  # (..., V, K)
    without = torch.where(weights > 0, without, torch.inf)  # to leave out who is not there says nothing
    least, which = without.min(-2)
    enough = (weights > 0).sum(-2) >= 3
    errs = enough & (together > tolerance) & (least < AGREEMENT * together)
    found = torch.ones_like(weights)
    return found.scatter(-2, which.unsqueeze(-2), (~errs).to(weights.dtype).unsqueeze(-2))


def _miss(points: Tensor, weights: Tensor, rays: Tensor) -> Tensor:
    """(..., K) weighted mean distance of rays from the point that is nearest to all of them."""
    offset = fuse(points, weights, rays, RAYS_ALONE).unsqueeze(-3) - points
    across = offset - (offset * rays).sum(-1, keepdim=True) * rays
    return (_normalise(weights, -2) * torch.linalg.vector_norm(across, dim=-1)).sum(-2)


def align(
    source: Tensor, target: Tensor, weights: Tensor | None = None, scale: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The motion that takes points closest to others: ``target ~ scale * source @ rotation.mT + translation``.

    Kabsch's solution with Umeyama's scale ("Least-squares estimation of transformation parameters between two point
    patterns", 1991); the rotation is never a reflection, and its gradient stays finite where singular values coincide.

    :param source: (..., K, 3).
    :param target: (..., K, 3).
    :param weights: (..., K), not negative; None counts all points equally.
    :param scale: whether to estimate a scale too; otherwise it is 1.
    :return: rotation (..., 3, 3), translation (..., 3), scale (...).
    """
    source, target = torch.broadcast_tensors(source, target)
    weights = torch.ones_like(source[..., 0]) if weights is None else weights
    share = _normalise(weights, -1).unsqueeze(-1)
    mean_source, mean_target = (share * source).sum(-2), (share * target).sum(-2)
    centred = source - mean_source.unsqueeze(-2)
    covariance = (share * (target - mean_target.unsqueeze(-2))).mT @ centred
    rotation = nearest_rotation(covariance)
    if scale:
        variance = (share * centred.square()).sum((-2, -1))
        factor = (rotation * covariance).sum((-2, -1)) / variance.clamp(min=torch.finfo(variance.dtype).tiny)
    else:
        factor = torch.ones_like(mean_source[..., 0])
    moved = factor.unsqueeze(-1) * (rotation @ mean_source.unsqueeze(-1)).squeeze(-1)
    return rotation, mean_target - moved, factor


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation R that maximises trace(R^T matrix): the special orthogonal Procrustes solution.

    :param matrix: (..., 3, 3).
    :return: (..., 3, 3), orthonormal with determinant +1.
    """
    return _NearestRotation.apply(matrix)


def rotation_angle(first: Tensor, second: Tensor) -> Tensor:
    """The angle between two rotations, (..., 3, 3) each -> (...) radians in [0, pi].

    The gradient is finite everywhere: it is zero at exactly 0 and pi, where the angle has a kink.
    """
    relative = first.mT @ second
    skew = relative - relative.mT
    sine = 0.5 * torch.linalg.vector_norm(torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1), dim=-1)
    cosine = 0.5 * (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)
    return torch.atan2(sine, cosine)


class _NearestRotation(torch.autograd.Function):
    """Procrustes with its own derivative: that of the SVD divides by s_i - s_j, the rotation only needs s_i + s_j."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, matrix: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(matrix)
        sign = torch.ones_like(s)
        sign[..., 2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
        rotation = (u * sign.unsqueeze(-2)) @ vh
        ctx.save_for_backward(rotation, s * sign, vh)
        return rotation

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        rotation, s, vh = ctx.saved_tensors
        tangent = rotation.mT @ gradient
        tangent = vh @ (tangent - tangent.mT) @ vh.mT
        total = s.unsqueeze(-1) + s.unsqueeze(-2)
        small = total.abs() <= torch.finfo(s.dtype).eps * s[..., :1, None].clamp(min=torch.finfo(s.dtype).tiny)
        tangent = torch.where(small, 0.0, tangent / torch.where(small, 1.0, total))
        return rotation @ (vh.mT @ tangent @ vh)


def _normalise(weights: Tensor, dim: int) -> Tensor:
    """Weights that sum to 1 along ``dim``; equal ones where all are 0."""
    total = weights.sum(dim, keepdim=True)
    empty = total <= torch.finfo(weights.dtype).tiny
    return torch.where(empty, 1.0 / weights.shape[dim], weights / torch.where(empty, 1.0, total))


def _solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve (..., 3, 3) symmetric positive definite equations with right sides (..., 3)."""
    if torch.compiler.is_exporting():  # exchange formats such as ONNX have no operation that solves equations
        return _solve_written_out(matrix, right)
    return torch.linalg.solve(matrix, right.unsqueeze(-1)).squeeze(-1)


def _solve_written_out(matrix: Tensor, right: Tensor) -> Tensor:
    """The same by elimination in plain arithmetic (L D L^T): without pivots as exact, the matrix being positive."""
    (a, b, c), (_, d, e), (_, _, f) = (row.unbind(-1) for row in matrix.unbind(-2))
    x, y, z = right.unbind(-1)
    b_a, c_a = b / a, c / a
    d, e = d - b_a * b, e - b_a * c
    e_d = e / d
    y = y - b_a * x
    z = (z - c_a * x - e_d * y) / (f - c_a * c - e_d * e)
    y = y / d - e_d * z
    return torch.stack([x / a - b_a * y - c_a * z, y, z], -1)
