"""Robust triangulation as one would write it down: a loop over frames, groups of points, and pairs of views.

The same method as :func:`kp3d_rl.triangulation.triangulate_robustly`, for the bench to be compared with and for the
tests to be the second opinion.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from kp3d_rl.cameras import Rig
from kp3d_rl.triangulation import RansacConfig

REPEATS = 3


class Views:
    """V pinhole cameras in plain arrays.

    :param rig: without batch dimensions.
    """

    def __init__(self, rig: Rig) -> None:
        self.k = rig.intrinsics.double().numpy()
        pose = rig.world_from_camera.double().numpy()
        self.rotations, self.centres = pose[:, :3, :3], pose[:, :3, 3]

    def project(self, view: int, point: np.ndarray) -> tuple[np.ndarray, float]:
        """Pixels (2,) and depth."""
        x, y, depth = self.rotations[view].T @ (point - self.centres[view])
        k = self.k[view]
        return np.array([k[0, 0] * x / depth + k[0, 2], k[1, 1] * y / depth + k[1, 2]]), depth

    def ray(self, view: int, uv: np.ndarray) -> np.ndarray:
        """(3,) unit vector through a pixel."""
        k = self.k[view]
        ray = self.rotations[view] @ [(uv[0] - k[0, 2]) / k[0, 0], (uv[1] - k[1, 2]) / k[1, 1], 1.0]
        return ray / np.linalg.norm(ray)

    def squared_error(self, view: int, uv: np.ndarray, point: np.ndarray | None) -> float:
        """Squared pixels; inf behind the camera, or where there is no point."""
        if point is None:
            return np.inf
        seen, depth = self.project(view, point)
        return float(((seen - uv) ** 2).sum()) if depth > 1e-3 else np.inf

    def between(self, first: int, second: int, one: np.ndarray, two: np.ndarray, least: float) -> np.ndarray | None:
        """The point between two rays; None where they are nearly parallel, or meet behind a camera."""
        a, b = self.ray(first, one), self.ray(second, two)
        way, cosine = self.centres[second] - self.centres[first], a @ b
        sine = 1.0 - cosine**2
        if sine <= np.sin(least) ** 2:
            return None
        near, far = (a @ way - cosine * (b @ way)) / sine, (cosine * (a @ way) - b @ way) / sine
        if near <= 0 or far <= 0:
            return None
        return 0.5 * (self.centres[first] + near * a + self.centres[second] + far * b)

    def linear(self, uv: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
        """The weighted linear solution from views (V, 2) and (V,)."""
        rows, right = [], []
        for view in np.flatnonzero(weights):
            k, rotation, root = self.k[view], self.rotations[view], np.sqrt(weights[view])
            for side in range(2):
                plane = (uv[view, side] - k[side, 2]) / k[side, side]
                row = root * (rotation[:, side] - plane * rotation[:, 2])
                rows.append(row)
                right.append(row @ self.centres[view])
        if len(rows) < 4:
            return None
        return np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]

    def refined(self, uv: np.ndarray, weights: np.ndarray, point: np.ndarray, steps: int) -> np.ndarray:
        """Gauss-Newton on the weighted reprojection error."""

        def cost(at: np.ndarray) -> float:
            return sum(weights[view] * self.squared_error(view, uv[view], at) for view in np.flatnonzero(weights))

        least = cost(point)
        for _ in range(steps):
            normal, moment = np.zeros((3, 3)), np.zeros(3)
            for view in np.flatnonzero(weights):
                k, rotation = self.k[view], self.rotations[view]
                x, y, depth = rotation.T @ (point - self.centres[view])
                for side, offset in enumerate((x, y)):
                    slope = k[side, side] / depth * (rotation[:, side] - offset / depth * rotation[:, 2])
                    residual = uv[view, side] - (k[side, side] * offset / depth + k[side, 2])
                    normal += weights[view] * np.outer(slope, slope)
                    moment += weights[view] * residual * slope
            moved = point + np.linalg.solve(normal, moment)
            if not cost(moved) < least * (1.0 - 1e-9):
                break
            point, least = moved, cost(moved)
        return point


def triangulate_in_a_loop(
    rig: Rig, uv: np.ndarray, confidence: np.ndarray, config: RansacConfig, groups: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`~kp3d_rl.triangulation.triangulate_robustly` finds where all pairs of views are tried.

    :param rig: V cameras that stand still.
    :param uv: (F, V, K, 2) pixels, finite.
    :param confidence: (F, V, K).
    :param config: what counts as agreement.
    :param groups: K numbers.
    :return: points (F, K, 3), NaN where there is none, and inliers (F, V, K).
    """
    views, keypoints = Views(rig), uv.shape[2]
    numbers = np.arange(keypoints) if groups is None else np.asarray(groups)
    points, inliers = np.full((len(uv), keypoints, 3), np.nan), np.zeros(confidence.shape, bool)
    for frame in range(len(uv)):
        for group in np.unique(numbers):
            members = np.flatnonzero(numbers == group)
            found, chosen = _group(views, uv[frame][:, members], confidence[frame][:, members], config)
            points[frame, members], inliers[frame][:, members] = found, chosen
    return points, inliers


def _group(views: Views, uv: np.ndarray, confidence: np.ndarray, config: RansacConfig) -> tuple[np.ndarray, np.ndarray]:
    detected, count = confidence >= config.least_confidence, uv.shape[1]
    best, chosen = 0.0, np.zeros(detected.shape, bool)
    for first, second in itertools.combinations(range(len(uv)), 2):
        points = [
            views.between(first, second, uv[first, k], uv[second, k], np.radians(config.least_angle))
            if detected[first, k] and detected[second, k]
            else None
            for k in range(count)
        ]
        score, agreeing = _agreement(views, uv, detected, points, config)
        if score > best:
            best, chosen = score, agreeing
    points = [None] * count
    for _ in range(REPEATS):
        weights = confidence * chosen
        for k in range(count):
            start = views.linear(uv[:, k], weights[:, k])
            if start is not None:
                start = views.refined(uv[:, k], weights[:, k], start, config.refinements)
            points[k] = start
        before, chosen = chosen, _agreement(views, uv, detected, points, config)[1]
        if (before == chosen).all():
            break
    found = np.full((count, 3), np.nan)
    for k in range(count):
        seen = np.flatnonzero(chosen[:, k])
        rays = [views.ray(view, uv[view, k]) for view in seen]
        wide = any(abs(a @ b) <= np.cos(np.radians(config.least_angle)) for a, b in itertools.combinations(rays, 2))
        if len(seen) >= config.least_inliers and wide:
            found[k] = points[k]
        else:
            chosen[:, k] = False
    return found, chosen


def _agreement(
    views: Views, uv: np.ndarray, detected: np.ndarray, points: list[np.ndarray | None], config: RansacConfig
) -> tuple[float, np.ndarray]:
    """How much views agree with the points of a group, and which detections do."""
    score, agreeing = 0.0, np.zeros(detected.shape, bool)
    for view in range(len(uv)):
        here = [k for k in range(len(points)) if detected[view, k] and points[k] is not None]
        if not here:
            continue
        error = np.mean([views.squared_error(view, uv[view, k], points[k]) for k in here])
        score += len(here) * max(0.0, 1.0 - error / config.threshold**2)
        agreeing[view, here] = error <= config.threshold**2
    return score, agreeing
