"""Keypoint3D: shapes, geometry, the effect of every option, and a tiny real training that finds a dot."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
import torch

from kp3d_rl.cameras import Rig, Workspace, intrinsics_from_fovy, look_at
from kp3d_rl.geometry import fuse
from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig, to_network_layout
from kp3d_rl.losses import LossWeights, reconstruction_loss, weighted_sum
from kp3d_rl.metrics import constant_probe, ridge_probe
from kp3d_rl.networks import LAYERS, PAPER_LAYERS, AttendedDepth, ViewDecoder, ViewEncoder, grids, output_size
from kp3d_rl.reconstruction import KeypointDecoder, auxiliary_terms, equivariance_term, reconstruction_quality
from tests.dotworld import dot_frames, dot_scene, draw_dot

SMALL = Keypoint3DConfig(keypoints=4, width=4, decoder_width=8)


def build(config: Keypoint3DConfig = SMALL, seed: int = 0) -> tuple[Keypoint3D, KeypointDecoder]:
    scene = dot_scene()
    torch.manual_seed(seed)
    encoder = Keypoint3D(config, scene.rig, scene.workspace)
    return encoder, KeypointDecoder(encoder, scene.background_tensor())


def every_view(encoder: Keypoint3D) -> torch.Tensor:
    return torch.arange(encoder.num_views)


# -- networks --------------------------------------------------------------------------------------------------------


def test_paper_layers_give_the_originals_twelve_cells_and_come_back_to_108_pixels() -> None:
    assert [output_size(PAPER_LAYERS[:n], 108) for n in (1, 2, 3)] == [53, 26, 12]
    heat, features = ViewEncoder(5, layers=PAPER_LAYERS)(torch.zeros(1, 3, 108, 108))
    assert heat.shape == (1, 5, 12, 12) and features.shape == (1, 64, 12, 12)
    assert ViewDecoder(5, layers=PAPER_LAYERS)(heat, (108, 108)).shape == (1, 4, 108, 108)


@pytest.mark.parametrize("size", [64, 66, 70])
def test_decoder_restores_sizes_that_a_stride_rounds(size: int) -> None:
    decoder = ViewDecoder(2)
    rows, _ = grids(decoder.layers, size, size)
    assert decoder(torch.zeros(1, 2, rows.cells, rows.cells), (size, size)).shape == (1, 4, size, size)


def test_an_image_too_small_for_the_stack_is_refused() -> None:
    with pytest.raises(ValueError, match="12 x 64"):
        grids(PAPER_LAYERS, 12, 64)


# -- encoder ---------------------------------------------------------------------------------------------------------


def test_shapes_and_meaning_of_the_outputs() -> None:
    encoder, _ = build()
    images, _ = dot_frames(dot_scene(), 2)
    k = encoder(images)
    assert k.uv.shape == k.spread.shape == (2, 3, 4, 2)
    assert k.depth.shape == k.confidence.shape == (2, 3, 4)
    assert k.view_points.shape == (2, 3, 4, 3) and k.points.shape == (2, 4, 3)
    assert torch.allclose(k.confidence.sum(-1), torch.ones(2, 3))
    uv, depth = encoder.rig.project_each(k.view_points)
    assert torch.allclose(uv, k.uv, atol=1e-3) and torch.allclose(depth, k.depth, atol=1e-5)
    rays = k.view_points - encoder.rig.centres[:, None]
    rays = rays / rays.norm(dim=-1, keepdim=True)
    assert torch.allclose(k.points, fuse(k.view_points, k.confidence, rays, SMALL.depth_trust), atol=1e-5)
    assert torch.allclose(k.fused_confidence.mean(-1), torch.ones(2))


def test_depths_cover_the_box_as_each_camera_sees_it() -> None:
    encoder, _ = build()
    images, _ = dot_frames(dot_scene(), 2)
    near, far = encoder.workspace.depth_range(encoder.rig)
    depth = encoder(images).depth
    for logit, bound in ((-40.0, near - 0.1 * (far - near)), (40.0, far + 0.1 * (far - near))):
        with torch.no_grad():
            encoder.views[0].depth.outer_bias[:] = logit
        assert torch.allclose(encoder(images).depth, bound[None, :, None].expand_as(depth), atol=1e-4)


def test_depth_starts_where_the_rays_meet_and_alone_in_the_middle() -> None:
    """Views that point at one place agree on it at once, before anything is learnt; without the others' hint, not."""
    images, _ = dot_frames(dot_scene(), 1)
    point = torch.tensor([0.05, -0.1, 0.12])
    for depth, close in (("triangulated", True), ("attended", False)):
        encoder, _ = build(dataclasses.replace(SMALL, depth=depth))
        aimed, _ = encoder.rig.project(point.expand(1, 4, 3))
        k = encoder(images)
        features = torch.zeros(1, 3, 8, 8, 8)
        found = encoder._depth(encoder.rig, features, k.heat, aimed, k.confidence)
        apart = (encoder.rig.unproject(aimed, found) - point).norm(dim=-1)
        assert bool((apart < 0.02).all()) == close and (close or bool((apart > 0.05).any()))
    assert build()[0].config.depth == "triangulated"


