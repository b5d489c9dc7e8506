"""Learn 3D keypoints of a category of objects: ``python -m experiments.keypointnet --category chair``.

Films random objects and trains a network on pairs of their views (:mod:`kp3d_rl.keypointnet`). A run that was stopped
or killed goes on with ``--resume``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from envs.renderers import make_renderer
from experiments.keypointnet.filming import film_test, film_training
from experiments.keypointnet.folder import KeypointNetRun
from experiments.keypointnet.presets import PRESETS
from experiments.options.cli import run_main
from experiments.training.building import choose_device, use_threads
from experiments.training.gradient_steps import carry_out, make_steps, open_run, take_up
from experiments.training.recording import StopRequest
from kp3d_rl.keypointnet.metrics import judge_pairs
from kp3d_rl.keypointnet.network import KeypointNet
from kp3d_rl.keypointnet.training import KeypointNetTraining, ViewsOfObjects


def main(argv: Sequence[str]) -> int:
    """Open or make the run, film, then make what is left of its steps."""
    run = open_run(KeypointNetRun, PRESETS, argv)
    use_threads(run.config.threads)
    return carry_out(run, lambda stop: None if run.finished else train(run, stop))


def train(run: KeypointNetRun, stop: StopRequest) -> None:
    """Film, then make what is left of the steps, with a judgement every so many.

    :param run: locked.
    :param stop: set by a signal.
    """
    config, device = run.config, choose_device(run.config.device)
    every = config.evaluate_every or config.training.steps
    seen = f"{config.shapes} objects in {config.views} views of {config.image_size} px"
    print(f"{config.category}: {config.network.keypoints} keypoints from {seen}, {config.training.steps} steps of "
          f"{config.training.batch_size} pairs, seed {config.seed}", flush=True)  # fmt: skip
    renderer = make_renderer()
    data, test = film_training(config, renderer), film_test(config, renderer)
    renderer.close()
    torch.manual_seed(config.seed)
    network = KeypointNet(config.network).to(device)
    training = KeypointNetTraining(network, data, config.training, config.seed)
    if run.training_file.is_file():
        take_up(training, run.training_file, config.label)
        if training.step % every == 0 or training.finished:  # it may have been killed before it was judged
            judge(run, training, test)
    while not training.finished:
        make_steps(training, run.training_file, config.label, stop, until=(training.step // every + 1) * every)
        judge(run, training, test)
    run.finish(network)


def judge(run: KeypointNetRun, training: KeypointNetTraining, test: ViewsOfObjects) -> None:
    """Judge by objects that are not trained on, say what came of it and write it down.

    :param run: whose training it is.
    :param training: at the step to be judged.
    :param test: the objects.
    """
    found = judge_pairs(training.network, test).summary()  # type: ignore[arg-type]
    terms = {f"loss_{name}": float(value) for name, value in training.terms.items()}
    run.add({"step": training.step, "minutes": training.seconds / 60, "loss": training.loss} | found | terms)
    print(f"step {training.step}: median {found['median_angle']:.1f}°, {100 * found['flipped']:.1f} % over 90°, views "
          f"{found['apart']:.3f} apart, facing right {100 * found['facing']:.1f} %", flush=True)  # fmt: skip


if __name__ == "__main__":
    run_main(main)
