"""View synthesis of skeletons: maps against a naive loop, views against a rig, losses and metrics against formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from kp3d_rl.cameras import Rig, intrinsics_from_fovy, look_at
from kp3d_rl.geometry_aware.metrics import iou, judge_synthesis, mpjpe, pmpjpe
from kp3d_rl.geometry_aware.network import GeometryAwareNetwork, GeometryAwareNetworkConfig, turned
from kp3d_rl.geometry_aware.regression import Lifter, PoseRegressor, RegressionConfig, fit
from kp3d_rl.geometry_aware.skeleton import Skeleton, SkeletonViews, relative_rotation, see, skeleton_maps
from kp3d_rl.geometry_aware.training import (
    GeometryAwareTraining,
    GeometryAwareTrainingConfig,
    consistency_loss,
    drawing_loss,
    pair_terms,
)
from kp3d_rl.options import OptionError

STICK = Skeleton(("hip", "knee", "foot", "hand"), ((0, 1), (1, 2), (0, 3)))
CONFIG = GeometryAwareNetworkConfig(points=8, width=8, size=32, thickness=4.0)


def rotations(*shape: int, seed: int = 0) -> torch.Tensor:
    found = Rotation.random(math.prod(shape), random_state=seed).as_matrix()
    return torch.as_tensor(found, dtype=torch.float32).view(*shape, 3, 3)


def stick_people(count: int, views: int, seed: int = 0, size: int = 32) -> SkeletonViews:
    """Random stick figures seen from random places."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(count, 4, 3, generator=generator)
    steps = 0.5 * steps / steps.norm(dim=-1, keepdim=True)
    joints = torch.stack([torch.zeros(count, 3), steps[:, 1], steps[:, 1] + steps[:, 2], steps[:, 3]], 1)
    places = torch.randn(count, views, 3, generator=generator)
    places = 4.0 * places / places.norm(dim=-1, keepdim=True)
    return SkeletonViews(*see(joints, places, 2.4, size), joints, size)


def new_networks(count: int = 2) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(GeometryAwareNetwork(STICK, CONFIG) for _ in range(count))


