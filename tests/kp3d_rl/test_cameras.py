"""Cameras: exact inverses, crops as intrinsics, against homogeneous matrices, scipy and loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from kp3d_rl.cameras import Rig, Workspace, crop_images, in_front, intrinsics_from_fovy, look_at


def random_rig(seed=0, batch=(), views=3, dtype=torch.float64, height=48, width=64):
    """Cameras anywhere in any orientation; nothing says that they look at the points."""
    rng = np.random.default_rng(seed)
    shape = (*batch, views)
    poses = np.zeros((*shape, 4, 4))
    poses[..., :3, :3] = Rotation.random(math.prod(shape), random_state=seed).as_matrix().reshape(*shape, 3, 3)
    poses[..., :3, 3] = rng.normal(size=(*shape, 3))
    poses[..., 3, 3] = 1
    k = np.zeros((*shape, 3, 3))
    k[..., 0, 0], k[..., 1, 1] = rng.uniform(20, 200, (2, *shape))
    k[..., 0, 2], k[..., 1, 2] = rng.uniform(10, 60, (2, *shape))
    k[..., 2, 2] = 1
    return Rig.from_arrays(k, poses, height, width, dtype)


def looking_rig(dtype=torch.float64, height=64, width=64):
    """Three cameras around the origin, about 1.5 m away."""
    positions = torch.tensor([[1.2, 0.1, 0.9], [-0.3, 1.4, 0.6], [-0.8, -0.9, 1.1]], dtype=torch.float64)
    fovy = torch.tensor([40.0, 50.0, 60.0], dtype=torch.float64)
    k = intrinsics_from_fovy(fovy, height, width)
    return Rig.from_arrays(k, look_at(positions, torch.zeros(3)), height, width, dtype)


def naive_project(rig, points):
    """One camera and one point at a time, with 4x4 inverses and homogeneous coordinates."""
    uv = torch.empty(rig.num_views, len(points), 2, dtype=points.dtype)
    depth = torch.empty(rig.num_views, len(points), dtype=points.dtype)
    for v in range(rig.num_views):
        for k, point in enumerate(points):
            local = torch.linalg.inv(rig.world_from_camera[v]) @ torch.cat([point, point.new_ones(1)])
            image = rig.intrinsics[v] @ local[:3]
            uv[v, k], depth[v, k] = image[:2] / image[2], local[2]
    return uv, depth


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), views=st.integers(1, 4), batch=st.sampled_from([(), (2,), (2, 3)]))
def test_project_and_unproject_are_inverse(seed, views, batch):
    rig = random_rig(seed, batch, views)
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([rig.width, rig.height])
    uv = torch.rand(*batch, views, 5, 2, generator=generator, dtype=torch.float64) * size
    depth = torch.rand(*batch, views, 5, generator=generator, dtype=torch.float64) * 3 + 0.1
    points = rig.unproject(uv, depth)
    uv_again, depth_again = rig.project_each(points)
    assert (uv_again - uv).abs().max() < 1e-9
    assert (depth_again - depth).abs().max() < 1e-9
    assert (rig.unproject(uv_again, depth_again) - points).abs().max() < 1e-9


def test_every_view_unprojects_to_the_same_point_in_float64_and_float32():
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        rig = looking_rig(dtype)
        points = torch.randn(7, 11, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 0.2
        uv, depth = rig.project(points)
        assert uv.shape == (7, 3, 11, 2) and depth.shape == (7, 3, 11) and uv.dtype == dtype
        assert in_front(depth).all()
        assert (rig.unproject(uv, depth) - points.unsqueeze(-3)).abs().max() < tolerance


def test_projection_agrees_with_homogeneous_matrices():
    rig = random_rig(3, views=4)
    points = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2
    uv, depth = rig.project(points)
    naive_uv, naive_depth = naive_project(rig, points)
    torch.testing.assert_close(uv, naive_uv, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(depth, naive_depth, rtol=1e-9, atol=1e-9)
    assert (depth < 0).any(), "points behind cameras are part of this test"


def test_batches_of_moving_cameras_agree_with_a_loop():
    rig = random_rig(5, batch=(4,), views=2)
    points = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    uv, depth = rig.project(points)
    back = rig.unproject(uv, depth)
    for b in range(4):
        single = Rig(rig.intrinsics[b], rig.world_from_camera[b], rig.height, rig.width)
        uv_b, depth_b = single.project(points[b])
        torch.testing.assert_close(uv[b], uv_b)
        torch.testing.assert_close(depth[b], depth_b)
        torch.testing.assert_close(back[b], single.unproject(uv_b, depth_b))


def test_with_poses_broadcasts_the_intrinsics():
    fixed, moving = random_rig(1, views=2), random_rig(2, batch=(5,), views=2)
    rig = fixed.with_poses(moving.world_from_camera)
    assert rig.intrinsics.shape == (2, 3, 3) and rig.centres.shape == (5, 2, 3)
    points = torch.randn(5, 3, 3, dtype=torch.float64)
    uv, depth = rig.project(points)
    assert uv.shape == (5, 2, 3, 2)
    assert (rig.unproject(uv, depth) - points.unsqueeze(1)).abs().max() < 1e-9


def test_depth_is_along_the_axis_and_the_axes_are_those_of_opencv():
    eye = torch.eye(4, dtype=torch.float64)[None]
    rig = Rig(intrinsics_from_fovy(torch.tensor([90.0], dtype=torch.float64), 100, 100), eye, 100, 100)
    uv, depth = rig.project(torch.tensor([[0.0, 0, 2], [1, 0, 2], [0, 1, 2], [-2, -2, 2]], dtype=torch.float64))
    # 90 degrees: at depth 2 the image spans 4 m; +x is to the right (larger u), +y is down (larger v).
    assert depth.tolist() == [[2.0] * 4]
    torch.testing.assert_close(uv[0], torch.tensor([[50.0, 50], [75, 50], [50, 75], [0, 0]], dtype=torch.float64))


def test_gradients():
    rig = looking_rig()
    points = (torch.randn(2, 3, 3, dtype=torch.float64) * 0.2).requires_grad_()
    assert torch.autograd.gradcheck(rig.project, points)
    uv, depth = (x.detach().requires_grad_() for x in rig.project(points))
    assert torch.autograd.gradcheck(rig.unproject, (uv, depth))
    poses = rig.world_from_camera.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: rig.with_poses(p).project(points.detach()), poses)


def test_a_crop_sees_the_same_point():
    rig = looking_rig()
    points = torch.randn(5, 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.2
    top, left = torch.randint(0, 11, (2, 5, 3), generator=torch.Generator().manual_seed(2))
    cropped = rig.crop(top, left, 54, 50)
    assert (cropped.height, cropped.width) == (54, 50)
    uv, depth = rig.project(points)
    uv_crop, depth_crop = cropped.project(points)
    shift = torch.stack([left, top], -1).unsqueeze(-2)
    assert (uv - uv_crop - shift).abs().max() < 1e-9 and torch.equal(depth, depth_crop)
    assert (cropped.unproject(uv - shift, depth) - points.unsqueeze(1)).abs().max() < 1e-9


@pytest.mark.parametrize(
    "top, left", [(3, 5), (torch.tensor([3, 0, 7]), 5), (torch.tensor(3), torch.tensor([1, 2, 3]))]
)
def test_crop_offsets_may_be_numbers_or_one_for_each_view(top, left):
    rig = looking_rig()
    cropped = rig.crop(top, left, 20, 30)
    assert cropped.intrinsics.shape == (3, 3, 3)
    for v in range(3):
        expected = rig.intrinsics[v].clone()
        expected[1, 2] -= float(torch.as_tensor(top).expand(3)[v])
        expected[0, 2] -= float(torch.as_tensor(left).expand(3)[v])
        torch.testing.assert_close(cropped.intrinsics[v], expected)
    assert torch.equal(rig.intrinsics, looking_rig().intrinsics), "the rig itself is unchanged"


def test_pads_and_resizes_see_the_same_point():
    rig, points = looking_rig(), torch.rand(4, 3, dtype=torch.float64) * 0.3
    uv, _ = rig.project(points)
    padded = rig.pad(4, 5, 6, 7)
    assert (padded.height, padded.width) == (73, 77)
    assert (padded.project(points)[0] - uv - torch.tensor([6.0, 4.0])).abs().max() < 1e-9
    assert torch.allclose(padded.crop(4, 6, 64, 64).intrinsics, rig.intrinsics)
    resized = rig.resize(96, 32)
    assert (resized.project(points)[0] - uv * torch.tensor([0.5, 1.5])).abs().max() < 1e-9


def test_a_resize_of_the_rig_fits_a_resize_of_the_image():
    """An image whose values are its own u and v, averaged 2 x 2, holds exactly the doubled uv of the smaller image."""
    uv = torch.stack(torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="xy"))
    small = torch.nn.functional.avg_pool2d(uv, 2)
    at_small_pixel = torch.tensor([2 + 0.5, 1 + 0.5])  # column 2, row 1
    assert torch.equal(small[:, 1, 2], at_small_pixel * 2)
    rig = Rig.from_arrays(intrinsics_from_fovy(60, 8, 8)[None], torch.eye(4)[None], 8, 8)
    direction = rig.unproject(at_small_pixel[None, None] * 2, torch.ones(1, 1))
    torch.testing.assert_close(rig.resize(4, 4).unproject(at_small_pixel[None, None], torch.ones(1, 1)), direction)


def test_select_keeps_the_order_given():
    rig, points = random_rig(7, batch=(2,), views=4), torch.randn(2, 3, 3, dtype=torch.float64)
    chosen = rig.select([2, 0])
    assert chosen.num_views == 2
    torch.testing.assert_close(chosen.project(points)[0], rig.project(points)[0][:, [2, 0]])


def test_to_changes_the_dtype():
    rig = looking_rig().to(torch.float32)
    assert rig.intrinsics.dtype == rig.world_from_camera.dtype == torch.float32


def test_in_front():
    assert in_front(torch.tensor([-1.0, 0.0, 0.5])).tolist() == [False, False, True]


def test_look_at_puts_the_target_in_the_middle_and_up_upwards():
    position = torch.tensor([[1.0, 2, 3], [-1, 0.5, 0.2]], dtype=torch.float64)
    target = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    poses = look_at(position, target)
    rig = Rig.from_arrays(intrinsics_from_fovy(45, 64, 64).expand(2, 3, 3), poses, 64, 64, torch.float64)
    above = target + torch.tensor([0, 0, 0.1], dtype=torch.float64)
    uv, depth = rig.project(torch.stack([target, above]))
    assert (uv[:, 0] - 32).abs().max() < 1e-5
    assert (depth[:, 0] - (position - target).norm(dim=-1)).abs().max() < 1e-9
    assert (uv[:, 1, 1] < 31).all() and (uv[:, 1, 0] - 32).abs().max() < 1e-5
    assert torch.equal(rig.centres, position)
    assert (torch.linalg.det(rig.rotations) - 1).abs().max() < 1e-12


def test_look_at_from_above_needs_another_up():
    with pytest.raises(ValueError, match="pass another up"):
        look_at((0, 0, 1), (0, 0, 0))
    pose = look_at((0, 0, 1), (0, 0, 0), up=(0, 1, 0))
    assert torch.allclose(pose[:3, :3], torch.diag(torch.tensor([1.0, -1.0, -1.0])))
    with pytest.raises(ValueError):
        look_at((0, 0, 1), (0, 0, 1))


def test_fovy_spans_the_height():
    k = intrinsics_from_fovy(torch.tensor(50.0, dtype=torch.float64), 48, 96)
    top = math.tan(math.radians(25))  # direction of the top edge, at depth 1
    v = (k @ torch.tensor([0, -top, 1], dtype=torch.float64))[1]
    assert abs(v) < 1e-9 and k[0, 0] == k[1, 1] and k[0, 2] == 48 and k[1, 2] == 24
    with pytest.raises(ValueError, match="0 and 180"):
        intrinsics_from_fovy(180.0, 10, 10)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_images_agrees_with_slices(channels_last, dtype):
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3, 20, 24, 3) if channels_last else (4, 3, 3, 20, 24)
    images = torch.randint(0, 255, shape, generator=generator).to(dtype)
    images = images.permute(0, 1, 4, 2, 3) if channels_last else images
    top = torch.randint(0, 20 - 9 + 1, (4, 3), generator=generator)
    left = torch.randint(0, 24 - 7 + 1, (4, 3), generator=generator)
    crops = crop_images(images, top, left, 9, 7)
    assert crops.shape == (4, 3, 3, 9, 7) and crops.dtype == dtype
    for b in range(4):
        for v in range(3):
            t, c = top[b, v], left[b, v]
            assert torch.equal(crops[b, v], images[b, v, :, t : t + 9, c : c + 7])
    assert crops.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_crop_images_broadcasts_a_background_over_the_batch():
    background = torch.randint(0, 255, (3, 3, 10, 10), dtype=torch.uint8)
    top = torch.tensor([[0, 1, 2], [3, 4, 5]])
    crops = crop_images(background, top, 2, 5, 6)
    assert crops.shape == (2, 3, 3, 5, 6)
    for b in range(2):
        for v in range(3):
            assert torch.equal(crops[b, v], background[v, :, top[b, v] : top[b, v] + 5, 2:8])
    assert torch.equal(crop_images(background, 1, 2, 5, 6), background[..., 1:6, 2:8])


def test_crop_images_passes_gradients_and_refuses_windows_outside():
    images = torch.rand(2, 1, 3, 6, 6, requires_grad=True)
    crop_images(images, torch.tensor([[1], [2]]), torch.tensor([[0], [3]]), 3, 3).sum().backward()
    expected = torch.zeros_like(images)
    expected[0, 0, :, 1:4, 0:3] = 1
    expected[1, 0, :, 2:5, 3:6] = 1
    assert torch.equal(images.grad, expected)
    for top in (4, -1, torch.tensor([[0], [4]]), torch.tensor([[-1], [0]])):
        with pytest.raises(ValueError, match="leaves an image of 6 rows"):
            crop_images(images, top, 0, 3, 3)


def test_cropped_pixels_and_cropped_cameras_agree():
    """A white pixel is found at the projection of its point, in the image and in its crop."""
    rig = looking_rig()
    pixel = torch.tensor([[[20.5, 30.5]], [[40.5, 25.5]], [[33.5, 33.5]]], dtype=torch.float64)
    points = rig.unproject(pixel, torch.ones(3, 1, dtype=torch.float64))
    images = torch.zeros(3, 1, 64, 64)
    for v in range(3):
        images[v, 0, int(pixel[v, 0, 1]), int(pixel[v, 0, 0])] = 1
    top, left = torch.tensor([3, 10, 0]), torch.tensor([10, 0, 5])
    crops = crop_images(images, top, left, 54, 54)
    uv, _ = rig.crop(top, left, 54, 54).project_each(points)
    for v in range(3):
        row, column = (crops[v, 0] == 1).nonzero()[0].tolist()
        assert (uv[v, 0] - torch.tensor([column + 0.5, row + 0.5])).abs().max() < 1e-9


@pytest.mark.parametrize(
    "k, pose",
    [
        (torch.eye(3)[None], 2 * torch.eye(4)[None]),
        (torch.eye(3)[None], torch.diag(torch.tensor([1.0, 1, -1, 1]))[None]),  # left-handed
        (torch.eye(3)[None], torch.eye(4)[None].mT + torch.nn.functional.pad(torch.ones(1, 1, 1), (0, 3, 3, 0))),
        (torch.tensor([[[1.0, 0.2, 0], [0, 1, 0], [0, 0, 1]]]), torch.eye(4)[None]),
        (-torch.eye(3)[None], torch.eye(4)[None]),
        (torch.eye(3), torch.eye(4)[None]),
        (torch.eye(3).expand(2, 3, 3), torch.eye(4).expand(3, 4, 4)),
    ],
)
def test_rigs_that_are_none_are_refused(k, pose):
    with pytest.raises(ValueError):
        Rig.from_arrays(k, pose, 8, 8)


def test_workspace_maps_its_corners_to_the_unit_cube_and_back():
    box = Workspace.from_arrays([0.1, 0.6, 0.2], [0.3, 0.2, 0.1], torch.float64)
    corners = box.corners()
    normalised = box.normalise(corners)
    assert normalised.abs().sub(1).abs().max() < 1e-12
    assert len({tuple(row) for row in normalised.round().tolist()}) == 8
    points = torch.randn(5, 4, 3, dtype=torch.float64)
    assert (box.denormalise(box.normalise(points)) - points).abs().max() < 1e-12
    assert box.contains(corners * 0.999 + 0.001 * box.centre).all()
    outside = torch.tensor([[1.01, 0, 0], [0, -1.01, 0], [0, 0, 2]])
    assert not box.contains(box.denormalise(outside)).any()
    assert box.to(torch.float32).centre.dtype == torch.float32


def test_workspace_edges_are_the_twelve_pairs_one_side_apart():
    corners = Workspace.from_arrays([0, 0, 0], [1, 1, 1]).corners()
    edges = Workspace.edges()
    lengths = [(corners[a] - corners[b]).norm().item() for a, b in edges]
    assert len(set(edges)) == 12 and lengths == [2.0] * 12


def test_workspace_depth_range_is_that_of_the_box():
    box = Workspace.from_arrays([0, 0, 0], [0.3, 0.2, 0.1], torch.float64)
    rig = looking_rig()
    near, far = box.depth_range(rig)
    inside = box.denormalise(torch.rand(4000, 3, dtype=torch.float64) * 2 - 1)
    depth = rig.project(inside)[1]
    assert near.shape == far.shape == (3,)
    assert (depth.amin(-1) >= near).all() and (depth.amax(-1) <= far).all()
    assert (depth.amin(-1) - near).max() < 0.1 and (far - depth.amax(-1)).max() < 0.1
    around = Workspace.from_arrays(rig.centres[0], [1.0, 1.0, 1.0], torch.float64)
    assert around.depth_range(rig)[0][0] == 0.01


def test_workspaces_that_are_none_are_refused():
    with pytest.raises(ValueError, match="positive"):
        Workspace.from_arrays([0, 0, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="centre"):
        Workspace.from_arrays([0, 0], [1, 1, 1])