def test_a_box_behind_the_only_camera_gives_numbers() -> None:
    """A camera that moves may look away: nearest and farthest depth of the box are the same then."""
    images = torch.randint(0, 256, (2, 1, 32, 32, 3), dtype=torch.uint8)
    for seed in range(40):
        position = torch.randn(3, generator=torch.Generator().manual_seed(seed))
        pose = look_at(position, 2 * position, (0.1, 0.9, 0.3))
        rig = Rig.from_arrays(intrinsics_from_fovy(60.0, 32, 32)[None], pose[None], 32, 32)
        encoder = Keypoint3D(SMALL, rig, Workspace.from_arrays([0, 0, 0], [0.1, 0.1, 0.1]))
        assert encoder(images).points.isfinite().all()


def test_a_depth_map_is_read_where_the_heat_is() -> None:
    """The original's way: the expectation of a map of depths, each bounded on its own."""
    network = ViewEncoder(2, depth="map")
    features, heat = torch.randn(3, 32, 8, 8), torch.zeros(3, 2, 8, 8)
    heat[:, :, 4, 6] = 1.0
    expected = torch.sigmoid(network.depth(features))[:, :, 4, 6]
    assert torch.allclose(network.relative_depth(features, heat, torch.zeros(3, 2, 2), torch.rand(3, 2)), expected)


def test_attended_depth_reads_features_at_the_heat_around_and_the_position() -> None:
    """Against a loop over keypoints, in float64; and without what it was told, it says the middle."""
    torch.manual_seed(0)
    net = AttendedDepth(3, 5, hidden=4).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    features, position = torch.randn(2, 5, 4, 4).double(), torch.rand(2, 3, 2).double()
    heat = torch.rand(2, 3, 4, 4).double().flatten(-2).softmax(-1).unflatten(-1, (4, 4))
    for b in range(2):
        for k in range(3):
            attended = (features[b] * heat[b, k]).sum((-2, -1))
            inputs = torch.cat([attended, features[b].mean((-2, -1)), position[b, k]])
            units = torch.relu(inputs @ net.inner[k] + net.inner_bias[k])
            expected = units @ net.outer[k] + net.outer_bias[k]
            assert torch.allclose(net(features, heat, position)[b, k], expected, atol=1e-6)
    assert torch.equal(AttendedDepth(3, 5)(features.float(), heat.float(), position.float()), torch.zeros(2, 3))


def test_heat_at_one_cell_is_read_at_that_cells_pixel() -> None:
    """A network that fires at one cell alone puts (u, v) at the centre of its receptive field."""
    encoder, _ = build(dataclasses.replace(SMALL, keypoints=1))
    logits = torch.zeros(3, 1, 8, 8)
    logits[:, 0, 2, 5] = 30.0
    encoder._heat_logits_and_features = lambda _: (logits[None], torch.zeros(1, 3, 8, 8, 8))
    uv = encoder(torch.zeros(1, 3, 32, 32, 3, dtype=torch.uint8)).uv
    assert torch.allclose(uv, torch.tensor([5 * 4 + 2.0, 2 * 4 + 2.0]).expand_as(uv), atol=1e-3)


