"""Random shifts: the pixels, the offsets, and that the encoder's geometry does not notice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from kp3d_rl.augmentation import AffineChange, centre_crop, crop, random_crop, random_shift
from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig
from kp3d_rl.reconstruction import auxiliary_terms
from tests.dotworld import dot_frames, dot_scene, draw_dot
from tests.kp3d_rl.test_keypoint3d import build

SMALL = Keypoint3DConfig(keypoints=4, width=4, decoder_width=8)


def noise_images(batch: int, views: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, views, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("pixels", [1, 3, 9])
def test_pixels_are_those_of_padding_and_slicing(pixels: int) -> None:
    images = noise_images(5, 2, 7, 12)
    before = images.clone()
    shifted, offset = random_shift(images, pixels, torch.Generator().manual_seed(1))
    assert shifted.shape == images.shape and shifted.dtype == torch.uint8 and torch.equal(images, before)
    for image, window, (left, top) in zip(
        images.flatten(0, 1).numpy(), shifted.flatten(0, 1).numpy(), offset.flatten(0, 1).int().tolist(), strict=True
    ):
        padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
        top, left = top + pixels, left + pixels
        np.testing.assert_array_equal(window, padded[top : top + 7, left : left + 12])


def test_images_that_are_a_view_of_others_are_shifted_alike() -> None:
    images = noise_images(4, 3, 8, 8)
    for seen in (images[:, 1:], images.flip(0)[::2], images.transpose(2, 3)):
        a = random_shift(seen, 2, torch.Generator().manual_seed(3))[0]
        b = random_shift(seen.contiguous(), 2, torch.Generator().manual_seed(3))[0]
        assert torch.equal(a, b)


def test_zero_pixels_change_nothing() -> None:
    images = noise_images(2, 3, 8, 8)
    shifted, offset = random_shift(images, 0)
    assert torch.equal(shifted, images) and torch.equal(offset, torch.zeros(2, 3, 2))


def test_offsets_are_uniform_whole_pixels_drawn_for_each_view_and_axis() -> None:
    offset = random_shift(noise_images(1500, 2, 2, 2), 2, torch.Generator().manual_seed(0))[1]
    assert offset.shape == (1500, 2, 2) and offset.dtype == torch.float32
    for column in offset.flatten(1).T:
        values, counts = column.unique(return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert counts.min() > 240 and counts.max() < 360  # 300 expected, deviation 15.5
    assert torch.corrcoef(offset.flatten(1).T).fill_diagonal_(0).abs().max() < 0.1


def test_the_generator_decides() -> None:
    images = noise_images(8, 3, 4, 4)
    draws = [random_shift(images, 3, torch.Generator().manual_seed(seed))[1] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("images", "pixels", "message"),
    [
        (torch.zeros(1, 2, 4, 4, 3), 1, "uint8"),
        (noise_images(1, 1, 4, 4)[0], 1, "uint8"),
        (noise_images(1, 1, 4, 4), -1, "-1"),
    ],
)
def test_what_cannot_be_shifted_is_refused(images: torch.Tensor, pixels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_shift(images, pixels)
    with pytest.raises(ValueError, match="random_shift"):
        Keypoint3DConfig(random_shift=-1)


# -- crops -----------------------------------------------------------------------------------------------------------


def test_a_crop_is_a_slice_of_each_view() -> None:
    images, height, width = noise_images(5, 2, 9, 12), 4, 7
    offset = torch.stack([torch.randint(0, 12 - 7 + 1, (5, 2)), torch.randint(0, 9 - 4 + 1, (5, 2))], -1)
    found = crop(images, offset, height, width)
    for sample in range(5):
        for view in range(2):
            left, top = offset[sample, view].tolist()
            expected = images[sample, view, top : top + height, left : left + width]
            assert torch.equal(found[sample, view], expected)


def test_random_crops_are_anywhere_alike_and_differ_between_views() -> None:
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(12), indexing="ij")
    image = torch.stack([rows, columns, columns], -1).to(torch.uint8)  # a pixel says where it is
    found = random_crop(image.expand(6000, 2, 9, 12, 3), 4, 7, torch.Generator().manual_seed(0))
    corners = found[:, :, 0, 0, :2].long()  # (top, left)
    for axis, most in ((0, 5), (1, 5)):
        counts = torch.bincount(corners[..., axis].flatten(), minlength=most + 1)
        assert len(counts) == most + 1 and (counts / counts.sum() - 1 / (most + 1)).abs().max() < 0.02
    assert torch.corrcoef(corners.flatten(1).T.double()).fill_diagonal_(0).abs().max() < 0.06


def test_what_counts_is_the_middle() -> None:
    images = noise_images(2, 1, 9, 12)
    assert torch.equal(centre_crop(images, 4, 8), images[:, :, 2:6, 2:10])
    assert torch.equal(centre_crop(images, 9, 12), images)


@pytest.mark.parametrize("size", [(10, 5), (5, 13), (0, 5)])
def test_a_window_that_does_not_fit_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"no window of {size[0]} x {size[1]} fits into views of"):
        random_crop(noise_images(1, 1, 9, 12), *size)
    with pytest.raises(ValueError, match="uint8"):
        random_crop(torch.zeros(1, 1, 9, 12, 3), 3, 3)


# -- the encoder -----------------------------------------------------------------------------------------------------


def local_encoder() -> Keypoint3D:
    """An encoder whose heat maps are sharp peaks at the dot, so that what is far away and at borders has no weight."""
    encoder, _ = build(dataclasses.replace(SMALL, keypoints=2, standardise=False, heat_scale=1.0, precision="float32"))
    with torch.no_grad():
        for layer in (0, 2, 4):
            encoder.views[0].trunk[layer].weight.zero_()
            encoder.views[0].trunk[layer].bias.zero_()
        encoder.views[0].trunk[0].weight[0, 0], encoder.views[0].trunk[0].weight[0, 1] = 1.0, -1.0  # red, not green
        encoder.views[0].trunk[2].weight[0, 0] = 1.0
        encoder.views[0].trunk[4].weight[0, 0, 1, 1] = 1.0
        encoder.views[0].head.weight.zero_()
        encoder.views[0].head.weight[:2, 0, 0, 0] = torch.tensor([0.5, 0.7])
        encoder.views[0].head.weight[2:, 0, 0, 0] = 0.01
    return encoder


def shifted_by(images: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Windows at whole-pixel offsets (V, 2), borders repeated."""
    views, height, width = images.shape[1:4]
    return torch.stack(
        [
            images[:, view][
                :,
                (torch.arange(height) + int(offset[view, 1])).clamp(0, height - 1)[:, None],
                (torch.arange(width) + int(offset[view, 0])).clamp(0, width - 1)[None],
            ]
            for view in range(views)
        ],
        1,
    )


