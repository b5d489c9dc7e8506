"""Triangulation: against loops, a homogeneous DLT by SVD, scipy's least squares, and points that are known."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import least_squares

from experiments.bench import triangulation as bench
from experiments.bench.naive_triangulation import triangulate_in_a_loop
from kp3d_rl.cameras import Rig, look_at
from kp3d_rl.triangulation import RansacConfig, refine, success_of_views, triangulate, triangulate_robustly
from tests.kp3d_rl.rigs import normal, ring


def naive_dlt(rig, uv):
    """The textbook's form: the null vector of the stacked homogeneous equations in pixels, one point at a time."""
    points = torch.empty(uv.shape[1], 3, dtype=torch.float64)
    projections = rig.intrinsics @ torch.linalg.inv(rig.world_from_camera)[:, :3]
    for k in range(uv.shape[1]):
        rows = []
        for v in range(rig.num_views):
            p = projections[v]
            rows += [uv[v, k, 0] * p[2] - p[0], uv[v, k, 1] * p[2] - p[1]]
        x = torch.linalg.svd(torch.stack(rows))[2][-1]
        points[k] = x[:3] / x[3]
    return points


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), views=st.integers(2, 6), far=st.sampled_from([0.0, 10.0, 1000.0]))
def test_triangulate_finds_the_point_that_was_projected(seed, views, far):
    rig = ring(seed, views, origin=(far, -far, far))
    sight = rig.rotations[..., 2]
    assume(torch.linalg.cross(sight[:1], sight).norm() > 0.05)  # cameras in one place see no depth
    points = torch.tensor([far, -far, far]) + 0.2 * normal(2, 5, 3, seed=seed)
    uv, _ = rig.project(points)
    assert (triangulate(rig, uv) - points).abs().max() < (1e-9 if far < 100 else 1e-7)


def test_triangulate_agrees_with_the_textbook_where_views_agree_and_nearly_where_they_do_not():
    rig, points = ring(1), 0.2 * normal(8, 3, seed=1)
    uv, _ = rig.project(points)
    torch.testing.assert_close(triangulate(rig, uv), naive_dlt(rig, uv), atol=1e-9, rtol=0)
    noisy = uv + 0.5 * normal(*uv.shape, seed=2)
    ours, textbook = triangulate(rig, noisy), naive_dlt(rig, noisy)
    assert (ours - textbook).norm(dim=-1).mean() < 0.4 * (ours - points).norm(dim=-1).mean()  # weighs views otherwise


def test_triangulate_minimises_its_own_error_and_is_near_the_reprojection_optimum():
    rig, points = ring(4, views=5), 0.2 * normal(6, 3, seed=4)
    uv = rig.project(points)[0] + 0.5 * normal(5, 6, 2, seed=5)
    found = triangulate(rig, uv)
    weights = torch.rand(5, 6, dtype=torch.float64) + 0.1
    weighted = triangulate(rig, uv, weights)
    k, inverse = rig.intrinsics, torch.linalg.inv(rig.world_from_camera)
    for i in range(6):

        def reprojection(p, i=i):
            return (rig.project(torch.tensor(p)[None])[0][:, 0] - uv[:, i]).flatten().numpy()

        def algebraic(p, i=i):
            local = (inverse[:, :3, :3] @ torch.tensor(p)) + inverse[:, :3, 3]
            plane = (uv[:, i] - k[:, :2, 2]) / k[:, [0, 1], [0, 1]]
            error = local[:, :2] - plane * local[:, 2:]
            return (error * weights[:, i, None].sqrt()).flatten().numpy()

        best = least_squares(reprojection, points[i].numpy(), xtol=1e-12).x
        assert np.linalg.norm(found[i].numpy() - best) < 0.3 * np.linalg.norm(points[i].numpy() - best) + 2e-3
        exact = least_squares(algebraic, points[i].numpy(), xtol=1e-14, ftol=1e-14, gtol=1e-14).x
        np.testing.assert_allclose(weighted[i], exact, atol=1e-7)


def test_triangulate_with_weights_ignores_what_weighs_nothing():
    rig, points = ring(2, views=4), 0.2 * normal(3, 5, 3)
    uv, _ = rig.project(points)
    weights = torch.ones(3, 4, 5, dtype=torch.float64)
    uv[:, 3] += 20
    weights[:, 3] = 0
    assert (triangulate(rig, uv, weights) - points).abs().max() < 1e-9
    assert (triangulate(rig, uv) - points).abs().max() > 0.01