def test_maps_are_those_of_a_naive_loop() -> None:
    uv = torch.tensor([[[3.0, 4.0], [20.0, 9.5], [22.0, 30.0], [math.nan, 3.0]]])
    maps = skeleton_maps(uv, STICK.limbs, 32, 5.0)
    assert maps.shape == (1, 3, 32, 32)
    expected = np.zeros((3, 32, 32))
    for channel, (first, second) in enumerate(STICK.limbs[:2]):
        start, end = uv[0, first].numpy(), uv[0, second].numpy()
        for row in range(32):
            for column in range(32):
                pixel = np.array([column + 0.5, row + 0.5])
                t = np.clip((pixel - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
                expected[channel, row, column] = np.linalg.norm(pixel - start - t * (end - start)) <= 2.5
    np.testing.assert_array_equal(maps[0].numpy(), expected)
    assert not maps[0, 2].any(), "a limb of a missing joint is left out"


def test_soft_maps_are_how_much_of_a_pixel_is_covered() -> None:
    """Against maps of 16 times as many pixels per side, averaged; where the middle is covered, more than half."""
    uv = torch.tensor([[[3.3, 4.1], [20.2, 9.5], [22.0, 28.7], [9.0, 20.0]]])
    soft, hard = (skeleton_maps(uv, STICK.limbs, 32, 4.0, soft) for soft in (True, False))
    exact = nn.functional.avg_pool2d(skeleton_maps(16 * uv, STICK.limbs, 512, 64.0), 16)
    assert float((soft - exact).abs().max()) < 0.2 and float((soft - exact).abs().mean()) < 0.01
    assert torch.equal(soft >= 0.5, hard > 0)
    missing = uv.clone()
    missing[0, 3, 0] = math.nan
    assert not skeleton_maps(missing, STICK.limbs, 32, 4.0, soft=True)[0, 2].any()


def test_a_limb_seen_from_its_end_is_a_disc() -> None:
    uv = torch.full((4, 2), 16.0)
    area = skeleton_maps(uv, STICK.limbs, 32, 8.0)[0].sum()
    assert float(area) == pytest.approx(math.pi * 16, rel=0.1)


def test_views_are_those_of_a_rig_that_looks_at_the_root() -> None:
    joints = 0.5 * torch.randn(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[4.0, 1.0, 0.5], [-1.0, 3.0, 2.0]], dtype=torch.float64)
    uv, turns = see(joints, places.expand(5, 2, 3), 2.4, 64)
    for view, place in enumerate(places):
        fovy = 2 * math.degrees(math.atan(1.2 / float(place.norm())))
        pose = look_at(place, torch.zeros(3, dtype=torch.float64))
        lens = intrinsics_from_fovy(torch.tensor(fovy, dtype=torch.float64), 64, 64)
        rig = Rig.from_arrays(lens[None], pose[None], 64, 64, torch.float64)
        torch.testing.assert_close(uv[:, view], rig.project(joints)[0][:, 0])
        torch.testing.assert_close(turns[:, view], rig.rotations.expand(5, 3, 3))


def test_a_joint_behind_a_camera_is_named() -> None:
    joints = torch.zeros(2, 4, 3)
    joints[1, 2, 0] = 5.0
    with pytest.raises(ValueError, match="1 of 2 skeletons reach behind a camera: it must stand farther"):
        see(joints, torch.tensor([[4.0, 0, 0]]).expand(2, 1, 3), 2.4, 64)


def test_relative_rotations_take_one_cameras_points_to_the_others() -> None:
    turns, points = rotations(2), torch.randn(9, 3)
    first, second = (points @ turn for turn in turns)  # world to camera: R^T x
    torch.testing.assert_close(turned(first, relative_rotation(*turns)), second)


def test_views_that_are_none_are_refused() -> None:
    views = stick_people(3, 2)
    with pytest.raises(ValueError, match="orthonormal and right-handed: R R\\^T is off by"):
        SkeletonViews(views.uv, 1.1 * views.rotations, views.joints, 32)
    with pytest.raises(ValueError, match="right-handed"):
        SkeletonViews(views.uv, -views.rotations, views.joints, 32)
    with pytest.raises(ValueError, match=r"must be \(N, C, J, 2\)"):
        SkeletonViews(views.uv, views.rotations, views.joints[:, :3], 32)


def test_poses_with_too_many_missing_joints_are_left_out_and_counted() -> None:
    views = stick_people(6, 2)
    views.uv[1, 0, 0] = math.nan  # the root
    views.uv[2, 1, 1:] = math.nan
    views.uv[3, 0, 2] = math.nan  # one joint may be missing
    views.uv[4, 1, 1:3] = torch.tensor([33.0, 4.0])  # outside of the image
    views.uv[5, 1, 1:2] = torch.tensor([4.0, -1.0])
    kept, skipped = views.usable(least=3)
    assert skipped == 3 and torch.equal(kept.joints, views.joints[[0, 3, 5]])


@pytest.mark.parametrize(
    ("joints", "limbs", "message"),
    [
        (("hip", "hip"), ((0, 1),), "joints of a skeleton must differ"),
        (("hip", "knee"), ((0, 2),), r"joins two of 2 joints, not \(0, 2\)"),
        (("hip", "knee"), ((1, 1),), r"joins two of 2 joints, not \(1, 1\)"),
    ],
)
def test_skeletons_that_are_none_are_refused(joints: tuple, limbs: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Skeleton(joints, limbs)


def test_joints_in_another_order_are_found_by_name_or_missed() -> None:
    assert STICK.order_of(["foot", "hand", "nose", "hip", "knee"]) == [3, 4, 0, 1]
    with pytest.raises(ValueError, match="hand not among the joints given: hip, knee, foot"):
        STICK.order_of(["hip", "knee", "foot"])


def test_nothing_goes_past_the_points() -> None:
    """What is decoded depends on M points alone, and the encoder's points on the maps."""
    network = new_networks(1)[0].eval()
    assert isinstance(network, GeometryAwareNetwork)
    views = stick_people(6, 1)
    maps = network.maps(views.uv[:, 0])
    points = network.encode(maps)
    assert points.shape == (6, 8, 3) and network.decode(points).shape == maps.shape
    torch.testing.assert_close(network.codes(views.uv[:, 0], batch=4), points, atol=2e-2, rtol=2e-2)
    assert not torch.allclose(points[0], points[1], atol=1e-3)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_networks_fit_every_size(size: int) -> None:
    network = GeometryAwareNetwork(STICK, GeometryAwareNetworkConfig(points=5, width=8, size=size))
    maps = torch.rand(2, 3, size, size)
    assert network.decode(network.encode(maps)).shape == maps.shape


@pytest.mark.parametrize(("option", "value", "said"), [("size", 40, "multiple of 16"), ("width", 12, "multiple of 8")])
def test_sizes_that_do_not_fit_are_refused(option: str, value: int, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        GeometryAwareNetworkConfig(**{option: value})


def test_losses_are_the_formulas() -> None:
    maps = (torch.rand(2, 3, 8, 8) > 0.7).float()
    assert float(drawing_loss(maps, maps)) == 0 and float(drawing_loss(torch.zeros_like(maps), maps)) == 1
    points, turn = torch.randn(2, 5, 3), rotations(2)
    assert float(consistency_loss(turned(points, turn), turned(points, turn))) == 0
    assert float(consistency_loss(points, -points)) == pytest.approx(4.0)
    small = float(consistency_loss(1e-3 * points, 1e-3 * points.flip(0)))
    assert small == pytest.approx(float(consistency_loss(points, points.flip(0))), rel=1e-4), "small is no way out"


def test_both_ways_and_consistency_use_the_right_networks_and_rotations() -> None:
    """Stubs whose points are the truth: with the right rotation all terms vanish, whatever the order."""

    class Knows(nn.Module):
        def __init__(self, tag: float) -> None:
            super().__init__()
            self.tag = tag

        def encode(self, maps: torch.Tensor) -> torch.Tensor:
            return maps

        def decode(self, points: torch.Tensor) -> torch.Tensor:
            return points + self.tag

    turns, world = rotations(6, 2), torch.randn(6, 1, 5, 3)
    seen = world @ turns
    terms = pair_terms(nn.ModuleList([Knows(0.0), Knows(0.0)]), seen, turns)
    assert float(terms["drawing"]) < 1e-10 and float(terms["consistency"]) < 1e-10
    one_way = pair_terms(nn.ModuleList([Knows(0.0), Knows(1.0)]), seen, turns)
    cost = 0.5 * seen[:, 0].numel() / float(seen[:, 0].square().sum())
    assert float(one_way["drawing"]) == pytest.approx(cost, rel=1e-4), "the second network draws the first view"
    assert float(pair_terms(nn.ModuleList([Knows(0.0), Knows(0.0)]), seen, turns.flip(1))["consistency"]) > 0.5


def test_a_tiny_training_learns_to_draw_other_views_and_the_rotation_matters() -> None:
    data, test = stick_people(300, 4), stick_people(100, 2, seed=9)
    torch.manual_seed(0)
    network = GeometryAwareNetwork(STICK, GeometryAwareNetworkConfig(points=16, width=16, size=32, thickness=6.0))
    source, target = (SkeletonViews(test.uv[:, [n]], test.rotations[:, [n]], test.joints, test.size) for n in (0, 1))
    before = judge_synthesis(network, network, source, target)
    config = GeometryAwareTrainingConfig(steps=250, batch_size=32)
    training = GeometryAwareTraining(nn.ModuleList([network]), data, config, 0)
    while not training.finished:
        training.advance()
    after = judge_synthesis(network, network, source, target)
    wrong = judge_synthesis(network, network, source, target, wrong=rotations(100, seed=5))
    assert before["iou"] < 0.1 and after["iou"] > max(0.42, 1.2 * wrong["iou"])
    assert after["equivariance"] < 0.9 < before["equivariance"]
    assert training.terms.keys() == {"drawing", "consistency"}


def test_an_autoencoder_draws_what_it_sees_and_consistency_counts() -> None:
    data = stick_people(100, 2)
    single = GeometryAwareTraining(
        new_networks(1), data, GeometryAwareTrainingConfig(steps=60, batch_size=16), 0, "autoencoder"
    )
    losses = [single.advance() for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10]) and single.terms.keys() == {"drawing"}
    found = {}
    for weight in (0.0, 100.0):
        config = GeometryAwareTrainingConfig(steps=40, batch_size=16, consistency=weight)
        training = GeometryAwareTraining(new_networks(), data, config, 0)
        while not training.finished:
            training.advance()
        found[weight] = float(training.terms["consistency"])
    assert found[100.0] < 0.5 * found[0.0]


def test_a_training_goes_on_bit_for_bit() -> None:
    data, config = stick_people(20, 3), GeometryAwareTrainingConfig(steps=6, batch_size=4)
    whole = GeometryAwareTraining(new_networks(), data, config, 3)
    losses = [whole.advance() for _ in range(6)]
    first = GeometryAwareTraining(new_networks(), data, config, 3)
    for _ in range(3):
        first.advance()
    torch.manual_seed(99)
    second = GeometryAwareTraining(new_networks(), data, config, 8)
    second.load_state(first.state())
    assert [second.advance() for _ in range(3)] == losses[3:]


def test_nothing_to_learn_from_is_refused() -> None:
    one, none = stick_people(3, 1), stick_people(3, 2).select(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="two views of each pose, got 1"):
        GeometryAwareTraining(new_networks(), one, GeometryAwareTrainingConfig(), 0)
    with pytest.raises(ValueError, match="no pose to learn from"):
        GeometryAwareTraining(new_networks(), none, GeometryAwareTrainingConfig(), 0)


def test_errors_of_poses_are_the_formulas() -> None:
    joints = torch.randn(4, 9, 3, dtype=torch.float64)
    shifted = joints + torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    assert float(mpjpe(shifted, joints).abs().max()) < 1e-12, "relative to the root"
    other = joints.clone()
    other[:, 3, 1] += 0.9
    torch.testing.assert_close(mpjpe(other, joints), torch.full((4,), 0.1, dtype=torch.float64))
    similar = 1.7 * joints @ rotations(4).double() + 0.3
    assert float(pmpjpe(similar, joints).max()) < 1e-5 < float(mpjpe(similar, joints).min())
    # Procrustes by SciPy, which scales both to unit size, gives the same disparity.
    from scipy.spatial import procrustes

    noisy = similar + 0.1 * torch.randn(4, 9, 3, dtype=torch.float64)
    for number in range(4):
        first, second, _ = procrustes(joints[number].numpy(), noisy[number].numpy())
        size = np.linalg.norm(joints[number].numpy() - joints[number].numpy().mean(0))
        expected = size * np.linalg.norm(first - second, axis=1).mean()
        assert float(pmpjpe(noisy, joints)[number]) == pytest.approx(expected, rel=1e-3)


def test_overlap_counts_all_channels_together() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 0], maps[0, 1, 1] = 1.0, 1.0
    drawn = torch.zeros_like(maps)
    drawn[0, 0, 0], drawn[0, 0, 1] = 0.9, 0.8
    assert float(iou(drawn, maps)) == pytest.approx(4 / 12) and float(iou(maps, maps)) == 1


@pytest.mark.parametrize("kind", ["small", "lifter", "lifter with a code"])
def test_regressors_learn_a_known_mapping_and_missing_numbers_are_average(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 10, generator=generator)
    joints = (inputs @ torch.randn(10, 12, generator=generator)).view(600, 4, 3)
    joints = joints - joints[:, :1]
    torch.manual_seed(0)
    regressor = {
        "small": lambda: PoseRegressor(10, 4, 64),
        "lifter": lambda: Lifter(10, 4, 64),
        "lifter with a code": lambda: Lifter(7, 4, 64, code=3),
    }[kind]()
    fitted = fit(regressor, inputs[:500], joints[:500], RegressionConfig(steps=400, learning_rate=3e-3), 0)
    with torch.no_grad():
        error = float(mpjpe(fitted(inputs[500:]), joints[500:]).mean())
        average = float(mpjpe(joints[:500].mean(0).expand(100, 4, 3), joints[500:]).mean())
        assert error < (0.2 if kind == "small" else 0.5) * average
        assert not fitted(inputs)[:, 0].any(), "the root is the origin"
        hidden = inputs[500:].clone()
        hidden[:, 4] = math.nan
        filled = inputs[500:].clone()
        filled[:, 4] = fitted.inputs_mean[4]
        torch.testing.assert_close(fitted(hidden), fitted(filled))


def test_the_code_reaches_the_lifter() -> None:
    lifter = Lifter(7, 4, 16, code=3).eval()
    inputs = torch.randn(2, 10)
    other = torch.cat([inputs[:, :3] + 1.0, inputs[:, 3:]], 1)
    assert not torch.allclose(lifter(inputs), lifter(other))


def test_a_regressor_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two labelled samples, got 1 and 1"):
        fit(PoseRegressor(3, 2), torch.zeros(1, 3), torch.zeros(1, 2, 3), RegressionConfig(), 0)
