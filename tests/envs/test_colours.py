"""Colours: where they are kept, and that shuffling them changes nothing else."""

import numpy as np
import pytest

from envs.cameras import CameraSpec
from envs.colours import ShuffledColours, colour_slots
from envs.multiview import MultiViewObservation
from envs.registry import make

SCENE = """
<asset><material name="red" rgba="0.9 0.1 0.1 1"/><material name="unused" rgba="0 1 0 1"/>
<material name="glass" rgba="0 0 1 0"/></asset>
<worldbody>
<geom name="a" size=".1" material="red"/><geom name="b" size=".1" pos="0 .4 0" material="red"/>
<geom name="c" size=".1" pos="0 -.4 0" material="red" rgba="0 0 0.9 1"/><geom name="d" size=".1" pos="0 0 .4"/>
<geom name="e" size=".1" rgba="1 1 1 0"/><geom name="f" size=".1" rgba="1 1 0 1" group="3"/>
<geom name="g" size=".1" material="glass"/>
</worldbody>"""


def test_slots_are_the_colours_that_show(scene):
    model = scene(SCENE).model
    slots = colour_slots(model)
    assert [(slot.material, slot.geoms) for slot in slots] == [(True, (0, 1)), (False, (2,)), (False, (3,))]
    expected = [(0.9, 0.1, 0.1), (0, 0, 0.9), (0.5, 0.5, 0.5)]
    np.testing.assert_allclose([slot.read(model) for slot in slots], expected, atol=1e-6)


def test_a_written_colour_shows(scene):
    """Also MuJoCo's default grey, which on a geom with a material would mean: take the material's."""
    env = MultiViewObservation(
        scene(SCENE),
        [CameraSpec("front", (3.0, 0.0, 0.0), look_at=(0.0, 0.0, 0.1))],
        height=64,
        width=64,
        observe=("images",),
    )
    env.reset(seed=0)
    segments = env.segment_views()
    model = env.unwrapped.model
    for slot in colour_slots(model):
        before = env.render_views()[np.isin(segments, slot.geoms)].astype(int)
        assert len(before) >= 10
        slot.write(model, [0.5, 0.5, 0.5])
        grey = env.render_views()[np.isin(segments, slot.geoms)].astype(int)
        assert np.ptp(grey, axis=1).max() <= 2
        slot.write(model, [0.1, 0.8, 0.1])
        green = env.render_views()[np.isin(segments, slot.geoms)].astype(int)
        assert np.all(green[:, 1] > green[:, [0, 2]].max(1)) and np.abs(green - before).max(1).min() > 10
    env.close()


@pytest.fixture
def shuffled():
    env = ShuffledColours(make("reach-multiview", height=48, width=48))
    yield env
    env.close()


def colours_of(env):
    model = env.unwrapped.model
    return np.array([slot.read(model) for slot in colour_slots(model)])


def test_every_colour_goes_elsewhere_by_the_episodes_seed(shuffled):
    own = colours_of(shuffled)
    seen = {}
    for seed in (0, 1, 2, 0):
        shuffled.reset(seed=seed)
        now = colours_of(shuffled)
        assert sorted(map(tuple, now)) == sorted(map(tuple, own))
        assert np.all(np.abs(now - own).max(1) > 0)
        np.testing.assert_array_equal(seen.setdefault(seed, now), now)  # also after other episodes
    assert len({now.tobytes() for now in seen.values()}) == 3
    shuffled.reset()
    assert colours_of(shuffled).tobytes() != seen[0].tobytes()  # without a seed the next one comes


def test_it_shows_in_every_view_and_nothing_else_changes(shuffled):
    plain = make("reach-multiview", height=48, width=48)
    own = plain.unwrapped.model.mat_rgba.copy()
    (a, _), (b, _) = plain.reset(seed=5), shuffled.reset(seed=5)
    for _ in range(4):
        changed = np.abs(a["images"].astype(int) - b["images"]).max(-1) > 40
        assert np.all(changed.mean((1, 2)) > 0.2)
        np.testing.assert_array_equal(a["proprio"], b["proprio"])
        np.testing.assert_array_equal(plain.unwrapped.data.qpos, shuffled.unwrapped.data.qpos)
        action = plain.action_space.sample()
        a, b = plain.step(action)[0], shuffled.step(action)[0]
    shuffled.restore()
    np.testing.assert_array_equal(shuffled.unwrapped.model.mat_rgba, own)
    np.testing.assert_array_equal(shuffled.env.render_views(), plain.render_views())
    plain.close()