def test_what_weighs_nothing_may_be_no_number():
    rig, points = ring(6, views=5), 0.2 * normal(6, 3, seed=6)
    uv, weights = rig.project(points)[0], torch.ones(5, 6)
    uv[2, 3], weights[2, 3] = torch.nan, 0.0
    torch.testing.assert_close(triangulate(rig, uv, weights), points)
    torch.testing.assert_close(refine(rig, uv, weights, points + 0.01), points)


def test_triangulate_says_nan_where_one_view_is_left_and_keeps_gradients_finite():
    rig, points = ring(3, views=3), 0.2 * normal(4, 3)
    uv = rig.project(points)[0].requires_grad_()
    weights = torch.ones(3, 4, dtype=torch.float64)
    weights[1:, 0] = 0
    weights[:, 1] = 0
    found = triangulate(rig, uv, weights)
    assert found[:2].isnan().all() and (found[2:] - points[2:]).abs().max() < 1e-9
    found[2:].sum().backward()
    assert uv.grad.isfinite().all() and uv.grad[:, 2:].abs().sum() > 0
    assert triangulate(rig.select([0, 0]), uv[[0, 0]].detach()).isnan().all(), "twice the same camera"


def test_triangulate_batches_agree_with_a_loop_and_float32_with_float64():
    rig = Rig(
        torch.stack([ring(s).intrinsics for s in range(3)]),
        torch.stack([ring(s).world_from_camera for s in range(3)]),
        64,
        64,
    )
    uv = rig.project(0.2 * normal(3, 5, 3))[0] + 0.3 * normal(3, 4, 5, 2, seed=1)
    found = triangulate(rig, uv)
    for b in range(3):
        torch.testing.assert_close(found[b], triangulate(ring(b), uv[b]))
    single = triangulate(rig.to(torch.float32), uv.float())
    assert single.dtype == torch.float32 and (single - found).abs().max() < 1e-5


def test_triangulate_gradient():
    rig = ring(6, views=3)
    uv = rig.project(0.2 * normal(2, 3))[0].requires_grad_()
    weights = (torch.rand(3, 2, dtype=torch.float64) + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: triangulate(rig, x, w), (uv, weights))


def detections(rig, points, seed=0, noise=0.4, outliers=0.3):
    """What a detector says of points (F, K, 3), with noise and a share of anything; and what is right."""
    generator = torch.Generator().manual_seed(seed)
    uv = rig.project(points)[0]
    uv = uv + noise * torch.randn(uv.shape, dtype=torch.float64, generator=generator)
    wrong = torch.rand(uv.shape[:-1], generator=generator) < outliers
    anything = torch.rand(uv.shape, dtype=torch.float64, generator=generator) * 64
    confidence = 0.3 + 0.7 * torch.rand(uv.shape[:-1], dtype=torch.float64, generator=generator)
    return torch.where(wrong.unsqueeze(-1), anything, uv), confidence, ~wrong


TIGHT = RansacConfig(threshold=2.0)


@pytest.mark.parametrize("views, groups", [(3, None), (7, None), (7, [0, 0, 1, 1, 1, 2])])
def test_robust_triangulation_is_what_a_plain_loop_says(views, groups):
    rig = ring(3, views)
    uv, confidence, _ = detections(rig, 0.2 * normal(6, 6, 3, seed=8), seed=views, outliers=0.2)
    confidence[0, :2] = 0.1  # too little to take part
    found = triangulate_robustly(rig, uv, confidence, TIGHT, groups)
    points, inliers = triangulate_in_a_loop(rig, uv.numpy(), confidence.numpy(), TIGHT, groups)
    assert (found.inliers.numpy() == inliers).all() and 0.2 < found.found.double().mean()
    np.testing.assert_allclose(found.points, points, atol=1e-7)
    reprojected = (rig.project(found.points)[0] - uv).norm(dim=-1)
    torch.testing.assert_close(found.error[found.inliers], reprojected[found.inliers])
    assert found.points[~found.found].isnan().all() and found.points[found.found].isfinite().all()