def test_a_shift_by_the_encoders_stride_moves_nothing_that_is_returned() -> None:
    encoder = local_encoder()
    stride = int(encoder.rows.stride)
    dots = np.random.default_rng(0).uniform(-0.08, 0.08, (6, 3))
    images = torch.as_tensor(np.stack([draw_dot(dot_scene(), dot) for dot in dots]))
    offset = torch.tensor([[stride, -stride], [0, stride], [-stride, 0.0]])
    found = encoder(images)
    assert (found.uv - 16).abs().max() < 10  # the dot is inside, away from what the shift cuts off
    assert found.uv.std(0).max() > 2
    moved = encoder(shifted_by(images, offset), offset=offset.expand(6, 3, 2))
    for name in ("uv", "depth", "spread", "confidence", "view_points", "points"):
        torch.testing.assert_close(getattr(moved, name), getattr(found, name), atol=2e-3, rtol=0)
    untold = encoder(shifted_by(images, offset))
    expected = (found.uv - offset[:, None]).expand_as(untold.uv)
    torch.testing.assert_close(untold.uv, expected, atol=2e-3, rtol=0)


def test_points_are_those_of_the_cropped_rig() -> None:
    encoder, _ = build(dataclasses.replace(SMALL, depth="attended"))  # told from the image, whatever the rig
    shifted, offset = random_shift(dot_frames(dot_scene(), 4)[0], 4, torch.Generator().manual_seed(0))
    told, untold = encoder(shifted, offset=offset), encoder(shifted)
    window = encoder.rig.crop(offset[..., 1], offset[..., 0], 32, 32)
    torch.testing.assert_close(told.view_points, window.unproject(untold.uv, untold.depth))
    torch.testing.assert_close(told.uv, untold.uv + offset[:, :, None])
    uv, depth = encoder.rig.project_each(told.view_points)  # and they are where the original rig sees them
    torch.testing.assert_close(uv, told.uv, atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, told.depth)
    assert (told.view_points - untold.view_points).abs().max() > 0.01


