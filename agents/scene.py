"""What an encoder must know of an environment: its cameras, the workspace box and the background image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import Env
from stable_baselines3.common.vec_env import VecEnv

from envs.cameras import CameraRig, WorkspaceSpec, require_entries
from envs.errors import UserError
from kp3d_rl.cameras import Rig, Workspace


@dataclass(frozen=True)
class Scene:
    """Cameras, box and background of a multi-view environment.

    :param cameras: names, intrinsics (pixels) and poses (metres in the workspace's frame) of the V cameras.
    :param box: the workspace, metres.
    :param background: (V, H, W, 3) uint8 render without anything that moves; None where cameras move.
    """

    cameras: CameraRig
    box: WorkspaceSpec
    background: np.ndarray | None = field(default=None, compare=False)

    @classmethod
    def of(cls, env: VecEnv | Env) -> Scene:
        """Ask an environment, or the first of a vectorised one.

        :param env: made by ``envs.make`` or wrapped in ``MultiViewObservation``.
        :raises UserError: for an environment without cameras.
        """

        present = env.has_attr("rig") if isinstance(env, VecEnv) else env.has_wrapper_attr("rig")
        if not present:
            raise UserError("this environment has no cameras: make it with envs.registry.make or MultiViewObservation")

        def attribute(name: str) -> Any:
            return env.get_attr(name, indices=[0])[0] if isinstance(env, VecEnv) else env.get_wrapper_attr(name)

        return cls(attribute("rig"), attribute("workspace"), attribute("background"))

    @property
    def rig(self) -> Rig:
        """The cameras as tensors."""
        cameras = self.cameras
        return Rig.from_arrays(cameras.intrinsics, cameras.world_from_camera, cameras.height, cameras.width)

    @property
    def workspace(self) -> Workspace:
        """The box as tensors."""
        return Workspace.from_arrays(self.box.centre, self.box.half_extents)

    def background_tensor(self) -> torch.Tensor | None:
        """The background as a (V, H, W, 3) uint8 tensor, or None."""
        return None if self.background is None else torch.as_tensor(self.background)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, fit for JSON; the background is not among them."""
        box = {"centre": list(map(float, self.box.centre)), "half_extents": list(map(float, self.box.half_extents))}
        return {"cameras": self.cameras.to_dict(), "workspace": box | {"body": self.box.body}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        """Undo :meth:`to_dict`.

        :param data: plain values, whoever wrote them.
        :raises UserError: for what is not a scene; one line says what is wrong.
        """
        require_entries(data, ("cameras", "workspace"), "scene")
        require_entries(data["workspace"], ("centre", "half_extents", "body"), "workspace")
        return cls(CameraRig.from_dict(data["cameras"]), WorkspaceSpec(**data["workspace"]))

    def differences(self, other: Scene) -> list[str]:
        """What differs between two scenes, each as "<what> <this one's> against <the other's>".

        :param other: the scene to compare with; poses and intrinsics may differ by 1e-6.
        """
        mine, theirs = self.cameras, other.cameras
        found = [
            f"{what} {a} against {b}"
            for what, a, b in (
                ("cameras", ", ".join(mine.names), ", ".join(theirs.names)),
                ("image size", f"{mine.height} x {mine.width}", f"{theirs.height} x {theirs.width}"),
                ("moving cameras", mine.moving, theirs.moving),
                ("workspace body", self.box.body, other.box.body),
            )
            if a != b
        ]
        if found:
            return found
        for number, name in enumerate(mine.names):
            for what in ("intrinsics", "world_from_camera"):
                a, b = getattr(mine, what)[number], getattr(theirs, what)[number]
                if not (mine.moving and what == "world_from_camera") and not np.allclose(a, b, atol=1e-6):
                    found.append(f"{what} of camera '{name}' {_numbers(a)} against {_numbers(b)}")
        for what in ("centre", "half_extents"):
            a, b = getattr(self.box, what), getattr(other.box, what)
            if not np.allclose(a, b, atol=1e-9):
                found.append(f"workspace {what} {_numbers(a)} against {_numbers(b)}")
        return found


def _numbers(values: Any) -> str:
    return np.array2string(np.asarray(values, dtype=float).ravel(), precision=4, separator=", ", max_line_width=10_000)
