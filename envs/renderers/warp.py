"""Ray tracing with MuJoCo Warp: needs no OpenGL at all. It draws geoms and flexes, but no sites, tendons or skins.

The first image in a fresh installation takes a while: the kernels are compiled and kept in Warp's cache on disk.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from typing import Any

import mujoco
import numpy as np

from envs.errors import UserError
from envs.visual_model import VisualModel

FIX = 'type: pip install "mujoco-warp == 3.16.*"'
# What VisualModel.sync may change after a scene has been built and that shows: copied before every image.
_MODEL_FIELDS = (
    "geom_size",
    "geom_rgba",
    "geom_matid",
    "mat_rgba",
    "light_active",
    "light_ambient",
    "light_diffuse",
    "light_specular",
)
_DATA_FIELDS = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir", "flexvert_xpos")


class WarpRenderer:
    """Renders with MuJoCo Warp's batch ray tracer, one world at a time. Equal visual models share buffers."""

    name = "warp"

    def __init__(self) -> None:
        self._leases: set[tuple] = set()

    def render(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.render`.

        :raises UserError: where mujoco-warp is not installed, or cannot do this model.
        """
        packed = self._shared_scene(visual, height, width).trace(visual)[0]
        return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)

    def segment(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.segment`."""
        hits = self._shared_scene(visual, height, width).trace(visual)[1]
        return np.where(hits[..., 1] == mujoco.mjtObj.mjOBJ_GEOM, hits[..., 0], -1).astype(np.int32)

    def close(self) -> None:
        """Give the shared buffers back; they are freed with their last user. Idempotent."""
        leases, self._leases = self._leases, set()
        for lease in leases:
            _give_back(lease)

    def __getstate__(self) -> dict[str, Any]:
        return {"_leases": set()}

    def __del__(self) -> None:
        if getattr(self, "_leases", None):
            self.close()

    def _shared_scene(self, visual: VisualModel, height: int, width: int) -> _SharedScene:
        lease = (os.getpid(), visual.key, height, width)
        if lease not in self._leases:
            if not any(lease[:2] == held[:2] for held in self._leases):
                self.close()  # another model or process: what was held is of no more use
            if lease not in _scenes:
                _scenes[lease] = _SharedScene(visual, height, width)
            _scenes[lease].users += 1
            self._leases.add(lease)
        return _scenes[lease]


class _SharedScene:
    """Warp's model, data and images for one visual model and one image size."""

    def __init__(self, visual: VisualModel, height: int, width: int) -> None:
        self.warp, self.mjw = _import_warp()
        self.users = 0
        self.shape = (len(visual.camera_ids), height, width)
        self._lock = threading.Lock()
        try:
            self.model = self.mjw.put_model(visual.model)
            self.data = self.mjw.put_data(visual.model, visual.data)
            self.context = self.mjw.create_render_context(
                visual.model,
                cam_res=(width, height),
                cam_active=[int(camera) for camera in visual.camera_ids],
                render_rgb=True,
                render_seg=True,
                render_depth=False,
                render_skybox=True,
                use_shadows=visual.quality == "full",
            )
        except (NotImplementedError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the renderer warp cannot do this model ({reason}); choose the renderer gl") from error

    def trace(self, visual: VisualModel) -> tuple[np.ndarray, np.ndarray]:
        """Packed colours (V, height, width) uint32, and object ids and types (V, height, width, 2) of what is hit."""
        with self._lock:
            for name in _MODEL_FIELDS:
                self._write(getattr(self.model, name), getattr(visual.model, name))
            for name in _DATA_FIELDS:
                self._write(getattr(self.data, name), getattr(visual.data, name))
            self.mjw.refit_bvh(self.model, self.data, self.context)
            self.mjw.render(self.model, self.data, self.context)
            colours = self.context.rgb_data.numpy().reshape(self.shape).copy()
            return colours, self.context.seg_data.numpy().reshape(*self.shape, 2).copy()

    def _write(self, array: Any, values: np.ndarray) -> None:
        if values.size == 0:
            return
        view = array.numpy()  # on the CPU this is the array's own memory, on a GPU a copy
        np.copyto(view, values.reshape(view.shape[1:]))
        if not array.device.is_cpu:
            array.assign(view)


_scenes: dict[tuple, _SharedScene] = {}


def _give_back(lease: tuple) -> None:
    scene = _scenes.get(lease)
    if scene is not None:
        scene.users -= 1
        if scene.users == 0:
            del _scenes[lease]


def _import_warp() -> tuple[Any, Any]:
    if importlib.util.find_spec("mujoco_warp") is None:
        raise UserError(f"the renderer warp needs mujoco-warp, which is not installed; {FIX}")
    import warp

    warp.config.log_level = max(warp.config.log_level, warp.LOG_ERROR)  # no banner, no line per kernel
    import mujoco_warp

    return warp, mujoco_warp
