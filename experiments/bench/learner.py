"""Auxiliary gradient steps per second: ours against the original's formulation of the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from agents.policies import KeypointPolicy
from agents.scene import Scene
from agents.unsupervised import UnsupervisedTrainer
from envs import registry
from experiments.bench.original import ORIGINAL, use_original_formulation
from experiments.bench.timing import race, wait_for
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.networks import computes_in_bfloat16

Row = dict[str, Any]
BATCH = 64
PLAIN = "the original's formulation, float32: views stacked, grouped convolutions"


def formulations(seconds: float, device: str) -> list[Row]:
    """One auxiliary step at the original's sizes: 108 px, K = 32, batch 64, three views, all losses.

    :param seconds: for each of them.
    :param device: to compute on.
    """
    networks = compared(computes_in_bfloat16(torch.device(device).type))
    made = {what: trainer(config, 108, device) for what, config in networks.items()}
    plain = made[PLAIN]
    use_original_formulation(plain.extractor.encoder, plain.policy.decoder)
    times = race({what: step(one) for what, one in made.items()}, seconds, least=3)
    first = times[PLAIN]
    return [
        {"what": what, "milliseconds": 1e3 * taken, "steps_per_second": 1 / taken, "times_first": first / taken}
        for what, taken in times.items()
    ]


def compared(half: bool) -> dict[str, Keypoint3DConfig]:
    """What is compared; the first two differ in nothing but their formulation.

    :param half: whether the precision "auto" is bfloat16 here; where it is not, a row for it would say nothing.
    """
    exact = dataclasses.replace(ORIGINAL, precision="float32")
    shared = dataclasses.replace(ORIGINAL, view_weights="shared", decoded_views=1)
    found = {PLAIN: exact, "ours, the same network, float32": exact}
    if half:
        found["ours, the same network, bfloat16 convolutions"] = ORIGINAL
    precision = "bfloat16 convolutions" if half else "float32"
    return found | {f"ours, weights shared by the views, one view drawn, {precision}": shared}


def growth(seconds: float, device: str) -> list[Row]:
    """Auxiliary steps per second by keypoints and size, everything else as in training."""
    rows, unit = [], "gradient steps"
    for keypoints in (8, 16, 32):
        made = trainer(Keypoint3DConfig(keypoints=keypoints), 64, device)
        taken = race({"step": step(made)}, seconds)["step"]
        rows.append({"unit": unit, "varied": "keypoints", "value": keypoints, "steps_per_second": 1 / taken})
    for pixels in (64, 84, 128):
        taken = race({"step": step(trainer(Keypoint3DConfig(), pixels, device))}, seconds)["step"]
        rows.append({"unit": unit, "varied": "pixels", "value": pixels, "steps_per_second": 1 / taken})
    return rows


def trainer(config: Keypoint3DConfig, pixels: int, device: str, frames: int = 128) -> UnsupervisedTrainer:
    """Encoder, decoder and frames of ``reach-multiview``.

    :param config: of the encoder.
    :param pixels: height and width of a view.
    :param device: to compute on.
    :param frames: to draw from.
    """
    env = registry.make("reach-multiview", height=pixels, width=pixels)
    torch.manual_seed(0)
    spaces = env.observation_space, env.action_space
    policy = KeypointPolicy(*spaces, lambda _: 3e-4, scene=Scene.of(env), encoder=config).to(device)
    made = UnsupervisedTrainer(policy, BATCH, frames)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(frames):
        observation, _, _, truncated, _ = env.step(env.action_space.sample())
        made.add({key: values[None] for key, values in observation.items()})
        if truncated:
            env.reset()
    env.close()
    made.look(frames)
    return made


def step(made: UnsupervisedTrainer) -> Callable[[], None]:
    """One gradient step; on a GPU until it is done."""

    def act() -> None:
        made.train(1)
        wait_for(made.policy.device)

    return act
