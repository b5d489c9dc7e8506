"""Drawings: what is drawn is where it should be, in its own colour."""

import numpy as np
import pytest
import torch

from kp3d_rl.cameras import Workspace
from kp3d_rl.drawing import (
    _oklab,
    caption,
    draw_box,
    draw_keypoints,
    draw_marker,
    draw_skeleton,
    palette,
    plot3d,
    resize,
    sheet,
    tile,
)

GREY = np.full((64, 64, 3), 128, np.uint8)
BOX = Workspace.from_arrays([0.0, 0.6, 0.2], [0.3, 0.2, 0.15])


def centre_of(picture, colour, tolerance=30):
    """Mean (u, v) and number of the pixels of about that colour."""
    rows, columns = np.nonzero((np.abs(picture.astype(int) - colour) < tolerance).all(-1))
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5]), len(rows)


def test_palette_is_distinct_stable_and_vivid():
    colours = palette(32)
    assert colours.shape == (32, 3) and colours.dtype == np.uint8
    assert (palette(5) == colours[:5]).all() and palette(0).shape == (0, 3)
    for count, apart in ((16, 0.12), (32, 0.08)):
        lab = _oklab(palette(count) / 255)
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(count)
        assert distance.min() > apart
    assert (np.ptp(colours.astype(int), axis=-1) > 60).all(), "no greys"
    colours[:] = 0
    assert palette(32).max() > 0, "a copy"


def test_oklab_of_known_colours():
    # From the definition: white is (1, 0, 0), and red of sRGB about (0.628, 0.225, 0.126).
    np.testing.assert_allclose(_oklab(np.ones(3)), [1, 0, 0], atol=1e-4)
    np.testing.assert_allclose(_oklab(np.array([1.0, 0, 0])), [0.62796, 0.22486, 0.12585], atol=1e-4)


@pytest.mark.parametrize("scale", [1, 4, 6])
def test_discs_lie_at_their_pixel_in_their_colour(scale):
    uv = torch.tensor([[10.5, 20.5], [40.0, 50.25], [55.0, 9.0]])
    before = GREY.copy()
    picture = draw_keypoints(GREY, uv, torch.ones(3), scale)
    assert picture.shape == (64 * scale, 64 * scale, 3) and picture.dtype == np.uint8
    assert (before == GREY).all()
    for k, colour in enumerate(palette(3).astype(int)):
        centre, _ = centre_of(picture, colour)
        assert np.abs(centre - uv[k].numpy() * scale).max() < 0.6


def test_area_goes_with_confidence_relative_to_the_largest():
    uv = np.array([[16.0, 32.0], [48.0, 32.0]])
    small, large = (centre_of(draw_keypoints(GREY, uv, [0.01, 0.1], 6), c)[1] for c in palette(2).astype(int))
    assert 1.5 < large / small < 10
    same = draw_keypoints(GREY, uv, [0.1, 1.0], 6)
    assert (same == draw_keypoints(GREY, uv, [0.01, 0.1], 6)).all()
    assert (draw_keypoints(GREY, uv, None, 6) == draw_keypoints(GREY, uv, [1, 1], 6)).all()
    assert (draw_keypoints(GREY, uv, [0.0, 0.0], 2) != 128).any(), "no confidence at all is drawn small"


def test_the_more_confident_of_two_discs_is_on_top():
    uv = np.full((2, 2), 32.0)
    for confidence, top in (([0.5, 1.0], 1), ([1.0, 0.5], 0)):
        assert (draw_keypoints(GREY, uv, confidence, 6)[192, 192] == palette(2)[top]).all()


def test_points_outside_and_points_that_are_none_are_left_out():
    uv = np.array([[-50.0, 10], [1e9, 1e9], [np.nan, 3], [np.inf, 3], [10, -4000]])
    assert (draw_keypoints(GREY, uv, np.ones(5), 1) == GREY).all()
    at_corner = draw_keypoints(GREY, np.array([[0.0, 0.0], [64.0, 64.0]]), [1, 1], 6)
    assert (at_corner[0, 0] == palette(2)[0]).all() and (at_corner[-1, -1] == palette(2)[1]).all()