def test_wrong_images_are_refused_with_both_shapes() -> None:
    encoder, _ = build()
    with pytest.raises(ValueError, match=r"\(2, 32, 32, 3\) do not fit the rig's \(3, 32, 32, 3\)"):
        encoder(torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        to_network_layout(torch.zeros(1, 3, 32, 32, 3))


def test_network_layout_is_channels_last_and_scaled() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    laid = to_network_layout(images)
    assert laid.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(laid[4], images[1, 1].permute(2, 0, 1).float() / 255.0)


def test_moving_cameras_give_the_same_answer_as_a_fixed_rig_at_that_pose() -> None:
    """Poses that come with the observation replace the resting ones, in encoder and decoder."""
    scene, images = dot_scene(), dot_frames(dot_scene(), 2)[0]
    turned = dot_scene(((0.9, 0.3, 0.4), (0.1, 1, 0.5), (-0.8, -0.7, 0.6)))
    moving, decoder = build()
    torch.manual_seed(0)
    fixed = Keypoint3D(SMALL, turned.rig, turned.workspace)
    poses = turned.rig.world_from_camera.expand(2, 3, 4, 4)
    a, b = moving(images, poses), fixed(images)
    assert torch.allclose(a.points, b.points, atol=1e-5)
    assert not torch.allclose(a.points, moving(images).points, atol=1e-3)
    views = every_view(moving)
    assert torch.allclose(decoder(a, moving, views, poses), decoder(b, fixed, views, None), atol=1e-5)
    assert scene.rig.num_views == 3


# -- a missing camera ------------------------------------------------------------------------------------------------


def test_a_missing_view_has_no_weight() -> None:
    encoder, _ = build(dataclasses.replace(SMALL, depth_trust=1.0, depth="attended"))  # views on their own
    images, _ = dot_frames(dot_scene(), 3)
    whole = encoder(images)
    with encoder.without(1):
        found = encoder(images)
        blind = encoder(torch.cat([images[:, :1], torch.zeros_like(images[:, 1:2]), images[:, 2:]], 1))
        noisy = encoder.with_noise(found)
    weights = found.confidence[:, [0, 2]]
    weights = weights / weights.sum(1, keepdim=True)
    expected = (weights[..., None] * found.view_points[:, [0, 2]]).sum(1)
    assert torch.allclose(found.points, expected, atol=1e-6)
    assert torch.allclose(found.fused_confidence, found.confidence[:, [0, 2]].mean(1) * 4)
    assert torch.equal(blind.points, found.points) and torch.equal(blind.fused_confidence, found.fused_confidence)
    assert torch.equal(found.view_points, whole.view_points)  # each view's own estimate stays
    assert not torch.allclose(noisy.points, encoder.with_noise(whole).points, atol=1e-4)
    assert found.present.tolist() == [True, False, True] and whole.present.all()
    assert torch.equal(encoder(images).points, whole.points)  # and outside all is as before


def test_a_missing_view_counts_for_nothing_where_no_other_is_confident() -> None:
    encoder, _ = build(dataclasses.replace(SMALL, depth_trust=1.0))  # the plain mean over views
    found = encoder(dot_frames(dot_scene(), 1)[0])
    with encoder.without(0):
        points = encoder._fuse(encoder.rig, found.view_points, torch.zeros(1, 3, 4))
    assert torch.allclose(points, found.view_points[:, 1:].mean(1), atol=1e-6)


def test_missing_views_nest_and_one_remains() -> None:
    encoder, _ = build()
    images, _ = dot_frames(dot_scene(), 2)
    with encoder.without(0), encoder.without(2):
        assert torch.allclose(encoder(images).points, encoder(images).view_points[:, 1], atol=1e-6)
        with pytest.raises(ValueError, match="view 1 is the last one present"), encoder.without(1):
            pass
        assert encoder.present.tolist() == [False, True, False]
    for view in (3, -1):
        with pytest.raises(ValueError, match=f"no view {view}: the cameras count from 0 to 2"), encoder.without(view):
            pass
    with pytest.raises(KeyError), encoder.without(0):
        raise KeyError
    assert encoder.present.all()


def test_presence_is_not_part_of_the_state() -> None:
    encoder, _ = build()
    names = set(encoder.state_dict())
    with encoder.without(0):
        assert set(encoder.state_dict()) == names and "present" not in names
        other, _ = build()
        other.load_state_dict(encoder.state_dict())
    assert other.present.all()


# -- decoder ---------------------------------------------------------------------------------------------------------


def test_gaussian_maps_peak_at_the_projected_keypoint_with_the_stated_width_and_height() -> None:
    encoder, decoder = build()
    images, _ = dot_frames(dot_scene(), 1)
    k = encoder(images)
    maps = decoder.gaussian_maps(k, encoder, every_view(encoder), None)
    uv, depth = encoder.rig.project(k.points)
    centre_depth = encoder.rig.project(encoder.workspace.centre[None])[1]
    cells = torch.arange(8) * 4.0 + 2.0
    for view in range(3):
        for n in range(4):
            sigma = 1.5 * 4.0 * float(centre_depth[view, 0]) / float(depth[0, view, n])
            u, v = uv[0, view, n]
            squared = (cells[None, :] - u) ** 2 + (cells[:, None] - v) ** 2
            expected = float(k.confidence[0, view, n]) * 4 / 2 * torch.exp(-squared / (2 * sigma**2))
            assert torch.allclose(maps[0, view, n], expected, atol=1e-5)


def test_without_foreground_the_reconstruction_is_the_background() -> None:
    encoder, decoder = build()
    with torch.no_grad():
        decoder.views[0].upsample[-1].weight[:, 3] = 0.0
        decoder.views[0].upsample[-1].bias[3] = -40.0
    images, _ = dot_frames(dot_scene(), 2)
    drawn = decoder(encoder(images), encoder, every_view(encoder), None)
    assert torch.allclose(drawn, torch.full_like(drawn, 90 / 255), atol=1e-6)


def test_only_what_is_not_background_weighs_more() -> None:
    encoder, decoder = build()
    images, _ = dot_frames(dot_scene(), 40)
    decoder.weigh_pixels(images)
    views = torch.tensor([2, 0])
    dot = images[:, views, ..., 0] > 200  # the dot is red, the background grey
    weights = torch.where(dot, decoder.pixel_weights[views], 1.0)
    assert weights[dot].min() >= 1.0 and weights.max() > 1.3
    maps = torch.rand(40, 2, encoder.config.keypoints, encoder.rows.cells, encoder.columns.cells)
    planes = images[:, views].permute(0, 1, 4, 2, 3)
    expected = reconstruction_loss(decoder.draw(maps, views), planes.float() / 255.0, weights)
    torch.testing.assert_close(decoder.error(maps, planes, views), expected, rtol=1e-5, atol=0)
    blind = KeypointDecoder(encoder, None)
    blind.weigh_pixels(images)
    assert torch.equal(blind.pixel_weights, torch.ones(3, 32, 32))  # nothing to tell the dot from


def test_what_cannot_be_in_the_workspace_counts_for_as_much_as_is_said() -> None:
    """A small box: a dot beside it costs nothing, and covers nothing."""
    scene = dot_scene()
    small = Workspace.from_arrays([0, 0, 0], [0.08] * 3)
    images = torch.as_tensor(np.stack([draw_dot(scene, np.array(dot)) for dot in ((0.2, 0.2, 0.2), (0.0, 0, 0))]))
    images = torch.cat([images, torch.full_like(images[:1], 90)])  # of a dot beside the box, one in it, and none
    foreground, errors = {}, {}
    for outside in (1.0, 0.5, 0.0):
        encoder = Keypoint3D(dataclasses.replace(SMALL, outside=outside), scene.rig, small)
        decoder = KeypointDecoder(encoder, scene.background_tensor())
        planes = images.permute(0, 1, 4, 2, 3)
        seen = decoder.foreground(planes)
        foreground[outside] = seen.sum((1, 2, 3))
        views, cells = torch.arange(3), (encoder.rows.cells, encoder.columns.cells)
        with torch.no_grad():
            for network in decoder.views:  # which draws the background alone
                network.upsample[-1].weight[:, 3] = 0.0
                network.upsample[-1].bias[3] = -40.0
            maps = torch.zeros(1, 3, SMALL.keypoints, *cells)
            pairs = zip(planes, seen, strict=True)
            errors[outside] = torch.stack(
                [decoder.error(maps, plane[None], views, mine[None]) for plane, mine in pairs]
            )
    whole, half, none = (foreground[outside] for outside in (1.0, 0.5, 0.0))
    assert whole[0] > 20 and none[0] == 0 and float(half[0]) == pytest.approx(0.5 * float(whole[0]))
    assert none[1] > 0.8 * whole[1] and (whole[2], none[2]) == (0, 0)
    assert float(errors[0.0][0]) < 1e-12 and float(errors[0.5][0]) == pytest.approx(
        0.5 * float(errors[1.0][0]), rel=1e-4
    )
    assert errors[0.0][1] > 0.8 * errors[1.0][1] > 0


def test_quality_counts_what_the_training_counts() -> None:
    """Half of the frames show the dot beside a small box, which nobody draws and nobody is asked to."""
    scene = dot_scene()
    small = Workspace.from_arrays([0, 0, 0], [0.08] * 3)
    images = torch.as_tensor(np.stack([draw_dot(scene, np.array(dot)) for dot in ((0.2, 0.2, 0.2), (0.0, 0, 0))]))
    drawn = images.permute(0, 1, 4, 2, 3).float() / 255.0
    drawn[0] = 90 / 255.0
    quality = {}
    for outside in (1.0, 0.0):
        encoder = Keypoint3D(dataclasses.replace(SMALL, outside=outside), scene.rig, small)
        decoder = KeypointDecoder(encoder, scene.background_tensor())
        quality[outside] = reconstruction_quality(drawn, images, "x", decoder)["x/reconstruction"]
    assert (
        quality[0.0] < 1e-12 and quality[1.0] == reconstruction_quality(drawn, images, "x")["x/reconstruction"] > 1e-3
    )


def test_coverage_too_counts_rare_sights_more_where_asked() -> None:
    images, _ = dot_frames(dot_scene(), 40)
    planes = images.permute(0, 1, 4, 2, 3)
    for weigh in (False, True):
        encoder, decoder = build(dataclasses.replace(SMALL, weigh_coverage=weigh))
        decoder.weigh_pixels(images)
        seen = decoder.foreground(planes)
        expected = seen * decoder.pixel_weights if weigh else seen
        assert torch.equal(decoder.wanted(seen), expected) and decoder.pixel_weights.max() > 1.3


def test_background_of_another_size_is_refused() -> None:
    encoder, _ = build()
    with pytest.raises(ValueError, match="background"):
        KeypointDecoder(encoder, torch.zeros(3, 16, 16, 3, dtype=torch.uint8))


def test_views_are_drawn_from_their_own_keypoints_where_asked() -> None:
    encoder, decoder = build()
    images, _ = dot_frames(dot_scene(), 3)
    k, views, own = encoder(images), every_view(encoder), torch.tensor([True, False, True])
    mixed, fused = decoder.gaussian_maps(k, encoder, views, None, own), decoder.gaussian_maps(k, encoder, views)
    alone = decoder.gaussian_maps(k, encoder, views, None, torch.ones(3, dtype=torch.bool))
    assert torch.equal(mixed[1], fused[1]) and torch.equal(mixed[0], alone[0]) and torch.equal(mixed[2], alone[2])
    row, column = alone[0, 1, 2].flatten().argmax() // 8, alone[0, 1, 2].flatten().argmax() % 8
    assert torch.allclose(torch.stack([column, row]) * 4 + 2.0, k.uv[0, 1, 2], atol=2.01)  # the nearest cell
    assert not torch.equal(alone[1], fused[1])


# -- options: each changes something ---------------------------------------------------------------------------------


def terms_of(config: Keypoint3DConfig, seed: int = 5) -> dict[str, float]:
    encoder, decoder = build(config)
    images, _ = dot_frames(dot_scene(), 40)
    decoder.weigh_pixels(images)
    images = images[:8]
    torch.manual_seed(seed)
    return {k: float(v.detach()) for k, v in auxiliary_terms(encoder, decoder, encoder(images), images).items()}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("keypoints", 5),
        ("dimensions", "2d"),
        ("view_weights", "per_view"),
        ("width", 6),
        ("decoder_width", 12),
        ("heat_scale", 20.0),
        ("noise", 0.9),
        ("gaussian_width", 3.0),
        ("confidence", False),
        ("background", False),
        ("decoded_views", 2),
        ("own_view", 1.0),
        ("standardise", False),
        ("weigh_pixels", False),
        ("depth", "map"),
        ("depth", "attended"),
        ("depth_trust", 1.0),
        ("loss", LossWeights(equivariance=1.0)),
    ],
)
def test_every_option_changes_the_losses(option: str, value: object) -> None:
    assert terms_of(dataclasses.replace(SMALL, **{option: value})) != terms_of(SMALL)


