"""Scenes: asked of environments, written, read back, compared."""

from __future__ import annotations

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.scene import Scene
from envs.errors import UserError
from tests.dotworld import DotEnv, dot_scene


def test_scene_of_an_environment_and_of_a_vectorised_one() -> None:
    assert not Scene.of(DotEnv()).differences(dot_scene())
    found = Scene.of(DummyVecEnv([DotEnv, DotEnv]))
    assert not found.differences(dot_scene()) and found.background_tensor().shape == (3, 32, 32, 3)


def test_an_environment_without_cameras_is_refused() -> None:
    with pytest.raises(UserError, match="no cameras"):
        Scene.of(gym.make("CartPole-v1"))


def test_round_trip_through_json() -> None:
    scene = dot_scene()
    again = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    assert not scene.differences(again)
    assert np.array_equal(again.rig.intrinsics, scene.rig.intrinsics)


def test_differences_name_both_values() -> None:
    scene = dot_scene()

    def changed(**values) -> Scene:
        return Scene(dataclasses.replace(scene.cameras, **values), scene.box)

    assert scene.differences(changed(names=("a", "b", "c")))[0] == "cameras camera0, camera1, camera2 against a, b, c"
    assert scene.differences(changed(height=64, width=64))[0] == "image size 32 x 32 against 64 x 64"
    poses = scene.cameras.world_from_camera.copy()
    poses[1, 0, 3] += 0.01
    (difference,) = scene.differences(changed(world_from_camera=poses))
    assert difference.startswith("world_from_camera of camera 'camera1'") and " against " in difference
    assert scene.differences(changed(moving=True)) == ["moving cameras False against True"]
    on_torso = Scene(scene.cameras, dataclasses.replace(scene.box, body="torso"))
    assert scene.differences(on_torso) == ["workspace body None against torso"]
    moving = Scene(dataclasses.replace(scene.cameras, moving=True), scene.box)
    assert not moving.differences(changed(world_from_camera=poses, moving=True))  # poses come with each observation
    box = dataclasses.replace(scene.box, half_extents=(0.3, 0.25, 0.25))
    assert "half_extents" in scene.differences(Scene(scene.cameras, box))[0]