def test_discs_are_anti_aliased():
    picture = draw_keypoints(GREY, np.array([[32.0, 32.0]]), [1.0], 6)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_images_that_are_none_are_refused():
    for image in (GREY.astype(float), GREY[..., 0], GREY.transpose(2, 0, 1)):
        with pytest.raises(ValueError, match="uint8"):
            draw_keypoints(image, np.zeros((1, 2)))


def test_box_edges_run_between_their_corners():
    uv = np.array([[10, 10], [50, 10], [10, 50], [50, 50], [np.nan, 5], [20, 20], [1e12, 20], [40, 40]], float)
    picture = draw_box(GREY, uv, [(0, 1), (2, 3), (4, 5), (0, 6)], colour=(255, 0, 0), scale=2)
    assert picture.shape == (128, 128, 3)
    red = (picture[..., 0] > 200) & (picture[..., 1] < 60)
    assert red[19:22, 30:90].any(0).all() and red[99:102, 30:90].any(0).all()
    assert not red[30:90].any()
    assert (draw_box(GREY, uv, []) == GREY).all()


def test_marker_rings_its_point():
    picture = draw_marker(GREY, torch.tensor([20.0, 40.0]), colour=(255, 255, 255), scale=6)
    changed = (picture != 128).any(-1)
    rows, columns = np.nonzero(changed)
    assert abs(columns.mean() + 0.5 - 120) < 1 and abs(rows.mean() + 0.5 - 240) < 1
    assert not changed[236:244, 116:124].any(), "the point itself stays visible"
    assert (draw_marker(GREY, [np.nan, 1.0]) == GREY).all()


@pytest.mark.parametrize(("point", "right"), [([20.0, 40.0], True), ([60.0, 40.0], False)])
def test_a_marker_is_named_on_the_side_where_there_is_room(point, right):
    plain, named = draw_marker(GREY, point, scale=6), draw_marker(GREY, point, scale=6, label="target")
    rows, columns = np.nonzero((plain != named).any(-1))
    assert len(rows) > 100 and abs(rows.mean() - 240) < 6
    assert (columns > 6 * point[0]).all() if right else (columns < 6 * point[0]).all()
    assert columns.max() < 6 * 64 - 1


def test_resize_keeps_proportions_and_pixels_where_asked():
    image = np.zeros((2, 4, 3), np.uint8)
    image[0, 1] = 200
    sharp = resize(image, 20, smooth=False)
    assert sharp.shape == (20, 40, 3) and (sharp[:10, 10:20] == 200).all() and (sharp == 200).all(-1).sum() == 100
    assert len(np.unique(resize(image, 20))) > 10
    same = resize(image, 2)
    same[:] = 1
    assert image.max() == 200, "a copy"


def test_tile_puts_images_where_they_belong():
    images = [np.full((4, 6, 3), i * 20, np.uint8) for i in range(5)]
    picture = tile(images, columns=3, gap=2, background=(255, 255, 255))
    assert picture.shape == (10, 22, 3)
    for i in range(5):
        top, left = (i // 3) * 6, (i % 3) * 8
        assert (picture[top : top + 4, left : left + 6] == i * 20).all()
    assert (picture[4:6] == 255).all() and (picture[6:, 16:] == 255).all()
    assert tile(images).shape == (4, 46, 3)
    with pytest.raises(ValueError, match="at least one"):
        tile([])


def test_caption_adds_text_above():
    picture = caption(GREY, "views")
    extra = picture.shape[0] - 64
    assert extra > 10 and picture.shape[1] == 64 and (picture[extra:] == GREY).all()
    assert picture[:extra].min() < 120 < 240 < picture[:extra].max()
    wide = np.repeat(GREY, 4, axis=1)
    long = caption(wide, "as long a caption as would leave the picture")[: caption(wide, "").shape[0] - 64]
    assert (long[:, -3:] == long[0, 0]).all(), "shrunk to fit"


def test_sheet_enlarges_to_the_tallest_and_titles_every_row():
    small, large = GREY[:32, :32], np.full((96, 96, 3), 10, np.uint8)
    picture = sheet([[small] * 3, [large] * 3], ["views", "keypoints"])
    assert picture.shape[1] == 3 * 96 + 2 * 4
    assert (picture == 10).all(-1).any() and (picture == 128).all(-1).sum() > 3 * 96 * 96 * 0.9
    assert sheet([[small]], ["a"], height=40).shape[1] == 40
    with pytest.raises(ValueError, match="titles"):
        sheet([[small]], [])


@pytest.mark.parametrize("azimuth", [0, 33, 90, 145, 200, 300])
def test_plot_keeps_the_box_in_the_picture_and_points_inside_of_it(azimuth):
    corners = BOX.corners()
    picture = plot3d(corners, None, BOX, azimuth, 200)
    assert picture.shape == (200, 200, 3) and picture.dtype == np.uint8
    seen = 0
    for colour in palette(8).astype(int):
        near = (np.abs(picture.astype(int) - colour) < 20).all(-1)
        seen += near.sum() > 8
    assert seen >= 6, "discs on the corners, some may hide others"
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == border[0]).all(), "nothing is cut off"