def test_the_layers_option_changes_the_heat_maps() -> None:
    rig = dot_scene().rig.resize(64, 64)
    cells = {
        layers: Keypoint3D(dataclasses.replace(SMALL, layers=layers), rig, dot_scene().workspace).rows
        for layers in ("fast", "paper")
    }
    assert (cells["fast"].cells, cells["fast"].stride) == (16, 4.0)
    assert (cells["paper"].cells, cells["paper"].stride) == (6, 8.0)


@pytest.mark.parametrize("options", [{"dimensions": "2d"}, {"view_weights": "per_view", "layers": "paper"}])
def test_equivariance_is_asked_of_every_kind_of_encoder(options: dict) -> None:
    config = dataclasses.replace(SMALL, **options, loss=LossWeights(equivariance=1.0))
    scene = dot_scene()
    rig = Rig(scene.rig.intrinsics, scene.rig.world_from_camera, 64, 64)
    encoder = Keypoint3D(config, rig, scene.workspace)
    images = torch.randint(0, 255, (4, 3, 64, 64, 3), dtype=torch.uint8)
    term = auxiliary_terms(encoder, KeypointDecoder(encoder, None), encoder(images), images)["equivariance"]
    term.backward()
    assert float(term) > 0 and all(p.grad.isfinite().all() for p in encoder.views.parameters() if p.grad is not None)
    assert encoder.views[-1].head.weight.grad.abs().sum() > 0


