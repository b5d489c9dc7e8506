"""Frame stacks: what came before is shown beside what is, whoever renders it and wherever the episode goes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.batch_env import BatchVecEnv
from agents.vec_env import make_vec_env
from envs import registry
from envs.errors import UserError
from envs.history import FrameHistory
from envs.tasks.ant import AntMultiViewEnv

SMALL = {"height": 16, "width": 16}


def make_ant():
    return registry.make("ant-multiview", **SMALL)


def test_frames_are_the_last_ones_newest_first() -> None:
    history = FrameHistory(3)
    assert history.save() is None
    frames = [np.full((2, 4, 4, 3), n, np.uint8) for n in range(5)]
    history.begin(frames[0])
    assert [f.max() for f in history.previous] == [0, 0]
    for newest in range(1, 5):
        history.add(frames[newest])
        assert [f.max() for f in history.previous] == [newest - 1, max(newest - 2, 0)]
    other = FrameHistory(3)
    saved = history.save()
    other.load(saved, saved.shape)  # frames 3 and 2; the newest, 4, is rendered anew
    other.add(frames[4])
    assert [f.max() for f in other.previous] == [3, 2]
    history.begin(frames[1])
    assert [f.max() for f in history.previous] == [1, 1], "nothing of the episode before"


@pytest.mark.parametrize("damaged", [[1, 2], np.zeros((1, 3, 16, 16, 3)), np.zeros((2, 3, 16, 16, 3), np.uint8)])
def test_frames_of_a_damaged_state_are_refused(damaged: object) -> None:
    env = make_ant()
    env.reset(seed=0)
    state = env.save_state() | {"previous": damaged}
    with pytest.raises(UserError, match="earlier frames are no uint8 array of shape"):
        env.load_state(state)
    env.close()


def test_an_episode_begins_with_copies_and_then_shows_the_step_before() -> None:
    env = make_ant()
    for seed in (0, 1):
        observation, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(observation["previous"], observation["images"][None])
        for _ in range(3):
            last, (observation, *_) = observation, env.step(env.action_space.sample())
            np.testing.assert_array_equal(observation["previous"][0], last["images"])
            assert not np.array_equal(observation["previous"][0], observation["images"])
            assert env.observation_space.contains(observation)
    env.close()


def test_an_episode_that_goes_on_elsewhere_has_its_history() -> None:
    first, second = make_ant(), make_ant()
    first.reset(seed=4)
    for _ in range(3):
        observation, *_ = first.step(first.action_space.sample())
    resumed = second.load_state(first.save_state())
    for key, value in observation.items():
        np.testing.assert_array_equal(resumed[key], value)
    action = first.action_space.sample()
    np.testing.assert_array_equal(first.step(action)[0]["previous"], second.step(action)[0]["previous"])
    first.close(), second.close()


@pytest.mark.parametrize("tensors", [False, True])
def test_batches_show_what_single_environments_show(tensors: bool, monkeypatch: pytest.MonkeyPatch, require_renderer):
    """Over the ends of episodes, and in the terminal observations too."""
    require_renderer("gl")
    monkeypatch.setattr(AntMultiViewEnv, "horizon", 3)
    alone, together = make_vec_env([make_ant] * 2), BatchVecEnv([make_ant] * 2, "gl", "cpu", tensors)
    for env in (alone, together):
        env.seed(5)
    seen = [alone.reset(), together.reset()]
    for step in range(8):
        for key in ("images", "previous"):
            np.testing.assert_array_equal(seen[0][key], np.asarray(seen[1][key]))
        actions = np.random.default_rng(step).uniform(-1, 1, (2, 8)).astype(np.float32)
        found = [env.step(actions) for env in (alone, together)]
        seen = [observations for observations, *_ in found]
        np.testing.assert_array_equal(found[0][2], found[1][2])
        for row in np.flatnonzero(found[0][2]):
            last = [infos[row]["terminal_observation"] for *_, infos in found]
            np.testing.assert_array_equal(last[0]["previous"], np.asarray(last[1]["previous"]))
    if tensors:
        assert isinstance(seen[1]["previous"], torch.Tensor)
    resumed = BatchVecEnv([make_ant] * 2, "gl", "cpu", tensors)
    again, lost = resumed.load_states(together.save_states())
    assert lost == [None, None]
    np.testing.assert_array_equal(np.asarray(again["previous"]), np.asarray(seen[1]["previous"]))
    for env in (alone, together, resumed):
        env.close()


def test_the_ant_is_gymnasiums_but_for_its_colours_and_its_end() -> None:
    import gymnasium as gym

    ours, theirs = registry.make("ant-multiview", observe=("state",)), gym.make("Ant-v5")
    state, _ = ours.reset(seed=3)
    expected, _ = theirs.reset(seed=3)
    for _ in range(30):
        np.testing.assert_array_equal(state["state"], expected.astype(np.float32))
        action = theirs.action_space.sample()
        state, reward, terminated, *_ = ours.step(action)
        expected, true, ended, *_ = theirs.step(action)
        assert reward == pytest.approx(true, abs=1e-12) and terminated == ended
    ours.close(), theirs.close()


def test_legs_have_colours_of_their_own_or_none() -> None:
    coloured, plain = AntMultiViewEnv(True), AntMultiViewEnv(False)
    for env, count in ((coloured, 5), (plain, 1)):
        assert len({tuple(rgba) for rgba in env.model.geom_rgba[1:]}) == count
    assert plain.model.geom_rgba[1:].tolist() == [pytest.approx([0.8, 0.6, 0.4, 1])] * 13
    legs = [coloured.model.geom_rgba[coloured.model.geom(f"{leg}_geom").id].tolist()
            for leg in ("aux_1", "left_leg", "left_ankle")]  # fmt: skip
    assert legs[0] == legs[1] == legs[2]


def test_success_is_ten_metres_ahead_of_the_start() -> None:
    env = AntMultiViewEnv()
    env.reset(seed=0)
    start = env.data.qpos[0]
    for ahead, expected in ((9.0, False), (10.5, True)):
        env.data.qpos[0] = start + ahead
        assert env.step(np.zeros(8))[-1]["is_success"] is expected
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.full(8, np.nan))
