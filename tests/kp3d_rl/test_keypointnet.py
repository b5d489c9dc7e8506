"""KeypointNet: losses against loops, scipy and the paper's formula; networks; tiny trainings on balls in the dark."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from kp3d_rl.cameras import Rig, intrinsics_from_fovy, look_at
from kp3d_rl.geometry import rotation_angle
from kp3d_rl.keypointnet.losses import (
    KeypointNetLossWeights,
    axis_tips,
    consistency_loss,
    hinge_separation_loss,
    orientation_loss,
    relative_pose_loss,
    silhouette_loss,
)
from kp3d_rl.keypointnet.network import KeypointNet, KeypointNetConfig, faces_right, rightness
from kp3d_rl.keypointnet.training import KeypointNetTraining, KeypointNetTrainingConfig, ViewsOfObjects, points_of
from tests.kp3d_rl.rigs import normal

DISTANCE = 30.0
SMALL = KeypointNetConfig(keypoints=4, width=16, stride=4, precision="float32")


def far_cameras(count, views, seed=0, dtype=torch.float64):
    """Poses (count, views, 4, 4) on the upper half of a sphere, and a rig of them."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(count * views, 3))
    places[:, 2] = np.abs(places[:, 2])
    places = DISTANCE * places / np.linalg.norm(places, axis=1, keepdims=True)
    poses = look_at(torch.tensor(places), torch.zeros(3, dtype=torch.float64)).view(count, views, 4, 4)
    k = intrinsics_from_fovy(torch.full((views,), 5.0, dtype=torch.float64), 48, 48)
    return Rig.from_arrays(k, poses, 48, 48, dtype)


def test_what_both_views_agree_on_costs_nothing_and_else_what_a_loop_says():
    rig, points = far_cameras(5, 2), 0.5 * normal(5, 1, 6, 3)
    uv, depth = rig.project_each(points.expand(5, 2, 6, 3))
    there = rig.unproject(uv, depth)
    assert consistency_loss(rig, uv, there) < 1e-20 and relative_pose_loss(there, noise=0.0) < 1e-6
    off = there + 0.1 * normal(5, 2, 6, 3, seed=2)
    total = 0.0
    for b in range(5):
        for one, two in ((0, 1), (1, 0)):
            seen = rig.project(off[b : b + 1, two].expand(5, 6, 3))[0][b, one]
            total += (((seen - uv[b, one]) / 24) ** 2).sum(-1).mean() / 5
    torch.testing.assert_close(consistency_loss(rig, uv, off), total)


def test_the_pose_loss_is_the_papers_angle_between_relative_rotations():
    rig, points = far_cameras(7, 2, seed=1), normal(7, 2, 5, 3, seed=3)
    in_camera = (points - rig.centres.unsqueeze(-2)) @ rig.rotations
    expected = []
    for b in range(7):
        first, second = (x - x.mean(0) for x in in_camera[b].numpy())
        found = Rotation.align_vectors(second, first)[0].as_matrix()
        true = (rig.rotations[b, 1].mT @ rig.rotations[b, 0]).numpy()
        expected.append(2 * math.asin(np.linalg.norm(found - true) / (2 * math.sqrt(2))))
    assert 0.5 < np.mean(expected) < 3
    torch.testing.assert_close(relative_pose_loss(points, noise=0.0), torch.tensor(np.mean(expected)))


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["one place", "one line"])
def test_the_pose_loss_has_a_finite_gradient_where_keypoints_say_nothing(kind, noise):
    points = torch.zeros(3, 2, 5, 3) if kind == "one place" else normal(3, 2, 5, 1).float() * torch.ones(3)
    points.requires_grad_()
    relative_pose_loss(points, noise, torch.Generator().manual_seed(0)).backward()
    assert points.grad.isfinite().all()


