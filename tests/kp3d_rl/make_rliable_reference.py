"""Writes ``rliable_reference.json``: what rliable says of random tables. Run it where rliable is installed:

``python make_rliable_reference.py rliable_reference.json`` (rliable 1.2.0, arch 7.2.0, numpy 2.2.6). rliable draws from
NumPy's global generator, so the draws are known, and the test makes the same ones.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from rliable import library, metrics

SHAPES = [(5, 1), (3, 4), (10, 8), (7, 3)]
RESAMPLES = 300
THRESHOLDS = [0.0, 0.25, 0.5, 0.75, 1.0]


def table(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Scores on a grid, so that some are equal."""
    return np.round(np.random.RandomState(seed).uniform(-0.2, 1.2, shape), 1)


def main(path: str) -> None:
    found = []
    for number, shape in enumerate(SHAPES):
        scores, other = table(shape, number), table((shape[0] + 1, shape[1]), 100 + number)
        row = {"shape": shape, "seed": number, "resamples": RESAMPLES}
        row["iqm"] = float(metrics.aggregate_iqm(scores))
        row["optimality_gap"] = float(metrics.aggregate_optimality_gap(scores))
        row["probability_of_improvement"] = float(metrics.probability_of_improvement(scores, other))
        row["profile"] = library.score_distributions(scores, THRESHOLDS).tolist()
        np.random.seed(number)
        _, interval = library.get_interval_estimates(
            {"it": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=RESAMPLES
        )
        row["iqm_interval"] = interval["it"].ravel().tolist()
        np.random.seed(number)
        _, interval = library.get_interval_estimates(
            {"it": (scores, other)},
            lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
            reps=RESAMPLES,
        )
        row["improvement_interval"] = interval["it"].ravel().tolist()
        found.append(row)
    with open(path, "w") as file:
        json.dump(found, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
