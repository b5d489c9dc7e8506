"""Fusion and alignment: against loops, scipy, and the SVD's own gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation

from kp3d_rl.geometry import agreeing_views, align, fuse, nearest_rotation, rotation_angle
from tests.kp3d_rl.rigs import normal, ring


def rotations(count, seed=0):
    return torch.tensor(Rotation.random(count, random_state=seed).as_matrix())


def test_fuse_is_the_weighted_mean_of_a_loop():
    points, weights = normal(2, 3, 5, 3), torch.rand(2, 3, 5, dtype=torch.float64)
    fused = fuse(points, weights)
    for b in range(2):
        for k in range(5):
            expected = np.average(points[b, :, k].numpy(), axis=0, weights=weights[b, :, k].numpy())
            np.testing.assert_allclose(fused[b, k], expected, atol=1e-12)


@pytest.mark.parametrize("trust", [1.0, 0.3, 1e-6])
def test_fuse_along_rays_minimises_what_it_says(trust):
    """No point nearby does better; full trust is the mean; next to none is triangulation."""
    rig = ring(3, 4)
    uv, depth = torch.rand(4, 5, 2, dtype=torch.float64) * 60, torch.rand(4, 5, dtype=torch.float64) + 1.5
    points, weights = rig.unproject(uv, depth), torch.rand(4, 5, dtype=torch.float64)
    rays = torch.nn.functional.normalize(points - rig.centres[:, None], dim=-1)
    fused = fuse(points, weights, rays, trust)

    def cost(p):
        e = p - points
        return (weights * (e.square().sum(-1) - (1 - trust) * (e * rays).sum(-1) ** 2)).sum(0)

    for step in 1e-3 * torch.randn(20, 5, 3, dtype=torch.float64):
        assert (cost(fused + step) > cost(fused)).all()
    if trust == 1.0:
        torch.testing.assert_close(fused, fuse(points, weights))
    if trust == 1e-6:  # the same rays' nearest point, weighed in the world and not in the plane at depth 1
        at_one = rig.unproject(uv, torch.ones_like(depth))
        toward = torch.nn.functional.normalize(at_one - rig.centres[:, None], dim=-1)
        across = torch.eye(3, dtype=torch.float64) - toward.unsqueeze(-1) * toward.unsqueeze(-2)
        normal_equations = (weights[..., None, None] * across).sum(0)
        moment = (weights[..., None, None] * across @ rig.centres[:, None, :, None]).sum(0)
        torch.testing.assert_close(fused, torch.linalg.solve(normal_equations, moment)[..., 0], atol=1e-4, rtol=0)


def test_fuse_without_weight_is_the_plain_mean_with_finite_gradients():
    points = normal(3, 2, 3).requires_grad_()
    weights = torch.tensor([[0.0, 0.2], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    fused = fuse(points, weights)
    torch.testing.assert_close(fused[0], points[:, 0].mean(0))
    torch.testing.assert_close(fused[1], points[0, 1])
    fused.sum().backward()
    assert points.grad.isfinite().all() and weights.grad.isfinite().all()
    assert torch.autograd.gradcheck(fuse, (normal(3, 2, 3).requires_grad_(), normal(3, 2).abs().requires_grad_()))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(3, 12), scale=st.booleans())
def test_align_finds_the_motion_that_was_applied(seed, count, scale):
    source, rotation = normal(4, count, 3, seed=seed), rotations(4, seed)
    translation = normal(4, 3, seed=seed + 1)
    factor = torch.tensor([0.3, 1.0, 2.0, 7.0], dtype=torch.float64) if scale else torch.ones(4, dtype=torch.float64)
    target = factor[:, None, None] * source @ rotation.mT + translation[:, None]
    found = align(source, target, scale=scale)
    for value, expected in zip(found, (rotation, translation, factor), strict=True):
        assert (value - expected).abs().max() < 1e-6  # three random points may lie nearly on a line
    moved = found[2][:, None, None] * source @ found[0].mT + found[1][:, None]
    assert (moved - target).abs().max() < 1e-9


def test_align_with_noise_and_weights_agrees_with_scipy():
    source, target = normal(5, 9, 3), normal(5, 9, 3, seed=1)
    weights = torch.rand(5, 9, dtype=torch.float64)
    rotation, translation, _ = align(source, target, weights)
    for b in range(5):
        w = weights[b].numpy()
        a = source[b].numpy() - np.average(source[b].numpy(), axis=0, weights=w)
        c = target[b].numpy() - np.average(target[b].numpy(), axis=0, weights=w)
        expected, _ = Rotation.align_vectors(c, a, weights=w)
        np.testing.assert_allclose(rotation[b], expected.as_matrix(), atol=1e-7)
        mean = np.average(source[b].numpy(), axis=0, weights=w) @ rotation[b].numpy().T + translation[b].numpy()
        np.testing.assert_allclose(mean, np.average(target[b].numpy(), axis=0, weights=w), atol=1e-9)


def test_align_agrees_with_procrustes_where_that_is_a_rotation():
    source = normal(8, 3)
    target = source @ rotations(1)[0].mT + 0.05 * normal(8, 3, seed=1)
    rotation, _, scale = align(source, target, scale=True)
    a, b = source - source.mean(0), target - target.mean(0)
    expected, total = orthogonal_procrustes(a.numpy(), b.numpy())
    np.testing.assert_allclose(rotation, expected.T, atol=1e-9)
    np.testing.assert_allclose(scale, total / a.square().sum(), atol=1e-12)


def test_align_never_reflects():
    source = normal(6, 10, 3)
    target = source * torch.tensor([1.0, 1.0, -1.0])
    rotation, _, _ = align(source, target)
    assert (torch.linalg.det(rotation) - 1).abs().max() < 1e-9
    assert (rotation @ rotation.mT - torch.eye(3)).abs().max() < 1e-9


def test_gradients_of_alignment_are_those_of_the_svd_and_finite_where_those_are_not():
    source, target = normal(2, 5, 3).requires_grad_(), normal(2, 5, 3, seed=1).requires_grad_()
    weights = torch.rand(2, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t, w: align(s, t, w, scale=True), (source, target, weights))
    matrix = normal(20, 3, 3, seed=2).requires_grad_()  # of both signs of the determinant
    assert (torch.linalg.det(matrix.detach()) < 0).any()
    assert torch.autograd.gradcheck(nearest_rotation, matrix)
    # The corners of a cube: all three singular values coincide, and torch's own gradient is not finite.
    cube = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)], requires_grad=True)
    rotation = align(cube, cube.detach() @ rotations(1)[0].mT.float())[0]
    (rotation * torch.arange(9.0).view(3, 3)).sum().backward()
    assert cube.grad.isfinite().all() and cube.grad.abs().sum() > 0
    eye = torch.eye(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nearest_rotation, eye)


def test_alignment_of_collapsed_points_is_a_rotation_with_finite_gradients():
    source = torch.zeros(4, 3, requires_grad=True)
    rotation, translation, scale = align(source, torch.ones(4, 3), scale=True)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3), atol=1e-6)
    assert torch.allclose(translation, torch.ones(3)) and scale.isfinite()
    (rotation.sum() + translation.sum() + scale).backward()
    assert source.grad.isfinite().all()


def test_rotation_angle_agrees_with_scipy_and_with_the_chordal_formula():
    first, second = rotations(200, 1), rotations(200, 2)
    angle = rotation_angle(first, second)
    expected = (Rotation.from_matrix(first.numpy()).inv() * Rotation.from_matrix(second.numpy())).magnitude()
    np.testing.assert_allclose(angle, expected, atol=1e-9)
    chord = torch.linalg.matrix_norm(first - second) / (2 * math.sqrt(2))
    torch.testing.assert_close(angle, 2 * torch.asin(chord), atol=1e-6, rtol=0)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 0.01, 90.0, 179.99, 180.0])
def test_rotation_angle_is_exact_and_smooth_at_the_ends(degrees):
    second = torch.tensor(Rotation.from_rotvec([0, 0, math.radians(degrees)]).as_matrix()).requires_grad_()
    angle = rotation_angle(torch.eye(3, dtype=torch.float64), second)
    assert abs(angle.item() - math.radians(degrees)) < 1e-12
    angle.backward()
    assert second.grad.isfinite().all()


# --- views that contradict all others --------------------------------------------------------------------------------
def three_rays(off: float, views: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cameras around two points, of which the first camera is off by metres for the second point alone."""
    truth = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.05, -0.1]], dtype=torch.float64)
    eyes = torch.tensor([[1.0, 0, 0.3], [0, 1.0, 0.4], [-0.8, -0.8, 0.5], [0.2, -1.0, 0.6]], dtype=torch.float64)[
        :views
    ]
    seen = truth.expand(views, 2, 3).clone()
    seen[0, 1] += off * torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    rays = torch.nn.functional.normalize(seen - eyes[:, None], dim=-1)
    return truth, eyes[:, None] + 0.9 * rays, torch.rand(views, 2, dtype=torch.float64) + 0.5, rays


@pytest.mark.parametrize("views", [3, 4])
def test_the_view_that_errs_is_left_out_and_only_there(views: int) -> None:
    truth, points, weights, rays = three_rays(0.2, views)
    kept = agreeing_views(points, weights, rays, 0.04)
    assert kept[:, 0].tolist() == [1] * views and kept[:, 1].tolist() == [0] + [1] * (views - 1)
    fused = fuse(points, weights * kept, rays, 0.001)
    assert (fused - truth).norm(dim=-1).max() < 2e-3 < 0.02 < (fuse(points, weights, rays, 0.001) - truth)[1].norm()


def test_nobody_is_left_out_where_all_nearly_agree_or_nobody_can_say() -> None:
    for off, views, tolerance in ((0.0, 3, 0.04), (0.02, 3, 0.04), (0.2, 2, 0.04), (0.2, 3, 0.5)):
        _, points, weights, rays = three_rays(off, views)
        assert agreeing_views(points, weights, rays, tolerance).min() == 1, (off, views)
    _, points, weights, rays = three_rays(0.2)
    weights[2] = 0.0  # a camera that is lost
    assert agreeing_views(points, weights, rays, 0.04).min() == 1
