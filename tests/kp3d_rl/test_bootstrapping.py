"""Multiview bootstrapping: peaks, augmentation, checks and choice against formulas, naive loops and tiny trainings."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from kp3d_rl.bootstrapping.detector import STEM, DetectorConfig, KeypointDetector, peaks, to_input, turned
from kp3d_rl.bootstrapping.plausibility import PlausibilityConfig, judge
from kp3d_rl.bootstrapping.selection import SelectionConfig, reproject, score_frames, select_frames
from kp3d_rl.bootstrapping.training import (
    AugmentationConfig,
    DetectorTraining,
    DetectorTrainingConfig,
    LabelledImages,
    augment,
    map_loss,
)
from kp3d_rl.heatmaps import CellGrid, gaussian_maps
from kp3d_rl.triangulation import RobustPoints, triangulate_robustly
from tests.kp3d_rl.rigs import normal, ring

SMALL = DetectorConfig(width=8, precision="float32")


def blobs(count: int, seed: int = 0, side: int = 48) -> LabelledImages:
    """A red and a blue disc on grey noise, and where their middles are."""
    rng = np.random.default_rng(seed)
    images = rng.integers(90, 140, (count, side, side, 3)).astype(np.uint8)
    uv = rng.uniform(8, side - 8, (count, 2, 2)).astype(np.float32)
    v, u = np.mgrid[:side, :side] + 0.5
    for image, places in zip(images, uv, strict=True):
        for place, colour in zip(places, ((230, 30, 30), (30, 30, 230)), strict=True):
            image[(u - place[0]) ** 2 + (v - place[1]) ** 2 < 16] = colour
    return LabelledImages(torch.as_tensor(images), torch.as_tensor(uv))


def test_the_peak_of_a_gaussian_map_is_found_between_cells():
    grids = CellGrid.from_layers(STEM, 64), CellGrid.from_layers(STEM, 96)
    uv = torch.rand(200, 2) * torch.tensor([96 - 12.0, 64 - 12.0]) + 6.0
    maps = gaussian_maps(uv, torch.full((200,), 3.0), torch.full((200,), 0.1), *grids)
    found, confidence = peaks(maps, *grids)
    assert (found - uv).abs().max() < 1e-3
    naive = [
        sum(m[r, c] for r in range(16) for c in range(24) if max(abs(r - y), abs(c - x)) <= 1)
        for m in maps.tolist()
        for m in [np.array(m)]
        for y, x in [np.unravel_index(m.argmax(), m.shape)]
    ]
    np.testing.assert_allclose(confidence, naive, atol=1e-5)
    corner = torch.zeros(1, 16, 24)
    corner[0, 0, 23] = 0.7
    found, confidence = peaks(corner, *grids)
    assert found.tolist() == [[grids[1].centres()[-1], grids[0].centres()[0]]]
    assert confidence.tolist() == [pytest.approx(0.7)]


def test_a_map_has_its_gaussian_where_the_image_has_the_keypoint():
    detector = KeypointDetector(3, SMALL)
    uv = torch.tensor([[[20.0, 30.0], [50.5, 10.25], [-1.0, 10.0]]])
    maps = detector.targets(uv, 64, 80)
    rows, columns = detector.grids(64, 80)
    assert maps.shape == (1, 3, rows.cells, columns.cells) == (1, 3, 16, 20)
    naive = np.array(
        [
            [math.exp(-((u - 50.5) ** 2 + (v - 10.25) ** 2) / (2 * 9)) for u in columns.centres().tolist()]
            for v in rows.centres().tolist()
        ]
    )
    np.testing.assert_allclose(maps[0, 1], naive / naive.sum(), atol=1e-6)
    assert not maps[0, 2].any(), "what is not in the image is in no cell"
    given = detector(torch.zeros(1, 3, 64, 80))
    torch.testing.assert_close(given, torch.full_like(given, 1 / (16 * 20 + 1)))
    with pytest.raises(ValueError, match="at least 32 x 32, got 24 x 80"):
        detector.grids(24, 80)


@pytest.mark.parametrize("height, width", [(64, 64), (48, 96)])
def test_augmentation_moves_labels_with_what_they_label(height, width):
    """A disc is where its label says, whatever was done to the image: centre of mass against the label."""
    config = AugmentationConfig(turn=180, scale=1.4, shift=0.1, colour=0.0, erase=0.0)
    uv = torch.tensor([round(0.55 * width) + 0.5, round(0.45 * height) + 0.5]).repeat(40, 1, 1)
    v, u = np.mgrid[:height, :width] + 0.5
    disc = ((u - uv[0, 0, 0].item()) ** 2 + (v - uv[0, 0, 1].item()) ** 2 < 9).astype(np.float32)
    images = torch.as_tensor(2 * disc - 1).repeat(40, 3, 1, 1)
    changed, moved = augment(images, uv, config, torch.Generator().manual_seed(1))
    mass = (changed[:, 0] + 1).double().numpy()
    centre = np.stack([(mass * u).sum((1, 2)), (mass * v).sum((1, 2))], 1) / mass.sum((1, 2))[:, None]
    np.testing.assert_allclose(centre, moved[:, 0], atol=0.15)
    assert moved.std(0).min() > 1.0, "they really move"


def test_each_augmentation_does_what_it_says_and_nothing_else():
    images, uv = to_input(blobs(20).images), blobs(20).uv
    none = AugmentationConfig(turn=0, scale=1, shift=0, colour=0, erase=0)

    def changed(**options):
        return augment(images, uv, dataclasses.replace(none, **options), torch.Generator().manual_seed(0))

    same, where = changed()
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)
    torch.testing.assert_close(where, uv)
    middle = torch.tensor([24.0, 24.0])
    turned = changed(turn=90)[1] - middle
    torch.testing.assert_close(turned.norm(dim=-1), (uv - middle).norm(dim=-1))
    assert (turned - (uv - middle)).norm(dim=-1).mean() > 3
    ratio = (changed(scale=2)[1] - middle).norm(dim=-1) / (uv - middle).norm(dim=-1)
    assert ratio.min() >= 0.499 and ratio.max() <= 2.001 and ratio.std() > 0.1
    step = changed(shift=0.2)[1] - uv
    torch.testing.assert_close(step[:, 0], step[:, 1])
    assert step.abs().max() <= 0.2 * 48 and step.std() > 1
    recoloured, where = changed(colour=0.5)
    assert torch.equal(where, uv) and (recoloured - images).abs().mean() > 0.05
    erased, where = changed(erase=0.5)
    differs = ((erased - images).abs() > 1e-3).any(1).float().mean((1, 2))
    assert torch.equal(where, uv) and 0.01 < differs.mean() < 0.25 and differs.max() <= 0.26


def test_the_loss_is_that_of_a_loop_and_leaves_out_what_has_no_label():
    detector = KeypointDetector(2, SMALL)
    torch.nn.init.normal_(detector.head.weight, std=0.1)
    torch.nn.init.normal_(detector.nowhere)
    images, uv = to_input(blobs(3).images), blobs(3).uv.clone()
    uv[1, 0], uv[2, 1] = torch.nan, torch.tensor([60.0, 5.0])  # no label, and beyond the image
    maps = detector(images).detach()
    total = 0.0
    for b, k in itertools.product(range(3), range(2)):
        if (b, k) == (2, 1):
            total -= math.log(1.0 - float(maps[b, k].sum()))
        elif (b, k) != (1, 0):
            wanted = detector.targets(uv[b : b + 1], 48, 48)[0, k]
            pairs = zip(wanted.flatten().tolist(), maps[b, k].flatten().tolist(), strict=True)
            total += sum(w * math.log(w / m) for w, m in pairs if w)
    loss = map_loss(detector, images, uv)
    assert loss.item() == pytest.approx(total / 5, rel=1e-4)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


def test_targets_spread_as_far_as_sigma_says():
    uv = torch.tensor([[[24.0, 24.0]]])
    rows, columns = KeypointDetector(1, SMALL).grids(48, 48)
    for sigma in (3.0, 6.0):
        target = KeypointDetector(1, dataclasses.replace(SMALL, sigma=sigma)).targets(uv, 48, 48)[0, 0].double()
        at = columns.offset + columns.stride * torch.arange(target.shape[1])
        spread = (target.sum(0) * (at - 24.0).square()).sum().sqrt()
        assert spread == pytest.approx(sigma, rel=0.1)


def test_a_detector_learns_to_find_and_knows_when_there_is_nothing():
    torch.manual_seed(0)
    detector = KeypointDetector(2, SMALL)
    config = DetectorTrainingConfig(steps=150, batch_size=16, learning_rate=2e-3)
    training = DetectorTraining(detector, [blobs(60)], config, seed=0)
    losses = [training.advance() for _ in range(config.steps)]
    assert training.finished and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    unseen = blobs(30, seed=1)
    uv, confidence = detector.detect(unseen.images, batch=7)
    assert ((uv - unseen.uv).norm(dim=-1) < 3).float().mean() > 0.9
    empty = torch.full((10, 48, 48, 3), 115, dtype=torch.uint8)
    assert confidence.mean() > detector.detect(empty)[1].mean() + 0.3
    assert detector.training, "detect puts the mode back"


@pytest.mark.parametrize("side", [(40, 40), (32, 56)])
def test_turned_images_are_those_of_another_library(side: tuple[int, int]) -> None:
    coarse = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic")
    for degrees in (12.0, -30.0):
        expected = ndimage.rotate(smooth.numpy(), degrees, axes=(3, 2), reshape=False, order=1, mode="nearest")
        assert np.abs(turned(smooth, degrees).numpy() - expected).mean() < 2e-3
        there = turned(torch.ones_like(smooth), degrees, beyond="zeros")
        expected = ndimage.rotate(
            np.ones_like(smooth), degrees, axes=(3, 2), reshape=False, order=1, mode="grid-constant"
        )
        assert np.abs(there.numpy() - expected).mean() < 2e-3 and there.min() == 0
        back = turned(turned(smooth, degrees), -degrees)
        middle = (..., slice(12, -12), slice(12, -12))
        assert (back - smooth)[middle].abs().mean() < 0.2 * smooth[middle].std()


def test_what_only_an_upright_image_hides_is_found_where_it_is_seen_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in sees bright pixels, except in the first image that it is shown: the two turned ones tell."""
    detector, shown = KeypointDetector(1, SMALL), []

    def bright(_: KeypointDetector, images: torch.Tensor) -> torch.Tensor:
        shown.append(images)
        maps = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True) + 1.0, 4)
        return maps / maps.sum((-2, -1), keepdim=True) if len(shown) % 3 != 1 else torch.zeros_like(maps)

    monkeypatch.setattr(KeypointDetector, "forward", bright)
    images = torch.zeros(1, 48, 64, 3, dtype=torch.uint8)
    images[:, 12:20, 40:48] = 255  # its middle is at (44, 16)
    uv, confidence = detector.detect(images, turn=15.0)
    assert (uv - torch.tensor([44.0, 16.0])).norm() < 1.5 and confidence > 0.3 and len(shown) == 3
    shown.clear()
    assert detector.detect(images)[1] == 0 and len(shown) == 1


