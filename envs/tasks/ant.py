"""Gymnasium's ant, seen from cameras that follow it: the moving-camera tasks of Keypoint3D's paper."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv

from envs.cameras import CameraSpec, WorkspaceSpec
from envs.registry import register_task
from envs.snapshots import take_over_warnings

LEG_COLOURS = {
    "aux_1": (0.85, 0.20, 0.20, 1.0),
    "aux_2": (0.20, 0.65, 0.25, 1.0),
    "aux_3": (0.20, 0.35, 0.85, 1.0),
    "aux_4": (0.90, 0.75, 0.15, 1.0),
}
"""By the body behind each hip; the rest of a leg hangs on it."""
SUCCESS_DISTANCE = 10.0
"""Metres forward from the start: what an ant that has learnt to walk covers many times over, and chance never."""


@register_task("ant-multiview", colours=True)
@register_task("ant-nocolor-multiview", colours=False)
class AntMultiViewEnv(AntEnv):
    """Ant-v5 with its own physics, reward and end, observed by its own state where that is asked for.

    Action (8,) in [-1, 1]: torques of hips and ankles. An episode ends when the torso leaves 0.2 to 1 m of height, and
    is truncated after ``horizon`` steps. Success is to be 10 m further along x than at the start; what matters is the
    return, as in the paper. Cameras and workspace travel with the torso, so in that frame the cameras stand still, and
    two frames are observed, since one does not show velocities.

    :param colours: each leg has a colour of its own; without, one is told from another by its place alone.
    """

    workspace = WorkspaceSpec(centre=(0.0, 0.0, -0.1), half_extents=(0.9, 0.9, 0.5), body="torso")
    cameras = tuple(
        CameraSpec(name, position=position, look_at=(0.0, 0.0, -0.1), fovy=45.0, body="torso", follow="track")
        for name, position in (("left", (2.0, 2.6, 1.9)), ("right", (2.0, -2.6, 1.9)), ("behind", (-3.1, 0.0, 2.2)))
    )
    movable = ("torso",)
    probe_bodies = ("torso", "aux_1/1", "aux_2/1", "aux_3/1", "aux_4/1")
    horizon = 1000
    frame_stack = 2
    defines_success = True

    def __init__(self, colours: bool = True) -> None:
        take_over_warnings()
        super().__init__()
        self._colours = colours
        if colours:
            self._paint_legs()
        self._begin(0.0)

    def __reduce__(self) -> tuple:
        return type(self), (self._colours,)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode; the same seed gives the same episode."""
        state, info = super().reset(seed=seed, options=options)
        self._begin(float(self.data.qpos[0]))
        return state, info | {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Apply torques for 50 ms.

        :raises ValueError: if the action holds NaN or infinity.
        """
        if not np.all(np.isfinite(action)):
            raise ValueError(f"action {np.asarray(action).tolist()} is not finite")
        action = np.clip(action, -1.0, 1.0)
        state, reward, terminated, _, info = super().step(action)
        self._elapsed += 1
        self._last_action = np.asarray(action, np.float32)
        success = bool(self.data.qpos[0] - self._start >= SUCCESS_DISTANCE)
        return state, float(reward), bool(terminated), self._elapsed >= self.horizon, info | {"is_success": success}

    def proprio(self) -> np.ndarray:
        """(8,) float32: the torques that were applied last. Joints, height and speed are there to be seen."""
        return self._last_action.copy()

    def _begin(self, start: float) -> None:
        self._start, self._elapsed, self._last_action = start, 0, np.zeros(8, np.float32)

    def _paint_legs(self) -> None:
        model = self.model
        for name, colour in LEG_COLOURS.items():
            hip = model.body(name).id
            for geom in range(model.ngeom):
                body = model.geom_bodyid[geom]
                if hip in (body, model.body_parentid[body]) or body == model.body_parentid[hip]:
                    model.geom_rgba[geom] = colour
