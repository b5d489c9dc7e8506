"""Push: slide a cube onto a disc that lies on the table. Both are somewhere else in each episode."""

from __future__ import annotations

import numpy as np

from envs.registry import register_task
from envs.tasks.arm import TABLE_CAMERAS, TABLE_START, TABLE_WORKSPACE, ArmEnv

SUCCESS_DISTANCE = 0.04  # metres, along the table, from the cube's centre to the disc's
REACH_LENGTH, PUSH_LENGTHS = 0.10, (0.15, 0.04)  # metres of the rewards' shaping
AREA = (0.11, 0.13)  # half extents along x and y in which cube and disc lie
LEAST_WAY = 0.10  # metres between cube and disc at the start
CUBE_HALF = 0.032  # metres, as in push.xml
PUSH_HEIGHT = 0.04  # metres of the end effector above the table while it pushes
ON_IT = 0.025  # metres from the disc's centre at which the script leaves the cube alone
BEHIND = 0.08  # metres from the cube's centre to where the script lowers the gripper


@register_task("push-multiview")
class PushEnv(ArmEnv):
    """Push with simulator state: proprio, the cube, the disc, and the ways to them."""

    workspace, start, cameras = TABLE_WORKSPACE, TABLE_START, TABLE_CAMERAS
    movable = ("cube", "target")
    probe_bodies = ("end_effector", "cube", "target")
    horizon = 80

    def __init__(self) -> None:
        super().__init__("push.xml")

    def place(self, rng: np.random.Generator) -> None:
        way = 0.0
        while way < LEAST_WAY:
            cube, target = (np.array(self.workspace.centre[:2]) + rng.uniform(-1.0, 1.0, 2) * AREA for _ in range(2))
            way = np.linalg.norm(cube - target)
        angle = rng.uniform(-np.pi / 4, np.pi / 4)  # a quarter turn looks the same
        joint = self.data.joint("cube_free")
        joint.qpos[:] = [*cube, CUBE_HALF, np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]
        self.data.mocap_pos[self.model.body("target").mocapid[0], :2] = target

    @property
    def cube(self) -> np.ndarray:
        """(3,) the cube's centre, world metres."""
        return self.data.body("cube").xpos

    @property
    def target(self) -> np.ndarray:
        """(3,) the disc's centre, world metres."""
        return self.data.mocap_pos[self.model.body("target").mocapid[0]]

    @property
    def distance(self) -> float:
        """Metres along the table from the cube to the disc's centre."""
        return float(np.linalg.norm((self.cube - self.target)[:2]))

    def reward(self) -> float:
        reached = 1.0 - np.tanh(np.linalg.norm(self.end_effector - self.cube) / REACH_LENGTH)
        pushed = np.mean([1.0 - np.tanh(self.distance / length) for length in PUSH_LENGTHS])
        return float(0.25 * reached + 0.75 * pushed)

    def success(self) -> bool:
        return self.distance < SUCCESS_DISTANCE

    def task_state(self) -> np.ndarray:
        hand, cube, target = map(self.workspace.normalise, (self.end_effector, self.cube, self.target))
        return np.concatenate([cube, target, cube - hand, target - cube]).astype(np.float32)

    def scripted_action(self) -> np.ndarray:
        """(4,) float32: over the cube's far side, down, then through the cube to the disc, the gripper shut."""
        way = (self.target - self.cube)[:2]
        way /= max(np.linalg.norm(way), 1e-6)
        behind = np.append(self.cube[:2] - BEHIND * way, PUSH_HEIGHT)
        hand = self.end_effector
        off = np.linalg.norm(hand[:2] - behind[:2])
        along = float((hand - self.cube)[:2] @ way)
        beside = np.linalg.norm((hand - self.cube)[:2] - along * way)
        if hand[2] < PUSH_HEIGHT + 0.02 and along < 0 and beside < 0.02:  # behind it and low: push
            if self.distance < ON_IT:
                return self.towards(hand, closing=1.0)
            return self.towards(np.append(hand[:2] + way * min(0.03, self.distance), PUSH_HEIGHT), closing=1.0)
        if off < 0.02:
            return self.towards(behind, closing=1.0)
        above = np.append(behind[:2], 0.14)
        return self.towards(above if hand[2] > 0.11 else np.append(hand[:2], 0.14), closing=1.0)
