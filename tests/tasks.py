"""Which registered tasks the tests go through: of Meta-World's fifty a few, and all where KP3D_TEST_ALL is set."""

import os

from envs.registry import env_ids, task_class

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
FIXED = tuple(env_id for env_id in OWN if all(camera.body is None for camera in task_class(env_id).cameras))
"""Those of our own whose cameras all stand still."""
ALL = bool(os.environ.get("KP3D_TEST_ALL"))
TESTED = (*OWN, *(METAWORLD if ALL else ("metaworld-hammer", "metaworld-pick-place")))
"""For what is tested of every task."""
EIGHT = METAWORLD if ALL else PAPER
"""For what is tested of each task of the paper."""
