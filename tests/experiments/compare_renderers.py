"""How far the images of all renderers of the benchmark are apart, as JSON; run by test_bench.py."""

import contextlib
import json

import numpy as np

from envs.registry import make
from experiments.bench import views
from experiments.bench.naive import NaiveViews
from experiments.bench.scenes import reach


def main() -> None:
    views.renderers(reach(32), seconds=0.01)  # a scene that was measured before must not spoil the next one
    with contextlib.ExitStack() as stack:
        ways = {name: stack.enter_context(way) for name, way in views._ways(reach(48)).items()}
        images = {name: np.stack(draw()).astype(int) for name, draw in ways.items()}
    first = images.pop(views.DEFAULTS)
    assert first.shape == (3, 48, 48, 3)
    differences = {name: float(np.abs(other - first).mean()) for name, other in images.items()}

    naive, ours = NaiveViews("reach-multiview", 32), make("reach-multiview", height=32, width=32)
    assert naive.observation_space == ours.observation_space
    pairs = [(naive.reset(seed=3)[0], ours.reset(seed=3)[0])]
    ours.action_space.seed(0)
    action = ours.action_space.sample()
    pairs.append((naive.step(action)[0], ours.step(action)[0]))
    found = {
        "deviation": float(first.std()),
        "differences": differences,
        "naive_proprio": max(float(np.abs(a["proprio"] - b["proprio"]).max()) for a, b in pairs),
        "naive_images": max(float(np.abs(a["images"].astype(int) - b["images"]).mean()) for a, b in pairs),
    }
    naive.close()
    ours.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
