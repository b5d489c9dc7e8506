"""Which registered tasks the tests go through: of Meta-World's fifty a few, and all where KP3D_TEST_ALL is set."""

import os

from envs.registry import env_ids, task_class
from envs.tasks.arm import ArmEnv

PAPER = tuple(
    f"metaworld-{task}"
    for task in (
        "hammer",
        "drawer-close",
        "push-wall",
        "box-close",
        "door-open",
        "peg-unplug-side",
        "window-open",
        "pick-place",
    )
)
"""The eight of Keypoint3D's paper."""
METAWORLD = tuple(env_id for env_id in env_ids() if env_id.startswith("metaworld-"))
OWN = tuple(env_id for env_id in env_ids() if env_id not in METAWORLD)
ARM = tuple(env_id for env_id in OWN if issubclass(task_class(env_id), ArmEnv))
"""Those of our own that the arm solves; the others are Gymnasium's ant."""
FIXED = tuple(env_id for env_id in OWN if all(camera.body is None for camera in task_class(env_id).cameras))
"""Those of our own whose cameras all stand still."""
ALL = os.environ.get("KP3D_TEST_ALL", "0") not in ("", "0")
_LIKE_ANOTHER = () if ALL else ("ant-nocolor-multiview",)
TESTED = (
    *(env_id for env_id in OWN if env_id not in _LIKE_ANOTHER),
    *(METAWORLD if ALL else ("metaworld-hammer", "metaworld-pick-place")),
)
"""For what is tested of every task."""
EIGHT = METAWORLD if ALL else PAPER
"""For what is tested of each task of the paper."""