def test_the_bench_compares_what_gives_the_same_answers(monkeypatch):
    monkeypatch.setattr(bench, "POINTS", 30)
    monkeypatch.setattr(bench, "IN_A_LOOP", 2)
    plain, ours = bench.robust(0.01)
    assert (plain["points"], ours["points"], plain["times_first"]) == (2, 30, 1.0)
    assert ours["apart"] < 1e-7 and ours["recall"] >= 0.99 and ours["points_per_second"] > 0


def test_robust_triangulation_with_a_rig_for_each_frame_is_that_frame_by_frame():
    rigs = [ring(seed, 5) for seed in range(4)]
    moving = Rig(
        torch.stack([rig.intrinsics for rig in rigs]), torch.stack([rig.world_from_camera for rig in rigs]), 64, 64
    )
    points = 0.2 * normal(4, 3, 3)
    uv, confidence, _ = detections(moving, points, outliers=0.2)
    together = triangulate_robustly(moving, uv, confidence, TIGHT)
    for frame, rig in enumerate(rigs):
        alone = triangulate_robustly(rig, uv[frame], confidence[frame], TIGHT)
        assert torch.equal(together.inliers[frame], alone.inliers)
        torch.testing.assert_close(together.points[frame], alone.points, equal_nan=True, atol=1e-7, rtol=0)
    sequences = triangulate_robustly(rigs[0], uv.view(2, 2, 5, 3, 2), confidence.view(2, 2, 5, 3), TIGHT)
    assert sequences.points.shape == (2, 2, 3, 3) and sequences.inliers.shape == (2, 2, 5, 3)


def test_with_24_views_of_which_40_percent_are_wrong_points_are_found():
    rig, points = ring(0, 24), 0.25 * (2 * torch.rand(1000, 1, 3, dtype=torch.float64) - 1)
    uv, confidence, right = detections(rig, points, outliers=0.4)
    found = triangulate_robustly(rig, uv, confidence, TIGHT)
    near = (found.points - points).norm(dim=-1) < 0.02
    assert near[right.sum(1) >= 3].double().mean() >= 0.99
    assert (found.inliers == right).double().mean() > 0.98
    assert near[found.found].double().mean() >= 0.99


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), views=st.integers(3, 8), far=st.sampled_from([0.0, 100.0]))
def test_without_errors_every_point_is_found_in_every_view_wherever_the_world_begins(seed, views, far):
    rig = ring(seed, views, origin=(far, -far, far))
    sight = rig.rotations[..., 2]
    assume(torch.linalg.cross(sight[:1], sight).norm() > 0.2)
    points = torch.tensor([far, -far, far]) + 0.2 * normal(5, 3, seed=seed)
    found = triangulate_robustly(rig, rig.project(points)[0], torch.ones(views, 5))
    assert found.inliers.all() and (found.points - points).abs().max() < 1e-7


def test_what_is_no_detection_takes_no_part():
    rig, points = ring(1, 5), 0.2 * normal(4, 3)
    uv, confidence = rig.project(points)[0], torch.ones(5, 4)
    uv[0, 0], uv[1, 1, 0], confidence[2, 2], confidence[3, 3] = torch.nan, torch.inf, 0.1, torch.nan
    found = triangulate_robustly(rig, uv, confidence)
    expected = torch.ones(5, 4, dtype=torch.bool)
    expected[[0, 1, 2, 3], [0, 1, 2, 3]] = False
    assert torch.equal(found.inliers, expected) and (found.points - points).abs().max() < 1e-9
    assert found.error[~expected].isinf().all()
    none = triangulate_robustly(rig, torch.full_like(uv, torch.nan), confidence)
    assert none.points.isnan().all() and not none.inliers.any() and not none.found.any()


def test_too_few_views_that_agree_make_no_point():
    rig, points = ring(2, 4), 0.2 * normal(1, 3)
    uv = rig.project(points)[0]
    uv[2:, 0] += torch.tensor([[30.0, -25.0], [-28.0, 33.0]])
    assert not triangulate_robustly(rig, uv, torch.ones(4, 1)).found.any()
    two = triangulate_robustly(rig, uv, torch.ones(4, 1), RansacConfig(least_inliers=2))
    assert two.inliers[:, 0].tolist() == [True, True, False, False] and (two.points - points).abs().max() < 1e-9


