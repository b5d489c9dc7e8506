"""Robust triangulation of many points: all of them at once against a loop that gives the same answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments.bench.naive_triangulation import triangulate_in_a_loop
from experiments.bench.timing import race
from kp3d_rl.cameras import Rig, intrinsics_from_fovy, look_at
from kp3d_rl.triangulation import RansacConfig, triangulate_robustly

Row = dict[str, Any]
POINTS, VIEWS, OUTLIERS, NOISE, SIDE = 10_000, 24, 0.4, 0.5, 128
IN_A_LOOP = 10
"""Points of the loop, which is timed on these alone: it treats all of them alike."""
NEAR = 0.01
"""Metres within which a point counts as found."""
CONFIG = RansacConfig(threshold=2.5)


def robust(seconds: float) -> list[Row]:
    """Points per second of both, whether they agree, and how many of the points are found that three views see right.

    :param seconds: for each of them.
    """
    rig, points, uv, confidence, right = scene()
    few, few_confidence = uv[:IN_A_LOOP].numpy(), confidence[:IN_A_LOOP].numpy()
    times = race(
        {
            "plain": lambda: triangulate_in_a_loop(rig, few, few_confidence, CONFIG),
            "ours": lambda: triangulate_robustly(rig, uv, confidence, CONFIG),
        },
        seconds,
        least=2,
    )
    found = triangulate_robustly(rig, uv, confidence, CONFIG)
    looped = torch.as_tensor(triangulate_in_a_loop(rig, few, few_confidence, CONFIG)[0])
    near = [(estimate - points[: len(estimate)]).norm(dim=-1) < NEAR for estimate in (looped, found.points)]
    enough = right.sum(1) >= CONFIG.least_inliers
    each = {"plain": times["plain"] / IN_A_LOOP, "ours": times["ours"] / POINTS}
    names = {"plain": "a plain loop over points and pairs of views", "ours": "ours, all points at once"}
    return [
        {
            "what": names[name],
            "points": count,
            "points_per_second": 1 / each[name],
            "times_first": each["plain"] / each[name],
            "recall": float(here[enough[: len(here)]].double().mean()),
            "apart": float((looped - found.points[:IN_A_LOOP]).nan_to_num().abs().max()),
        }
        for name, count, here in zip(("plain", "ours"), (IN_A_LOOP, POINTS), near, strict=True)
    ]


def scene(count: int = POINTS, seed: int = 0) -> tuple[Rig, Tensor, Tensor, Tensor, Tensor]:
    """Cameras round points in a cube of 40 cm, and detections of which a share is anywhere in the image.

    :param count: points F, each a frame of its own.
    :param seed: of all that is random.
    :return: rig, points (F, 1, 3), pixels (F, V, 1, 2), confidences (F, V, 1), and which are right (F, V, 1).
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    directions = torch.randn(VIEWS, 3, generator=generator, dtype=torch.float64)
    places = 1.5 * torch.nn.functional.normalize(directions, dim=-1)
    lenses = intrinsics_from_fovy(torch.full((VIEWS,), 40.0, dtype=torch.float64), SIDE, SIDE)
    rig = Rig.from_arrays(lenses, look_at(places, torch.zeros(3).double()), SIDE, SIDE, torch.float64)
    points = 0.4 * uniform(count, 1, 3) - 0.2
    uv = rig.project(points)[0]
    uv = uv + NOISE * torch.randn(uv.shape, generator=generator, dtype=torch.float64)
    right = uniform(count, VIEWS, 1) >= OUTLIERS
    confidence = 0.5 + 0.5 * uniform(count, VIEWS, 1)
    return rig, points, torch.where(right.unsqueeze(-1), uv, SIDE * uniform(*uv.shape)), confidence, right