def test_noise_is_drawn_from_the_generator():
    points = normal(4, 1, 5, 3).expand(4, 2, 5, 3)
    values = [relative_pose_loss(points, 0.1, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2] and 0.02 < values[0] < 0.5


def test_separation_silhouette_and_orientation_are_what_loops_say():
    points = 0.15 * normal(2, 3, 5, 3)
    total = sum(
        max(0.0, 0.05 - float((points[b, v, i] - points[b, v, j]).square().sum())) / 5 / 6
        for b, v, i, j in np.ndindex(2, 3, 5, 5)
        if i != j
    )
    assert hinge_separation_loss(points, 0.05).item() == pytest.approx(total) and total > 0
    assert hinge_separation_loss(10 * points, 0.05) < total

    heat, mask = normal(4, 3, 6, 6).flatten(-2).softmax(-1).view(4, 3, 6, 6), (normal(4, 6, 6, seed=1) > 0).double()
    shares = [float((heat[b, k] * mask[b]).sum()) for b, k in np.ndindex(4, 3)]
    assert silhouette_loss(heat, mask).item() == pytest.approx(-np.mean(np.log(shares)))
    assert silhouette_loss(heat, torch.zeros_like(mask)).isfinite()

    rig = far_cameras(3, 2)
    tips = axis_tips(rig)
    matrix = torch.linalg.inv(rig.world_from_camera)[2, 1]
    front = rig.intrinsics[1] @ (matrix @ torch.tensor([1.0, 0, 0, 1], dtype=torch.float64))[:3]
    torch.testing.assert_close(tips[2, 1, 0], front[:2] / front[2])
    assert orientation_loss(rig, tips) == 0
    assert orientation_loss(rig, tips + torch.tensor([24.0, 0.0])).item() == pytest.approx(1.0)
    assert faces_right(tips).equal(tips[..., 0, 0] > tips[..., 1, 0])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_networks_find_as_many_keypoints_as_asked_in_pixels_and_feel_every_pixel(stride):
    torch.manual_seed(0)
    net = KeypointNet(KeypointNetConfig(keypoints=5, width=16, stride=stride, precision="float32"))
    images = torch.rand(2, 3, 32, 48, requires_grad=True)
    found = net(images, torch.tensor([True, False]))
    assert found.uv.shape == (2, 5, 2) and found.depth.shape == (2, 5)
    assert found.heat.shape == (2, 5, 32 // stride, 48 // stride)
    torch.testing.assert_close(found.heat.sum((-2, -1)), torch.ones(2, 5))
    centre = torch.tensor([24.0, 16.0])
    assert (found.uv - centre).abs().max() < 16, "at the start about the middle"
    found.uv[0].sum().backward()
    assert (images.grad[0].abs().sum(0) > 0).float().mean() > 0.95 and images.grad[1].abs().max() == 0
    with torch.no_grad():
        other = net(images, torch.tensor([False, False]))
    assert not torch.allclose(other.uv[0], found.uv[0]) and torch.allclose(other.uv[1], found.uv[1])


# --- trainings ------------------------------------------------------------------------------------------------------

PLACES = torch.tensor([[0.8, 0.0, 0.1], [-0.7, 0.3, 0.0], [-0.5, -0.6, 0.2], [0.1, 0.1, 0.7]])
COLOURS = torch.tensor([[255.0, 60, 60], [60, 255, 60], [80, 80, 255], [255, 255, 255]])


def balls(objects=1, views=24, seed=0):
    """Rigid sets of four coloured balls, drawn far ones first; ``landmarks`` are their middles."""
    rig = far_cameras(objects, views, seed, torch.float32)
    stretch = 1.0 + 0.2 * torch.rand(objects, 1, 3, generator=torch.Generator().manual_seed(seed))
    places = (PLACES * (stretch if objects > 1 else 1.0)).expand(objects, 4, 3)
    uv, depth = rig.project_each(places.unsqueeze(1).expand(-1, views, -1, -1))
    v, u = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    images, masks = torch.zeros(objects, views, 48, 48, 3), torch.zeros(objects, views, 48, 48, dtype=torch.bool)
    for s, n in np.ndindex(objects, views):
        for ball in depth[s, n].argsort(descending=True):
            near = (u - uv[s, n, ball, 0]) ** 2 + (v - uv[s, n, ball, 1]) ** 2 < 16
            images[s, n][near] = COLOURS[ball]
            masks[s, n] |= near
    return ViewsOfObjects(images.byte(), masks, rig.world_from_camera, rig.intrinsics[0], DISTANCE, places)


def rotation_errors(net, data):
    """Degrees between the true and the estimated rotation, of neighbouring views of every object."""
    from kp3d_rl.geometry import align

    objects = torch.arange(len(data)).repeat_interleave(data.images.shape[1] - 1)
    first = torch.arange(data.images.shape[1] - 1).repeat(len(data))
    views = torch.stack([first, first + 1], 1)
    found, _ = net.detect(data.images[objects.unsqueeze(1), views].flatten(0, 1))
    points = points_of(found, data.rig(objects, views), data.distance)
    rotation = align(points[:, 0], points[:, 1])[0]
    return torch.rad2deg(rotation_angle(rotation, torch.eye(3).expand_as(rotation)))


def trained(data, **options):
    torch.manual_seed(0)
    net = KeypointNet(SMALL)
    training = KeypointNetTraining(net, data, KeypointNetTrainingConfig(batch_size=16, **options), seed=0)
    while not training.finished:
        training.advance()
    return net, training


def test_the_views_of_one_object_tell_how_the_camera_turned():
    weights = KeypointNetLossWeights(consistency=2.0, pose=2.0, silhouette=0.2, variance=0.2)
    data = balls()
    net, training = trained(data, steps=240, learning_rate=0.03, loss=weights)
    assert rotation_errors(net, data).median() < 30, "from single images; guessing gives 95"
    assert rotation_errors(net, balls(seed=1)).median() < 50, "of other views, too"
    assert set(training.terms) == {"orientation", "consistency", "pose", "separation", "silhouette", "variance"}
    found, _ = net.detect(data.images[0])
    rig = data.rig(torch.zeros(24, dtype=torch.long), torch.arange(24).unsqueeze(1))
    assert points_of(found, rig, DISTANCE).flatten(0, 1).std(1).norm(dim=-1).mean() > 0.3, "keypoints are apart"


def test_supervised_training_learns_the_landmarks():
    data = balls(objects=4, views=12)
    net, training = trained(data, steps=120, supervised=True)
    assert set(training.terms) == {"orientation", "landmarks"} and training.terms["landmarks"] < 0.1
    assert rotation_errors(net, data).median() < 20


def test_the_network_is_told_the_truth_first_and_its_own_opinion_later(monkeypatch):
    data, told = balls(objects=2, views=4), []
    net = KeypointNet(SMALL)
    training = KeypointNetTraining(net, data, KeypointNetTrainingConfig(steps=4, batch_size=8, guided=0.5), seed=0)
    always = torch.tensor([[9.0, 0.0], [1.0, 0.0]])  # front is right of back
    monkeypatch.setattr(net.orientation, "forward", lambda images: always.expand(len(images), 2, 2))
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda images, right: told.append(right) or forward(images, right))
    for _ in range(4):
        training.advance()
    assert all((flags < 0.5).any() for flags in told[:2]) and all((flags > 0.5).all() for flags in told[2:])


def test_pieces_of_a_batch_add_up_to_the_mean_of_their_gradients(monkeypatch):
    data = balls(objects=2, views=4)

    def gradients(**options):
        torch.manual_seed(0)
        net = KeypointNet(SMALL)
        config = KeypointNetTrainingConfig(steps=2, batch_size=8, clip=1e6, noise=0.0, **options)
        training = KeypointNetTraining(net, data, config, seed=0)
        monkeypatch.setattr(training.optimizer, "step", lambda: None)
        return net, training

    net, training = gradients(accumulate=2)
    training.advance()
    pieces = {name: value.grad for name, value in net.named_parameters()}
    net, training = gradients(accumulate=2)
    (0.5 * (training.batch_loss() + training.batch_loss())).backward()
    for name, value in net.named_parameters():
        torch.testing.assert_close(value.grad, pieces[name])


def test_the_gradient_is_cut_and_keypoints_are_kept_as_far_apart_as_asked(monkeypatch):
    data = balls(objects=2, views=4)

    def first(**options):
        torch.manual_seed(0)
        training = KeypointNetTraining(KeypointNet(SMALL), data, KeypointNetTrainingConfig(batch_size=4, **options), 0)
        monkeypatch.setattr(training.optimizer, "step", lambda: None)
        training.advance()
        gradients = [value.grad.flatten() for value in training.network.parameters() if value.grad is not None]
        return torch.cat(gradients).norm(), training.terms

    (free, terms), (cut, _), (_, far) = first(clip=1e6), first(clip=0.01), first(near=4.0)
    assert free > 0.02 and cut == pytest.approx(0.01, rel=1e-3)
    assert far["separation"] > terms["separation"] and far["consistency"] == terms["consistency"]


def test_a_training_goes_on_as_if_it_had_not_been_stopped():
    data = balls(objects=2, views=4)

    def begun():
        torch.manual_seed(0)
        return KeypointNetTraining(KeypointNet(SMALL), data, KeypointNetTrainingConfig(steps=4, batch_size=4), seed=3)

    whole, part = begun(), begun()
    losses = [whole.advance() for _ in range(4)]
    part.advance()
    kept = {name: value.clone() for name, value in part.state().items()}
    rest = begun()
    rest.load_state(kept)
    assert [rest.advance() for _ in range(3)] == losses[1:]


def test_what_makes_no_sense_is_refused():
    data = balls(objects=2, views=4)
    for make, message in (
        (lambda: KeypointNetConfig(stride=3), "stride must be 1, 2 or 4, got 3"),
        (lambda: KeypointNetConfig(width=24), "width must be a multiple of 16"),
        (lambda: KeypointNetTrainingConfig(batch_size=9, accumulate=2), "multiple of accumulate"),
        (lambda: KeypointNetLossWeights(pose=-1), "pose must be"),
        (
            lambda: KeypointNetTraining(
                KeypointNet(KeypointNetConfig(keypoints=5, width=16)),
                data,
                KeypointNetTrainingConfig(supervised=True),
                0,
            ),
            "4 landmarks takes 4 keypoints, not 5",
        ),
        (
            lambda: ViewsOfObjects(
                data.images[:, :1], data.masks[:, :1], data.poses[:, :1], data.intrinsics, 30.0, data.landmarks
            ),
            "two views",
        ),
        (
            lambda: ViewsOfObjects(data.images, data.masks[1:], data.poses, data.intrinsics, 30.0, data.landmarks),
            "views must be",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_each_way_an_object_faces_has_maps_of_its_own_and_from_an_end_they_blend() -> None:
    """Gradients of what faces right reach half of the last layer; images of a batch are told one by one."""
    torch.manual_seed(0)
    net = KeypointNet(SMALL)
    images, right = torch.rand(3, 3, 32, 32), torch.tensor([1.0, 0.0, 0.5])
    together = net(images, right)
    for number in range(3):
        alone = net(images[number : number + 1], right[number : number + 1])
        torch.testing.assert_close(together.uv[number], alone.uv[0])
    net(images, torch.ones(3)).uv.square().sum().backward()
    gradient = net.network.head.weight.grad
    assert gradient is not None and gradient[8:].any() and not gradient[:8].any()
    assert not torch.allclose(together.uv[2], net(images[2:], torch.ones(1)).uv[0])


def test_facing_is_sure_from_the_side_and_even_from_an_end() -> None:
    tips = torch.tensor([[[50.0, 9.0], [14.0, 9.0]], [[14.0, 9.0], [50.0, 9.0]], [[32.0, 40.0], [32.0, 30.0]]])
    found = rightness(tips, 64)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.5]), atol=1e-4, rtol=0)
    assert torch.equal(found > 0.5, faces_right(tips))
