"""Ray tracing with MuJoCo Warp: needs no OpenGL at all. It draws geoms and flexes, but no sites, tendons or skins.

The first image in a fresh installation takes a while: the kernels are compiled and kept in Warp's cache on disk.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """Renders with MuJoCo Warp's batch ray tracer. Equal visual models share buffers.

    :param device: Warp's name of the device, "cpu" or "cuda:0"; None takes Warp's own choice.
    :param threads: on a CPU, threads among which the worlds of :meth:`render_many` are divided.
    """

    name = "warp"

    def __init__(self, device: str | None = None, threads: int = 1) -> None:
        self.device, self.threads = device, threads
        self._leases: set[tuple] = set()

    def render(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.render`.

        :raises UserError: where mujoco-warp is not installed, or cannot do this model.
        """
        return self.render_many([visual], height, width)[0]

    def render_many(self, visuals: Sequence[VisualModel], height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.render_many`: all worlds in one launch for each thread."""
        packed = np.concatenate([scene.colours() for scene in self.trace(visuals, height, width)])
        return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)

    def segment(self, visual: VisualModel, height: int, width: int) -> np.ndarray:
        """See :meth:`envs.renderers.Renderer.segment`."""
        (scene,) = self.trace([visual], height, width)
        hits = scene.hits()[0]
        others = np.where(hits[..., 1] == mujoco.mjtObj.mjOBJ_FLEX, -2, -1)
        return np.where(hits[..., 1] == mujoco.mjtObj.mjOBJ_GEOM, hits[..., 0], others).astype(np.int32)

    def trace(self, visuals: Sequence[VisualModel], height: int, width: int) -> list[_SharedScene]:
        """Trace all views of several worlds; the images stay on the device until they are asked for.

        :param visuals: synced models of one kind.
        :return: one scene for each part of the worlds, in their order; they hold the images until the next call.
        :raises UserError: where mujoco-warp is not installed, cannot do this model, or the device is not there.
        """
        parts = np.array_split(np.arange(len(visuals)), min(self.threads, len(visuals)))
        groups = [[visuals[world] for world in part] for part in parts]
        scenes = [self._shared_scene(group, height, width, part) for part, group in enumerate(groups)]
        if len(scenes) == 1 or not all(scene.is_warm for scene in scenes):
            for scene, group in zip(scenes, groups, strict=True):  # Warp builds and loads kernels in one thread only
                scene.trace(group)
        else:
            with ThreadPoolExecutor(len(scenes)) as pool:  # the kernels run without Python's lock
                list(pool.map(_SharedScene.trace, scenes, groups))
        return scenes

    def close(self) -> None:
        """Give the shared buffers back; they are freed with their last user. Idempotent."""
        leases, self._leases = self._leases, set()
        for lease in leases:
            _give_back(lease)

    def __getstate__(self) -> dict[str, Any]:
        return {"device": self.device, "threads": self.threads, "_leases": set()}

    def __del__(self) -> None:
        if getattr(self, "_leases", None):
            self.close()

    def _shared_scene(self, visuals: Sequence[VisualModel], height: int, width: int, part: int) -> _SharedScene:
        lease = (os.getpid(), visuals[0].key, height, width, len(visuals), part, self.device)
        if lease not in self._leases:
            if not any(lease[:2] == held[:2] for held in self._leases):
                self.close()  # another model or process: what was held is of no more use
            if lease not in _scenes:
                _scenes[lease] = _SharedScene(visuals, height, width, self.device)
            _scenes[lease].users += 1
            self._leases.add(lease)
        return _scenes[lease]


class _SharedScene:
    """Warp's model, data and images of some worlds with equal visual models, for one image size."""

    def __init__(self, visuals: Sequence[VisualModel], height: int, width: int, device: str | None) -> None:
        self.warp, self.mjw = _import_warp()
        self.users, self.worlds, self.is_warm = 0, len(visuals), False
        first = visuals[0]
        self.shape = (self.worlds, len(first.camera_ids), height, width)
        self._lock = threading.Lock()
        try:
            with self.warp.ScopedDevice(_find_device(self.warp, device)):
                self.model = self.mjw.put_model(first.model)
                for name in _MODEL_FIELDS:  # room for what each world has of its own
                    setattr(self.model, name, self._for_all_worlds(getattr(self.model, name)))
                self.data = self.mjw.put_data(first.model, first.data, nworld=self.worlds)
                self.context = self.mjw.create_render_context(
                    first.model,
                    nworld=self.worlds,
                    cam_res=(width, height),
                    cam_active=[int(camera) for camera in first.camera_ids],
                    render_rgb=True,
                    render_seg=True,
                    render_depth=False,
                    render_skybox=True,
                    use_shadows=first.quality == "full",
                )
        except (NotImplementedError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the renderer warp cannot do this model ({reason}); choose the renderer gl") from error

    def trace(self, visuals: Sequence[VisualModel]) -> None:
        """Trace every view of every world."""
        with self._lock, self.warp.ScopedDevice(self.data.geom_xpos.device):
            for name in _MODEL_FIELDS:
                self._write(getattr(self.model, name), [getattr(visual.model, name) for visual in visuals])
            for name in _DATA_FIELDS:
                self._write(getattr(self.data, name), [getattr(visual.data, name) for visual in visuals])
            self.mjw.refit_bvh(self.model, self.data, self.context)
            self.mjw.render(self.model, self.data, self.context)
            self.is_warm = True

    def colours(self) -> np.ndarray:
        """(N, V, height, width) uint32 packed colours of the last trace, a copy on the host."""
        return self.context.rgb_data.numpy().reshape(self.shape).copy()

    def hits(self) -> np.ndarray:
        """(N, V, height, width, 2) ids and types of what the last trace hit, a copy on the host."""
        return self.context.seg_data.numpy().reshape(*self.shape, 2).copy()

    def packed(self) -> Any:
        """(N, V height width) Warp array of packed colours on the device: valid until the next trace."""
        return self.context.rgb_data

    def _for_all_worlds(self, array: Any) -> Any:
        values = np.repeat(array.numpy()[:1], self.worlds, axis=0)
        return self.warp.array(values, dtype=array.dtype)

    def _write(self, array: Any, values: Sequence[np.ndarray]) -> None:
        if values[0].size == 0:
            return
        view = array.numpy()  # on the CPU this is the array's own memory, on a GPU a copy
        for world, value in enumerate(values):
            np.copyto(view[world], value.reshape(view.shape[1:]))
        if not array.device.is_cpu:
            array.assign(view)


def _find_device(warp: Any, name: str | None) -> Any:
    """:raises UserError: for a device that is not there."""
    try:
        return warp.get_device(name)
    except (RuntimeError, ValueError):
        there = ", ".join(device.alias for device in warp.get_devices())
        raise UserError(f"the renderer warp was asked for the device '{name}', but there are: {there}") from None


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