def test_a_training_is_the_same_again_and_draws_all_images_alike():
    def trained(parts):
        torch.manual_seed(0)
        detector = KeypointDetector(2, SMALL)
        training = DetectorTraining(detector, parts, DetectorTrainingConfig(steps=3, batch_size=6), seed=5)
        while not training.finished:
            training.advance()
        return training

    first, second = trained([blobs(8), blobs(30, 1)]), trained([blobs(8), blobs(30, 1)])
    assert first.loss == second.loss
    marked = [dataclasses.replace(blobs(n, n), uv=torch.full((n, 2, 2), float(n))) for n in (3, 40)]
    torch.manual_seed(0)
    config = DetectorTrainingConfig(batch_size=430, augmentation=AugmentationConfig(0, 1, 0, 0, 0))
    _, uv = DetectorTraining(KeypointDetector(2, SMALL), marked, config, seed=0)._batch()
    of_few = int((uv[:, 0, 0] == 3).sum())
    assert len(uv) == 430 and 10 < of_few < 55, "3 of 43 images: about 30 of 430"
    with pytest.raises(ValueError, match="no labelled image"):
        DetectorTraining(KeypointDetector(2, SMALL), [blobs(0)], config, seed=0)


def test_options_that_make_no_sense_are_refused():
    for make, message in (
        (lambda: DetectorConfig(width=20), "width must be a multiple of 8"),
        (lambda: DetectorConfig(sigma=0.5), "sigma must be at least 1"),
        (lambda: DetectorTrainingConfig(steps=0), "steps must be at least 1"),
        (lambda: AugmentationConfig(scale=0.5), "scale must be at least 1"),
        (lambda: PlausibilityConfig(least_points=2.0), "least_points must be"),
        (lambda: SelectionConfig(window=0), "window must be at least 1"),
        (lambda: LabelledImages(torch.zeros(3, 8, 8, 3), torch.zeros(2, 1, 2)), "labelled images must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


GROUPS = (0, 1, 1, 1, 2, 2, 2)
BONES = ((0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6))


def hand_like(frames: int = 12) -> torch.Tensor:
    """(T, 7, 3) a root and two fingers with bones of 10 and 5 cm that move slowly."""
    still = torch.tensor(
        [[0, 0, 0], [0.1, 0, 0], [0.15, 0, 0], [0.2, 0, 0], [0, 0.1, 0], [0, 0.15, 0], [0, 0.2, 0]],
        dtype=torch.float64,
    )
    return still + 0.002 * torch.arange(frames, dtype=torch.float64)[:, None, None] * torch.tensor([1.0, 0.5, 0])


def found_with(points: torch.Tensor, views: int = 6) -> tuple[RobustPoints, torch.Tensor]:
    inliers = (~points.isnan().any(-1)).unsqueeze(1).expand(-1, views, -1).clone()
    confidence = torch.full(inliers.shape, 0.8)
    return RobustPoints(points, inliers, torch.zeros(inliers.shape)), confidence


def lengths(points: torch.Tensor) -> torch.Tensor:
    first, second = torch.tensor(BONES).T
    length = (points[0, first] - points[0, second]).norm(dim=-1)
    return torch.stack([length, length], -1)


def test_what_can_be_is_accepted():
    points = hand_like()
    found, confidence = found_with(points)
    verdict = judge(found, confidence, PlausibilityConfig(), GROUPS, BONES, lengths(points))
    assert torch.equal(verdict.points, points) and verdict.accepted.all() and not any(verdict.refused.values())


@pytest.mark.parametrize(
    "check, spoil, gone",
    [
        ("few inliers", lambda p, i, c: i[3, 2:, 5].fill_(False), [5]),
        ("little confidence", lambda p, i, c: c[3, :, 5].fill_(0.25), [5]),
        ("bone length", lambda p, i, c: p[3, 3].add_(torch.tensor([0.02, 0, 0])), [1, 2, 3]),
        ("velocity", lambda p, i, c: p[3, 0].add_(torch.tensor([0, 0, 0.03])), [0]),
        ("not found", lambda p, i, c: (p[3, 6].fill_(torch.nan), i[3, :, 6].fill_(False)), [6]),
    ],
)
def test_each_check_refuses_what_it_is_for(check, spoil, gone):
    points = hand_like()
    limits = lengths(points)
    found, confidence = found_with(points.clone())
    spoil(found.points, found.inliers, confidence)
    verdict = judge(found, confidence, PlausibilityConfig(), GROUPS, BONES, limits)
    assert verdict.points[3].isnan().any(-1).nonzero().flatten().tolist() == gone
    assert verdict.refused[check] == len(gone) == sum(verdict.refused.values())
    assert not verdict.points[[0, 1, 2, 4, 5]].isnan().any()


@pytest.mark.parametrize(
    "option, value, spoil",
    [
        ("least_inliers", 3, lambda p, i, c: i[3, 3:, 5].fill_(False)),
        ("least_confidence", 0.2, lambda p, i, c: c[3, :, 5].fill_(0.25)),
        ("bone_tolerance", 0.5, lambda p, i, c: p[3, 3].add_(torch.tensor([0.02, 0, 0]))),
        ("velocity", 20.0, lambda p, i, c: p[3, 0].add_(torch.tensor([0, 0, 0.03]))),
        ("velocity_slack", 0.04, lambda p, i, c: p[3, 0].add_(torch.tensor([0, 0, 0.03]))),
    ],
)
def test_each_option_moves_the_limit_of_its_check(option, value, spoil):
    points = hand_like()
    found, confidence = found_with(points.clone())
    spoil(found.points, found.inliers, confidence)
    for config, refused in ((PlausibilityConfig(), True), (PlausibilityConfig(**{option: value}), False)):
        verdict = judge(found, confidence, config, GROUPS, BONES, lengths(points))
        assert verdict.points.isnan().any() == refused, config


def test_a_frame_without_a_point_is_not_accepted_however_few_it_must_keep():
    points = hand_like()
    points[4] = torch.nan
    found, confidence = found_with(points)
    verdict = judge(found, confidence, PlausibilityConfig(least_points=0.0), GROUPS)
    assert verdict.accepted.tolist() == [frame != 4 for frame in range(12)]


def test_a_frame_must_keep_enough_points_and_one_frame_alone_has_no_velocity():
    points = hand_like()
    points[4, :3] = torch.nan
    found, confidence = found_with(points)
    verdict = judge(found, confidence, PlausibilityConfig(), GROUPS)
    assert verdict.accepted.tolist() == [frame != 4 for frame in range(12)]
    assert judge(found, confidence, PlausibilityConfig(least_points=0.5), GROUPS).accepted.all()
    found, confidence = found_with(hand_like(1))
    assert judge(found, confidence, PlausibilityConfig(), GROUPS).accepted.all()
    nothing, confidence = found_with(torch.full((3, 7, 3), torch.nan))
    verdict = judge(nothing, confidence, PlausibilityConfig(), GROUPS, BONES, lengths(hand_like()))
    assert not verdict.accepted.any() and verdict.refused["not found"] == 21


def test_a_frames_score_is_the_sum_over_inliers_of_a_loop():
    points = hand_like(3)
    points[1, 2] = torch.nan
    found, confidence = found_with(points)
    found.inliers[0, 2, 3] = False
    confidence = torch.rand(confidence.shape)
    kept = found.points.clone()
    kept[2, 4] = torch.nan  # found, and refused
    naive = [0.0, 0.0, 0.0]
    for t, v, k in itertools.product(range(3), range(6), range(7)):
        if found.inliers[t, v, k] and not kept[t, k].isnan().any():
            naive[t] += float(confidence[t, v, k])
    np.testing.assert_allclose(score_frames(found, confidence, kept), naive, rtol=1e-5)


def test_the_best_accepted_frame_of_each_window_is_taken_and_of_these_the_best():
    scores = [torch.tensor([1.0, 5, 2, 9, 3, 3, 7]), torch.tensor([8.0, 0, 4])]
    accepted = [torch.tensor([True, True, True, False, True, True, True]), torch.tensor([True, True, True])]
    assert select_frames(scores, accepted, SelectionConfig(window=3, frames=10)) == [
        (1, 0), (0, 6), (0, 1), (0, 4),
    ]  # fmt: skip
    assert select_frames(scores, accepted, SelectionConfig(window=3, frames=2)) == [(1, 0), (0, 6)]
    assert select_frames(scores, [torch.zeros_like(ok) for ok in accepted], SelectionConfig()) == []


def test_labels_are_projections_except_where_nothing_is_to_be_seen():
    rig, points = ring(0, 4), 0.1 * normal(3, 5, 3)
    points[0, 1] = torch.nan
    hidden = torch.zeros(3, 4, dtype=torch.bool)
    hidden[1, 2] = True
    labels = reproject(rig, points, hidden)
    missing = labels.isnan().any(-1)
    expected = torch.zeros(3, 4, 5, dtype=torch.bool)
    expected[0, :, 1], expected[1, 2] = True, True
    assert torch.equal(missing, expected)
    torch.testing.assert_close(labels[~missing], rig.project(points)[0][~missing])
    behind = rig.centres[:1] * 3
    assert reproject(rig, behind, torch.zeros(4, dtype=torch.bool))[0].isnan().all()


def test_labels_of_a_poor_detector_are_far_better_than_its_detections():
    """Half of the detections are anywhere; what the views agree on is right almost everywhere, in every view."""
    rig, points = ring(1, 16), 0.1 * normal(30, 6, 3)
    true = rig.project(points)[0]
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(true.shape[:-1], generator=generator) < 0.5
    uv = torch.where(wrong.unsqueeze(-1), 64 * torch.rand(true.shape, generator=generator).double(), true + 0.3)
    found = triangulate_robustly(rig, uv, torch.ones(uv.shape[:-1]))
    verdict = judge(found, torch.ones(uv.shape[:-1]), PlausibilityConfig(velocity=1e5), list(range(6)))
    labels = reproject(rig, verdict.points, torch.zeros(30, 16, dtype=torch.bool))
    near = (labels - true).norm(dim=-1) < 2
    assert near[~labels.isnan().any(-1)].double().mean() > 0.98 and near.double().mean() > 0.95
    assert ((uv - true).norm(dim=-1) < 2).double().mean() < 0.6
