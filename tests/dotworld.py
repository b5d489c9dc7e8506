"""A tiny world for tests that needs no simulator: a dot seen by a few cameras, drawn by plain projection."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch

from agents.scene import Scene
from envs.cameras import CameraRig, WorkspaceSpec
from envs.snapshots import load_random, save_random

SIZE = 32


def look_at_pose(position: tuple[float, ...]) -> np.ndarray:
    """OpenCV pose of a camera that looks at the origin, written out by hand."""
    position = np.asarray(position, float)
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def dot_scene(positions: tuple[tuple[float, ...], ...] = ((1, 0, 0.4), (0, 1, 0.4), (-0.8, -0.8, 0.5))) -> Scene:
    """Cameras on a circle about a box of half a metre, 32 px, and a grey background."""
    focal = 1.6 * SIZE
    lens = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]])
    rig = CameraRig(
        names=tuple(f"camera{i}" for i in range(len(positions))),
        intrinsics=np.stack([lens] * len(positions)),
        world_from_camera=np.stack([look_at_pose(p) for p in positions]),
        height=SIZE,
        width=SIZE,
        moving=False,
    )
    background = np.full((len(positions), SIZE, SIZE, 3), 90, np.uint8)
    return Scene(rig, WorkspaceSpec((0.0, 0.0, 0.0), (0.25, 0.25, 0.25)), background)


class DotEnv(gym.Env):
    """A red dot to be pushed to the origin, drawn by plain projection into every camera; no simulator.

    Actions move the dot by up to 5 cm; the reward is high near the origin; ``proprio`` is a useless constant.
    """

    horizon = 8

    def __init__(self, scene: Scene | None = None) -> None:
        self.scene = scene or dot_scene()
        rig = self.scene.cameras
        shape = (len(rig.names), rig.height, rig.width, 3)
        self.observation_space = gym.spaces.Dict(
            {
                "images": gym.spaces.Box(0, 255, shape, np.uint8),
                "proprio": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
            }
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.rig, self.workspace, self.background = rig, self.scene.box, self.scene.background
        self.defines_success = True
        self.poison: str | None = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.dot, self.time = self.np_random.uniform(-0.2, 0.2, 3), 0
        return self.observe(), {"is_success": False}

    def step(self, action):
        self.dot = np.clip(self.dot + 0.05 * np.asarray(action, float), -0.25, 0.25)
        self.time += 1
        distance = float(np.linalg.norm(self.dot))
        reward = float("nan") if self.poison == "reward" else 1.0 - np.tanh(5 * distance)
        return self.observe(), reward, False, self.time >= self.horizon, {"is_success": distance < 0.1}

    def save_state(self):
        return {"dot": self.dot.copy(), "time": self.time, "random": save_random(self.np_random)}

    def load_state(self, state):
        self.dot, self.time = state["dot"].copy(), state["time"]
        load_random(self, state["random"])
        return self.observe()

    def observe(self) -> dict[str, np.ndarray]:
        proprio = np.full(2, np.nan if self.poison == "observation" else 0.5, np.float32)
        return {"images": draw_dot(self.scene, self.dot), "proprio": proprio}


def draw_dot(scene: Scene, dot: np.ndarray) -> np.ndarray:
    """(V, H, W, 3) uint8: a red disc at the dot's projection, its radius 4 cm seen from where the camera stands."""
    rig, images = scene.cameras, scene.background.copy()
    rows, columns = np.mgrid[: rig.height, : rig.width] + 0.5
    for image, lens, pose in zip(images, rig.intrinsics, rig.world_from_camera, strict=True):
        x, y, z = pose[:3, :3].T @ (dot - pose[:3, 3])
        u, v = lens[0, 0] * x / z + lens[0, 2], lens[1, 1] * y / z + lens[1, 2]
        image[(columns - u) ** 2 + (rows - v) ** 2 < (lens[0, 0] * 0.04 / z) ** 2] = (230, 20, 20)
    return images


def dot_frames(scene: Scene, count: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Random frames (N, V, H, W, 3) uint8 and where the dot is in them (N, 3)."""
    dots = np.random.default_rng(seed).uniform(-0.2, 0.2, (count, 3))
    return torch.as_tensor(np.stack([draw_dot(scene, dot) for dot in dots])), dots
