"""OpenGL renderer: EGL, or OSMesa where there is no EGL. One OpenGL context per process, made when first needed."""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from envs.errors import UserError
from envs.visual_model import VisualModel


class GLRenderer:
    """Renders with MuJoCo's own OpenGL renderer. Environments whose visual models are equal share its buffers."""

    name = "gl"

    def __init__(self) -> None:
        self._lease: tuple[int, str] | None = None  # process id and key of the shared scene that this one uses

    def render(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """(V, height, width, 3) uint8: what each camera sees; row 0 is the top."""
        scene = self._shared_scene(visual)
        return scene.draw(visual, height, width)

    def segment(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """(V, height, width) int32: the geom that each pixel shows, -1 for none."""
        scene = self._shared_scene(visual)
        colours = scene.draw(visual, height, width, segmentation=True).astype(np.int32)
        segments = colours[..., 0] + (colours[..., 1] << 8) + (colours[..., 2] << 16)
        return scene.geom_of_segment()[segments]

    def close(self) -> None:
        """Give the shared buffers back; they are freed with their last user. Idempotent."""
        lease, self._lease = self._lease, None
        if lease is not None and lease[0] == os.getpid():
            _process_gl().release(lease[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"_lease": None}

    def __del__(self) -> None:
        self.close()

    def _shared_scene(self, visual: VisualModel) -> _SharedScene:
        gl = _process_gl()
        if self._lease != (os.getpid(), visual.key):
            self.close()
            gl.acquire(visual)
            self._lease = (os.getpid(), visual.key)
        return gl.scenes[visual.key]


class _SharedScene:
    """MuJoCo's scene and OpenGL buffers for one visual model, used by all environments in the process that have it."""

    def __init__(self, gl: _ProcessGL, visual: VisualModel) -> None:
        self.gl = gl
        self.users = 0
        model = visual.model
        self.scene = mujoco.MjvScene(model, maxgeom=1000 + 2 * (model.ngeom + model.nsite) + 100 * model.ntendon)
        for flag in (mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_HAZE, mujoco.mjtRndFlag.mjRND_FOG):
            self.scene.flags[flag] = False
        self.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = visual.shadows
        self.option = mujoco.MjvOption()
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.size = (0, 0)
        self.context: mujoco.MjrContext | None = None

    def draw(self, visual: VisualModel, height: int, width: int, segmentation: bool = False) -> np.ndarray:
        """(V, height, width, 3) uint8. The views are drawn side by side and read back at once."""
        views = len(visual.camera_ids)
        with self.gl.current():
            self._prepare(visual.model, height, width * views)
            self.scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = segmentation
            self.scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = segmentation
            self._update(visual)
            for view, camera in enumerate(visual.camera_ids):
                self.camera.fixedcamid = int(camera)
                mujoco.mjv_updateCamera(visual.model, visual.data, self.camera, self.scene)
                mujoco.mjr_render(mujoco.MjrRect(view * width, 0, width, height), self.scene, self.context)
            strip = np.empty((height, views * width, 3), np.uint8)
            mujoco.mjr_readPixels(strip, None, mujoco.MjrRect(0, 0, views * width, height), self.context)
        # OpenGL's row 0 is the bottom row: flipped here and nowhere else.
        return np.ascontiguousarray(strip[::-1].reshape(height, views, width, 3).transpose(1, 0, 2, 3))

    def geom_of_segment(self) -> np.ndarray:
        """(n,) geom id of each colour id of the last segmentation; colour 0 is no geom."""
        geoms = np.full(self.scene.ngeom + 1, -1, np.int32)
        for geom in self.scene.geoms[: self.scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                geoms[geom.segid + 1] = geom.objid
        return geoms

    def free(self) -> None:
        """Free the OpenGL buffers, with their context current."""
        if self.context is not None:
            with self.gl.current():
                self.context.free()
        self.context = None

    def _prepare(self, model: mujoco.MjModel, height: int, width: int) -> None:
        if self.context is None:
            model.vis.global_.offheight, model.vis.global_.offwidth = height, width
            self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            self.size = (height, width)
        elif height > self.size[0] or width > self.size[1]:
            self.size = (max(height, self.size[0]), max(width, self.size[1]))
            mujoco.mjr_resizeOffscreen(self.size[1], self.size[0], self.context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)

    def _update(self, visual: VisualModel) -> None:
        shown = not visual.background_only
        self.option.tendongroup[:3] = shown
        self.option.flexgroup[:3] = shown
        self.option.skingroup[:3] = shown
        self.camera.fixedcamid = int(visual.camera_ids[0])
        mujoco.mjv_updateScene(
            visual.model, visual.data, self.option, None, self.camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene
        )


class _ProcessGL:
    """This process's OpenGL context and all that lives in it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.scenes: dict[str, _SharedScene] = {}
        self.lock = threading.RLock()
        self.context = _make_context()
        atexit.register(self.free)  # runs before MuJoCo's own hook, which shuts the display down

    def current(self):
        self.context.make_current()
        return self.lock

    def acquire(self, visual: VisualModel) -> None:
        scene = self.scenes.get(visual.key)
        if scene is None:
            scene = self.scenes[visual.key] = _SharedScene(self, visual)
        scene.users += 1

    def release(self, key: str) -> None:
        scene = self.scenes.get(key)
        if scene is not None:
            scene.users -= 1
            if scene.users == 0:
                self.scenes.pop(key).free()

    def free(self) -> None:
        while self.scenes:
            self.scenes.popitem()[1].free()
        if self.context is not None:
            self.context.free()
        self.context = None


_GL: _ProcessGL | None = None


def _process_gl() -> _ProcessGL:
    global _GL
    if _GL is None:
        _GL = _ProcessGL()
    return _GL


def _make_context():
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    from mujoco.egl import GLContext
    return GLContext(64, 64)
