"""Making environments by name."""

import os
import subprocess
import sys

import gymnasium as gym
import pytest

from envs.cameras import CameraSpec, WorkspaceSpec, save_cameras
from envs.errors import UserError
from envs.registry import env_ids, make, register_task
from envs.tasks.arm import ASSETS
from envs.tasks.reach import ReachEnv


def test_reach_is_registered():
    assert "reach-multiview" in env_ids() and "reach-multiview" in gym.registry


def test_a_task_that_does_not_say_how_it_is_seen_is_not_registered():
    class Unseen(gym.Env):
        cameras, horizon = (), 10

    with pytest.raises(ValueError, match="'unseen': Unseen has no attribute 'workspace'.*add-a-task"):
        register_task("unseen")(Unseen)
    assert "unseen" not in env_ids() and "unseen" not in gym.registry


def test_a_task_is_registered_by_decorator_and_only_once():
    with pytest.raises(ValueError, match="'reach-multiview' is registered twice"):
        register_task("reach-multiview")(ReachEnv)
    try:
        register_task("test-only-reach")(ReachEnv)
        assert "test-only-reach" in env_ids()
        make("test-only-reach", observe=("proprio",)).reset(seed=0)
    finally:
        from envs import registry

        registry._TASKS.pop("test-only-reach")
        gym.registry.pop("test-only-reach")


@pytest.mark.parametrize(
    "typed, meant", [("reach-multivew", "reach-multiview"), ("ant-v5", "Ant-v5"), ("Reacher", "Reacher-v")]
)
def test_unknown_environments_are_named(typed, meant):
    with pytest.raises(UserError) as caught:
        make(typed)
    message = str(caught.value)
    assert f"unknown environment '{typed}': did you mean '{meant}" in message and "\n" not in message
    assert message.index("valid: ant-multiview") < message.index("metaworld-<task>") < message.index("Humanoid-v5")
    assert message.count("metaworld-") == 1, "our own come first, and of Meta-World's fifty none is listed"


def test_what_a_module_registers_is_named_with_it(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"\(one that a module registers when it is imported: '<module>:Puck-v0'\)$"):
        make("Puck-v0")
    text = (
        "import gymnasium\ndef entry():\n    raise AssertionError('no\\npuck')\ngymnasium.register('Puck-v0', entry)\n"
    )
    (tmp_path / "only_in_a_test.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        make("only_in_a_test:Puck-v0", cameras="envs/assets/cameras/reacher.yaml")
    gym.registry.pop("Puck-v0")
    assert "cannot be made: AssertionError no puck (" in str(caught.value) and "only_in_a_test.py:3)" in str(
        caught.value
    )


def test_presets_are_chosen_by_name():
    env = make("reach-multiview", cameras="front, left", observe=("images",), height=16, width=16)
    assert env.rig.names == ("front", "left")
    assert env.observation_space["images"].shape == (2, 16, 16, 3)
    with pytest.raises(
        UserError, match="unknown camera of reach-multiview 'fron': did you mean 'front'.*left, right, front"
    ):
        make("reach-multiview", cameras="fron,left")


def test_a_cameras_file_replaces_the_presets(tmp_path):
    camera = CameraSpec("mine", (1.2, 0.0, 0.9), look_at=(0.5, 0.0, 0.2))
    save_cameras(tmp_path / "mine.yaml", [camera])
    env = make("reach-multiview", cameras=tmp_path / "mine.yaml")
    assert env.rig.names == ("mine",) and env.workspace == ReachEnv.workspace  # the task's box unless the file has one
    box = WorkspaceSpec((0.5, 0, 0.2), (0.3, 0.3, 0.3))
    save_cameras(tmp_path / "mine.yaml", [camera], box)
    assert make("reach-multiview", cameras=str(tmp_path / "mine.yaml")).workspace == box


@pytest.mark.parametrize("cameras, message", [(None, "name a cameras file"), ("left", "'left' must be a cameras file")])
def test_foreign_environments_need_a_cameras_file(cameras, message):
    with pytest.raises(UserError, match=message):
        make("Ant-v5", cameras=cameras)


def test_a_missing_cameras_file_is_named():
    with pytest.raises(UserError, match="nothing.yaml: cannot be read"):
        make("reach-multiview", cameras="nothing.yaml")


def test_environments_that_cannot_be_made_say_why():
    with pytest.raises(UserError, match="environment nosuchmodule:Env-v0 cannot be made"):
        make("nosuchmodule:Env-v0", cameras=ASSETS / "cameras" / "ant.yaml")
    with pytest.raises(UserError, match="no MuJoCo environment"):
        make("CartPole-v1", cameras=ASSETS / "cameras" / "ant.yaml")


def test_importing_brings_no_learning_library_and_does_no_work():
    """A worker process that only simulates and renders stays small, and nothing is decided at import."""
    code = """
import os, sys
before = dict(os.environ)
import envs, envs.registry, envs.multiview, envs.renderers.gl, envs.renderers.warp, envs.renderers.auto
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"torch", "stable_baselines3", "tensorboard", "kp3d_rl", "agents", "experiments"}, loaded
assert "OpenGL" not in loaded and "warp" not in loaded, loaded
assert dict(os.environ) == before
env = envs.registry.make("reach-multiview")
assert "OpenGL" not in sys.modules
env.reset(seed=0)
assert "torch" not in sys.modules
"""
    # With MUJOCO_GL set MuJoCo itself imports OpenGL.
    inherited = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=inherited)
