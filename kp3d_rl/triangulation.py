"""Points in 3D from what several calibrated views say of them: linear, refined, and robust against wrong detections.

Source of the robust one: Simon, Joo, Matthews, Sheikh, "Hand Keypoint Detection in Single Images using Multiview
Bootstrapping", CVPR 2017, section 4: RANSAC over minimal sets of views, points of one finger decided together, then the
reprojection error of the inliers minimised. Hypotheses are scored as in MSAC (Torr and Zisserman, "MLESAC", 2000).

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kp3d_rl.cameras import Rig, in_front
from kp3d_rl.options import bounded, check_options

_AT_ONCE = 1 << 20
"""Errors of hypotheses that are computed together: few enough to stay in the processor's cache."""
_GAIN = 1e-9
"""Of the squared error, what a step of refinement must at least gain."""
_NOWHERE = 1e9
"""Pixels: where a detection stands that is none."""
_REPEATS = 3
"""How often inliers are told anew from the refined points."""


@dataclass(frozen=True)
class RansacConfig:
    """What counts as agreement between views.

    :param threshold: reprojection error of an inlier, pixels.
    :param least_confidence: detections below do not take part.
    :param trust: power of the confidence that an inlier counts with: 1 is in proportion, more suits confidences that
        differ less than the errors do, 0 takes all alike.
    :param least_inliers: views that must agree on a point, at least 2.
    :param least_angle: degrees between the rays of at least two of them: of nearly parallel rays nobody knows where
        they meet.
    :param hypotheses: pairs of views that are tried: all of them where there are no more (31 cameras have 465), else so
        many, drawn at random.
    :param refinements: Gauss-Newton steps on the reprojection error.
    """

    threshold: float = bounded(4.0, above=0, most=1000)
    least_confidence: float = bounded(0.2, least=0, most=1)
    trust: float = bounded(1.0, least=0, most=20)
    least_inliers: int = bounded(3, least=2, most=1000)
    least_angle: float = bounded(3.0, least=0, most=90)
    hypotheses: int = bounded(500, least=1, most=100_000)
    refinements: int = bounded(5, least=0, most=1000)

    def __post_init__(self) -> None:
        check_options(self, "ransac")


@dataclass(frozen=True)
class RobustPoints:
    """What several views agree on.

    :param points: (..., K, 3) world metres, NaN where too few views agree.
    :param inliers: (..., V, K) bool, the detections that agree with a point, of which it is made unless those of three
        refinements went on changing; none where it is NaN.
    :param error: (..., V, K) reprojection error of every detection, pixels; inf where there is none, or no point.
    """

    points: Tensor
    inliers: Tensor
    error: Tensor

    @property
    def found(self) -> Tensor:
        """(..., K) bool, where there is a point."""
        return self.inliers.any(-2)


def triangulate(rig: Rig, uv: Tensor, weights: Tensor | None = None) -> Tensor:
    """The 3D points that several views see, by weighted linear least squares (direct linear transform).

    The equations are those of Hartley and Zisserman, "Multiple View Geometry", 12.2, in the inhomogeneous form and in
    normalised coordinates, so that the answer does not depend on where the world's origin lies; they are solved in
    float64. The error that they weigh is the offset in the plane at depth 1 times the depth: metres, not pixels.

    :param rig: the cameras, batch dimensions broadcast.
    :param uv: (..., V, K, 2) pixels, finite where they have weight.
    :param weights: (..., V, K), not negative; each view's share of the squared error; None counts all equally.
    :return: (..., K, 3) world metres; NaN (without gradient) where fewer than two views have weight, or all rays are
        parallel.
    """
    dtype = uv.dtype
    rig, uv = rig.to(torch.float64), uv.double()
    if weights is not None:  # what has no weight may be NaN
        uv = torch.where(weights.unsqueeze(-1) > 0, uv, 0.0)
    # Along a ray, R_x . (p - c) = x R_z . (p - c), and the same for y: one row of the equations each.
    axes = rig.rotations.mT.unsqueeze(-3)  # (..., V, 1, 3, 3): rows are the camera's axes in the world
    rows = axes[..., :2, :] - rig.plane(uv).unsqueeze(-1) * axes[..., 2:, :]  # (..., V, K, 2, 3)
    right = (rows * rig.centres[..., None, None, :]).sum(-1)  # (..., V, K, 2)
    weighted = rows if weights is None else rows * weights.double()[..., None, None]
    normal = torch.einsum("...vkri,...vkrj->...kij", weighted, rows)
    moment = torch.einsum("...vkri,...vkr->...ki", weighted, right)
    return _solve_or_nan(normal, moment).to(dtype)