def test_two_dimensions_have_no_consistency_term_and_no_depth_in_the_maps() -> None:
    config = dataclasses.replace(SMALL, dimensions="2d")
    assert set(terms_of(config)) == {"reconstruction", "separation", "coverage", "variance"}
    encoder, decoder = build(config)
    images, _ = dot_frames(dot_scene(), 1)
    k = encoder(images)
    shifted = dataclasses.replace(k, depth=k.depth * 2, points=k.points + 1)
    views = every_view(encoder)
    assert torch.equal(
        decoder.gaussian_maps(k, encoder, views, None), decoder.gaussian_maps(shifted, encoder, views, None)
    )


def test_per_view_weights_train_each_view_on_its_own() -> None:
    encoder, decoder = build(dataclasses.replace(SMALL, view_weights="per_view", decoded_views=0))
    assert len(encoder.views) == len(decoder.views) == 3
    images, _ = dot_frames(dot_scene(), 2)
    keypoints = encoder(images)
    keypoints.uv[:, 1].sum().backward()
    touched = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in view.parameters()) for view in encoder.views]
    assert touched == [False, True, False]


def test_noise_is_a_share_of_the_spread_and_the_policys_pass_has_none() -> None:
    encoder, _ = build(dataclasses.replace(SMALL, noise=0.3))
    images, _ = dot_frames(dot_scene(), 64)
    k = encoder(images)
    assert torch.equal(k.uv, encoder(images).uv)
    ratio = ((encoder.with_noise(k).uv - k.uv) / k.spread).detach()
    assert float(ratio.std()) == pytest.approx(0.3, rel=0.1) and float(ratio.abs().max()) <= 1.0 + 1e-4
    silent, _ = build(dataclasses.replace(SMALL, noise=0.0))
    assert silent.with_noise(k) is k


