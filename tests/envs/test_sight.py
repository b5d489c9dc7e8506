"""Cameras of a file that cannot be meant are refused in one line, and all others are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.cameras import CameraSpec, WorkspaceSpec, save_cameras
from envs.errors import UserError
from envs.registry import make

CENTRE = (0.5, 0.0, 0.3)


def made(folder: Path, env_id: str, camera: CameraSpec):
    box = WorkspaceSpec((0, 0, 0), (1, 1, 0.5), "torso") if env_id == "Ant-v5" else None
    save_cameras(folder / "one.yaml", [camera], box)
    return make(env_id, cameras=folder / "one.yaml", height=16, width=16)


UP, AWAY = {"up": (0.0, 1.0, 0.0)}, "'c' sees nothing of the workspace: point it at the box's centre"
IN_TABLE = "'c' stands inside of the body 'table': move it out"
REFUSED = {
    "in a box": ("reach-multiview", CameraSpec("c", (0.5, 0.0, -0.02), look_at=CENTRE, **UP), IN_TABLE),
    "in a mesh": (
        "metaworld-hammer",
        CameraSpec("c", (0.0, 0.6, -0.01), look_at=(0, 0.6, 1), **UP),
        "inside of the body",
    ),
    "away": ("reach-multiview", CameraSpec("c", (2.0, 0.0, 0.5), look_at=(4.0, 0.0, 0.5)), AWAY),
    "past it": ("reach-multiview", CameraSpec("c", (1.5, 0.0, 0.5), look_at=(1.5, 1.0, 0.5), fovy=20), AWAY),
    "following": (
        "Ant-v5",
        CameraSpec("c", (2, 0, 1), look_at=(4, 0, 1), body="torso", follow="track"),
        "sees nothing",
    ),
}


@pytest.mark.parametrize(("env_id", "camera", "message"), REFUSED.values(), ids=REFUSED)
def test_cameras_that_cannot_be_meant(env_id: str, camera: CameraSpec, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        made(tmp_path, env_id, camera)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "camera"),
    [
        ("reach-multiview", CameraSpec("c", (1.5, 0.3, 0.8), look_at=CENTRE)),
        ("reach-multiview", CameraSpec("in the palm", (0.0, 0.0, 0.0), look_at=(0, 0, 0.1), up=(0, 1, 0), body="hand")),
        ("metaworld-hammer", CameraSpec("c", (-0.9, 0.15, 0.79), look_at=(0.0, 0.675, 0.12))),
        ("metaworld-hammer", CameraSpec("in the box", (0.0, 0.65, 0.3), look_at=(0.0, 0.9, 0.1))),
    ],
)
def test_others_are_taken(env_id: str, camera: CameraSpec, tmp_path: Path) -> None:
    made(tmp_path, env_id, camera).close()