def triangulate_robustly(
    rig: Rig,
    uv: Tensor,
    confidence: Tensor,
    config: RansacConfig | None = None,
    groups: Sequence[int] | None = None,
) -> RobustPoints:
    """The 3D points that most views agree on, whatever the others say.

    Every pair of views is a hypothesis; the one that most detections agree with wins, the better they do the more they
    count. Its inliers are triangulated with a power of their confidences as weights, their reprojection error is
    minimised, and who is an inlier is told anew from that.

    Points of a group are accepted view by view together: their root mean square error is what the threshold is for.
    A finger that is taken for its neighbour is so as a whole, and is refused as a whole.

    :param rig: the cameras; batch dimensions broadcast against those of the frames.
    :param uv: (..., V, K, 2) pixels. What is not finite is no detection.
    :param confidence: (..., V, K), from 0 to 1.
    :param config: what counts as agreement.
    :param groups: K numbers, equal for points that are decided together; None decides each alone.
    :return: points, inliers and errors, float64.
    :raises ValueError: for fewer views than must agree, cameras that all are in one place, or shapes that do not fit.
    """
    config = RansacConfig() if config is None else config
    views, keypoints = uv.shape[-3:-1]
    _check_robust(rig, uv, confidence, config, groups)
    lead = torch.broadcast_shapes(uv.shape[:-3], rig.world_from_camera.shape[:-3], rig.intrinsics.shape[:-3])
    detected = uv.isfinite().all(-1) & confidence.isfinite() & (confidence >= config.least_confidence)
    uv, confidence = torch.where(detected.unsqueeze(-1), uv, 0.0), torch.where(detected, confidence, 0.0)
    uv, confidence = uv.double().expand(*lead, views, keypoints, 2), confidence.double().expand(*lead, views, keypoints)
    flat = _flat_rig(rig.to(torch.float64), lead)
    solver = _Ransac(config, views, _membership(groups, keypoints, uv.device))
    per_frame = len(solver.pairs) * views * keypoints
    parts = [
        solver(_frames(flat, at, count), uv_part, confidence_part)
        for at, count, uv_part, confidence_part in _pieces(
            uv.reshape(-1, views, keypoints, 2), confidence.reshape(-1, views, keypoints), per_frame
        )
    ]
    points, inliers, error = (torch.cat([getattr(part, name) for part in parts]) for name in _RESULTS)
    shape = (*lead, views, keypoints)
    return RobustPoints(points.view(*lead, keypoints, 3), inliers.view(shape), error.view(shape))


def refine(rig: Rig, uv: Tensor, weights: Tensor, points: Tensor, steps: int = 5) -> Tensor:
    """Points moved to where the weighted squared reprojection error is least, by Gauss-Newton from a start nearby.

    A step that does not make a point's error less is not taken. There is no gradient.

    :param rig: the cameras, batch dimensions broadcast.
    :param uv: (..., V, K, 2) pixels, finite where they have weight.
    :param weights: (..., V, K), not negative.
    :param points: (..., K, 3) world metres: where to start. From behind a camera that sees it a point only moves to
        where it is in front of all of them; NaN stays.
    :param steps: how many.
    :return: (..., K, 3) float64.
    """
    with torch.no_grad():
        rig, uv, weights, points = rig.to(torch.float64), uv.double(), weights.double(), points.double()
        cost, normal, moment = _reprojection(rig, uv, weights, points)
        for _ in range(steps):
            moved = points + _solve_or_nan(normal, moment)
            moved_cost, *moved_equations = _reprojection(rig, uv, weights, moved)
            better = moved_cost < cost * (1.0 - _GAIN)  # False where either is NaN
            points = torch.where(better.unsqueeze(-1), moved, points)
            cost = torch.where(better, moved_cost, cost)
            normal = torch.where(better[..., None, None], moved_equations[0], normal)
            moment = torch.where(better.unsqueeze(-1), moved_equations[1], moment)
            if not bool(better.any()):
                break
        return points


def success_of_views(views: int, success: float, needed: int = 3) -> float:
    """How likely enough of so many views see a point right, if each does so by itself with the same probability.

    Source: the count of Simon et al. (2017), a binomial distribution's upper tail.

    :param views: V.
    :param success: of one view, from 0 to 1.
    :param needed: views that must agree.
    """
    few = (math.comb(views, k) * success**k * (1.0 - success) ** (views - k) for k in range(min(needed, views + 1)))
    return 1.0 - math.fsum(few)


