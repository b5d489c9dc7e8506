"""Choose a renderer when the first image is asked for: OpenGL where it can be had, else the ray tracer."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.visual_model import VisualModel


class AutoRenderer:
    """``gl`` where OpenGL works, else ``warp`` where it is installed."""

    def __init__(self) -> None:
        self._chosen: Any = None

    @property
    def name(self) -> str:
        """The chosen renderer's name; auto until the first image."""
        return "auto" if self._chosen is None else self._chosen.name

    def render(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.render`.

        :raises NoOpenGL: where neither OpenGL nor warp can be had.
        """
        return self.choose().render(visual, height, width)

    def render_many(self, visuals: Sequence[VisualModel], height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.render_many`."""
        return self.choose().render_many(visuals, height, width)

    def segment(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.segment`."""
        return self.choose().segment(visual, height, width)

    def close(self) -> None:
        """Free what was allocated. Idempotent."""
        if self._chosen is not None:
            self._chosen.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_chosen": None}  # the process that unpickles this may have another choice

    def choose(self) -> Any:
        """The renderer that is taken here.

        :raises NoOpenGL: where neither OpenGL nor warp can be had.
        """
        if self._chosen is None:
            from envs.renderers import gl, opengl

            try:
                gl.process_info()
                self._chosen = gl.GLRenderer()
            except opengl.NoOpenGL:
                if importlib.util.find_spec("mujoco_warp") is None:
                    raise
                from envs.renderers.warp import WarpRenderer

                self._chosen = WarpRenderer()
        return self._chosen
