"""Lift: grasp a cube that lies somewhere on the table, and raise it."""

from __future__ import annotations

import numpy as np

from envs.registry import register_task
from envs.tasks.arm import TABLE_CAMERAS, TABLE_START, TABLE_WORKSPACE, ArmEnv

SUCCESS_HEIGHT = 0.10  # metres from the table to the cube's lower side
REACH_LENGTH = 0.08  # metres of the reward's shaping
AREA = (0.11, 0.13)  # half extents along x and y in which the cube lies
CUBE_HALF = 0.026  # metres, along z, as in lift.xml
GRASP_HEIGHT = 0.025  # metres of the end effector above the table when it grasps
MOST_TURN = 0.25  # radians to either side by which the cube is turned


@register_task("lift-multiview")
class LiftEnv(ArmEnv):
    """Lift with simulator state: proprio, the cube, and the way to it."""

    workspace, start, cameras = TABLE_WORKSPACE, TABLE_START, TABLE_CAMERAS
    movable = ("cube",)
    probe_bodies = ("end_effector", "cube")
    horizon = 60

    def __init__(self) -> None:
        super().__init__("lift.xml")

    def place(self, rng: np.random.Generator) -> None:
        place = np.array(self.workspace.centre[:2]) + rng.uniform(-1.0, 1.0, 2) * AREA
        angle = rng.uniform(-MOST_TURN, MOST_TURN)
        joint = self.data.joint("cube_free")
        joint.qpos[:] = [*place, CUBE_HALF, np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]

    @property
    def cube(self) -> np.ndarray:
        """(3,) the cube's centre, world metres."""
        return self.data.body("cube").xpos

    @property
    def height(self) -> float:
        """Metres by which the cube is raised."""
        return float(self.cube[2] - CUBE_HALF)

    def reward(self) -> float:
        reached = 1.0 - np.tanh(np.linalg.norm(self.end_effector - self.cube) / REACH_LENGTH)
        return float(0.35 * reached + 0.65 * np.clip(self.height / SUCCESS_HEIGHT, 0.0, 1.0))

    def success(self) -> bool:
        return self.height > SUCCESS_HEIGHT

    def task_state(self) -> np.ndarray:
        hand, cube = map(self.workspace.normalise, (self.end_effector, self.cube))
        return np.concatenate([cube, cube - hand]).astype(np.float32)

    def scripted_action(self) -> np.ndarray:
        """(4,) float32: above the cube, down, shut the gripper, up."""
        hand, cube = self.end_effector, self.cube
        beside = np.linalg.norm((hand - cube)[:2])
        if beside > 0.015 and hand[2] < cube[2] + 0.08:
            return self.towards(np.append(hand[:2], cube[2] + 0.10))
        if beside > 0.015:
            return self.towards(np.append(cube[:2], max(hand[2], cube[2] + 0.10)))
        if hand[2] - cube[2] > 0.012:
            return self.towards(np.append(cube[:2], cube[2]))
        held = self.data.qpos[self._fingers].mean() < 0.025
        return self.towards(hand + [0.0, 0.0, 0.04] if held else hand, closing=1.0)