_RESULTS = ("points", "inliers", "error")


class _Ransac:
    """The search in frames that share their cameras, or have one rig each. All is float64.

    :param config: what counts as agreement.
    :param views: V.
    :param member: (K, G) 1 where a point is in a group.
    """

    def __init__(self, config: RansacConfig, views: int, member: Tensor) -> None:
        self.config, self.member = config, member
        pairs = torch.tensor(list(itertools.combinations(range(views), 2)), device=member.device)
        if len(pairs) > config.hypotheses:  # always the same ones: the answer is a function of what is given
            order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
            pairs = pairs[order[: config.hypotheses].sort().values.to(pairs.device)]
        self.pairs = pairs

    def __call__(self, rig: Rig, uv: Tensor, confidence: Tensor) -> RobustPoints:
        """Of frames (F, V, K, 2) and (F, V, K)."""
        detected = confidence > 0
        inliers = self.of_best_pair(rig, uv, detected)
        for _ in range(_REPEATS):
            weights = confidence**self.config.trust * inliers
            points = refine(rig, uv, weights, triangulate(rig, uv, weights), self.config.refinements)
            squared = self.squared_error(rig, uv, points, detected)
            known = ~points.isnan().any(-1).unsqueeze(-2)
            before, inliers = inliers, self.agreeing(squared, detected & known) & detected & known
            if bool((inliers == before).all()):
                break
        enough = inliers.sum(-2) >= self.config.least_inliers
        enough &= ~points.isnan().any(-1) & (_widest_angle(rig, uv, inliers) >= math.radians(self.config.least_angle))
        inliers = inliers & enough.unsqueeze(-2)
        error = torch.where(enough.unsqueeze(-2), squared.sqrt(), torch.inf)
        return RobustPoints(torch.where(enough.unsqueeze(-1), points, torch.nan), inliers, error)

    def of_best_pair(self, rig: Rig, uv: Tensor, detected: Tensor) -> Tensor:
        """(F, V, K) bool: what agrees with the best hypothesis of each group."""
        points = self.hypotheses(rig, uv, detected)  # (F, H, K, 3)
        error, count = self.errors_of_hypotheses(rig, uv, detected, points)  # (F, H, G, V)
        agreement = error.mul(-1.0 / self.config.threshold**2).add_(1.0).clamp_(min=0.0)
        best = (agreement if count is None else agreement.mul_(count)).sum(-1).argmax(1)  # (F, G)
        at = best[:, None, :, None].expand(-1, 1, -1, error.shape[-1])
        within = error.gather(1, at).squeeze(1) <= self.config.threshold**2  # (F, G, V)
        members = (self.member @ within.to(self.member.dtype) > 0).mT  # (F, V, K)
        known = ~points[..., 0].isnan().gather(1, (best @ self.member.long().T).unsqueeze(1))  # (F, 1, K)
        return members & detected & known

    def errors_of_hypotheses(
        self, rig: Rig, uv: Tensor, detected: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Mean squared error of each group in each view, (F, H, G, V), and of how many points (None: each is its own).

        This is nearly all of the work, hence float32, in place and the views last; about the middle of the cameras, so
        that no digits are lost to where the world's origin lies.
        """
        frames, hypotheses, keypoints = points.shape[:3]
        middle = rig.centres.mean(-2, keepdim=True)
        focal = torch.ones_like(rig.centres)
        focal[..., :2] = rig.intrinsics[..., :2, :2].diagonal(dim1=-2, dim2=-1)
        matrix = rig.rotations.mT * focal.unsqueeze(-1)  # (..., V, 3, 3): rows give f x, f y and depth
        offset = (matrix @ (middle - rig.centres).unsqueeze(-1)).squeeze(-1)
        flat = points.view(-1, hypotheses * keypoints, 3)
        x, y, depth = (
            torch.matmul(flat, matrix[..., row, :].mT.float()).add_(offset[..., row].unsqueeze(-2).float())
            for row in range(3)
        )
        seen = torch.where(detected.unsqueeze(-1), uv - rig.intrinsics[..., :2, 2].unsqueeze(-2), _NOWHERE)
        u, v = (seen[..., side].mT.float().unsqueeze(1) for side in (0, 1))  # (F, 1, K, V)
        shape = (frames, hypotheses, keypoints, -1)
        scale = depth.reciprocal_().masked_fill_(depth <= 0, torch.inf)
        error = x.mul_(scale).view(shape).sub_(u).square_()
        error += y.mul_(scale).view(shape).sub_(v).square_()
        error.nan_to_num_(nan=torch.inf)
        if self.member.shape[0] == self.member.shape[1]:
            return error, None
        present = detected.mT.unsqueeze(1) & ~points[..., :1].isnan()  # (F, H, K, V)
        count = self.member.T.float() @ present.float()
        total = self.member.T.float() @ error.masked_fill_(~present, 0.0).clamp_(max=_NOWHERE**2)
        return torch.where(count > 0, total / count.clamp(min=1.0), torch.inf), count

    def hypotheses(self, rig: Rig, uv: Tensor, detected: Tensor) -> Tensor:
        """(F, H, K, 3) float32, where two rays are nearest to each other, from the middle of the cameras; else NaN."""
        (one, two), centres = self.pairs.unbind(1), rig.centres.expand(len(uv), -1, 3)
        middle = centres.mean(-2, keepdim=True)  # about it float32 does
        places, rays = (centres - middle).float(), _rays(rig, uv).float()
        start, other, first, second = places[:, one], places[:, two], rays[:, one], rays[:, two]
        way = (other - start).unsqueeze(-2)
        cosine, along_first, along_second = ((a * b).sum(-1) for a, b in ((first, second), (first, way), (second, way)))
        sine = 1.0 - cosine.square()
        near = (along_first - cosine * along_second) / sine
        far = (cosine * along_first - along_second) / sine
        usable = detected[:, one] & detected[:, two] & (near > 0) & (far > 0)
        usable &= sine > math.sin(math.radians(self.config.least_angle)) ** 2
        found = first.mul_(near.unsqueeze(-1)).add_(second.mul_(far.unsqueeze(-1)))
        found = found.add_((start + other).unsqueeze(-2)).mul_(0.5)
        return found.masked_fill_(~usable.unsqueeze(-1), torch.nan)

    def squared_error(self, rig: Rig, uv: Tensor, points: Tensor, present: Tensor) -> Tensor:
        """(..., V, K) squared pixels of pixels between the projections of points and what was detected, else inf."""
        projected, depth = rig.project(points)
        squared = (projected - uv).square().sum(-1)
        return torch.where(present & in_front(depth), squared, torch.inf)

    def of_groups(self, squared: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error over the detected points of each group, and how many these are: (..., G) each."""
        if self.member.shape[0] == self.member.shape[1]:
            return squared, present.to(squared.dtype)
        count = present.to(squared.dtype) @ self.member
        total = torch.where(present, squared, 0.0).clamp(max=1e30) @ self.member  # 0 times inf would be NaN
        return torch.where(count > 0, total / count.clamp(min=1.0), torch.inf), count

    def agreeing(self, squared: Tensor, present: Tensor) -> Tensor:
        """(..., K) bool: where a point's group is within the threshold."""
        error, _ = self.of_groups(squared, present)
        within = (error <= self.config.threshold**2).to(squared.dtype)
        return (within @ self.member.T > 0) & present


def _check_robust(rig: Rig, uv: Tensor, confidence: Tensor, config: RansacConfig, groups: Sequence[int] | None) -> None:
    views, keypoints = uv.shape[-3:-1]
    if rig.num_views != views or confidence.shape != uv.shape[:-1]:
        raise ValueError(
            f"{rig.num_views} cameras, detections {tuple(uv.shape)} and confidences {tuple(confidence.shape)} do not "
            "fit: they should be (..., V, K, 2) and (..., V, K)"
        )
    if views < config.least_inliers:
        raise ValueError(f"{views} views are too few: {config.least_inliers} must agree on a point")
    if groups is not None and len(groups) != keypoints:
        raise ValueError(f"groups of {len(groups)} points do not fit {keypoints} keypoints")
    if not bool(rig.world_from_camera.isfinite().all() and rig.intrinsics.isfinite().all()):
        raise ValueError("the cameras' poses and intrinsics must be finite numbers")
    apart = (rig.centres - rig.centres[..., :1, :]).abs().amax()
    if not bool(apart > 1e-9):
        raise ValueError("all cameras are in one place: no point can be triangulated")


def _membership(groups: Sequence[int] | None, keypoints: int, device: torch.device) -> Tensor:
    """(K, G) float64, 1 where a point is in a group."""
    alone = groups is None or len(set(groups)) == keypoints  # in whatever order their numbers come
    numbers = range(keypoints) if alone else [sorted(set(groups)).index(group) for group in groups]
    index = torch.tensor(list(numbers), dtype=torch.long, device=device)
    return torch.nn.functional.one_hot(index).double()


def _flat_rig(rig: Rig, lead: Sequence[int]) -> Rig:
    """A rig with no batch dimension, or with one, of all frames."""
    poses, intrinsics = rig.world_from_camera, rig.intrinsics
    if poses.dim() == intrinsics.dim() == 3:
        return rig
    poses = poses.expand(*lead, *poses.shape[-3:]).reshape(-1, *poses.shape[-3:])
    intrinsics = intrinsics.expand(*lead, *intrinsics.shape[-3:]).reshape(-1, *intrinsics.shape[-3:])
    return Rig(intrinsics, poses, rig.height, rig.width)


def _frames(rig: Rig, start: int, count: int) -> Rig:
    """The rigs of some of the frames."""
    if rig.world_from_camera.dim() == 3:
        return rig
    part = slice(start, start + count)
    return Rig(rig.intrinsics[part], rig.world_from_camera[part], rig.height, rig.width)


def _pieces(uv: Tensor, confidence: Tensor, per_frame: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Frames in pieces that are computed at once: where each starts, how many they are, and theirs."""
    size = max(1, _AT_ONCE // per_frame)
    for start in range(0, max(1, len(uv)), size):
        part = uv[start : start + size]
        yield start, len(part), part, confidence[start : start + size]


def _rays(rig: Rig, uv: Tensor) -> Tensor:
    """(..., V, K, 3) unit vectors from each camera through its pixels (..., V, K, 2), in the world."""
    plane = rig.plane(uv)
    return torch.nn.functional.normalize(
        torch.cat([plane, torch.ones_like(plane[..., :1])], -1) @ rig.rotations.mT, dim=-1
    )


def _widest_angle(rig: Rig, uv: Tensor, inliers: Tensor) -> Tensor:
    """(F, K) radians up to a right angle: how far two inliers' rays are from parallel; below 0 where there are none."""
    rays = _rays(rig, uv).movedim(-2, -3)  # (F, K, V, 3)
    both = inliers.mT.unsqueeze(-1) & inliers.mT.unsqueeze(-2)
    cosine = torch.where(both, (rays @ rays.mT).abs(), torch.inf).amin((-2, -1))  # of a ray with itself it is 1
    return torch.where(cosine.isinf(), -1.0, torch.acos(cosine.clamp(max=1.0)))


def _reprojection(rig: Rig, uv: Tensor, weights: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted squared error (..., K), and a Gauss-Newton step's equations (..., K, 3, 3), (..., K, 3)."""
    projected, depth = rig.project(points)
    counts = weights > 0
    residual = torch.where(counts.unsqueeze(-1), uv - projected, 0.0)
    error = (weights * residual.square().sum(-1)).sum(-2)
    error = torch.where((counts & ~in_front(depth)).any(-2), torch.inf, error)
    axes = rig.rotations.mT.unsqueeze(-3)  # (..., V, 1, 3, 3): rows are the camera's axes in the world
    focal = rig.intrinsics[..., :2, :2].diagonal(dim1=-2, dim2=-1).unsqueeze(-2)  # (..., V, 1, 2)
    slope = (axes[..., :2, :] - rig.plane(projected).unsqueeze(-1) * axes[..., 2:, :]) * focal.unsqueeze(-1)
    slope = torch.where(counts[..., None, None], slope / depth[..., None, None], 0.0)  # (..., V, K, 2, 3)
    weighted = slope * weights[..., None, None]
    normal = torch.einsum("...vkri,...vkrj->...kij", weighted, slope)
    return error, normal, torch.einsum("...vkri,...vkr->...ki", weighted, residual)


def _solve_or_nan(normal: Tensor, moment: Tensor) -> Tensor:
    """Solve (..., 3, 3) normal equations; NaN with zero gradient where they are singular."""
    trace = normal.diagonal(dim1=-2, dim2=-1).sum(-1)
    solvable = torch.linalg.det(normal.detach()) > 1e-14 * (trace / 3) ** 3
    eye = torch.eye(3, dtype=normal.dtype, device=normal.device)
    safe = torch.where(solvable[..., None, None], normal, eye)
    solution = torch.linalg.solve(safe, moment.unsqueeze(-1)).squeeze(-1)
    return torch.where(solvable.unsqueeze(-1), solution, torch.nan)