def test_moving_cameras_are_cropped_too() -> None:
    encoder, _ = build(dataclasses.replace(SMALL, depth="attended"))  # told from the image, whatever the rig
    poses = dot_scene(((0.9, 0.3, 0.4), (0.1, 1, 0.5), (-0.8, -0.7, 0.6))).rig.world_from_camera.expand(4, 3, 4, 4)
    shifted, offset = random_shift(dot_frames(dot_scene(), 4)[0], 4, torch.Generator().manual_seed(0))
    told, untold = encoder(shifted, poses, offset), encoder(shifted, poses)
    window = encoder.rig.with_poses(poses).crop(offset[..., 1], offset[..., 0], 32, 32)
    torch.testing.assert_close(told.view_points, window.unproject(untold.uv, untold.depth))


def test_what_comes_after_the_encoder_need_not_know() -> None:
    """Noise unprojects (u, v) again, and the auxiliary losses take the original images: both fit without offsets."""
    encoder, decoder = build(dataclasses.replace(SMALL, noise=1e-9))
    images = dot_frames(dot_scene(), 4)[0]
    shifted, offset = random_shift(images, 4, torch.Generator().manual_seed(0))
    found = encoder(shifted, offset=offset)
    torch.testing.assert_close(encoder.with_noise(found).view_points, found.view_points, atol=1e-4, rtol=0)
    terms = auxiliary_terms(encoder, decoder, found, images)
    assert {"reconstruction", "multiview", "separation"} <= set(terms)
    assert all(bool(torch.isfinite(value)) for value in terms.values())


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 52)])
def test_a_changes_points_are_where_its_images_show_them(height: int, width: int) -> None:
    """A blob in each image, at a place that is known: its centre of mass afterwards."""
    generator, count = torch.Generator().manual_seed(0), 50
    size = torch.tensor([width, height])
    uv = size * (0.4 + 0.2 * torch.rand(count, 1, 2, generator=generator))
    columns, rows = torch.arange(width) + 0.5, torch.arange(height) + 0.5

    def blobs(at: torch.Tensor) -> torch.Tensor:
        squared = (columns - at[..., None, :1]) ** 2 + (rows[:, None] - at[..., 1:, None].mT) ** 2
        return torch.exp(-squared / 8.0)

    change = AffineChange.drawn((count, height, width), 60.0, 1.3, 0.1, generator)
    seen = change.images(blobs(uv), beyond="zeros")
    mass = seen / seen.sum((-2, -1), keepdim=True)
    found = torch.stack([(mass.sum(-2) * columns).sum(-1), (mass.sum(-1) * rows).sum(-1)], -1)
    there = change.points(uv, height, width)
    assert (there - uv).norm(dim=-1).mean() > 3
    torch.testing.assert_close(found, there, atol=0.2, rtol=0)


def test_a_drawn_change_keeps_to_its_limits_and_reaches_them() -> None:
    change = AffineChange.drawn((4000, 20, 60), 30.0, 1.25, 0.1, torch.Generator().manual_seed(0))
    scale = torch.linalg.det(change.matrix).sqrt()
    angle = torch.rad2deg(torch.atan2(change.matrix[:, 1, 0], change.matrix[:, 0, 0]))
    limits = (scale.log() / np.log(1.25), angle / 30.0, change.shift[:, 0] / 6.0, change.shift[:, 1] / 2.0)
    for share in limits:
        assert share.abs().max() == pytest.approx(1.0, abs=0.01) and share.abs().max() <= 1.0001
        assert share.abs().mean() == pytest.approx(0.5, abs=0.03) and share.mean() == pytest.approx(0.0, abs=0.04)
    torch.testing.assert_close(change.matrix @ change.matrix.mT, torch.eye(2) * (scale**2)[:, None, None])
