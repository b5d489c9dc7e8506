"""One evaluation for the training callback and for ``evaluate``: fixed seeds, deterministic actions, honest counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agents.finite import require_finite
from envs.errors import UserError
from kp3d_rl.statistics import bootstrap_mean_interval, wilson_interval

EVALUATION_SEED = 10_000_000
"""First seed of ``evaluate``; training stays below (:data:`experiments.training.building.SEEDS_PER_RUN`)."""
PERIODIC_SEED = 20_000_000
"""First seed of the evaluations during training."""

Observation = dict[str, np.ndarray]
Predict = Callable[[Observation], np.ndarray]
Transform = Callable[[Observation, Sequence[int]], Observation]
"""Changes a batch of observations; it is told the seeds of the batch's episodes, which no two episodes share."""


def evaluation_seeds(block: int, episodes: int) -> range:
    """Seeds of one block of evaluation episodes; blocks never overlap, with each other or with training's seeds.

    :param block: 0 … 999.
    :param episodes: how many, at most 10,000.
    :raises ValueError: for numbers outside of these bounds.
    """
    if not 0 <= block < 1000 or not 1 <= episodes <= 10_000:
        raise ValueError("seed must lie in 0 … 999 and episodes in 1 … 10000: seeds stay clear of training's")
    first = EVALUATION_SEED + 10_000 * block
    return range(first, first + episodes)


def require_different(episodes: int, most: int | None) -> None:
    """Refuse more episodes than differ from each other: intervals would pretend to know what they do not.

    :param episodes: how many are asked for.
    :param most: test configurations of the task; None where each seed is another start.
    :raises UserError: for more.
    """
    if most is not None and episodes > most:
        asked = f"{episodes} episodes were asked for"
        raise UserError(f"{asked}: the task has {most} test configurations, so at most {most} differ")


@dataclass(frozen=True)
class Episode:
    """One evaluated episode; success as ``info["is_success"]`` said at reset, at any step, and at the last step.

    Steps are those of the task, also where the environment repeats each action; ``length`` counts actions.
    """

    seed: int
    success_at_start: bool
    success_once: bool
    success_at_end: bool
    episode_return: float
    length: int


@dataclass(frozen=True)
class Evaluation:
    """Episodes and what they add up to.

    :param episodes: in the order of their seeds.
    """

    episodes: tuple[Episode, ...]

    def count(self, what: str) -> int:
        """How many episodes have ``what``: "success_once", "success_at_end" or "success_at_start"."""
        return sum(getattr(episode, what) for episode in self.episodes)

    def rate(self, what: str = "success_at_end") -> float:
        """Share of episodes that have ``what``."""
        return self.count(what) / len(self.episodes)

    def mean_return(self) -> float:
        """Mean return over episodes."""
        return float(np.mean([episode.episode_return for episode in self.episodes]))

    def summary(self) -> dict[str, Any]:
        """Counts with Wilson 95 % intervals and the return with a bootstrap 95 % interval, fit for JSON."""
        n = len(self.episodes)
        returns = np.array([episode.episode_return for episode in self.episodes])
        low, high = bootstrap_mean_interval(returns, seed=0)
        found: dict[str, Any] = {"episodes": n, "return": {"mean": float(returns.mean()), "interval": [low, high]}}
        for what in ("success_at_end", "success_once", "success_at_start"):
            k = self.count(what)
            found[what] = {"k": k, "n": n, "interval": list(wilson_interval(k, n))}
        return found

    def lines(self) -> list[str]:
        """The summary as people read it."""
        summary = self.summary()
        lines = []
        for what in ("success_at_end", "success_once"):
            entry = summary[what]
            low, high = (100 * bound for bound in entry["interval"])
            lines.append(
                f"{what:<15} {entry['k']}/{entry['n']} = {100 * entry['k'] / entry['n']:.1f} % "
                f"(95 % interval {low:.1f} to {high:.1f} %)"
            )
        low, high = summary["return"]["interval"]
        lines.append(f"{'return':<15} {summary['return']['mean']:.2f} (95 % interval {low:.2f} to {high:.2f})")
        started = summary["success_at_start"]["k"]
        if started:
            lines.append(f"note: {started} of {summary['episodes']} episodes were a success before the first action")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Summary and every episode, fit for JSON."""
        return {"summary": self.summary(), "episodes": [asdict(episode) for episode in self.episodes]}


def evaluate(
    predict: Predict,
    envs: Sequence[gym.Env],
    seeds: Sequence[int],
    transform: Transform | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> Evaluation:
    """Play one episode per seed, as many at a time as there are environments.

    :param predict: batched observation to batched action, deterministic.
    :param envs: environments of one kind, not vectorised: an episode must not start by itself.
    :param seeds: of the episodes, all different.
    :param transform: changes batched observations before the policy sees them (to black them out, say).
    :param on_episode: called when an episode has ended.
    :raises ValueError: where two episodes have one seed: they would be one and the same.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError("evaluation seeds must differ from each other")
    episodes: list[Episode] = []
    for start in range(0, len(seeds), len(envs)):
        group = list(zip(envs, seeds[start : start + len(envs)], strict=False))
        for episode in _play_together(predict, group, transform):
            episodes.append(episode)
            if on_episode is not None:
                on_episode(episode)
    return Evaluation(tuple(episodes))


def _play_together(
    predict: Predict, group: Sequence[tuple[gym.Env, int]], transform: Transform | None
) -> list[Episode]:
    """One episode in each environment, in lock-step, so that the policy sees batches."""
    observations, infos = map(list, zip(*(env.reset(seed=int(seed)) for env, seed in group), strict=True))
    start = [bool(info.get("is_success", False)) for info in infos]
    once, end = list(start), list(start)
    returns, lengths, active = [0.0] * len(group), [0] * len(group), list(range(len(group)))
    while active:
        batch = stack([observations[i] for i in active])
        require_finite("observation", batch)
        actions = predict(transform(batch, [group[i][1] for i in active]) if transform else batch)
        require_finite("action", actions)
        for i, action in zip(list(active), actions, strict=True):
            observations[i], reward, terminated, truncated, info = group[i][0].step(action)
            returns[i] += float(reward)
            lengths[i] += 1
            end[i] = bool(info.get("is_success", False))
            once[i] |= bool(info.get("was_success", end[i]))
            if terminated or truncated:
                active.remove(i)
    return [Episode(int(seed), start[i], once[i], end[i], returns[i], lengths[i]) for i, (_, seed) in enumerate(group)]


def stack(observations: Sequence[Mapping[str, np.ndarray]]) -> Observation:
    """Observations of several environments as one batch."""
    return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}


def table(results: Mapping[str, Evaluation]) -> list[str]:
    """Evaluations side by side, one line each: success at the end with its interval, and the mean return.

    :param results: by the name of what was evaluated.
    """
    rows = [("", "success_at_end", "95 % interval", "return")]
    for name, result in results.items():
        entry = result.summary()["success_at_end"]
        low, high = (100 * bound for bound in entry["interval"])
        share = f"{entry['k']}/{entry['n']} = {100 * entry['k'] / entry['n']:.1f} %"
        rows.append((name, share, f"{low:.1f} to {high:.1f} %", f"{result.mean_return():.2f}"))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
