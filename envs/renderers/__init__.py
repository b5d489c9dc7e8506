"""Renderers: from a synced visual model to images of all its cameras. ``gl`` is OpenGL, ``warp`` a ray tracer.

Both have one small interface, :class:`Renderer`. Nothing is initialised before the first image is asked for, so that an
environment can be built, pickled and sent to a worker process without any OpenGL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from envs.errors import unknown
from envs.visual_model import VisualModel

RENDERERS = ("auto", "gl", "warp")


class Renderer(Protocol):
    """What a renderer does. Images are fresh arrays, row 0 is the top row."""

    name: str

    def render(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """(V, height, width, 3) uint8: what each camera sees."""

    def render_many(self, visuals: Sequence[VisualModel], height: int, width: int) -> np.ndarray:
        """(N, V, height, width, 3) uint8: the same for N synced models that are equal but for their state."""

    def segment(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """(V, height, width) int32: the geom id that each pixel shows, -2 for a flex, -1 for nothing."""

    def close(self) -> None:
        """Free what was allocated; calling it again, or rendering again afterwards, is allowed."""


def make_renderer(kind: str = "auto", device: str | None = None, threads: int = 1) -> Renderer:
    """Make a renderer; it allocates nothing before its first image.

    :param kind: "gl", "warp", or "auto": gl where OpenGL can be had, else warp where it is installed.
    :param device: of warp: "cpu", "cuda" or "cuda:0"; None takes Warp's own choice.
    :param threads: of warp on a CPU, for several worlds.
    :raises UserError: for an unknown kind.
    """
    if kind == "gl":
        from envs.renderers.gl import GLRenderer

        return GLRenderer()
    if kind == "warp":
        from envs.renderers.warp import WarpRenderer

        return WarpRenderer(device, threads)
    if kind == "auto":
        from envs.renderers.auto import AutoRenderer

        return AutoRenderer()
    raise unknown("renderer", kind, RENDERERS)


def chosen_backend(kind: str) -> str:
    """The backend that a kind of renderer stands for on this machine: "auto" is gl where OpenGL can be had.

    This opens OpenGL in the calling process.

    :param kind: one of :data:`RENDERERS`.
    :raises UserError: for an unknown kind, or "auto" where there is neither.
    """
    renderer = make_renderer(kind)
    return renderer.choose().name if kind == "auto" else renderer.name  # type: ignore[attr-defined]


def gl_info() -> dict[str, str | bool]:
    """What OpenGL says about itself: platform, vendor, renderer (the GL_RENDERER string), version, software.

    This opens OpenGL in the calling process. A process that is going to fork workers should ask in a subprocess.

    :raises UserError: where OpenGL cannot be had, in one line with the fix.
    """
    from envs.renderers import gl, opengl

    info = gl.process_info()
    return {**info, "software": opengl.is_software(info)}
