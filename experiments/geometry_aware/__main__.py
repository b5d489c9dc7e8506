"""Learn 3D points by drawing people's skeletons as other cameras see them: ``python -m experiments.geometry_aware``.

Stage by stage: the 2D detector where joints come from one, the two networks that draw other views, and an autoencoder
to compare with (:mod:`kp3d_rl.geometry_aware`). A run that was stopped or killed goes on with ``--resume``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from envs.renderers import Renderer, make_renderer
from envs.scenes.clips import VALIDATION
from envs.scenes.people import ring
from experiments.geometry_aware.folder import GeometryAwareRun, Stage
from experiments.geometry_aware.presets import PRESETS
from experiments.geometry_aware.seeing import (
    DetectorEyes,
    ExactEyes,
    Eyes,
    labelled_images,
    one_view,
    people_to_judge_by,
    people_to_learn_from,
    said_usable,
    views_to_learn_from,
)
from experiments.options.cli import run_main
from experiments.training.building import choose_device, use_threads
from experiments.training.gradient_steps import carry_out, make_steps, open_run, take_up
from experiments.training.recording import StopRequest
from kp3d_rl.bootstrapping.training import DetectorTraining
from kp3d_rl.geometry_aware.metrics import judge_synthesis
from kp3d_rl.geometry_aware.skeleton import SkeletonViews
from kp3d_rl.geometry_aware.training import GeometryAwareTraining
from kp3d_rl.gradient_training import GradientTraining

NAMES: dict[Stage, str] = {"detector": "2D detector", "synthesis": "view synthesis", "autoencoder": "autoencoder"}


def main(argv: Sequence[str]) -> int:
    """Open or make the run, then learn what is left of its stages."""
    run = open_run(GeometryAwareRun, PRESETS, argv)
    use_threads(run.config.threads)
    return carry_out(run, lambda stop: None if run.finished else learn(run, stop))


def learn(run: GeometryAwareRun, stop: StopRequest) -> None:
    """See people, then make what is left of the stages.

    :param run: locked.
    :param stop: set by a signal.
    """
    config = run.config
    print(f"people by {config.source} joints: {config.poses} poses of {config.bodies} bodies, {config.training.steps} "
          f"steps of {config.training.batch_size} pairs of views, seed {config.seed}", flush=True)  # fmt: skip
    renderer = make_renderer() if config.source == "detector" else None
    if "detector" in run.stages:
        learn_detector(run, stop, renderer)
    eyes = eyes_of(run, renderer)
    data = views_to_learn_from(config, eyes, people_to_learn_from(config))
    _, held_out = ring(config.cameras, config.held_out)
    judges = said_usable(eyes.views(people_to_judge_by(config, VALIDATION), held_out, config.seed), "to be judged by")
    if renderer is not None:
        renderer.close()
    learn_synthesis(run, stop, data, judges)
    if config.autoencoder and not run.weights_file("autoencoder").is_file():
        network = run.new_network("autoencoder").to(choose_device(config.device))
        training = GeometryAwareTraining(network, data, config.training, config.seed, "autoencoder")  # type: ignore[arg-type]
        learn_stage(run, "autoencoder", training, stop)


def eyes_of(run: GeometryAwareRun, renderer: Renderer | None) -> Eyes:
    """What tells where joints are, as the run has it.

    :param run: with its detector, if it uses one.
    :param renderer: for a detector's images.
    """
    if run.config.source == "exact":
        return ExactEyes(run.config)
    assert renderer is not None
    return DetectorEyes(run.config, run.network("detector").to(choose_device(run.config.device)), renderer)  # type: ignore[arg-type]


def learn_detector(run: GeometryAwareRun, stop: StopRequest, renderer: Renderer | None) -> None:
    """Train the 2D detector on images with 2D labels, unless that is done."""
    if run.weights_file("detector").is_file():
        return
    assert renderer is not None
    config, detector = run.config, run.new_network("detector").to(choose_device(run.config.device))
    images = labelled_images(config, renderer)
    learn_stage(run, "detector", DetectorTraining(detector, [images], config.detecting, config.seed), stop)  # type: ignore[arg-type]


def learn_stage(run: GeometryAwareRun, stage: Stage, training: GradientTraining, stop: StopRequest) -> None:
    """Make what is left of a stage's steps.

    :param run: whose stage it is.
    :param stage: which.
    :param training: as it was begun.
    :param stop: set by a signal.
    """
    make_steps(training, run.training_file(stage), NAMES[stage], stop)
    run.finish(stage, training.network)


def learn_synthesis(run: GeometryAwareRun, stop: StopRequest, data: SkeletonViews, judges: SkeletonViews) -> None:
    """Train the two networks, unless that is done, with a judgement every so many steps.

    :param run: whose they are.
    :param stop: set by a signal.
    :param data: to learn from.
    :param judges: poses in two views at least.
    """
    if run.weights_file("synthesis").is_file():
        return
    config, path = run.config, run.training_file("synthesis")
    every = config.evaluate_every or config.training.steps
    networks = run.new_network("synthesis").to(choose_device(config.device))
    assert isinstance(networks, nn.ModuleList)
    training = GeometryAwareTraining(networks, data, config.training, config.seed)
    if path.is_file():
        take_up(training, path, NAMES["synthesis"])
        if training.step % every == 0 or training.finished:  # it may have been killed before it was judged
            judge(run, training, judges)
    while not training.finished:
        make_steps(training, path, NAMES["synthesis"], stop, until=(training.step // every + 1) * every)
        judge(run, training, judges)
    run.finish("synthesis", networks)


def judge(run: GeometryAwareRun, training: GeometryAwareTraining, judges: SkeletonViews) -> None:
    """Judge by people, clips and cameras that are not trained on, say what came of it and write it down.

    :param run: whose training it is.
    :param training: at the step to be judged.
    :param judges: poses in two views at least.
    """
    there, back = training.networks[0], training.networks[-1]
    source, target = one_view(judges, 0), one_view(judges, 1)
    found = judge_synthesis(there, back, source, target)  # type: ignore[arg-type]
    row = {"step": training.step, "minutes": training.seconds / 60, "loss": training.loss} | found
    run.add(row | {f"loss_{name}": float(value) for name, value in training.terms.items()})
    print(f"step {training.step}: other views overlap by {100 * found['iou']:.1f} % (IoU), points are "
          f"{found['equivariance']:.3f} apart", flush=True)  # fmt: skip


if __name__ == "__main__":
    run_main(main)
