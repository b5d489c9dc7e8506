"""What every task with our arm shares: loading, Cartesian control of the gripper, resetting, and what the arm feels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces

from envs.cameras import CameraSpec, WorkspaceSpec
from envs.errors import UserError
from envs.redraw import redraw_box, redraw_cameras, redraw_colours
from envs.snapshots import (
    FreshModel,
    check_physics,
    check_random,
    load_physics,
    load_random,
    require_form,
    require_number,
    save_physics,
    save_random,
    take_over_warnings,
)

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CONTROL_STEP = 0.05  # seconds: 20 actions per second
ACTION_SCALE = 0.04  # metres per control step at full action
SETTLE_TOLERANCE = 1e-3  # metres
SETTLE_SECONDS = 2.0
FINGER_STROKE = 0.035  # metres, as in arm.xml
TABLE_WORKSPACE = WorkspaceSpec(centre=(0.55, 0.0, 0.11), half_extents=(0.21, 0.21, 0.12))
"""For tasks with things that lie on the table; all of it is in the images of the cameras below."""
TABLE_START = WorkspaceSpec(centre=(0.55, 0.0, 0.15), half_extents=(0.08, 0.08, 0.04))
TABLE_CAMERAS = (
    CameraSpec("left", position=(0.913, 0.802, 0.468), look_at=(0.55, 0.06, 0.14), fovy=36.0),
    CameraSpec("right", position=(0.913, -0.802, 0.468), look_at=(0.55, -0.06, 0.14), fovy=36.0),
    CameraSpec("front", position=(0.93, 0.0, 0.98), look_at=(0.58, 0.0, 0.14), fovy=34.0),
)


class ArmEnv(gym.Env):
    """A task for the arm of ``assets/arm.xml``, observed by its simulator state.

    Action (4,) in [-1, 1]: the gripper's displacement along the world's x, y, z (1 is 4 cm per control step) and the
    gripper's closing (1 shut, -1 open). The commanded position stays inside the workspace box; the arm follows it
    through a weld, as in Meta-World and Fetch. An episode always lasts ``horizon`` steps and is then truncated.

    A task subclasses this and says where things start (:meth:`place`), what they mean (:meth:`reward`,
    :meth:`success`) and what a policy without eyes would have to know (:meth:`task_state`). If it knows how to solve
    itself, it has a method ``scripted_action() -> (4,)``, which pretraining can play episodes with.

    Simulation, random state and the fields of the model that the task names in ``model_changes`` are saved with a run
    and restored. A task that keeps anything else from one step to the next adds it to :meth:`save_state` and takes it
    back in :meth:`load_state`.
    """

    metadata = {"render_modes": [], "render_fps": round(1 / CONTROL_STEP)}
    cameras: tuple[CameraSpec, ...] = ()
    workspace: WorkspaceSpec
    start: WorkspaceSpec
    """the box in which the gripper starts, inside the workspace"""
    movable: tuple[str, ...] = ()
    """bodies that the task is about: no background even where they have no joint, and what redrawn colours set off"""
    probe_bodies: tuple[str, ...] = ("end_effector",)
    horizon: int = 50
    defines_success = True
    model_changes: tuple[str, ...] = ()
    """fields of the model that episodes change, named as in MuJoCo ("geom_rgba", "opt.gravity"): no file sets others"""

    def __init__(self, model_file: str) -> None:
        """:param model_file: name of the task's MJCF in ``envs/assets``; it must include ``arm.xml``."""
        take_over_warnings()
        self.fullpath = str(ASSETS / model_file)
        self.model = mujoco.MjModel.from_xml_path(self.fullpath)
        self.data = mujoco.MjData(self.model)
        self._substeps = round(CONTROL_STEP / self.model.opt.timestep)
        self._hand = self.model.body("hand_target").mocapid[0]
        self._end_effector = self.model.body("end_effector").id
        fingers = [self.model.joint(f"{side}_finger_slide").id for side in ("left", "right")]
        self._fingers = self.model.jnt_qposadr[fingers]
        self._low = np.subtract(self.workspace.centre, self.workspace.half_extents)
        self._high = np.add(self.workspace.centre, self.workspace.half_extents)
        self._elapsed = 0
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        size = self.proprio().size + self.task_state().size
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._fresh_model: FreshModel | None = None

    # What a task defines.

    def place(self, rng: np.random.Generator) -> None:
        """Draw a start: move the task's things in ``self.data`` and ``self.model`` (see ``model_changes``)."""
        raise NotImplementedError

    def reward(self) -> float:
        """Reward of the present state, in [0, 1]."""
        raise NotImplementedError

    def success(self) -> bool:
        """Whether the present state solves the task."""
        raise NotImplementedError

    def task_state(self) -> np.ndarray:
        """(S,) what only the simulator knows about the task, in normalised workspace coordinates."""
        raise NotImplementedError

    # What is the same for all of them.

    def redraw(self, seed: int) -> None:
        """Become another scene of the same task: colours, the gripper's start and the cameras are drawn from a seed.

        To be called before the environment is looked at; from then on all stays as it is, over all episodes.

        :param seed: the same one gives the same scene.
        """
        colours, start, cameras = (np.random.default_rng([seed, part]) for part in range(3))
        redraw_colours(self.model, self.movable, colours)
        own = type(self)
        self.start = redraw_box(own.start, self.workspace, start)
        self.cameras = redraw_cameras(own.cameras, self.workspace, cameras)
        self._fresh_model = None  # the scene is made again from the seed: it is not part of the state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode; the same seed gives the same episode."""
        self._remember_model()
        super().reset(seed=seed)
        mujoco.mj_resetDataKeyframe(self.model, self.data, self.model.key("home").id)
        self._elapsed = 0
        self.place(self.np_random)
        start = self.np_random.uniform(-1.0, 1.0, 3) * self.start.half_extents + self.start.centre
        self._settle(np.clip(start, self._low, self._high))
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Apply one action for one control step.

        :raises ValueError: if the action holds NaN or infinity (the simulation would silently reset itself).
        """
        if not np.all(np.isfinite(action)):
            raise ValueError(f"action {np.asarray(action).tolist()} is not finite")
        action = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        start = self.data.mocap_pos[self._hand].copy()
        goal = np.clip(start + ACTION_SCALE * action[:3], self._low, self._high)
        self.data.ctrl[:] = 0.5 * FINGER_STROKE * (1.0 - action[3])
        for substep in range(self._substeps):  # in small pieces: a jump of 4 cm would kick the arm
            self.data.mocap_pos[self._hand] = start + (goal - start) * ((substep + 1) / self._substeps)
            mujoco.mj_step(self.model, self.data)
        self._refresh()
        self._elapsed += 1
        return self._observation(), self.reward(), False, self._elapsed >= self.horizon, self._info()

    def save_state(self) -> dict[str, Any]:
        """All that the coming steps and episodes depend on, as plain values and arrays (:mod:`envs.snapshots`).

        :raises UserError: where the task has changed a part of the model that would not be restored.
        """
        fresh = self._remember_model()
        changed = fresh.changed(self.model)
        for name, value in changed.items():
            objection = fresh.objection(name, value)
            if objection is not None:
                who = type(self).__name__
                raise UserError(f"{who} cannot be saved: it changes the model's field {name}, which {objection}")
        return {
            "elapsed": self._elapsed,
            "physics": save_physics(self.model, self.data),
            "model": changed,
            "random": save_random(self.np_random),
        }

    def load_state(self, state: Any) -> np.ndarray:
        """Take over a state that another environment of the same task was in.

        :param state: as :meth:`save_state` gave it.
        :return: the present observation.
        :raises UserError: if it is no such state; then the environment stays as it was.
        """
        what, before = f"the state of {type(self).__name__}", self.save_state()
        require_form(state, dict.fromkeys(before), what)  # a subclass's entries are among them
        require_number(state["elapsed"], int, f"{what}: 'elapsed'", 0, self.horizon)
        check_physics(self.model, state["physics"], f"{what}: 'physics'")
        self._remember_model().check(self.model, state["model"], f"{what}: 'model'")
        check_random(state["random"], f"{what}: 'random'")
        self._become(state)
        observation = self._observation()
        if not np.isfinite(observation).all():
            self._become(before)
            raise UserError(f"{what} leads to an observation that holds NaN or Inf")
        return observation

    @property
    def end_effector(self) -> np.ndarray:
        """(3,) the point between the fingertips, world metres."""
        return self.data.xpos[self._end_effector]

    def proprio(self) -> np.ndarray:
        """(7,) float32, what the arm feels: the end effector's position (1 at the workspace's walls), its velocity
        (1 at full speed) and the gripper's opening (-1 shut, 1 open). Nothing about the task's things."""
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_XBODY, self._end_effector, velocity, 0)
        opening = self.data.qpos[self._fingers].mean() / FINGER_STROKE * 2.0 - 1.0
        position = self.workspace.normalise(self.end_effector)
        return np.concatenate([position, velocity[3:] * (CONTROL_STEP / ACTION_SCALE), [opening]]).astype(np.float32)

    def towards(self, point: np.ndarray, closing: float = -1.0) -> np.ndarray:
        """The action that brings the end effector straight to a point, as fast as it may move.

        :param point: (3,) world metres.
        :param closing: of the gripper: 1 shut, -1 open.
        :return: (4,) float32 in [-1, 1].
        """
        step = (np.asarray(point) - self.end_effector) / ACTION_SCALE
        step /= max(1.0, np.abs(step).max())  # all axes alike, so that the way is straight
        return np.append(step, closing).astype(np.float32)

    def _remember_model(self) -> FreshModel:
        """What the model is before any episode: afterwards a task's :meth:`place` may change it."""
        if self._fresh_model is None:
            self._fresh_model = FreshModel(self.model, self.model_changes)
        return self._fresh_model

    def _become(self, state: dict[str, Any]) -> None:
        """Take over a state that was checked."""
        self._remember_model().restore(self.model, state["model"])
        load_physics(self.model, self.data, state["physics"])
        load_random(self, state["random"])
        self._elapsed = state["elapsed"]
        self._refresh()

    def _settle(self, start: np.ndarray) -> None:
        """Bring the gripper to its start and to rest, before the episode begins."""
        self.data.mocap_pos[self._hand] = start
        self.data.ctrl[:] = FINGER_STROKE
        for _ in range(round(SETTLE_SECONDS / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)
            at_rest = np.abs(self.data.qvel).max() < 0.02
            if at_rest and np.linalg.norm(self.end_effector - start) < SETTLE_TOLERANCE:
                break
        self.data.qvel[:] = 0.0
        self.data.time = 0.0
        self._refresh()

    def _refresh(self) -> None:
        """Bring positions and velocities up to the present state (mj_step leaves them one substep behind)."""
        mujoco.mj_fwdPosition(self.model, self.data)
        mujoco.mj_fwdVelocity(self.model, self.data)

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.proprio(), self.task_state()]).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"is_success": bool(self.success())}