def test_decoded_views_draws_that_many_views_anew() -> None:
    from kp3d_rl.reconstruction import views_to_decode

    drawn = {tuple(views_to_decode(2, 3, torch.device("cpu")).tolist()) for _ in range(50)}
    assert drawn == {(0, 1), (0, 2), (1, 2)}
    assert views_to_decode(0, 3, torch.device("cpu")).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "bad",
    [
        {"keypoints": 0},
        {"width": 0},
        {"noise": -1.0},
        {"decoded_views": -1},
        {"heat_scale": 0},
        {"gaussian_width": 0},
        {"own_view": 1.5},
        {"outside": 1.5},
        {"depth_trust": 0.0},
        {"multiview_rise": -1},
        {"keypoints": 2000},
        {"width": 10**9},
        {"decoder_width": 16.0},
        {"gaussian_width": float("inf")},
        {"dimensions": "4d"},
        {"standardise": "yes"},
        {"loss": {}},
    ],
)
def test_impossible_options_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Keypoint3DConfig(**bad)


# -- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", list(LossWeights.__dataclass_fields__))
def test_each_loss_term_alone_falls_on_a_fixed_batch(term: str) -> None:
    weights = LossWeights(**{name: float(name == term) for name in LossWeights.__dataclass_fields__})
    encoder, decoder = build(dataclasses.replace(SMALL, loss=weights, decoded_views=0))
    frames, steps = (64, 120) if term == "equivariance" else (8, 60)  # it looks at a quarter of them, changed at random
    images, _ = dot_frames(dot_scene(), frames)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    values = []
    for _ in range(steps):
        terms = auxiliary_terms(encoder, decoder, encoder(images), images)
        optimizer.zero_grad()
        weighted_sum(terms, weights).backward()
        optimizer.step()
        values.append(float(terms[term].detach()))
    floor = 1 / 4 if term == "separation" else 0.0  # each of 4 keypoints with itself
    assert values[0] - floor > 1e-4
    assert values[-1] - floor < 0.85 * (values[0] - floor)


