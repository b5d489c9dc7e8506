"""Reach: bring the gripper to a ball that hangs in the air. Seeing the ball is the whole difficulty."""

from __future__ import annotations

import numpy as np

from envs.cameras import CameraSpec, WorkspaceSpec
from envs.registry import register_task
from envs.tasks.arm import ArmEnv

SUCCESS_DISTANCE = 0.05  # metres
REWARD_LENGTHS = (0.20, 0.05)  # metres: one shaping for the way there, one for the last centimetres
TARGET_HALF_EXTENTS = (0.20, 0.20, 0.15)  # the ball's box: 40 x 40 x 30 cm around the workspace's centre
START_HALF_EXTENTS = (0.10, 0.10, 0.07)  # the gripper's start

_CENTRE = (0.55, 0.0, 0.22)


@register_task("reach-multiview")
class ReachEnv(ArmEnv):
    """Reach with simulator state: proprio, the ball, and the way to it (see :class:`~envs.tasks.arm.ArmEnv`)."""

    workspace = WorkspaceSpec(centre=_CENTRE, half_extents=(0.22, 0.22, 0.17))
    start = WorkspaceSpec(centre=_CENTRE, half_extents=START_HALF_EXTENTS)
    cameras = (
        CameraSpec("left", position=(0.885, 0.78, 0.465), look_at=(0.525, 0.043, 0.147)),
        CameraSpec("right", position=(0.885, -0.78, 0.465), look_at=(0.525, -0.043, 0.147)),
        CameraSpec("front", position=(0.975, 0.0, 0.985), look_at=(0.535, 0.0, 0.222)),
    )
    movable = ("target",)
    probe_bodies = ("end_effector", "target")
    horizon = 50

    def __init__(self) -> None:
        super().__init__("reach.xml")

    def place(self, rng: np.random.Generator) -> None:
        self.data.mocap_pos[self._target_mocap] = rng.uniform(-1.0, 1.0, 3) * TARGET_HALF_EXTENTS + _CENTRE

    @property
    def target(self) -> np.ndarray:
        """(3,) the ball's centre, world metres."""
        return self.data.mocap_pos[self._target_mocap]

    @property
    def distance(self) -> float:
        """Metres from the end effector to the ball's centre."""
        return float(np.linalg.norm(self.end_effector - self.target))

    def reward(self) -> float:
        return float(np.mean([1.0 - np.tanh(self.distance / length) for length in REWARD_LENGTHS]))

    def success(self) -> bool:
        return self.distance < SUCCESS_DISTANCE

    def task_state(self) -> np.ndarray:
        target = self.workspace.normalise(self.target)
        return np.concatenate([target, target - self.workspace.normalise(self.end_effector)]).astype(np.float32)

    def scripted_action(self) -> np.ndarray:
        """(4,) float32: straight to the ball, the gripper open."""
        return self.towards(self.target)

    @property
    def _target_mocap(self) -> int:
        return self.model.body("target").mocapid[0]


@register_task("reach-wrist-multiview")
class ReachWristEnv(ReachEnv):
    """Reach with one of the three cameras on the wrist: its view moves with the hand, and so does its background."""

    cameras = (
        *ReachEnv.cameras[:2],
        CameraSpec("wrist", (-0.14, 0.0, -0.06), look_at=(0.03, 0.0, 0.20), up=(1, 0, 0), fovy=75.0, body="hand"),
    )
