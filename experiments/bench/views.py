"""Views per second: ours against Gymnasium's and MuJoCo's own renderers, once per camera."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from agents.vec_env import make_vec_env
from envs import registry
from envs.multiview import MultiViewObservation
from envs.renderers import make_renderer
from envs.visual_model import VisualModel
from experiments.bench.scenes import BenchScene, ring
from experiments.bench.timing import one_core, race
from experiments.training.building import cores

Row = dict[str, Any]
Draw = Callable[[], Sequence[np.ndarray]]
DEFAULTS = "Gymnasium's MujocoRenderer at its defaults"


def renderers(scene: BenchScene, seconds: float, device: str = "cpu") -> list[Row]:
    """Views per second of every way to render a scene, on one core and in turns.

    :param scene: what to look at.
    :param seconds: for each of them.
    :param device: of the benchmark; the ray tracer is timed on the CPU and, if this is a GPU, there too.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_core())
        ways = {name: stack.enter_context(way) for name, way in _ways(scene, device).items()}
        require_same_views({name: draw() for name, draw in ways.items()})
        times = race(ways, seconds)
    views = len(scene.cameras)
    return [
        {
            "scene": scene.name,
            "what": name,
            "milliseconds": 1e3 * taken,
            "views_per_second": views / taken,
            "times_defaults": times[DEFAULTS] / taken,
        }
        for name, taken in times.items()
    ]


def require_same_views(images: Mapping[str, Sequence[np.ndarray]], least: float = 0.8) -> None:
    """Refuse to time renderers that do not show the same.

    :param images: views by the name of what drew them; the first is what the others are compared with.
    :param least: correlation of each view's pixels with the first's that is asked for; shadows, and lights computed for
        each pixel or for each corner, cost up to 0.1, another camera's view of the same scene correlates by 0.1.
    :raises RuntimeError: naming the first that shows something else.
    """
    first, *_ = images.values()
    for name, views in images.items():
        for number, (view, wanted) in enumerate(zip(views, first, strict=True)):
            found = float(np.corrcoef(np.ravel(view), np.ravel(wanted))[0, 1])
            if not found >= least:
                raise RuntimeError(
                    f"{name} does not show what {DEFAULTS} shows: view {number} correlates by {found:.2f}, not {least}"
                )


def _ways(scene: BenchScene, device: str = "cpu") -> dict[str, contextlib.AbstractContextManager[Draw]]:
    found = {
        DEFAULTS: gymnasium_renderer(scene),
        "mujoco.Renderer at its defaults": mujoco_renderer(scene, light=False),
        "mujoco.Renderer without multisampling, shadows, reflections": mujoco_renderer(scene, light=True),
        "ours, gl, full quality": ours(scene, "gl", "full"),
        "ours, gl": ours(scene, "gl", "light"),
    }
    if importlib.util.find_spec("mujoco_warp") is not None:
        for where in dict.fromkeys(("cpu", device)):
            found[f"ours, warp on {where} (ray tracer, no OpenGL)"] = ours(scene, "warp", "light", where)
    return found


def plain_model(scene: BenchScene) -> tuple[mujoco.MjModel, mujoco.MjData, list[int]]:
    """The task's model as its file says, with the cameras in it, at the environment's state; and the cameras' ids."""
    visual = VisualModel(scene.env.unwrapped.fullpath, scene.env.unwrapped.model, scene.cameras, quality="full")
    visual.sync(scene.env.unwrapped.model, scene.env.unwrapped.data)
    return visual.model, visual.data, [int(camera) for camera in visual.camera_ids]


@contextlib.contextmanager
def gymnasium_renderer(scene: BenchScene) -> Iterator[Draw]:
    """What Gymnasium's MuJoCo environments render with, told to look through one camera after the other."""
    from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

    model, data, cameras = plain_model(scene)
    renderer = MujocoRenderer(model, data, width=scene.pixels, height=scene.pixels, camera_id=cameras[0])

    def draw() -> list[np.ndarray]:
        if renderer.viewer is not None:
            renderer.viewer.make_context_current()  # other renderers of this process may have been used
        images = []
        for renderer.camera_id in cameras:
            images.append(renderer.render("rgb_array"))
        return images

    yield draw  # not closed: that breaks the OpenGL contexts of renderers that are made later


@contextlib.contextmanager
def mujoco_renderer(scene: BenchScene, light: bool) -> Iterator[Draw]:
    """MuJoCo's Python renderer, one for all cameras."""
    model, data, cameras = plain_model(scene)
    if light:
        model.vis.quality.offsamples = 0
    renderer = mujoco.Renderer(model, scene.pixels, scene.pixels)
    if light:
        for effect in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[effect] = False

    def draw() -> list[np.ndarray]:
        images = []
        for camera in cameras:
            renderer.update_scene(data, camera)
            images.append(renderer.render())
        return images

    yield draw
    renderer.close()


@contextlib.contextmanager
def ours(scene: BenchScene, backend: str, quality: str, device: str | None = None) -> Iterator[Draw]:
    """What an observation costs: state taken over, all views rendered."""
    base = scene.env.unwrapped
    visual = VisualModel(base.fullpath, base.model, scene.cameras, quality=quality)
    renderer = make_renderer(backend, device)

    def draw() -> np.ndarray:
        visual.sync(base.model, base.data)
        return renderer.render(visual, scene.pixels, scene.pixels)

    yield draw
    renderer.close()


def workers(seconds: float, counts: Sequence[int] = (1, 2), envs: int = 8, pixels: int = 64) -> list[Row]:
    """Views per second of worker processes that step and render ``reach-multiview``, in turns.

    :param seconds: for each number of workers.
    :param counts: numbers of workers.
    :param envs: environments that they share.
    :param pixels: height and width of a view.
    """
    from agents.worker_env import WorkerVecEnv

    make = functools.partial(registry.make, "reach-multiview", height=pixels, width=pixels)
    pools = {f"{count} worker{'s' * (count > 1)}": WorkerVecEnv([make] * envs, count) for count in counts}
    try:
        times = race({name: _stepping(pool) for name, pool in pools.items()}, seconds)
    finally:
        for pool in pools.values():
            pool.close()
    first = next(iter(times.values()))
    return [
        {"what": name, "views_per_second": 3 * envs / taken, "times_first": first / taken}
        for name, taken in times.items()
    ]


def growth(seconds: float) -> list[Row]:
    """Environment steps per second by number of views, size and environments, everything else as in training."""
    varied = {"views": (1, 2, 3, 6), "pixels": (64, 84, 128), "environments": (1, 2, 4, 8, 16)}
    return [
        {
            "unit": "environment steps",
            "varied": what,
            "value": value,
            "steps_per_second": _steps_per_second(seconds, **{what: value}),
        }
        for what, values in varied.items()
        for value in values
    ]


def ring_env(views: int, pixels: int) -> MultiViewObservation:
    """``reach-multiview`` from cameras on a circle."""
    from envs.tasks.reach import ReachEnv

    return MultiViewObservation(
        ReachEnv(), ring(views), height=pixels, width=pixels, workspace=ReachEnv.workspace, movable=ReachEnv.movable
    )


def _steps_per_second(seconds: float, views: int = 3, pixels: int = 64, environments: int = 8) -> float:
    env = make_vec_env([functools.partial(ring_env, views, pixels)] * environments, workers=cores())
    try:
        return environments / race({"step": _stepping(env)}, seconds)["step"]
    finally:
        env.close()


def _stepping(env: Any) -> Callable[[], object]:
    env.reset()
    actions = np.zeros((env.num_envs, *env.action_space.shape), np.float32)
    return lambda: env.step(actions)
