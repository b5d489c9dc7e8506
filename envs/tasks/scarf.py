"""Scarf: hang a strip of cloth, which the gripper holds by one edge, over a rod."""

from __future__ import annotations

import numpy as np

from envs.cameras import WorkspaceSpec
from envs.registry import register_task
from envs.tasks.arm import ArmEnv
from envs.tasks.reach import ReachEnv

ROWS, COLUMNS = 11, 4
"""Points of the cloth; its rows hang one below the other, and the gripper holds the first."""
WIDTH = 0.096  # metres, of a row
ROD_HALF_LENGTH = 0.12
ROD_AREA = (0.04, 0.07)  # half extents along x and y of where the peg stands
ON_EACH_SIDE = 0.25  # share of the points that hang down on either side when it is done
TOUCHING = 0.03  # metres from the rod's axis to the nearest point
REACH_LENGTH = 0.08  # metres of the reward's shaping


@register_task("scarf-multiview")
class ScarfEnv(ArmEnv):
    """Scarf with simulator state: proprio, the cloth's points, the peg, and the way from it to the hand.

    The gripper never lets go. Done is when at least a quarter of the points hang below the rod's axis on either side of
    it, the cloth lies on the rod, and does so beside none of its ends.
    """

    workspace, cameras = ReachEnv.workspace, ReachEnv.cameras
    start = WorkspaceSpec(centre=(0.41, 0.0, 0.34), half_extents=(0.03, 0.08, 0.03))
    movable = ("peg",)
    probe_bodies = ("end_effector", "scarf_21", "scarf_41", "peg")
    horizon = 60

    def __init__(self) -> None:
        super().__init__("scarf.xml")
        self._points = [self.model.body(f"scarf_{n}").id for n in range(ROWS * COLUMNS)]
        self._peg = self.model.body("peg").mocapid[0]
        for column, offset in enumerate(np.linspace(-0.5, 0.5, COLUMNS) * WIDTH):
            # MuJoCo takes anchors from a pose that the arm never has: the place in the hand, and the point itself.
            self.model.eq_data[self.model.equality(f"held_{column}").id, :6] = [0.0, offset, 0.0, 0.0, 0.0, 0.0]
        size = self.proprio().size + self.task_state().size
        self.observation_space = type(self.observation_space)(-np.inf, np.inf, (size,), np.float32)

    def place(self, rng: np.random.Generator) -> None:
        self.data.mocap_pos[self._peg, :2] = [0.57, 0.0] + rng.uniform(-1.0, 1.0, 2) * ROD_AREA

    @property
    def cloth(self) -> np.ndarray:
        """(44, 3) its points, row by row from the held edge, world metres."""
        return self.data.xpos[self._points]

    @property
    def rod(self) -> np.ndarray:
        """(3,) the middle of the rod, world metres."""
        return self.data.mocap_pos[self._peg]

    @property
    def hanging(self) -> tuple[float, float]:
        """Shares of the points that hang below the rod's axis on this side of it, and beyond it."""
        ahead, _, above = (self.cloth - self.rod).T
        return float(np.mean((ahead < 0) & (above < 0))), float(np.mean((ahead > 0) & (above < 0)))

    @property
    def lies_on(self) -> bool:
        """Whether the cloth touches the rod between its ends."""
        ahead, aside, above = (self.cloth - self.rod).T
        along = np.abs(aside) < ROD_HALF_LENGTH
        return bool(along.any() and np.hypot(ahead, above)[along].min() < TOUCHING)

    def reward(self) -> float:
        over = float(np.clip(min(self.hanging) / ON_EACH_SIDE, 0.0, 1.0)) * self.lies_on
        goal = self.rod + [0.06, 0.0, -0.08]
        reached = 1.0 - np.tanh(np.linalg.norm(self.end_effector - goal) / REACH_LENGTH)
        return float(0.3 * reached + 0.7 * over)

    def success(self) -> bool:
        return min(self.hanging) >= ON_EACH_SIDE and self.lies_on

    def task_state(self) -> np.ndarray:
        if not hasattr(self, "_points"):
            return np.zeros(0, np.float32)
        rows = self.cloth.reshape(ROWS, COLUMNS, 3).mean(1)
        rod, hand = map(self.workspace.normalise, (self.rod, self.end_effector))
        return np.concatenate([self.workspace.normalise(rows).ravel(), rod, rod - hand]).astype(np.float32)

    def gently(self, point: list[float]) -> np.ndarray:
        """:meth:`towards`, at a little more than half speed: cloth that is jerked flies."""
        return 0.6 * self.towards(point)

    def scripted_action(self) -> np.ndarray:
        """(4,) float32: over the rod with the free edge on this side of it, and down beyond it."""
        hand, rod = self.end_effector, self.rod
        if hand[0] < rod[0] - 0.06 and abs(hand[1] - rod[1]) > 0.02:
            return self.towards([hand[0], rod[1], rod[2] + 0.14])
        if hand[0] < rod[0] + 0.05 and abs(hand[2] - rod[2] - 0.14) > 0.02:
            return self.towards([min(hand[0], rod[0] - 0.06), rod[1], rod[2] + 0.14])
        if hand[0] < rod[0] + 0.05:
            return self.gently([rod[0] + 0.07, rod[1], rod[2] + 0.13])
        return self.gently([rod[0] + 0.06, rod[1], rod[2] - 0.08])