def test_a_group_is_accepted_view_by_view_as_a_whole():
    """A finger taken for its neighbour in one view: one of its points happens to fit, and is refused with it."""
    rig, points = ring(4, 6), 0.2 * normal(4, 3)
    uv = rig.project(points)[0]
    uv[0, 1:] += 12.0
    alone = triangulate_robustly(rig, uv, torch.ones(6, 4))
    together = triangulate_robustly(rig, uv, torch.ones(6, 4), groups=[0, 0, 0, 0])
    assert alone.inliers[0].tolist() == [True, False, False, False]
    assert not together.inliers[0].any() and together.inliers[1:].all()
    assert (together.points - points).abs().max() < 1e-9


def test_points_that_are_each_alone_may_be_numbered_in_any_order():
    rig, points = ring(4, 5), 0.2 * normal(3, 3)
    uv = rig.project(points)[0]
    uv[0, 0] += 20.0
    found = triangulate_robustly(rig, uv, torch.ones(5, 3), groups=[1, 2, 0])
    assert torch.equal(found.inliers, triangulate_robustly(rig, uv, torch.ones(5, 3)).inliers)
    assert not found.inliers[0, 0] and found.inliers.sum() == 14 and (found.points - points).abs().max() < 1e-9


def test_points_behind_cameras_and_cameras_on_one_line_make_none():
    rig = ring(5, 4)
    behind = 3.0 * rig.centres[:1]  # of the first camera; it projects all the same
    uv = rig.project(behind)[0]
    found = triangulate_robustly(rig, uv, torch.ones(4, 1))
    assert not found.inliers[0].any()
    positions = torch.tensor([[0.0, 0.0, z] for z in (1.0, 1.5, 2.0)], dtype=torch.float64)
    line = Rig.from_arrays(rig.intrinsics[:3], look_at(positions, torch.zeros(3), (0, 1, 0)), 64, 64, torch.float64)
    on_it, beside = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[0.3, 0.0, 0.0]], dtype=torch.float64)
    assert not triangulate_robustly(line, line.project(on_it)[0], torch.ones(3, 1)).found.any()
    assert triangulate_robustly(line, line.project(beside)[0], torch.ones(3, 1)).found.all()


def test_a_rig_that_is_no_number_is_told_from_one_in_one_place():
    rig = ring(0, 3)
    rig.world_from_camera[1, 0, 3] = torch.nan
    with pytest.raises(ValueError, match="must be finite numbers"):
        triangulate_robustly(rig, torch.zeros(3, 1, 2), torch.ones(3, 1))


def test_bad_rigs_and_shapes_are_refused_in_one_line():
    rig, uv, ones = ring(0, 4), torch.zeros(4, 2, 2), torch.ones(4, 2)
    one_place = Rig(rig.intrinsics, rig.world_from_camera[:1].expand(4, -1, -1), 64, 64)
    with pytest.raises(ValueError, match="all cameras are in one place"):
        triangulate_robustly(one_place, uv, ones)
    with pytest.raises(ValueError, match="2 views are too few: 3 must agree"):
        triangulate_robustly(rig.select([0, 1]), uv[:2], ones[:2])
    with pytest.raises(ValueError, match="4 cameras, detections"):
        triangulate_robustly(rig, uv[:3], ones[:3])
    with pytest.raises(ValueError, match="groups of 3 points do not fit 2"):
        triangulate_robustly(rig, uv, ones, groups=[0, 0, 1])
    with pytest.raises(ValueError, match="least_inliers must be at least 2"):
        RansacConfig(least_inliers=1)


def test_fewer_pairs_than_there_are_find_the_same_where_most_views_are_right():
    rig, points = ring(6, 31), 0.2 * normal(40, 1, 3)
    uv, confidence, right = detections(rig, points, outliers=0.3)
    all_of_them = triangulate_robustly(rig, uv, confidence, TIGHT)
    some = triangulate_robustly(rig, uv, confidence, RansacConfig(threshold=2.0, hypotheses=60))
    again = triangulate_robustly(rig, uv, confidence, RansacConfig(threshold=2.0, hypotheses=60))
    assert torch.equal(some.points, again.points), "drawn at random, but always the same"
    assert (some.inliers == all_of_them.inliers).double().mean() > 0.99
    one = triangulate_robustly(rig, uv, confidence, RansacConfig(threshold=2.0, hypotheses=1))
    assert (one.inliers == right).double().mean() < 0.95, "one pair is often wrong"


