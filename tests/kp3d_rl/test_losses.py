"""The auxiliary losses against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from kp3d_rl.losses import (
    LossWeights,
    coverage_loss,
    equivariance_loss,
    multiview_loss,
    pixel_weights,
    reconstruction_loss,
    separation_loss,
    variance_loss,
    weighted_sum,
)


def test_reconstruction_is_the_mean_squared_error() -> None:
    a, b = torch.rand(2, 3, 4, 5, 6), torch.rand(2, 3, 4, 5, 6)
    assert torch.allclose(reconstruction_loss(a, b), torch.nn.functional.mse_loss(a, b))


def test_weighted_reconstruction_counts_each_pixel_by_its_weight() -> None:
    a, b, weights = torch.rand(2, 3, 3, 4, 5), torch.rand(2, 3, 3, 4, 5), torch.rand(3, 4, 5)
    total = 0.0
    for frame in range(2):
        for view in range(3):
            for channel in range(3):
                total += float((weights[view] * (a[frame, view, channel] - b[frame, view, channel]) ** 2).sum())
    assert float(reconstruction_loss(a, b, weights)) == pytest.approx(total / a.numel(), rel=1e-5)


def test_pixel_weights_are_inverse_variances_scaled_to_the_mean_images_loss_and_at_least_one() -> None:
    images = torch.randint(0, 256, (50, 2, 6, 6, 3), dtype=torch.uint8)
    images[:, :, 0] = 7  # still
    images[:, :, 1:4] = images[:, :, 1:4] // 4  # moves little
    weights = pixel_weights(images)
    pixels = images.double().numpy() / 255.0
    variance = pixels.var(axis=0).mean(-1)
    expected = 1.0 / (variance + 0.3 * variance.mean())
    expected *= variance.mean() / (expected * variance).mean()
    assert np.allclose(weights.numpy(), np.maximum(expected, 1.0), rtol=1e-4)
    assert expected.min() < 1.0 < expected.max()
    assert torch.equal(pixel_weights(images[:1].expand_as(images)), torch.ones(2, 6, 6))  # nothing moves


def test_multiview_is_the_mean_over_ordered_pairs_of_cameras() -> None:
    points = torch.randn(4, 3, 5, 3, dtype=torch.float64)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = sum(((points[:, i] - points[:, j]) ** 2).mean() for i, j in pairs) / len(pairs)
    assert torch.allclose(multiview_loss(points), expected)
    assert float(multiview_loss(points[:, :1])) == 0.0
    assert float(multiview_loss(points[:, :1].expand(4, 3, 5, 3))) == 0.0


def test_multiview_pulls_a_camera_towards_the_held_others() -> None:
    points = torch.randn(2, 2, 1, 3, dtype=torch.float64, requires_grad=True)
    multiview_loss(points).backward()
    held = points.detach()
    by_hand = (held[:, 0] - held[:, 1]) * 2 / held[:, 0].numel() / 2  # d/dx0 of one of two pairs' mean squares
    assert torch.allclose(points.grad[:, 0], by_hand)
    assert torch.allclose(points.grad[:, 1], -by_hand)


def test_separation_is_the_mean_over_all_pairs_self_included() -> None:
    points = torch.randn(3, 4, 3, dtype=torch.float64)
    total = 0.0
    for frame in points:
        for a in frame:
            for b in frame:
                total += 1 / (1000 * float(((a - b) ** 2).sum()) + 1)
    assert float(separation_loss(points)) == pytest.approx(total / (3 * 16), rel=1e-12)
    assert float(separation_loss(points[:, :1].expand(3, 4, 3))) == pytest.approx(1.0)
    assert float(separation_loss(points * 1e6)) == pytest.approx(1 / 4, rel=1e-6)


def test_separation_pushes_points_apart() -> None:
    points = torch.tensor([[[0.0, 0, 0], [0.02, 0, 0]]], requires_grad=True)
    separation_loss(points).backward()
    assert points.grad[0, 0, 0] > 0 > points.grad[0, 1, 0]


def test_weighted_sum_uses_each_weight_and_refuses_unknown_terms() -> None:
    weights = LossWeights(reconstruction=2.0, multiview=3.0, separation=0.0)
    terms = {name: torch.tensor(value) for name, value in (("reconstruction", 5.0), ("multiview", 7.0))}
    assert float(weighted_sum(terms, weights)) == 31.0
    assert float(weighted_sum({"separation": torch.tensor(9.0)}, weights)) == 0.0
    with pytest.raises(ValueError, match="'sparsity' has no weight"):
        weighted_sum({"sparsity": torch.tensor(1.0)}, weights)
    with pytest.raises(ValueError, match="no loss terms"):
        weighted_sum({}, weights)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), 1e9, True, "1", None, [1.0], 10**400])
def test_weights_must_be_numbers_of_at_least_zero(bad: float) -> None:
    with pytest.raises(ValueError, match="^loss multiview must be"):
        LossWeights(multiview=bad)


def test_coverage_is_the_divergence_of_the_mean_heat_map_from_the_foreground() -> None:
    """Against scipy's entropy; views without foreground add nothing."""
    generator = torch.Generator().manual_seed(0)
    heat = torch.rand(2, 3, 4, 5, 5, generator=generator).flatten(-2).softmax(-1).unflatten(-1, (5, 5))
    seen = torch.rand(2, 3, 5, 5, generator=generator)
    seen[0, 1] = 0.0
    naive = [
        0.0 if seen[b, v].sum() == 0 else entropy(seen[b, v].flatten().numpy(), heat[b, v].mean(0).flatten().numpy())
        for b in range(2)
        for v in range(3)
    ]
    assert float(coverage_loss(heat, seen)) == pytest.approx(np.mean(naive), abs=1e-5)


def test_coverage_falls_when_a_keypoint_takes_the_part_that_none_had() -> None:
    seen = torch.zeros(4, 4)
    seen[0, 0] = seen[3, 3] = 1.0
    both_here, one_each = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    both_here[:, 0, 0] = one_each[0, 0, 0] = one_each[1, 3, 3] = 1.0
    assert coverage_loss(one_each, seen) < 1e-6 < coverage_loss(both_here, seen)


def test_equivariance_is_the_squared_distance_of_those_that_count_in_half_image_sides() -> None:
    wanted = torch.tensor([[10.0, 10.0], [39.0, 1.0], [-1.0, 5.0]])
    found = wanted + torch.tensor([[2.0, 0.0], [0.0, 5.0], [7.0, 7.0]])
    expected = ((2 / 20) ** 2 + (5 / 10) ** 2) / 3
    counted = torch.tensor([True, True, False])
    assert float(equivariance_loss(found, wanted, counted, height=20, width=40)) == pytest.approx(expected)


def test_variance_is_in_half_image_sides() -> None:
    spread = torch.tensor([[[8.0, 3.0]]])
    assert float(variance_loss(spread, 12, 32)) == pytest.approx((8 / 16) ** 2 + (3 / 6) ** 2)


# -- checking options --------------------------------------------------------------------------------------------------
