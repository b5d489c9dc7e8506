"""The scarf hangs from the hand, falls over the rod, and counts where it should."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from envs.registry import make
from envs.tasks.scarf import COLUMNS, WIDTH, ScarfEnv


def test_the_held_edge_stays_in_the_hand_and_the_cloth_keeps_its_size() -> None:
    env = ScarfEnv()
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        env.step(rng.uniform(-1, 1, 4))
        held = env.cloth[:COLUMNS]
        assert np.linalg.norm(held.mean(0) - env.end_effector) < 0.005
        assert np.linalg.norm(held[-1] - held[0]) == pytest.approx(WIDTH, abs=0.004)
        rows = env.cloth.reshape(-1, COLUMNS, 3)
        gaps = np.linalg.norm(np.diff(rows, axis=0), axis=-1)
        assert gaps.mean() == pytest.approx(0.024, rel=0.2) and gaps.max() < 1.8 * 0.024, "cloth, and no rubber"
    assert env.cloth[:, 2].min() > -0.01, "the table holds it up"


def test_the_script_hangs_it_over_the_rod_and_random_actions_do_not() -> None:
    done = {"script": 0, "random": 0}
    env = ScarfEnv()
    for seed in range(8):
        for who in done:
            env.reset(seed=seed)
            rng = np.random.default_rng(seed)
            for _ in range(env.horizon):
                action = env.scripted_action() if who == "script" else rng.uniform(-1, 1, 4)
                _, reward, *_, info = env.step(action)
            done[who] += info["is_success"]
            assert not info["is_success"] or reward > 0.7
    assert done["script"] >= 6 and done["random"] <= 2, done


@pytest.mark.parametrize(
    ("ahead", "aside", "expected"), [(0.0, 0.0, True), (0.05, 0.0, False), (0.0, 0.3, False), (-0.5, 0.0, False)]
)
def test_success_is_to_hang_on_both_sides_and_on_the_rod(ahead: float, aside: float, expected: bool) -> None:
    """The cloth laid over the rod by hand, as an upside-down V; then the rod moved away from under it."""
    env = ScarfEnv()
    env.reset(seed=1)
    rod = env.rod.copy()
    down = np.abs(np.arange(11) - 5) * 0.022
    rows = np.column_stack([(np.arange(11) - 5) * 0.008, np.zeros(11), 0.015 - down]) + rod
    points = np.repeat(rows, COLUMNS, 0) + np.tile(np.linspace(-0.5, 0.5, COLUMNS) * WIDTH, 11)[:, None] * [0, 1, 0]
    base = env.model.body_pos[env._points]
    for body, point in zip(env._points, points - base, strict=True):
        joint = env.model.body_jntadr[body]
        env.data.qpos[env.model.jnt_qposadr[joint] : env.model.jnt_qposadr[joint] + 3] = point
    env.data.mocap_pos[env._peg] += [ahead, aside, 0.0]
    mujoco.mj_kinematics(env.model, env.data)
    np.testing.assert_allclose(env.cloth, points, atol=1e-9)
    assert env.success() is expected, (env.hanging, env.lies_on)


@pytest.mark.parametrize("renderer", ["gl", "warp"])
def test_cloth_is_seen_and_is_no_background(renderer: str, require_renderer) -> None:
    require_renderer(renderer)
    env = make("scarf-multiview", height=48, width=48, renderer=renderer)
    env.reset(seed=0)
    assert ((env.segment_views() == -2).sum((1, 2)) >= 12).all()
    cloth = np.array([217, 26, 89])
    reddest = {name: np.abs(images / images.max(-1, keepdims=True).clip(1) - cloth / 217).sum(-1).min()
               for name, images in (("seen", env.render_views()), ("background", env.background))}  # fmt: skip
    assert reddest["seen"] < 0.2 < 0.6 < reddest["background"]
    env.close()