def test_refinement_is_the_optimum_that_scipy_finds():
    rig, points = ring(4, views=5), 0.2 * normal(6, 3, seed=4)
    uv = rig.project(points)[0] + 1.0 * normal(5, 6, 2, seed=5)
    weights = torch.rand(5, 6, dtype=torch.float64) + 0.1
    weights[0, 0] = 0.0
    start = triangulate(rig, uv, weights)
    found = refine(rig, uv, weights, start, steps=20)
    for i in range(6):

        def weighted(p, i=i):
            error = rig.project(torch.tensor(p)[None])[0][:, 0] - uv[:, i]
            return (error * weights[:, i, None].sqrt()).flatten().numpy()

        best = least_squares(weighted, start[i].numpy(), xtol=1e-14, ftol=1e-14, gtol=1e-14)
        np.testing.assert_allclose(found[i], best.x, atol=1e-5)
        assert (weighted(found[i].numpy()) ** 2).sum() <= (weighted(start[i].numpy()) ** 2).sum()
    assert refine(rig, uv, weights, torch.full((6, 3), torch.nan)).isnan().all()
    torch.testing.assert_close(refine(rig, uv, weights, start, steps=0), start)


def test_without_refinement_points_are_the_linear_ones_of_their_inliers():
    rig, points = ring(4, views=7), 0.2 * normal(8, 3, seed=4)
    uv = rig.project(points)[0] + 1.0 * normal(7, 8, 2, seed=5)
    linear = triangulate_robustly(rig, uv, torch.ones(7, 8), RansacConfig(threshold=20.0, refinements=0)).points
    torch.testing.assert_close(linear, triangulate(rig, uv))
    refined = triangulate_robustly(rig, uv, torch.ones(7, 8), RansacConfig(threshold=20.0)).points
    errors = [(rig.project(found)[0] - uv).square().sum() for found in (refined, linear)]
    assert errors[0] < errors[1]


def test_points_whose_rays_are_more_nearly_parallel_than_is_allowed_are_none():
    positions = torch.tensor([[0.0, -2.0, 0.0], [0.1, -2.0, 0.0], [0.2, -2.0, 0.0]], dtype=torch.float64)
    rig = Rig(ring(0, 3).intrinsics, look_at(positions, torch.zeros(3, dtype=torch.float64)), 64, 64)
    points = 0.1 * normal(4, 3)
    uv = rig.project(points)[0]  # the outer two look 5.7 degrees apart
    for angle, found in ((4.0, True), (8.0, False)):
        robust = triangulate_robustly(rig, uv, torch.ones(3, 4), RansacConfig(threshold=1.0, least_angle=angle))
        assert robust.found.all() == found and robust.found.any() == found


@pytest.mark.parametrize("trust", [0.0, 1.0, 6.0])
def test_inliers_count_with_a_power_of_their_confidence(trust):
    rig, points = ring(4, views=7), 0.2 * normal(8, 3, seed=4)
    uv = rig.project(points)[0] + 1.0 * normal(7, 8, 2, seed=5)
    confidence = 0.5 + 0.5 * torch.rand(7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    config = RansacConfig(threshold=20.0, trust=trust, refinements=20)
    found = triangulate_robustly(rig, uv, confidence, config)
    assert found.inliers.all()
    weights = confidence**trust
    torch.testing.assert_close(found.points, refine(rig, uv, weights, triangulate(rig, uv, weights), steps=20))
    if trust != 1.0:
        assert (found.points - refine(rig, uv, confidence, found.points, steps=20)).norm(dim=-1).min() > 1e-5


def test_the_chance_of_enough_views_is_the_binomials_tail():
    for views in (2, 3, 4, 8, 16, 31):
        for success in (0.0, 0.2, 0.4, 1.0):
            expected = stats.binom.sf(2, views, success)
            assert success_of_views(views, success) == pytest.approx(expected, abs=1e-12)
    assert round(success_of_views(8, 0.4), 2) == 0.68 and round(success_of_views(16, 0.2), 2) == 0.65
