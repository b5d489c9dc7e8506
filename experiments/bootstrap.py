"""Teach a keypoint detector by what several cameras agree on: ``python -m experiments.bootstrap``.

Films a hand, or any registered environment, trains a first detector on a few labelled images, and improves it round by
round without further labels (:mod:`kp3d_rl.bootstrapping`). A run that was stopped or killed goes on with ``--resume``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from envs.errors import UserError
from experiments.bootstrapping.config import BootstrapConfig
from experiments.bootstrapping.filming import Studio, make_studio
from experiments.bootstrapping.folder import BootstrapRun
from experiments.bootstrapping.presets import expanded
from experiments.bootstrapping.rounds import film, given_up, run_round
from experiments.options.cli import flat, parse, run_main
from experiments.runs.plain import resumed
from experiments.training.building import choose_device, use_threads
from experiments.training.gradient_steps import carry_out
from experiments.training.recording import StopRequest
from kp3d_rl.bootstrapping.detector import KeypointDetector

MAY_DIFFER = ("run", "device", "threads", "method", "reference", "rounds", "use")
"""Options in which a run may differ from its reference."""


def main(argv: Sequence[str]) -> int:
    """Open or make the run, film, then do what is left of its rounds."""
    run, studio = open_run(argv)
    use_threads(run.config.threads)
    with contextlib.closing(studio):
        return carry_out(run, lambda stop: do_rounds(run, studio, stop))


def open_run(argv: Sequence[str]) -> tuple[BootstrapRun, Studio]:
    """A new run, or the one that is to be gone on with, and what films for it: what is wrong is said before it is made.

    :param argv: options of a new run, or ``--resume`` and a folder.
    """
    path = resumed(argv)
    if path is not None:
        run = BootstrapRun.open(path)
        return run, make_studio(run.config)
    config = parse(BootstrapConfig, expanded(argv))
    choose_device(config.device)
    if config.reference is not None:
        require_alike(config, BootstrapRun.open(config.reference))
    studio = make_studio(config)
    try:
        return BootstrapRun.create(config), studio
    except UserError:
        studio.close()
        raise


def require_alike(config: BootstrapConfig, reference: BootstrapRun) -> None:
    """Refuse a reference with which this run would not compare, or that has not what this run needs of it.

    :raises UserError: naming the first option that differs, or what is missing.
    """
    ours, theirs = flat(config), flat(reference.config)
    for name in ours:
        if ours[name] != theirs[name] and name not in MAY_DIFFER:
            said = f"has {name.replace('_', '-')} {theirs[name]}, this run {ours[name]}"
            raise UserError(f"reference {reference.path} {said}")
    reference.detector(0)
    if config.method == "oracle":
        if reference.config.method not in ("bootstrapping", "random"):
            raise UserError(f"reference {reference.path} chose no frames: its method is {reference.config.method}")
        for number in range(1, config.rounds + 1):
            reference.labels(number)


def do_rounds(run: BootstrapRun, studio: Studio, stop: StopRequest) -> None:
    """Film, then do the rounds that are not over yet.

    :param run: locked.
    :param studio: that films.
    :param stop: set by a signal.
    """
    config, device = run.config, choose_device(run.config.device)
    finished, keypoints = len(run.finished_rounds()), len(studio.subject.keypoints)
    if finished > config.rounds:
        return
    if run.gave_up:  # and would do so again
        raise given_up(run)
    print(f"{config.env}: {keypoints} keypoints, {config.method}, {config.rounds} rounds of "
          f"{config.training.steps} steps, {config.watching} cameras of {config.image_size} px, seed {config.seed}",
          flush=True)  # fmt: skip
    material = film(config, studio, stop)
    detector: KeypointDetector | None = run.detector(None, keypoints).to(device) if finished else None
    if detector is None and config.reference is not None:
        detector = take_over(run, BootstrapRun.open(config.reference), keypoints).to(device)
        finished = 1
    for number in range(finished, config.rounds + 1):
        detector = run_round(run, number, detector, material, studio.subject, stop)


def take_over(run: BootstrapRun, reference: BootstrapRun, keypoints: int) -> KeypointDetector:
    """The first round of another run, which must find so many keypoints, as this one's."""
    detector = reference.detector(0, keypoints)
    run.folder(0).mkdir(exist_ok=True)
    run.finish(0, detector, dict(reference.numbers(0)))
    return detector


if __name__ == "__main__":
    run_main(main)
