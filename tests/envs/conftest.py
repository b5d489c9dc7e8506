"""Fixtures for the environments' tests."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from envs.errors import UserError


class SceneEnv(gym.Env):
    """The smallest environment that can be looked at: a scene, and actions that change nothing."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, path):
        self.fullpath = str(path)
        self.model = mujoco.MjModel.from_xml_path(self.fullpath)
        self.data = mujoco.MjData(self.model)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        mujoco.mj_step(self.model, self.data)
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.fixture
def scene(tmp_path):
    """A function that makes an environment of MJCF (what stands inside ``<mujoco>``)."""

    def make(xml):
        path = tmp_path / f"scene{len(list(tmp_path.iterdir()))}.xml"
        path.write_text(f"<mujoco>{xml}</mujoco>")
        return SceneEnv(path)

    return make


@pytest.fixture(scope="session")
def require_renderer():
    """A function that skips the test where a renderer cannot be had on this machine."""

    def require(name):
        if name == "warp":
            pytest.importorskip("mujoco_warp")
        else:
            from envs.renderers import gl_info

            try:
                gl_info()
            except UserError as error:
                pytest.skip(str(error))

    return require