def disc_at(point, azimuth, size=300):
    picture = plot3d(torch.tensor([point]), None, BOX, azimuth, size)
    return centre_of(picture, palette(1)[0].astype(int), 12)[0]


def test_plot_has_up_upwards_and_turns_the_right_way():
    low, high = disc_at([0.0, 0.6, 0.1], 0), disc_at([0.0, 0.6, 0.3], 0)
    assert high[1] < low[1] - 20 and abs(high[0] - low[0]) < 1
    # Seen from +x (azimuth 0), +y is to the right; seen from +y (90), +x is to the left.
    assert disc_at([0.0, 0.75, 0.2], 0)[0] > disc_at([0.0, 0.45, 0.2], 0)[0] + 20
    assert disc_at([0.2, 0.6, 0.2], 90)[0] < disc_at([-0.2, 0.6, 0.2], 90)[0] - 20


def test_plot_draws_near_points_over_far_ones():
    # On one ray of the plot's camera through the box's middle: from azimuth 0, 24 degrees up.
    step = 0.1 * np.array([np.cos(np.radians(24)), 0, np.sin(np.radians(24))])
    middle = np.array([0.0, 0.6, 0.2])
    for points, top in (([middle + step, middle - step], 0), ([middle - step, middle + step], 1)):
        assert (plot3d(np.array(points), None, BOX, 0, 200)[100, 100] == palette(2)[top]).all()


def test_plot_leaves_out_points_that_are_none():
    points = np.array([[np.nan, 0, 0], [1e6, 0, 0], [0, np.inf, 0]])
    empty = plot3d(np.zeros((0, 3)), None, BOX, 20, 100)
    assert (plot3d(points, [1, 1, 1], BOX, 20, 100) == empty).all(), "not a number, behind the lens, infinite"


def test_a_skeleton_has_its_bones_between_joints_and_a_colour_for_each_group():
    uv = np.array([[10.0, 10.0], [50.0, 10.0], [10.0, 50.0], [np.nan, 5.0]])
    drawn = draw_skeleton(GREY, uv, [(0, 1), (0, 2), (2, 3)], (0, 1, 2, 2), scale=2)
    first, across, down = palette(3)
    assert drawn.shape == (128, 128, 3)
    middle, count = centre_of(drawn, across)
    assert abs(middle[1] - 20) < 1.5 and 40 < middle[0] < 100 and count > 40, "the bone to the right"
    middle, count = centre_of(drawn, down)
    assert abs(middle[0] - 20) < 1.5 and 40 < middle[1] < 100 and count > 40, "the bone downwards, and none to nowhere"
    assert (drawn[60:, 60:] == 128).all()
    assert (draw_skeleton(GREY, np.full((4, 2), np.nan), [(0, 1)], (0, 1, 2, 2)) == GREY).all()


def test_a_turning_plot_joins_points_by_bones():
    points = [[-0.2, 0.6, 0.2], [0.2, 0.6, 0.2]]
    plain, joined = plot3d(points, None, BOX, azimuth=90.0), plot3d(points, None, BOX, azimuth=90.0, bones=[(0, 1)])
    changed = (plain != joined).any(-1)
    rows, columns = np.nonzero(changed)
    assert np.ptp(columns) > 5 * np.ptp(rows) and changed.sum() > 100