@pytest.mark.parametrize("fixed", [False, True])
def test_keypoints_of_what_is_seen_turn_with_the_image_and_those_of_places_in_it_do_not(fixed: bool) -> None:
    """Stand-ins for an encoder: one points to the dot's middle in each view, the other to a place in the image."""
    images, _ = dot_frames(dot_scene(), 32)

    class Pointing:
        height, width = images.shape[2:4]
        rows, columns = grids(LAYERS["fast"], height, width)

        def find_in_views(self, changed: torch.Tensor) -> torch.Tensor:
            unlike = (changed - (90 * 2.0 / 255.0 - 1.0)).abs().sum(1)
            mass = unlike / unlike.sum((-2, -1), keepdim=True)
            pixels = torch.arange(self.width) + 0.5
            uv = torch.stack([(mass.sum(-2) * pixels).sum(-1), (mass.sum(-1) * pixels).sum(-1)], -1)
            return (torch.full_like(uv, 0.3 * self.width) if fixed else uv).view(-1, images.shape[1], 1, 2)

    encoder = Pointing()
    keypoints = types.SimpleNamespace(uv=encoder.find_in_views(to_network_layout(images).mul(2.0).sub(1.0)))
    torch.manual_seed(0)
    error = float(equivariance_term(encoder, keypoints, images))
    assert error > 1e-2 if fixed else error < 1e-4


