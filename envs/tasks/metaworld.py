"""Meta-World's fifty manipulation tasks (version 3), with their own physics, rewards and success, seen from cameras.

Yu et al., "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning" (CoRL 2019). The
package ``metaworld`` is imported when the first environment is made.
"""

from __future__ import annotations

import functools
import importlib.metadata
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces

from envs.cameras import CameraSpec, WorkspaceSpec
from envs.errors import UserError, unknown
from envs.registry import SPLITS, register_task
from envs.snapshots import take_over_warnings
from envs.visual_model import MarkerSpec

if TYPE_CHECKING:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv
    from metaworld.types import Task

VERSION = "3.0"
"""Of the package: 3.1 is pinned to a MuJoCo that our renderers cannot use."""
CONFIGURATION_SEED = 0
"""Of Meta-World's ML1 benchmark, which draws 50 configurations to train on from it, and 50 to test on from the next."""
CONFIGURATIONS = 50
HAND_SPEED = 0.8  # metres per second: an action of 1 moves the hand by 1 cm in 12.5 ms
OBJECTS = {
    "assembly": ("RoundNut",),
    "basketball": ("bsktball",),
    "bin-picking": ("obj",),
    "box-close": ("boxbodytop",),
    "button-press": ("button",),
    "button-press-topdown": ("button",),
    "button-press-topdown-wall": ("button",),
    "button-press-wall": ("button",),
    "coffee-button": ("cmbutton",),
    "coffee-pull": ("obj",),
    "coffee-push": ("obj",),
    "dial-turn": ("dial",),
    "disassemble": ("RoundNut",),
    "door-close": ("door_link",),
    "door-lock": ("lock_link",),
    "door-open": ("door_link",),
    "door-unlock": ("lock_link",),
    "drawer-close": ("drawer_link",),
    "drawer-open": ("drawer_link",),
    "faucet-close": ("faucet_link2",),
    "faucet-open": ("faucet_link2",),
    "hammer": ("hammerbody", "nail_link"),
    "hand-insert": ("obj",),
    "handle-press": ("handle_link",),
    "handle-press-side": ("handle_link",),
    "handle-pull": ("handle_link",),
    "handle-pull-side": ("handle_link",),
    "lever-pull": ("lever_link1",),
    "peg-insert-side": ("peg",),
    "peg-unplug-side": ("plug1",),
    "pick-out-of-hole": ("obj",),
    "pick-place": ("obj",),
    "pick-place-wall": ("obj",),
    "plate-slide": ("puck_channel/1",),
    "plate-slide-back": ("puck_channel/1",),
    "plate-slide-back-side": ("puck_channel/1",),
    "plate-slide-side": ("puck_channel/1",),
    "push": ("obj",),
    "push-back": ("obj",),
    "push-wall": ("obj",),
    "reach": (),
    "reach-wall": (),
    "shelf-place": ("obj",),
    "soccer": ("soccer_ball",),
    "stick-pull": ("stick", "object/1"),
    "stick-push": ("stick", "object/1"),
    "sweep": ("obj",),
    "sweep-into": ("obj",),
    "window-close": ("windowb_a",),
    "window-open": ("windowb_a",),
}
"""Names of the tasks, and the bodies that the hand is to move."""
FIXTURES = {
    "assembly": "peg",
    "basketball": "basket_goal",
    "box-close": "boxbody",
    "coffee-button": "coffee_machine",
    "coffee-pull": "coffee_machine",
    "coffee-push": "coffee_machine",
    "dial-turn": "dial",
    "disassemble": "peg",
    "lever-pull": "lever",
    "peg-insert-side": "box",
    "peg-unplug-side": "box",
    "plate-slide": "puck_goal",
    "plate-slide-back-side": "puck_goal",
    "shelf-place": "shelf",
    "soccer": "goal_whole",
    "window-close": "window",
    "window-open": "window",
    **dict.fromkeys(("drawer-close", "drawer-open"), "drawer"),
    **dict.fromkeys(("door-close", "door-lock", "door-open", "door-unlock"), "door"),
    **dict.fromkeys(("faucet-close", "faucet-open"), "faucetBase"),
    **{name: "box" for name in OBJECTS if name.startswith(("button-press", "handle-"))},
}
"""Bodies that stand elsewhere in each configuration and move in none."""
PAPER_CAMERAS = tuple(
    CameraSpec(f"paper-{number}", position=position, quaternion=quaternion, fovy=80.0)
    for number, (position, quaternion) in enumerate(
        [
            ((-0.4, 0.6, 0.4), (0.6123724, 0.3535534, -0.3535534, -0.6123724)),
            ((0.3, 0.3, 0.5), (0.8001031, 0.4619398, 0.1913417, 0.3314136)),
            ((0.2, 0.7, 0.7), (0.3794095, 0.0499502, 0.1205905, 0.9159756)),
        ],
        start=1,
    )
)
"""Of Chen et al. (ICML 2021), from their branch of Meta-World."""


