"""OpenGL renderer. A process has one OpenGL context, made when first needed, and shared by all of its environments.

Threads take turns. A process that forks after it has rendered can render in the child only with Mesa's software
renderer; with a GPU's driver, start workers by "spawn" or "forkserver", or before rendering.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import mujoco
import numpy as np

from envs.errors import UserError
from envs.renderers import opengl
from envs.visual_model import VisualModel

_WIDEST = 8192
"""Pixels of the widest buffer: beyond what a driver allows, what is read back is noise, and nobody says so."""
_COSTLY_EFFECTS = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_HAZE,
    mujoco.mjtRndFlag.mjRND_FOG,
)


class GLRenderer:
    """Renders with MuJoCo's own OpenGL renderer. Environments whose visual models are equal share its buffers."""

    name = "gl"

    def __init__(self) -> None:
        self._lease: tuple[int, str] | None = None  # process id and key of the shared scene that this one uses

    def render(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.render`.

        :raises NoOpenGL: where OpenGL cannot be had.
        """
        return self._shared_scene(visual).draw(visual, height, width)

    def render_many(self, visuals: Sequence[VisualModel], height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.render_many`: one after the other."""
        return np.stack([self.render(visual, height, width) for visual in visuals])

    def segment(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.segment`."""
        scene = self._shared_scene(visual)
        colours = scene.draw(visual, height, width, segmentation=True).astype(np.int32)
        return scene.geom_of_segment()[colours[..., 0] + (colours[..., 1] << 8) + (colours[..., 2] << 16)]

    def close(self) -> None:
        """Give the shared buffers back; they are freed with their last user. Idempotent."""
        lease, self._lease = self._lease, None
        if lease is not None and _gl is not None and lease[0] == _gl.pid == os.getpid():
            _gl.give_back(lease[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"_lease": None}

    def __del__(self) -> None:
        if getattr(self, "_lease", None) is not None:
            self.close()

    def _shared_scene(self, visual: VisualModel) -> _SharedScene:
        gl = _process_gl()
        if self._lease != (gl.pid, visual.key):
            self.close()
            gl.lend(visual)
            self._lease = (gl.pid, visual.key)
        return gl.scenes[visual.key]


def process_info() -> dict[str, str]:
    """What this process's OpenGL says about itself: platform, vendor, renderer, version. Opens it if need be.

    :raises NoOpenGL: where OpenGL cannot be had.
    """
    return dict(_process_gl().info)


class _SharedScene:
    """MuJoCo's scene and OpenGL buffers for one visual model, used by all environments in the process that have it."""

    def __init__(self, gl: _ProcessGL, visual: VisualModel) -> None:
        self.gl = gl
        self.users = 0
        model = visual.model
        room = 1000 + 2 * (model.ngeom + model.nsite) + 100 * model.ntendon + model.nflexvert
        self.scene = mujoco.MjvScene(model, maxgeom=room)
        if visual.quality == "light":
            for effect in _COSTLY_EFFECTS:
                self.scene.flags[effect] = False
        self.option = mujoco.MjvOption()
        if not visual.draws_sites:
            self.option.sitegroup[:] = 0
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.size = (0, 0)
        self.context: mujoco.MjrContext | None = None

    def draw(self, visual: VisualModel, height: int, width: int, segmentation: bool = False) -> np.ndarray:
        """(V, height, width, 3) uint8. As many views as fit are drawn side by side and read back at once."""
        images = np.empty((len(visual.camera_ids), height, width, 3), np.uint8)
        fitting = max(1, _WIDEST // width)
        with self.gl.current():
            self._prepare(visual.model, height, min(fitting, len(images)) * width)
            self.scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = segmentation
            self.scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = segmentation
            for start in range(0, len(images), fitting):
                cameras = visual.camera_ids[start : start + fitting]
                strip = self._strip(visual, cameras, height, width)
                images[start : start + fitting] = strip.reshape(height, len(cameras), width, 3).transpose(1, 0, 2, 3)
        return images

    def _strip(self, visual: VisualModel, cameras: np.ndarray, height: int, width: int) -> np.ndarray:
        """(height, cameras * width, 3) views side by side."""
        strip = np.empty((height, len(cameras) * width, 3), np.uint8)
        for view, camera in enumerate(cameras):
            self._look(visual, int(camera))
            mujoco.mjr_render(mujoco.MjrRect(view * width, 0, width, height), self.scene, self.context)
        # RGB only: reading the depth buffer as well would double the cost.
        mujoco.mjr_readPixels(strip, None, mujoco.MjrRect(0, 0, len(cameras) * width, height), self.context)
        return strip[::-1]  # OpenGL's row 0 is the bottom row: turned over here and nowhere else

    def geom_of_segment(self) -> np.ndarray:
        """(n,) geom id of each colour id of the last segmentation; colour 0 is no geom, and -2 a flex."""
        geoms = np.full(self.scene.ngeom + 1, -1, np.int32)
        for geom in self.scene.geoms[: self.scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                geoms[geom.segid + 1] = geom.objid
            elif geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_FLEX:
                geoms[geom.segid + 1] = -2
        return geoms

    def free(self) -> None:
        """Free the OpenGL buffers, with their context current."""
        if self.context is not None:
            with self.gl.current():
                self.context.free()
        self.context = None

    def _prepare(self, model: mujoco.MjModel, height: int, width: int) -> None:
        """Have buffers of at least this size, and draw into them."""
        if self.context is None:
            # The size is read from the model when the buffers are made. Never below 64: some drivers refuse it.
            self.size = (max(height, 64), max(width, 64))
            model.vis.global_.offheight, model.vis.global_.offwidth = self.size
            self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        elif height > self.size[0] or width > self.size[1]:
            self.size = (max(height, self.size[0]), max(width, self.size[1]))
            mujoco.mjr_resizeOffscreen(self.size[1], self.size[0], self.context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        if self.context.currentBuffer != mujoco.mjtFramebuffer.mjFB_OFFSCREEN:
            raise UserError(f"this OpenGL has no offscreen buffers; {opengl.FIX}")

    def _look(self, visual: VisualModel, camera: int) -> None:
        """Fill the scene as seen from one camera: the headlight and the order of drawing depend on it."""
        shown = not visual.background_only  # these belong to no single body, so they are hidden as a whole
        for groups in (self.option.tendongroup, self.option.flexgroup, self.option.skingroup):
            groups[:3] = shown
        self.camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            visual.model, visual.data, self.option, None, self.camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene
        )


class _ProcessGL:
    """This process's OpenGL context and all that lives in it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.scenes: dict[str, _SharedScene] = {}
        self._lock = threading.RLock()
        self.context, self.info = opengl.open_context()
        opengl.release(self.context)
        atexit.register(self.free)  # after MuJoCo's own hook, so it runs before that one shuts the display down

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Inside this context OpenGL calls work, on whichever thread this is."""
        with self._lock:
            self.context.make_current()
            try:
                yield
            finally:
                opengl.release(self.context)

    def lend(self, visual: VisualModel) -> None:
        if visual.key not in self.scenes:
            self.scenes[visual.key] = _SharedScene(self, visual)
        self.scenes[visual.key].users += 1

    def give_back(self, key: str) -> None:
        scene = self.scenes.get(key)
        if scene is not None:
            scene.users -= 1
            if scene.users == 0:
                self.scenes.pop(key).free()

    def free(self) -> None:
        """Free everything, buffers before their context. Does nothing in a process forked from the one that made it."""
        if self.pid != os.getpid() or self.context is None:
            return
        while self.scenes:
            self.scenes.popitem()[1].free()
        self.context.free()
        self.context = None


_gl: _ProcessGL | None = None
_forked_away: list[_ProcessGL] = []  # a parent's OpenGL objects: freeing them in the child would break the parent's
_failure: str | None = None


def _process_gl() -> _ProcessGL:
    global _gl, _failure
    if _gl is not None and _gl.pid != os.getpid():
        if not opengl.survives_fork(_gl.info):
            raise UserError(
                f"OpenGL ({_gl.info['renderer']}) was used before this process was forked: start workers by 'spawn' or "
                "'forkserver', or before the first image is rendered"
            )
        _forked_away.append(_gl)
        _gl = None
    if _gl is None or _gl.context is None:
        if _failure is not None:  # probing again would take long and end the same way
            raise opengl.NoOpenGL(_failure)
        try:
            _gl = _ProcessGL()
        except opengl.NoOpenGL as error:
            _failure = str(error)
            raise
    return _gl
