"""A wrapper that lets any MuJoCo Gymnasium environment be seen from several cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces

from envs.cameras import CameraRig, CameraSpec, WorkspaceSpec
from envs.errors import UserError, unknown
from envs.history import FrameHistory
from envs.renderers import make_renderer
from envs.shapes import BodyShape
from envs.snapshots import EpisodeLog, require_form
from envs.visual_model import VisualModel, body_names

OBSERVABLE = ("images", "proprio", "state")


class MultiViewObservation(gym.Wrapper):
    """Observe V synchronized camera images and what the robot feels, instead of the environment's own state.

    The observation is a dict with

    - ``images``: (V, height, width, 3) uint8, row 0 is the top, all of the same instant;
    - ``proprio``: (P,) float32: ``env.unwrapped.proprio()`` where the task defines it, else positions and velocities of
      the actuated joints;
    - ``previous``: (S - 1, V, height, width, 3) uint8, with a frame stack: the frames after the actions before, the
      latest of them first; at an episode's start copies of its first frame;
    - ``camera_poses``: (V, 4, 4) float32 ``world_from_camera`` in the workspace frame, only where it changes over time;
    - ``state``: (S,) float32: the wrapped environment's own observation, flat.

    Everything handed out is a fresh array. Nothing is rendered before the first reset, and the environment can be
    pickled and sent to a worker process. Render in one thread of a process at a time.
    """

    def __init__(
        self,
        env: gym.Env,
        cameras: Sequence[CameraSpec],
        *,
        height: int = 64,
        width: int = 64,
        observe: Sequence[str] = ("images", "proprio"),
        workspace: WorkspaceSpec | None = None,
        renderer: str = "auto",
        quality: str = "light",
        movable: Sequence[str] = (),
        frame_stack: int = 1,
        action_repeat: int = 1,
    ) -> None:
        """Wrap an environment whose ``unwrapped`` has ``model``, ``data`` and ``fullpath``, as Gymnasium's MujocoEnv.

        :param env: the environment; its physics is not changed.
        :param cameras: the views, in the order of ``images``.
        :param height: image height, pixels.
        :param width: image width, pixels.
        :param observe: which of images, proprio, state are observed.
        :param workspace: the task's box; None: a box around all that the model holds (its ``stat.center``, ``extent``).
        :param renderer: auto, gl or warp.
        :param quality: light or full (:class:`envs.visual_model.VisualModel`).
        :param movable: names of bodies without joints that are no background, such as targets.
        :param frame_stack: S, how many frames are observed together.
        :param action_repeat: steps of the wrapped environment that each action is applied for; rewards add up.
        :raises UserError: for unknown names, sizes that are not positive, or an environment that is not MuJoCo's.
        """
        super().__init__(env)
        base = env.unwrapped
        missing = [name for name in ("model", "data", "fullpath") if not hasattr(base, name)]
        if missing:
            raise UserError(f"{type(base).__name__} is no MuJoCo environment: it has no attribute '{missing[0]}'")
        if height < 1 or width < 1:
            raise UserError(f"image size is {height} x {width}; height and width must be positive")
        if action_repeat < 1:
            raise UserError(f"action repeat is {action_repeat}; each action is applied at least once")
        self._height, self._width, self.action_repeat = int(height), int(width), int(action_repeat)
        self._observe = _check_observe(observe)
        self._workspace = workspace or _whole_model(base.model)
        self._visual = VisualModel(
            base.fullpath,
            base.model,
            cameras,
            workspace=self._workspace,
            movable=movable,
            markers=getattr(base, "markers", None),
            quality=quality,
        )
        self._renderer = make_renderer(renderer)
        self._background: np.ndarray | None = None
        self.images_are_deferred = False
        self.history = FrameHistory(frame_stack) if frame_stack > 1 and "images" in self._observe else None
        self._actuated = None if hasattr(base, "proprio") else _actuated_joints(base.model)
        self._defines_success = bool(getattr(base, "defines_success", False))
        self._synced()
        self.observation_space = self._make_space()
        # Wrappers in between, such as time limits, keep what no method tells: then the episode is played again, too.
        self._played = env if hasattr(env, "save_state") else EpisodeLog(env, self._own_horizon)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode; the same seed gives the same episode."""
        state, info = self._played.reset(seed=seed, options=options)
        return self._observation(state, begins=True), self._with_success(info)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """One step, which is several of the wrapped environment's where actions are repeated.

        The images show the state after it; ``is_success`` in the info is of the last of them, ``was_success`` of any.
        """
        total, was = 0.0, False
        for _ in range(self.action_repeat):
            state, reward, terminated, truncated, info = self._played.step(action)
            info = self._with_success(info)
            total, was = total + float(reward), was or info["is_success"]
            if terminated or truncated:
                break
        return self._observation(state), total, bool(terminated), bool(truncated), {**info, "was_success": was}

    def save_state(self) -> dict[str, Any]:
        """The whole state between two steps: plain values and arrays (:mod:`envs.snapshots`). Write to none of them.

        :raises UserError: where it cannot be told.
        """
        told = self._played.save_state()
        own = {"environment": type(self.unwrapped).__name__, "defines_success": self._defines_success, "state": told}
        return own if self.history is None else own | {"previous": self.history.save()}

    def load_state(self, state: Any) -> dict[str, np.ndarray]:
        """Go on from a state that another environment, made in the same way, was in.

        Our own tasks are put into it; any other environment plays its episode again, unseen.

        :param state: as :meth:`save_state` gave it; its form is checked.
        :return: the present observation; zeros where the other environment had not been reset.
        :raises ReplayError: where playing again led elsewhere; then begin a new episode.
        :raises UserError: if it is no state of such an environment.
        """
        name = type(self.unwrapped).__name__
        form = {"environment": str, "defines_success": bool, "state": None}
        if self.history is not None:
            form["previous"] = None
        require_form(state, form, f"the state of {name}")
        if state["environment"] != name:
            raise UserError(f"a state of {state['environment'][:80]!r} cannot be that of {name}")
        self._defines_success = state["defines_success"]
        if self.history is not None:
            self.history.load(state["previous"], self.observation_space["previous"].shape)
        own = self._played.load_state(state["state"])
        return self._unseen() if own is None else self._observation(own)

    def close(self) -> None:
        """Free the renderer and close the wrapped environment. Idempotent."""
        self._renderer.close()
        super().close()

    # What is looked at.

    @property
    def rig(self) -> CameraRig:
        """The cameras at this instant, in the workspace frame."""
        return self._synced().rig(self._height, self._width)

    @property
    def workspace(self) -> WorkspaceSpec:
        """The task's box and its frame."""
        return self._workspace

    @property
    def background(self) -> np.ndarray | None:
        """(V, height, width, 3) uint8: the views without all that can move; None where a camera moves in the world."""
        if self._visual.moves_in_world:
            return None
        if self._background is None:
            visual = self._synced()
            with visual.only_background():
                self._background = self._renderer.render(visual, self._height, self._width)
        return self._background.copy()

    @property
    def body_names(self) -> list[str]:
        """Names of the model's bodies, for :meth:`body_positions`."""
        return body_names(self._visual.model)

    @property
    def probe_bodies(self) -> tuple[str, ...]:
        """Bodies that matter for the task, where it names them; else all."""
        return tuple(getattr(self.unwrapped, "probe_bodies", self.body_names))

    @property
    def defines_success(self) -> bool:
        """Whether the task says what success is (for a foreign environment known after its first step)."""
        return self._defines_success

    @property
    def horizon(self) -> int | None:
        """Steps after which an episode is truncated, None where there is no limit."""
        own = self._own_horizon
        return None if own is None else math.ceil(own / self.action_repeat)

    @property
    def _own_horizon(self) -> int | None:
        """The same in steps of the wrapped environment."""
        own = getattr(self.unwrapped, "horizon", None)
        return own if own is not None else getattr(self.env.spec, "max_episode_steps", None)

    def render_views(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """(V, height, width, 3) uint8: the present state as the cameras see it, at any size."""
        return self._renderer.render(self._synced(), height or self._height, width or self._width)

    def segment_views(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """(V, height, width) int32: the geom id that each pixel shows, -2 for cloth (a flex), -1 for nothing."""
        return self._renderer.segment(self._synced(), height or self._height, width or self._width)

    def body_positions(self, names: Sequence[str]) -> np.ndarray:
        """(B, 3) float64 positions of named bodies in the workspace frame, metres.

        :raises UserError: for an unknown body.
        """
        return self._synced().body_positions(names)

    def body_poses(self, names: Sequence[str]) -> np.ndarray:
        """(B, 4, 4) float64 from the frames of named bodies to the workspace frame, metres.

        :raises UserError: for an unknown body.
        """
        return self._synced().body_poses(names)

    def body_shapes(self, names: Sequence[str]) -> tuple[BodyShape, ...]:
        """What is seen of named bodies, each in its own frame.

        :raises UserError: for an unknown body.
        """
        return self._synced().body_shapes(names)

    def camera_poses(self) -> np.ndarray:
        """(V, 4, 4) float32 ``world_from_camera`` of this instant, workspace frame."""
        return self._synced().poses().astype(np.float32)

    def move_camera(self, view: int, offset: np.ndarray, turn: np.ndarray) -> None:
        """Put a camera beside its place; rig, poses and images follow, the background too.

        :param view: index of the camera.
        :param offset: (3,) metres, in the frame that it is mounted on; with ``turn`` 0 puts it back.
        :param turn: (3,) axis times angle, radians, in the same frame.
        """
        self._visual.move_camera(view, offset, turn)
        self._background = None

    def scripted_action(self) -> np.ndarray:
        """(A,) what the task's own scripted policy, which sees the simulator's state, does now.

        :raises UserError: where the task has none.
        """
        script = getattr(self.unwrapped, "scripted_action", None)
        if script is None:
            raise UserError(f"{type(self.unwrapped).__name__} has no scripted policy")
        return script()

    def synced_visual(self) -> VisualModel:
        """The visual model at the present state, for who renders several environments together.

        Set ``images_are_deferred`` to leave the images out of the observations; they are to be added by that one.
        """
        return self._synced()

    def _synced(self) -> VisualModel:
        base = self.unwrapped
        self._visual.sync(base.model, base.data, base.marker_positions() if self._visual.markers else 0.0)
        return self._visual

    def _observation(self, state: Any, begins: bool = False) -> dict[str, np.ndarray]:
        observation: dict[str, np.ndarray] = {}
        if "images" in self._observe:
            if self.images_are_deferred:
                self._synced()
            else:
                observation["images"] = self.render_views()
                if self.history is not None:
                    (self.history.begin if begins else self.history.add)(observation["images"].copy())
                    observation["previous"] = np.stack(self.history.previous)
            if "camera_poses" in self.observation_space.spaces:
                observation["camera_poses"] = self._visual.poses().astype(np.float32)
        if "proprio" in self._observe:
            observation["proprio"] = self._proprio()
        if "state" in self._observe:
            observation["state"] = spaces.flatten(self.env.observation_space, state).astype(np.float32)
        return observation

    def _unseen(self) -> dict[str, np.ndarray]:
        boxes = self.observation_space.spaces.items()
        return {
            key: np.zeros(box.shape, box.dtype)
            for key, box in boxes
            if not (key in ("images", "previous") and self.images_are_deferred)
        }

    def _proprio(self) -> np.ndarray:
        base = self.unwrapped
        if self._actuated is None:
            return np.array(base.proprio(), dtype=np.float32)
        positions, velocities = self._actuated
        return np.concatenate([base.data.qpos[positions], base.data.qvel[velocities]]).astype(np.float32)

    def _make_space(self) -> spaces.Dict:
        made: dict[str, spaces.Space] = {}
        views = len(self._visual.cameras)
        if "images" in self._observe:
            made["images"] = spaces.Box(0, 255, (views, self._height, self._width, 3), np.uint8)
            if self.history is not None:
                made["previous"] = spaces.Box(0, 255, (self.history.count - 1, *made["images"].shape), np.uint8)
            if self._visual.moves_in_workspace:
                made["camera_poses"] = spaces.Box(-np.inf, np.inf, (views, 4, 4), np.float32)
        if "proprio" in self._observe:
            size = self._proprio().size
            if size == 0:
                raise UserError(f"{type(self.unwrapped).__name__} has no actuated joint, so no proprio to observe")
            made["proprio"] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        if "state" in self._observe:
            size = spaces.flatdim(self.env.observation_space)
            made["state"] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        return spaces.Dict(made)

    def _with_success(self, info: dict[str, Any]) -> dict[str, Any]:
        """Map Meta-World's ``success`` to the ``is_success`` that SB3 reads."""
        for key in ("is_success", "success"):
            if key in info:
                self._defines_success = True
                return {**info, "is_success": bool(info[key])}
        return {**info, "is_success": False}


def _check_observe(observe: Sequence[str]) -> tuple[str, ...]:
    names = (observe,) if isinstance(observe, str) else tuple(observe)
    for name in names:
        if name not in OBSERVABLE:
            raise unknown("observation", name, OBSERVABLE)
    if not names:
        raise UserError(f"observe is empty; choose from {', '.join(OBSERVABLE)}")
    return names


def _whole_model(model: mujoco.MjModel) -> WorkspaceSpec:
    return WorkspaceSpec(tuple(model.stat.center), (0.5 * model.stat.extent,) * 3)


def _actuated_joints(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Addresses in qpos and qvel of the joints (hinges and slides) that an actuator drives, each once."""
    on_joint = np.isin(model.actuator_trntype, (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT))
    joints = np.unique(model.actuator_trnid[on_joint, 0])
    scalar = np.isin(model.jnt_type[joints], (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE))
    joints = joints[scalar].astype(int)
    return model.jnt_qposadr[joints], model.jnt_dofadr[joints]
