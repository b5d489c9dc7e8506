"""Metrics: against formulas of scipy, loops, and data whose answer is known."""

import itertools
import math

import numpy as np
import pytest
import torch

from kp3d_rl.metrics import (
    constant_probe,
    median_distances,
    moving_bodies,
    own_bodies,
    ridge_probe,
    same_body_share,
    split_episodes,
    view_disagreement,
)


def episodes(noise=0.0, seed=0, count=12, steps=30, width=10):
    """Features from which a hidden linear map makes the positions of two bodies."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, steps, width)) * rng.uniform(0.01, 100, width) + rng.normal(size=width)
    hidden = rng.normal(size=(width, 6)) / features.std((0, 1))[:, None]
    targets = (features @ hidden).reshape(count, steps, 2, 3) + 5
    return features, targets + noise * rng.normal(size=targets.shape)


def test_split_keeps_sides_apart_and_repeats():
    train, test = split_episodes(10, 0.3, seed=4)
    assert len(test) == 3 and sorted([*train, *test]) == list(range(10))
    again = split_episodes(10, 0.3, seed=4)
    assert (again.train == train).all() and (again.test == test).all()
    assert any((split_episodes(10, 0.3, seed=s).test != test).any() for s in range(5, 9))
    assert len(split_episodes(3, 0.9).train) == 2
    groups = [0, 1, 2, 3, 0, 1, 2, 3, 0]
    train, test = split_episodes(9, 0.25, seed=1, groups=groups)
    assert sorted([*train, *test]) == list(range(9)) and {groups[i] for i in train}.isdisjoint(groups[i] for i in test)
    assert len({groups[i] for i in test}) == 1
    with pytest.raises(ValueError, match="at least 3 episodes that differ .* not 2"):
        split_episodes(4, groups=[0, 1, 0, 1])
    with pytest.raises(ValueError, match="at least 3"):
        split_episodes(2)


def test_probe_finds_a_linear_map_whatever_the_features_scales():
    features, targets = episodes()
    error = ridge_probe(features, targets)
    assert error.shape == (2,) and error.max() < 1e-3
    assert (constant_probe(targets) > 1).all()
    with_constant = np.concatenate([features, np.full((*features.shape[:2], 1), 0.1)], -1)
    np.testing.assert_allclose(ridge_probe(with_constant, targets), error, atol=1e-6)


def test_probe_agrees_with_ridge_in_closed_form():
    features, targets = episodes(noise=0.5)
    train, test = np.arange(8), np.arange(8, 12)
    error = ridge_probe(torch.tensor(features), torch.tensor(targets), (train, test), lambdas=[0.3])
    x, y = features[train].reshape(-1, 10), targets[train].reshape(-1, 6)
    mean, std = x.mean(0), x.std(0)
    z = np.column_stack([(x - mean) / std, np.ones(len(x))])
    penalty = 0.3 * len(x) * np.diag([1.0] * 10 + [0.0])  # the intercept is free
    weights = np.linalg.solve(z.T @ z + penalty, z.T @ y)
    unseen = (features[test].reshape(-1, 10) - mean) / std
    prediction = np.column_stack([unseen, np.ones(len(unseen))]) @ weights
    expected = np.linalg.norm((prediction - targets[test].reshape(-1, 6)).reshape(-1, 2, 3), axis=-1).mean(0)
    np.testing.assert_allclose(error, expected, rtol=1e-9)


def test_probe_of_noise_is_no_better_than_a_constant_thanks_to_its_penalty():
    rng = np.random.default_rng(0)
    targets = episodes()[1]
    noise = rng.normal(size=(12, 30, 150))  # enough features to overfit 270 frames
    constant = constant_probe(targets)
    assert (np.abs(ridge_probe(noise, targets) / constant - 1) < 0.1).all()
    assert (ridge_probe(noise, targets, lambdas=[1e-9]) > 1.15 * constant).all()


def test_probe_is_judged_on_other_episodes_only():
    """A feature that names the episode fits every training frame and says nothing about a new episode."""
    rng = np.random.default_rng(0)
    targets = np.repeat(rng.normal(size=(16, 1, 1, 3)), 20, axis=1)
    features = np.repeat(np.eye(16)[:, None], 20, axis=1)
    assert ridge_probe(features, targets)[0] > 0.8 * constant_probe(targets)[0]


def test_constant_probe_is_the_training_mean():
    targets = episodes(noise=1)[1]
    split = ([0, 1, 2], [3, 4])
    mean = targets[:3].mean((0, 1))
    expected = [np.linalg.norm(targets[3:5, :, b] - mean[b], axis=-1).mean() for b in range(2)]
    np.testing.assert_allclose(constant_probe(targets, split), expected)


def test_probe_refuses_what_it_cannot_judge():
    features, targets = episodes()
    with pytest.raises(ValueError, match="both sides"):
        ridge_probe(features, targets, ([0, 1, 2], [2, 3]))
    with pytest.raises(ValueError, match="differ"):
        ridge_probe(features[:5], targets)
    with pytest.raises(ValueError, match="features"):
        ridge_probe(features[0], targets)
    features[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ridge_probe(features, targets)


def test_view_disagreement_is_the_mean_distance_of_pairs():
    points = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    weights = torch.rand(2, 4, 5, dtype=torch.float64)
    plain, weighted = view_disagreement(points), view_disagreement(points, weights)
    assert plain.shape == weighted.shape == (2, 5)
    for b, k in itertools.product(range(2), range(5)):
        pairs = list(itertools.combinations(range(4), 2))
        distance = [float((points[b, i, k] - points[b, j, k]).norm()) for i, j in pairs]
        share = [float(weights[b, i, k] * weights[b, j, k]) for i, j in pairs]
        assert plain[b, k].item() == pytest.approx(np.mean(distance))
        assert weighted[b, k].item() == pytest.approx(np.average(distance, weights=share))


def test_view_disagreement_without_pairs_or_weight():
    points = torch.randn(3, 5, 3)
    assert torch.equal(view_disagreement(points[:1]), torch.zeros(5))
    torch.testing.assert_close(view_disagreement(points, torch.zeros(3, 5)), view_disagreement(points))
    assert view_disagreement(torch.ones(3, 5, 3)).max() == 0


def bodies_and_keypoints():
    """Body 0 moves 1 m in x, body 1 stands 5 m away, body 2 moves in y far off. Keypoint k follows body k."""
    steps = np.linspace(0, 1, 21)
    bodies = np.zeros((21, 3, 3))
    bodies[:, 0, 0], bodies[:, 1, 2], bodies[:, 2, 1] = steps, 5, 10 + steps
    return bodies, bodies + 0.02


def between(keypoints, bodies):
    """(T, K, B)."""
    return np.linalg.norm(np.asarray(keypoints)[:, :, None] - np.asarray(bodies)[:, None], axis=-1)


def test_same_body_share_counts_keypoints_of_moving_bodies():
    bodies, keypoints = bodies_and_keypoints()
    moves = moving_bodies(bodies[:, :, None])
    assert moves.tolist() == [True, False, True] and same_body_share(between(keypoints, bodies), moves) == 1
    keypoints[5:10, 0] = bodies[5:10, 2]  # 5 of the 21 frames on another body
    keypoints[:9, 1] = bodies[:9, 0]  # keypoint 1 belongs to the body that stands: not counted
    distances = between(keypoints, bodies)
    assert same_body_share(torch.tensor(distances), moves) == pytest.approx(37 / 42)
    confident = np.ones((21, 3), bool)
    confident[5:8, 0] = False
    assert same_body_share(distances, moves, confident) == pytest.approx(37 / 39)
    assert same_body_share(distances, moves, [True, False, False]) == pytest.approx(16 / 21)
    assert math.isnan(same_body_share(distances, moves, [False, True, False]))
    assert math.isnan(same_body_share(distances, [False] * 3))


def test_bodies_that_touch_share_what_lies_between_them():
    """Of two links, a keypoint near their joint is on either, and one that wanders along to the other link is not."""
    distances = np.full((10, 1, 2), 0.0)
    distances[:6, 0] = [0.00, 0.03]
    distances[6:9, 0] = [0.015, 0.00]  # the other is nearer, by less than the slack
    distances[9, 0] = [0.05, 0.00]
    assert same_body_share(distances, [True, True]) == pytest.approx(0.9)
    assert same_body_share(distances, [True, True], slack=0.0) == pytest.approx(0.6)
    assert same_body_share(distances, [True, True], slack=0.06) == 1


def test_a_keypoint_between_fingers_is_on_a_finger_and_not_on_what_they_go_to():
    """It is nearest to either finger by turns, and nearest to the goal when the hand gets there."""
    distances = np.array([[[0.010, 0.012, 0.30]], [[0.012, 0.010, 0.20]], [[0.02, 0.02, 0.0]], [[0.02, 0.02, 0.0]]])
    distances[:, :, 1] += 1e-4
    assert distances.argmin(-1)[:, 0].tolist() == [0, 1, 2, 2]
    assert own_bodies(distances).tolist() == [0] and same_body_share(distances, [True] * 3) == 1
    assert own_bodies(distances, slack=0.0).tolist() == [2]
    assert own_bodies(distances[2:] + [0.01, 0.0, 0.0]).tolist() == [2]


def test_own_bodies_distances_and_moves_agree_with_loops():
    rng = np.random.default_rng(3)
    bodies = rng.normal(size=(40, 5, 2, 3))
    bodies[:, 3] = bodies[0, 3] + 0.01 * rng.normal(size=(40, 2, 3))  # hardly moves
    bodies[:, 4, 0] = bodies[0, 4, 0]  # turns about one of its points
    keypoints = bodies[:, rng.integers(5, size=7), 0] + 0.5 * rng.normal(size=(40, 7, 3))
    confident, distances = rng.random((40, 7)) < 0.7, between(keypoints, bodies[:, :, 0])
    own, median = own_bodies(distances, confident, 0.1), median_distances(distances, [1] * 7)
    for k in range(7):
        votes, away = [0] * 5, [0.0] * 5
        for t in range(40):
            for b in range(5):
                if confident[t, k]:
                    votes[b] += distances[t, k, b] - min(distances[t, k]) <= 0.1
                    away[b] += distances[t, k, b]
        assert own[k] == max(range(5), key=lambda b: (votes[b], -away[b]))
        assert median[k] == pytest.approx(np.median([distances[t, k, 1] for t in range(40)]))
    for moved in (0.05, 0.5):
        for b in range(5):
            reach = 0.0
            for p in range(2):
                low, high = ([f(bodies[t, b, p, axis] for t in range(40)) for axis in range(3)] for f in (min, max))
                reach = max(reach, math.dist(low, high))
            assert moving_bodies(bodies, moved)[b] == (reach >= moved)


def test_keypoints_glued_to_bodies_are_at_no_distance_and_on_their_own_body():
    bodies, _ = bodies_and_keypoints()
    keypoints = torch.tensor(bodies[:, [2, 0, 1, 0]])
    own = own_bodies(between(keypoints, bodies))
    assert own.tolist() == [2, 0, 1, 0] and median_distances(between(keypoints, bodies), own).max() == 0
    keypoints[:8, 0] = torch.tensor(bodies[:8, 1])  # 8 of 21 frames elsewhere: the median does not care
    distances = between(keypoints, bodies)
    assert own_bodies(distances)[0] == 2 and median_distances(distances, own)[0] == 0
    only_those = np.zeros((21, 4), bool)
    only_those[:8] = True
    assert own_bodies(distances, only_those)[0] == 1
