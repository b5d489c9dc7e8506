"""What the keypoints are worth: probes, agreement of views, keypoints that stay on bodies.

Inputs are arrays, nested lists or CPU tensors; results are float64 numpy or plain floats, metres where lengths.
Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LAMBDAS = tuple(float(x) for x in np.logspace(-6, 3, 19))


class EpisodeSplit(NamedTuple):
    """Which episodes fit a probe and which judge it."""

    train: np.ndarray
    test: np.ndarray


def split_episodes(
    episodes: int, test_fraction: float = 0.25, seed: int = 0, groups: Sequence[int] | None = None
) -> EpisodeSplit:
    """Split whole episodes at random; frames of one episode resemble each other too much to be on both sides.

    :param episodes: their number, at least 3, so that the training side can be split again.
    :param groups: (episodes,) numbers; episodes of one number, which begin alike, come to the same side. None: all
        differ.
    :raises ValueError: where there are fewer episodes, or groups.
    """
    labels = np.arange(episodes) if groups is None else np.asarray(groups)
    names = np.unique(labels)
    if len(names) < 3:
        raise ValueError(f"a probe needs at least 3 episodes that differ (2 to fit, 1 to judge), not {len(names)}")
    order = np.random.default_rng(seed).permutation(len(names))
    held_out = min(max(1, round(test_fraction * len(names))), len(names) - 2)
    judged = np.isin(labels, names[order[:held_out]])
    return EpisodeSplit(np.flatnonzero(~judged), np.flatnonzero(judged))


def ridge_probe(
    features: object,
    targets: object,
    split: tuple[Sequence[int], Sequence[int]] | None = None,
    lambdas: Sequence[float] = LAMBDAS,
    seed: int = 0,
) -> np.ndarray:
    """How well a linear map from features to positions does on episodes that it was not fitted to.

    Features are standardised by the training episodes. The ridge penalty (per sample) is the one that does best on a
    quarter of the training episodes when fitted to the others; then all training episodes are fitted again.

    :param features: (E, T, F): E episodes of T steps.
    :param targets: (E, T, B, 3), positions of B bodies, metres.
    :param split: (training episodes, held-out episodes); None takes :func:`split_episodes`.
    :return: (B,) mean Euclidean error over the held-out episodes, metres.
    :raises ValueError: where shapes disagree, numbers are not finite or the sides overlap.
    """
    features, targets = _episodes(features, 3, "features (E, T, F)"), _episodes(targets, 4, "targets (E, T, B, 3)")
    if features.shape[:2] != targets.shape[:2]:
        raise ValueError(f"features {features.shape} and targets {targets.shape} differ in episodes or steps")
    train, test = _check_split(split, len(features), seed)
    inner = split_episodes(len(train), seed=seed) if len(train) > 2 else EpisodeSplit(np.array([0]), np.array([1]))
    fit, judge = train[inner.train], train[inner.test]
    errors = [_errors(p, targets[judge]).mean() for p in _ridge(features[fit], targets[fit], features[judge], lambdas)]
    best = lambdas[int(np.argmin(errors))]
    (prediction,) = _ridge(features[train], targets[train], features[test], [best])
    return _errors(prediction, targets[test])


def constant_probe(
    targets: object, split: tuple[Sequence[int], Sequence[int]] | None = None, seed: int = 0
) -> np.ndarray:
    """The error of always answering the training episodes' mean position: what a probe must beat.

    :param targets: (E, T, B, 3) metres.
    :param split: as in :func:`ridge_probe`.
    :return: (B,) mean Euclidean error over the held-out episodes, metres.
    """
    targets = _episodes(targets, 4, "targets (E, T, B, 3)")
    train, test = _check_split(split, len(targets), seed)
    return _errors(targets[train].mean((0, 1)), targets[test])


def view_disagreement(points: Tensor, weights: Tensor | None = None) -> Tensor:
    """How far apart the views place each keypoint: the mean distance over all pairs of views.

    :param points: (..., V, K, 3), each view's own estimate, metres.
    :param weights: (..., V, K), not negative; a pair counts by the product of its weights. None, or no pair with
        weight: all pairs count equally.
    :return: (..., K) metres; 0 for a single view.
    """
    views = points.shape[-3]
    first, second = torch.triu_indices(views, views, 1, device=points.device)
    if not len(first):
        return torch.zeros_like(points[..., 0, :, 0])
    distance = torch.linalg.vector_norm(points[..., first, :, :] - points[..., second, :, :], dim=-1)
    if weights is None:
        return distance.mean(-2)
    pair = weights[..., first, :] * weights[..., second, :]
    pair = torch.where(pair.sum(-2, keepdim=True) > 0, pair, 1.0)
    return (pair * distance).sum(-2) / pair.sum(-2)


SLACK = 0.02
"""Metres by which a keypoint may be farther from a body than from the nearest one and still be on it."""


def own_bodies(distances: object, confident: object = None, slack: float = SLACK) -> np.ndarray:
    """Each keypoint's own body: the one that it is on most often, and of several the one that it is closer to.

    Where bodies touch, as the links of an arm do or the parts of a gripper, the nearest one says little: a keypoint is
    on every body that is no farther than the nearest one plus the slack. Votes for the nearest one alone would be split
    among those of a gripper, and go to something else that the gripper goes to.

    :param distances: (T, K, B) of fused keypoints to the bodies' surfaces, metres.
    :param confident: (T, K) or (K,) bool, which sightings count; None counts all.
    :param slack: metres.
    :return: (K,) indices of bodies.
    """
    distances, valid = _sightings(distances, confident)
    votes = (_on(distances, slack) & valid[..., None]).sum(0)
    away = np.where(valid[..., None], distances, 0.0).sum(0)
    return np.where(votes == votes.max(-1, keepdims=True), away, np.inf).argmin(-1)


def moving_bodies(points: object, moved: float = 0.05) -> np.ndarray:
    """Which bodies are not always in the same place.

    :param points: (T, B, P, 3) metres, some points of each body; over several episodes, a thing that stands elsewhere
        in each has moved too.
    :param moved: metres between the extremes of the path of any of a body's points, from which on it has moved.
    :return: (B,) bool.
    """
    return (np.linalg.norm(np.ptp(np.asarray(points, np.float64), axis=0), axis=-1) >= moved).any(-1)


def median_distances(distances: object, own: object) -> np.ndarray:
    """How far each keypoint is from a body of its own, in the median over frames.

    :param distances: (T, K, B) metres.
    :param own: (K,) the index of each keypoint's body, as :func:`own_bodies` gives it.
    :return: (K,) metres.
    """
    distances, own = np.asarray(distances, np.float64), np.asarray(own, int)
    return np.median(distances[:, np.arange(len(own)), own], axis=0)


def same_body_share(distances: object, moves: object, confident: object = None, slack: float = SLACK) -> float:
    """The share of keypoint sightings that are on the keypoint's own body, the one that it is on most often.

    Only keypoints count whose own body moves (a keypoint on a still body stays there by doing nothing), and only frames
    in which they are confident.

    :param distances: (T, K, B) of fused keypoints to the bodies' surfaces, metres.
    :param moves: (B,) bool, which bodies move.
    :param confident: (T, K) or (K,) bool; None counts all.
    :param slack: metres, as of :func:`own_bodies`.
    :return: in [0, 1]; NaN where nothing counts.
    """
    distances, valid = _sightings(distances, confident)
    own = own_bodies(distances, valid, slack)
    counted = valid & np.asarray(moves, bool)[own]
    stays = on_own_body(distances, own, slack)
    return float(stays[counted].mean()) if counted.any() else math.nan


def on_own_body(distances: object, own: object, slack: float = SLACK) -> np.ndarray:
    """In which frames each keypoint is on its own body.

    :param distances: (T, K, B) metres.
    :param own: (K,) indices of bodies.
    :param slack: metres, as of :func:`own_bodies`.
    :return: (T, K) bool.
    """
    own = np.asarray(own, int)
    return _on(np.asarray(distances, np.float64), slack)[:, np.arange(len(own)), own]


def _on(distances: np.ndarray, slack: float) -> np.ndarray:
    """(T, K, B) bool: which bodies a keypoint is on."""
    return distances <= distances.min(-1, keepdims=True) + slack


def _sightings(distances: object, confident: object) -> tuple[np.ndarray, np.ndarray]:
    """Distances (T, K, B) as numbers, and which sightings (T, K) count."""
    distances = np.asarray(distances, np.float64)
    return distances, np.broadcast_to(True if confident is None else np.asarray(confident, bool), distances.shape[:2])


def _episodes(values: object, dims: int, what: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != dims:
        raise ValueError(f"expected {what}, not shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} hold numbers that are not finite")
    return array


def _check_split(
    split: tuple[Sequence[int], Sequence[int]] | None, episodes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    if split is None:
        return split_episodes(episodes, seed=seed)
    train, test = (np.asarray(side, dtype=int) for side in split)
    if len(train) < 2 or len(test) < 1 or np.intersect1d(train, test).size:
        raise ValueError("a split needs at least 2 training and 1 held-out episode, and no episode on both sides")
    return train, test


def _ridge(features: np.ndarray, targets: np.ndarray, unseen: np.ndarray, lambdas: Sequence[float]) -> list[np.ndarray]:
    """Fit (E, T, F) -> (E, T, B, 3) once for every penalty and predict for the unseen features."""
    x, y = features.reshape(-1, features.shape[-1]), targets.reshape(-1, *targets.shape[2:])
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-12 * np.abs(mean).clip(1e-12), scale, np.inf)  # a constant feature says nothing
    x, unseen = (x - mean) / scale, (unseen - mean) / scale
    middle = y.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    moment = vectors.T @ (x.T @ (y - middle).reshape(len(y), -1)) / len(x)
    projected = unseen @ vectors
    solutions = (moment / (values.clip(0) + penalty)[:, None] for penalty in lambdas)
    return [(projected @ weights).reshape(*unseen.shape[:2], *middle.shape) + middle for weights in solutions]


def _errors(prediction: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(..., B, 3) -> (B,) mean distance."""
    distance = np.linalg.norm(prediction - targets, axis=-1)
    return distance.reshape(-1, distance.shape[-1]).mean(0)
