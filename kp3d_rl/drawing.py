"""Pictures of keypoints: discs on images, the workspace box, a 3D plot, tiles and titled sheets.

Images are (H, W, 3) uint8 arrays, RGB, row 0 at the top; every function returns a new one. Positions are pixels with
centres at half-integers, as everywhere in :mod:`kp3d_rl`. Arguments may be arrays or CPU tensors without gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kp3d_rl.cameras import Workspace

PAPER = (250, 250, 252)
INK = (40, 42, 54)
_OUTLINE = np.array([18, 18, 24], np.float32)
_AXES = (("x", (214, 56, 56)), ("y", (40, 160, 70)), ("z", (50, 90, 220)))
_ELEVATION = math.radians(24)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def fitting_font(text: str, size: int, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font of at most ``size`` and at least 7 in which the text is no wider than ``width`` pixels."""
    while size > 7 and _font(size).getlength(text) > width:
        size -= 1
    return _font(size)


@lru_cache
def _colours(count: int) -> np.ndarray:
    levels = np.linspace(0, 255, 16)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(rgb / 255)
    vivid = (lab[:, 0] > 0.45) & (lab[:, 0] < 0.92) & (np.hypot(lab[:, 1], lab[:, 2]) > 0.12)
    rgb, lab = rgb[vivid], lab[vivid]
    chosen = [int(np.argmin(np.abs(rgb - (255, 51, 51)).sum(-1)))]  # a clear red first
    distance = np.linalg.norm(lab - lab[chosen[0]], axis=-1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=-1))
    return rgb[chosen].astype(np.uint8)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to Oklab (Ottosson, 2020), where distances are those that people see."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
              [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
              [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(linear @ np.array(to_lms).T) @ np.array(to_lab).T


def palette(count: int) -> np.ndarray:
    """Distinct vivid colours; keypoint k has the same one whatever the count.

    Each next colour is the one farthest, as people see it, from those before (of grey and of very dark ones none).

    :return: (count, 3) uint8.
    """
    return _colours(max(count, 1))[:count].copy()


def draw_keypoints(image: object, uv: object, confidence: object = None, scale: int = 1) -> np.ndarray:
    """The image, enlarged, with one disc for each keypoint: its own colour, its area by confidence, a dark outline.

    :param image: (H, W, 3) uint8.
    :param uv: (K, 2), pixels of ``image``; points outside or not finite are left out.
    :param confidence: (K,), any scale: sizes are relative to the largest, which is drawn last. None: equal.
    :param scale: how many times to enlarge.
    :return: (scale * H, scale * W, 3) uint8.
    """
    canvas = _enlarge(_as_image(image), scale)
    uv = np.asarray(uv, np.float64) * scale
    size = _relative(confidence, len(uv))
    radius = 0.027 * math.sqrt(canvas.shape[0] * canvas.shape[1]) * np.sqrt(0.16 + 0.84 * size)
    colours = palette(len(uv))
    for k in np.argsort(size, kind="stable"):
        _disc(canvas, uv[k], radius[k], colours[k])
    return canvas


def draw_marker(
    image: object, uv: object, colour: Sequence[int] = (255, 255, 255), scale: int = 1, label: str = ""
) -> np.ndarray:
    """The image, enlarged, with a ring and a cross hair at one point, such as the true target.

    :param uv: (2,), pixels of ``image``; nothing is drawn where it is not finite.
    :param label: written beside the ring in white, on the side where there is room.
    """
    canvas = _enlarge(_as_image(image), scale)
    u, v = np.asarray(uv, np.float64) * scale
    if not np.isfinite([u, v]).all():
        return canvas
    radius = 0.035 * math.sqrt(canvas.shape[0] * canvas.shape[1])
    ring = [(u + radius * math.cos(a), v + radius * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 33)]
    ticks = [
        ((u + du * radius * 0.7, v + dv * radius * 0.7), (u + du * radius * 1.5, v + dv * radius * 1.5))
        for du, dv in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    lines = list(zip(ring[:-1], ring[1:], strict=True)) + ticks
    for ink, width in ((tuple(_OUTLINE), 3.4), (colour, 1.8)):
        canvas = _stroke(canvas, lines, ink, width)
    return _write(canvas, (u, v), 1.7 * radius, label) if label else canvas


def draw_box(
    image: object,
    uv: object,
    edges: Sequence[tuple[int, int]],
    colour: Sequence[int] = (255, 214, 64),
    scale: int = 1,
    width: float = 1.5,
) -> np.ndarray:
    """The image, enlarged, with the wire frame of a box.

    :param uv: (8, 2), pixels of ``image``, of the corners; edges to a corner that is not finite are left out, so set
        corners behind the camera to NaN.
    :param edges: pairs of corners, as of :meth:`kp3d_rl.cameras.Workspace.edges`.
    """
    corners = np.asarray(uv, np.float64) * scale
    lines = [(corners[a], corners[b]) for a, b in edges]
    return _stroke(_enlarge(_as_image(image), scale), lines, colour, width)


def draw_skeleton(
    image: object, uv: object, bones: Sequence[tuple[int, int]], groups: Sequence[int], scale: int = 1
) -> np.ndarray:
    """The image, enlarged, with bones and their joints, each group (a finger) in a colour of its own.

    :param image: (H, W, 3) uint8.
    :param uv: (K, 2), pixels of ``image``; what is not finite is left out.
    :param bones: pairs of keypoints; a bone has the colour of its second one.
    :param groups: K numbers.
    :param scale: how many times to enlarge.
    :return: (scale * H, scale * W, 3) uint8.
    """
    canvas, uv = _enlarge(_as_image(image), scale), np.asarray(uv, np.float64) * scale
    colours = _grouped_colours(groups, len(uv))
    width = max(1.0, 0.008 * math.sqrt(canvas.shape[0] * canvas.shape[1]))
    for ink, wide in (("outline", 2.2 * width), ("colour", width)):
        for first, second in bones:
            colour = _OUTLINE if ink == "outline" else colours[second]
            canvas = _stroke(canvas, [(uv[first], uv[second])], colour, wide)
    for place, colour in zip(uv, colours, strict=True):
        _disc(canvas, place, 1.3 * width, colour)
    return canvas


def caption(image: object, text: str) -> np.ndarray:
    """The image with a line of text above it, in smaller letters where it is long."""
    image = _as_image(image)
    size = max(11, min(20, image.shape[1] // 16))
    strip = Image.new("RGB", (image.shape[1], size + 8), PAPER)
    font = fitting_font(text, size, image.shape[1] - 8)
    ImageDraw.Draw(strip).text((4, (size + 8) // 2), text, fill=INK, font=font, anchor="lm")
    return np.concatenate([np.asarray(strip), image])


def resize(image: object, height: int, smooth: bool = True) -> np.ndarray:
    """A copy of that height in the same proportions.

    :param smooth: False shows the pixels as squares when enlarging.
    """
    image = _as_image(image)
    if image.shape[0] == height:
        return image.copy()
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((width, height), how)).copy()


def tile(
    images: Sequence[object], columns: int | None = None, gap: int = 4, background: Sequence[int] = PAPER
) -> np.ndarray:
    """Images of any sizes side by side, each in the top left of its cell.

    :param images: at least one.
    :param columns: how many in a row; None puts all in one.
    :param gap: pixels between cells.
    """
    images = [_as_image(image) for image in images]
    if not images:
        raise ValueError("tile needs at least one image")
    columns = min(columns or len(images), len(images))
    rows = -(-len(images) // columns)
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    sheet = np.empty((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.uint8)
    sheet[:] = background
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def sheet(rows: Sequence[Sequence[object]], titles: Sequence[str], height: int | None = None) -> np.ndarray:
    """Titled rows of images, one above the other.

    :param rows: images of each row; smaller ones are enlarged to the tallest of all.
    :param titles: one for each row.
    :param height: rows of pixels for every image; None takes the tallest.
    """
    if len(rows) != len(titles):
        raise ValueError(f"{len(rows)} rows of images need as many titles, not {len(titles)}")
    images = [[_as_image(image) for image in row] for row in rows]
    height = height or max(image.shape[0] for row in images for image in row)
    strips = [
        caption(tile([resize(image, height) for image in row]), title)
        for row, title in zip(images, titles, strict=True)
    ]
    return tile(strips, columns=1, gap=6)


def plot3d(
    points: object,
    confidence: object,
    workspace: Workspace,
    azimuth: float = 45.0,
    size: int = 384,
    bones: Sequence[tuple[int, int]] = (),
    groups: Sequence[int] | None = None,
) -> np.ndarray:
    """The keypoints in their workspace box, seen from above and the side: one frame of a turning 3D plot.

    The box stands on a grid, its axes red (x), green (y) and blue (z); each keypoint drops a line onto the grid.

    :param points: (K, 3) world metres; those not finite are left out.
    :param confidence: (K,) or None, as in :func:`draw_keypoints`.
    :param azimuth: degrees, direction from which to look, counted from +x towards +y.
    :param size: pixels, height and width.
    :param bones: pairs of keypoints that are joined by a line.
    :param groups: K numbers: equal ones have one colour, and points are as small as in :func:`draw_skeleton`.
    """
    centre, half = (np.asarray(side, np.float64) for side in (workspace.centre, workspace.half_extents))
    orbit = _Orbit(centre, half, math.radians(azimuth), size)
    points = np.asarray(points, np.float64).reshape(-1, 3)
    uv, depth = orbit(points)
    floor, _ = orbit(np.column_stack([points[:, :2], np.full(len(points), centre[2] - half[2])]))
    colours, share = _grouped_colours(groups, len(points)), _relative(confidence, len(points))
    canvas = _draw_scene(orbit, uv, floor, colours)
    for first, second in bones:
        canvas = _stroke(canvas, [(uv[first], uv[second])], colours[second], 0.008 * size)
    large = 0.026 if groups is None else 0.01
    radius = large * size * np.sqrt(0.16 + 0.84 * share) * orbit.distance / depth
    for k in np.argsort(-depth, kind="stable"):
        _disc(canvas, uv[k], radius[k], colours[k])
    return canvas


def _grouped_colours(groups: Sequence[int] | None, count: int) -> np.ndarray:
    """(count, 3) a colour for each keypoint, or for each group of them."""
    if groups is None:
        return palette(count)
    names = sorted(set(groups))
    return palette(len(names))[[names.index(group) for group in groups]]


class _Orbit:
    """A camera with mild perspective on a circle about a box, as near as keeps the box in the image from all sides."""

    def __init__(self, centre: np.ndarray, half: np.ndarray, azimuth: float, size: int) -> None:
        self.centre, self.half, self.size = centre, half, size
        sin, cos = math.sin(_ELEVATION), math.cos(_ELEVATION)
        towards = np.array([math.cos(azimuth) * cos, math.sin(azimuth) * cos, sin])
        right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
        self.axes = np.stack([right, np.cross(right, towards), -towards])  # OpenCV: right, down, forward
        reach, rise = math.hypot(half[0], half[1]), half[2]
        self.distance = 4.5 * float(np.linalg.norm(half))
        across = reach / math.sqrt((self.distance - rise * sin) ** 2 - (reach * cos) ** 2)  # farthest of all azimuths
        down = (rise * cos + reach * sin) / (self.distance - reach * cos + rise * sin)
        self.focal = 0.44 * size / max(across, down)

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) metres -> pixels (N, 2) and depth (N,); points at the lens or behind it become NaN."""
        local = (points - self.centre) @ self.axes.T
        depth = local[:, 2] + self.distance
        depth = np.where(depth > 0.05 * self.distance, depth, np.nan)
        return local[:, :2] / depth[:, None] * self.focal + self.size / 2, depth


def _draw_scene(orbit: _Orbit, uv: np.ndarray, floor: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Everything that lies behind the discs: floor grid, box, axes, and each point's line and shadow on the floor."""
    sheet = Image.new("RGB", (2 * orbit.size, 2 * orbit.size), PAPER)  # twice the size, then halved: smooth lines
    pen = ImageDraw.Draw(sheet)

    def line(a: np.ndarray, b: np.ndarray, colour: tuple[int, ...], width: int) -> None:
        pen.line([*(2 * a), *(2 * b)], fill=colour, width=width)

    corners = np.array([[1 if i & bit else -1 for bit in (4, 2, 1)] for i in range(8)])
    box, depth = orbit(orbit.centre + orbit.half * corners)
    pen.polygon([tuple(2 * box[i]) for i in (0, 2, 6, 4)], fill=(240, 241, 246))
    for start, end in _floor_grid(orbit):
        line(start, end, (214, 216, 226), 2)
    nearest = int(np.argmin(depth))
    for a, b in Workspace.edges():
        line(box[a], box[b], (205, 207, 218) if nearest in (a, b) else (150, 153, 170), 3)
    for name, colour, tip in ((*axis, box[bit]) for axis, bit in zip(_AXES, (4, 2, 1), strict=True)):
        line(box[0], tip, colour, 5)
        label = tip + 0.04 * orbit.size * (tip - box[0]) / max(float(np.linalg.norm(tip - box[0])), 1e-9)
        pen.text(tuple(2 * label), name, fill=colour, font=_font(max(20, orbit.size // 12)), anchor="mm")
    shadow = 0.016 * orbit.size
    for top, foot, colour in zip(uv, floor, colours, strict=True):
        if np.isfinite([*top, *foot]).all():
            pale = tuple(int(c) for c in 0.45 * colour + 0.55 * np.array(PAPER))
            line(top, foot, pale, 3)
            low, high = 2 * (foot - [shadow, shadow * 0.45]), 2 * (foot + [shadow, shadow * 0.45])
            pen.ellipse([*low, *high], fill=pale)
    return np.asarray(sheet.reduce(2)).copy()


def _floor_grid(orbit: _Orbit) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lines of a grid of about eight squares along the longer side of the box's floor."""
    step = orbit.half[:2].max() / 4
    low, high = orbit.centre - orbit.half, orbit.centre + orbit.half
    ends = []
    for axis in (0, 1):
        for value in np.arange(low[axis] + step, high[axis] - 0.2 * step, step):
            start, end = low.copy(), np.array([high[0], high[1], low[2]])
            start[axis] = end[axis] = value
            ends += [start, end]
    uv, _ = orbit(np.array(ends))
    return list(zip(uv[::2], uv[1::2], strict=True))


def _as_image(image: object) -> np.ndarray:
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"an image is a (H, W, 3) uint8 array, not {array.shape} {array.dtype}")
    return array


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """A copy, ``scale`` times as large."""
    return resize(image, scale * image.shape[0])


def _relative(confidence: object, count: int) -> np.ndarray:
    """(count,) in [0, 1], the largest 1."""
    if confidence is None:
        return np.ones(count)
    share = np.nan_to_num(np.asarray(confidence, np.float64)).clip(0)
    return share / max(float(share.max(initial=0.0)), 1e-12)


def _disc(canvas: np.ndarray, centre: np.ndarray, radius: float, colour: np.ndarray) -> None:
    """Paint an anti-aliased disc with a dark outline into the canvas."""
    if not np.isfinite([*centre, radius]).all():
        return
    outline = max(1.0, 0.2 * radius)
    reach = radius + outline + 1
    low = np.floor(centre - reach).clip(0).astype(int)
    high = np.ceil(centre + reach).clip(0, canvas.shape[1::-1]).astype(int)
    if (low >= high).any():
        return
    columns = np.arange(low[0], high[0], dtype=np.float32) + 0.5 - centre[0]
    rows = np.arange(low[1], high[1], dtype=np.float32) + 0.5 - centre[1]
    distance = np.hypot(columns, rows[:, None])[..., None]
    patch = canvas[low[1] : high[1], low[0] : high[0]]
    blend = patch + (_OUTLINE - patch) * (radius + outline + 0.5 - distance).clip(0, 1)
    blend += (colour - blend) * (radius + 0.5 - distance).clip(0, 1)
    patch[:] = np.rint(blend)


def _stroke(
    canvas: np.ndarray, lines: Sequence[tuple[object, object]], colour: Sequence[int], width: float
) -> np.ndarray:
    """The canvas with anti-aliased line segments; those with an end that is not finite are left out."""
    height, columns = canvas.shape[:2]
    mask = Image.new("L", (2 * columns, 2 * height))
    pen = ImageDraw.Draw(mask)
    for start, end in lines:
        ends = 2 * np.array([*start, *end], np.float64)
        if np.isfinite(ends).all():
            pen.line(ends.clip(-1e5, 1e5).tolist(), fill=255, width=max(1, round(2 * width)))
    picture = Image.fromarray(canvas)
    picture.paste(tuple(int(c) for c in colour), mask=mask.reduce(2))
    return np.asarray(picture).copy()


def _write(canvas: np.ndarray, point: tuple[float, float], offset: float, text: str) -> np.ndarray:
    """The canvas with white, outlined text that begins ``offset`` right of a point, or ends that far left of it."""
    picture, font = Image.fromarray(canvas), _font(max(11, canvas.shape[0] // 26))
    pen, (u, v) = ImageDraw.Draw(picture), point
    fits = u + offset + font.getlength(text) <= canvas.shape[1]
    place, anchor = ((u + offset, v), "lm") if fits else ((u - offset, v), "rm")
    outline = tuple(int(c) for c in _OUTLINE)
    pen.text(place, text, fill=PAPER, font=font, anchor=anchor, stroke_width=2, stroke_fill=outline)
    return np.asarray(picture).copy()
