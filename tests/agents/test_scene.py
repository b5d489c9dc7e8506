"""Scenes: asked of environments, written, read back, compared."""

from __future__ import annotations

import dataclasses
import json
from random import Random

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.scene import Scene
from envs.errors import UserError
from experiments.soak.mutators import mutate
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "scene: must be a mapping with the entries cameras, workspace, got None"),
        ([], "scene: must be a mapping"),
        ({"camera": 1}, "unknown scene entry 'camera': did you mean 'cameras'?"),
        ({"workspace": None}, "workspace: must be a mapping with the entries centre, half_extents, body, got None"),
        ({"workspace": {"centre": [0, 0, 0]}}, "workspace: entry 'half_extents' is missing"),
        ({"workspace": {"centre": [0, 0, 0], "half_extents": [1, 1, 0], "body": None}}, "all must be positive"),
        ({"workspace": {"centre": "abc", "half_extents": [1, 1, 1], "body": None}}, "centre is 'abc'"),
        ({"workspace": {"centre": [0, 0, 10**400], "half_extents": [1, 1, 1], "body": None}}, "3 finite numbers"),
        ({"workspace": {"centre": [0, 0, 0], "half_extents": [1, 1, 1], "body": [1]}}, "workspace: body is [1]"),
        ({"cameras": []}, "rig: must be a mapping"),
    ],
)
def test_what_is_no_scene_is_one_line(change, message: str) -> None:
    data = dot_scene().to_dict() | change if isinstance(change, dict) else change
    with pytest.raises(UserError) as error:
        Scene.from_dict(data)
    assert message in str(error.value) and str(error.value).isprintable()


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_are_one_line_or_say_what_is_loaded(seed: int) -> None:
    content = mutate(json.dumps(dot_scene().to_dict(), indent=1).encode(), Random(seed))
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return
    try:
        scene = Scene.from_dict(data)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 400
    else:
        assert scene.to_dict() == data


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