class MetaWorldEnv(gym.Env):
    """A task of Meta-World, observed by its own 39 numbers, the goal's position among them.

    Action (4,) in [-1, 1]: the hand's displacement along the world's x, y, z (1 is 1 cm) and the gripper's closing. An
    episode begins in one of 50 configurations (where things stand, and where they are wanted), lasts ``horizon`` steps
    and is then truncated. Rewards are Meta-World's, from 0 to 10; info has its entries, ``success`` among them.

    Physics is Meta-World's to the last bit. The goal is shown by a ball of 2 cm around the point from which success is
    measured; the model's own sites, which only OpenGL would draw, are not shown.

    A pickled environment is a new one where it is unpickled.

    :param task: its name, such as "hammer".
    :param split: "train" or "test": which 50 configurations.
    :raises UserError: for an unknown task or split; where Meta-World is missing, or is of a version that does not go
        with our MuJoCo.
    """

    split = "train"
    metadata = {"render_modes": [], "render_fps": 80}
    workspace = WorkspaceSpec(centre=(0.0, 0.65, 0.17), half_extents=(0.26, 0.26, 0.18))
    cameras = (
        CameraSpec("left", position=(-0.9, 0.15, 0.79), look_at=(0.0, 0.675, 0.12), fovy=38.0),
        CameraSpec("right", position=(0.9, 0.15, 0.79), look_at=(0.0, 0.675, 0.12), fovy=38.0),
        CameraSpec("top", position=(0.131, 1.109, 1.265), look_at=(0.0, 0.65, 0.17), fovy=42.0),
    )
    other_cameras = PAPER_CAMERAS
    markers = (MarkerSpec("goal"),)
    configurations = CONFIGURATIONS
    horizon = 200
    defines_success = True
    model_changes = ("body_pos", "site_pos")

    def __init__(self, task: str, split: str = "train") -> None:
        if task not in OBJECTS:
            raise unknown("task of Meta-World", task, OBJECTS)
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        take_over_warnings()
        self.task, self.split = task, split
        self.movable = (FIXTURES[task],) if task in FIXTURES else ()
        self.probe_bodies = ("hand", *OBJECTS[task], "goal")
        self._task = _task_class(task)()
        self.model, self.data, self.fullpath = self._task.model, self._task.data, self._task.fullpath
        self._hand = self.model.body("hand").id
        self._claws = [self.model.body(f"{side}claw").id for side in ("right", "left")]
        self._elapsed = 0
        self._state = np.zeros(39)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (39,), np.float64)

    def __reduce__(self) -> tuple:
        return type(self), (self.task, self.split)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode; the same seed gives the same episode, whatever came before.

        :param seed: also picks the configuration, ``seed % 50``: as many seeds in a row meet each of them once, and no
            more, since an episode has nothing else that is drawn. Without a seed it is drawn.
        :param options: {"configuration": 0 … 49} picks one, too.
        """
        super().reset(seed=seed)
        number = int(self.np_random.integers(CONFIGURATIONS)) if seed is None else int(seed) % CONFIGURATIONS
        if options:
            number = _chosen(options)
        self._task.set_task(configurations(self.task, self.split)[number])
        self._state, _ = self._task.reset()
        self._elapsed = 0
        return self._state.copy(), {"configuration": number, "success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Apply one action for 12.5 ms.

        :raises ValueError: if the action holds NaN or infinity.
        """
        if not np.all(np.isfinite(action)):
            raise ValueError(f"action {np.asarray(action).tolist()} is not finite")
        self._state, reward, _, _, info = self._task.step(np.clip(action, -1.0, 1.0))
        self._elapsed += 1
        return self._state.copy(), float(reward), False, self._elapsed >= self.horizon, info

    def close(self) -> None:
        self._task.close()

    def proprio(self) -> np.ndarray:
        """(7,) float32, what the arm feels: the hand's position (1 at the workspace's walls), its velocity (1 at full
        speed) and the gripper's opening (-1 shut, 1 open)."""
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_XBODY, self._hand, velocity, 0)
        right, left = self.data.xpos[self._claws]
        opening = 2.0 * min(np.linalg.norm(right - left) / 0.1, 1.0) - 1.0
        position = self.workspace.normalise(self.data.xpos[self._hand])
        return np.concatenate([position, velocity[3:] / HAND_SPEED, [opening]]).astype(np.float32)

    def marker_positions(self) -> np.ndarray:
        """(1, 3) the goal, world metres."""
        goal = self._task._target_pos
        return np.zeros((1, 3)) if goal is None else np.reshape(goal, (1, 3))

    def scripted_action(self) -> np.ndarray:
        """(4,) float32 in [-1, 1]: what Meta-World's scripted policy for this task does now."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it wants more than 1, at every second step
            wanted = self._policy.get_action(self._state)
        return np.clip(wanted, -1.0, 1.0).astype(np.float32)

    @functools.cached_property
    def _policy(self) -> Any:
        from metaworld.policies import ENV_POLICY_MAP

        return ENV_POLICY_MAP[f"{self.task}-v3"]()


@functools.lru_cache(maxsize=64)
def configurations(task: str, split: str) -> tuple[Task, ...]:
    """The configurations of a split, as Meta-World's ML1 draws them, but with the goal in the state.

    (ML1 hides the goal, and a state that lacks it would be no upper bound for what sees it.)

    :param task: name of a task, such as "hammer".
    :param split: "train" or "test".
    """
    from metaworld.types import Task

    kind, before = _task_class(task), np.random.get_state()
    try:
        np.random.seed(CONFIGURATION_SEED + SPLITS.index(split))  # the generator that Meta-World draws from
        drawn = [_draw(env) for env in [_without_motion(kind)] for _ in range(CONFIGURATIONS)]
    finally:
        np.random.set_state(before)
    told = {"env_cls": kind, "partially_observable": False}
    return tuple(Task(f"{task}-v3", pickle.dumps(told | {"rand_vec": vector})) for vector in drawn)


def _without_motion(kind: type[SawyerXYZEnv]) -> SawyerXYZEnv:
    """An environment whose resets draw, but leave out the hundred steps in which the hand gets to its start."""

    class Still(kind):
        def _reset_hand(self, steps: int = 0) -> None:
            mujoco.mj_forward(self.model, self.data)  # what the state is read from
            self.init_tcp = self.tcp_center

    env = Still()
    env._set_task_called, env._freeze_rand_vec = True, False
    return env


def _draw(env: SawyerXYZEnv) -> np.ndarray:
    env.reset()
    return env._last_rand_vec.copy()


def _chosen(options: dict[str, Any]) -> int:
    number = options.get("configuration")
    valid = type(number) is int and 0 <= number < CONFIGURATIONS
    if options.keys() != {"configuration"} or not valid:
        raise UserError(f"reset options are {options}; expected {{'configuration': 0 … {CONFIGURATIONS - 1}}}")
    return number


def _task_class(task: str) -> type[SawyerXYZEnv]:
    """:raises UserError: where Meta-World is missing, or is of a version that does not go with our MuJoCo."""
    wanted = f"metaworld-{task} needs Meta-World {VERSION}: pip install -c constraints.txt metaworld"
    try:
        found = importlib.metadata.version("metaworld")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{wanted} (it is not installed)") from None
    if not found.startswith(f"{VERSION}."):
        raise UserError(f"{wanted} (found {found})")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return ALL_V3_ENVIRONMENTS[f"{task}-v3"]


for _task in OBJECTS:
    register_task(f"metaworld-{_task}", task=_task)(MetaWorldEnv)