def test_a_tiny_training_finds_the_dot_without_labels() -> None:
    """The probe from keypoints gets far below the constant predictor and the untrained encoder."""
    config = dataclasses.replace(SMALL, width=8, decoder_width=16, loss=LossWeights(50.0, 1.0, 0.0025))
    encoder, decoder = build(config)
    scene = dot_scene()
    images, _ = dot_frames(scene, 512)
    decoder.weigh_pixels(images)
    test_images, dots = dot_frames(scene, 240, seed=1)
    targets = dots.reshape(24, 10, 1, 3)

    def probe() -> float:
        with torch.no_grad():
            points = encoder(test_images).points.flatten(1).numpy()
        return float(ridge_probe(points.reshape(24, 10, -1), targets)[0])

    untrained, constant = probe(), float(constant_probe(targets)[0])
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(600):
        batch = images[torch.randint(len(images), (32,))]
        loss = weighted_sum(auxiliary_terms(encoder, decoder, encoder(batch), batch), config.loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = probe()
    assert trained < 0.4 * untrained and trained < 0.2 * constant, (trained, untrained, constant)


@pytest.mark.parametrize("view_weights", ["shared", "per_view"])
def test_views_without_cameras_are_searched_by_the_networks_of_their_views(view_weights: str) -> None:
    encoder, _ = build(dataclasses.replace(SMALL, view_weights=view_weights))
    images, _ = dot_frames(dot_scene(), 5)
    found = encoder.find_in_views(to_network_layout(images).mul_(2.0).sub_(1.0))
    torch.testing.assert_close(found, encoder(images).uv)


def test_a_crop_gives_the_same_point() -> None:
    """Cropping the images and the intrinsics together leaves unprojected points where they are."""
    rig = dot_scene().rig
    cropped = rig.crop(3, 5, 24, 24)
    uv, depth = torch.rand(3, 6, 2) * 20 + 6, torch.rand(3, 6) + 0.5
    shifted = uv - torch.tensor([5.0, 3.0])
    assert torch.allclose(rig.unproject(uv, depth), cropped.unproject(shifted, depth), atol=1e-6)
    assert isinstance(cropped, Rig) and np.isclose(float(cropped.intrinsics[0, 0, 2]), 16 - 5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_rounds_the_convolutions_and_nothing_else(precision: str) -> None:
    """bfloat16 keeps 8 bits: positions move by far less than a cell, and all that leaves the encoder is float32."""
    torch.manual_seed(0)
    scene = dot_scene()
    exact = Keypoint3D(Keypoint3DConfig(keypoints=4, precision="float32"), scene.rig, scene.workspace)
    other = Keypoint3D(Keypoint3DConfig(keypoints=4, precision=precision), scene.rig, scene.workspace)
    other.load_state_dict(exact.state_dict())
    images = torch.randint(0, 256, (5, *scene.background.shape), dtype=torch.uint8)
    a, b = exact(images), other(images)
    assert {value.dtype for value in vars(b).values() if value is not b.present} == {torch.float32}
    difference = float((a.uv - b.uv).abs().max().detach())
    assert difference == 0 if precision == "float32" else 0 < difference < 0.25 * exact.rows.stride


def test_the_multiview_weight_rises_to_its_value_and_the_others_stay() -> None:
    config = Keypoint3DConfig(multiview_rise=100, loss=LossWeights(multiview=8.0))
    assert [config.loss_at(step).multiview for step in (0, 5, 50, 100, 1000)] == pytest.approx([0.8, 0.8, 4, 8, 8])
    assert dataclasses.replace(config.loss_at(50), multiview=8.0) == config.loss
    assert dataclasses.replace(config, multiview_rise=0).loss_at(1).multiview == 8.0


def test_a_view_without_any_feature_has_finite_gradients() -> None:
    """Dead units leave flat maps; dividing by their deviation must not spread NaN."""
    encoder, decoder = build()
    with torch.no_grad():
        for layer in encoder.views[0].trunk:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
                layer.bias.fill_(-1.0)
    images, _ = dot_frames(dot_scene(), 2)
    weighted_sum(auxiliary_terms(encoder, decoder, encoder(images), images), LossWeights()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
