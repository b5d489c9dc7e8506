"""Choose a renderer when the first image is asked for: OpenGL where it can be had, else the ray tracer."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.visual_model import VisualModel


class AutoRenderer:
    """``gl`` where OpenGL works, else ``warp`` where it is installed."""

    def __init__(self) -> None:
        self._chosen: Any = None

    @property
    def name(self) -> str:
        """"auto" until the first image, then the chosen renderer's name."""
        return "auto" if self._chosen is None else self._chosen.name

    def render(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :class:`envs.renderers.Renderer`."""
        return self._choose().render(visual, height, width)

    def segment(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :class:`envs.renderers.Renderer`."""
        return self._choose().segment(visual, height, width)

    def close(self) -> None:
        """See :class:`envs.renderers.Renderer`."""
        if self._chosen is not None:
            self._chosen.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_chosen": None}  # the process that unpickles this may have another choice

    def _choose(self) -> Any:
        if self._chosen is None:
            from envs.renderers.gl import GLRenderer

            self._chosen = GLRenderer()
        return self._chosen
