"""Teach a keypoint detector by what several cameras agree on: ``python -m experiments.bootstrap``.

Films a hand, or any registered environment, trains a first detector on a few labelled images, and improves it round by
round without further labels (:mod:`kp3d_rl.bootstrapping`). A run that was stopped or killed goes on with ``--resume``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from envs.errors import UserError
from experiments.bootstrapping.config import BootstrapConfig
from experiments.bootstrapping.filming import make_studio
from experiments.bootstrapping.folder import BootstrapRun
from experiments.bootstrapping.presets import expanded
from experiments.bootstrapping.rounds import Stopped, film, run_round
from experiments.options.cli import parse, run_main
from experiments.training.building import choose_device, use_threads
from experiments.training.recording import StopRequest
from kp3d_rl.bootstrapping.detector import KeypointDetector


def main(argv: Sequence[str]) -> int:
    """Open or make the run, film, then do what is left of its rounds."""
    run = open_run(argv)
    use_threads(run.config.threads)
    with run.locked(), StopRequest().listening() as stop:
        try:
            do_rounds(run, stop)
        except Stopped:
            print(f"stopped: {run.path}\nnext: make bootstrap RESUME={run.path}", file=sys.stderr)
            return stop.exit_code
    print(f"done: {run.path}\nnext: make evaluate RUN={run.path}   make video RUN={run.path}")
    return 0


def open_run(argv: Sequence[str]) -> BootstrapRun:
    """A new run, or the one that is to be gone on with.

    :param argv: options of a new run, or ``--resume`` and a folder.
    """
    if argv and argv[0].partition("=")[0] == "--resume":
        path = argv[0].partition("=")[2] or (argv[1] if len(argv) == 2 else "")
        if not path or len(argv) > 2:
            raise UserError("--resume takes the folder of a run, and no other option: a run keeps those that it has")
        return BootstrapRun.open(path)
    config = parse(BootstrapConfig, expanded(argv))
    choose_device(config.device)
    if config.reference is not None:
        require_alike(config, BootstrapRun.open(config.reference))
    return BootstrapRun.create(config)


def require_alike(config: BootstrapConfig, reference: BootstrapRun) -> None:
    """Refuse a reference that saw other images or has another detector.

    :raises UserError: naming the first option that differs.
    """
    for name in ("env", "seed", "bodies", "cameras", "image_size", "sequences", "frames", "labelled", "detector"):
        ours, theirs = getattr(config, name), getattr(reference.config, name)
        if ours != theirs:
            raise UserError(f"reference {reference.path} has {name.replace('_', '-')} {theirs}, this run {ours}")


def do_rounds(run: BootstrapRun, stop: StopRequest) -> None:
    """Film, then do the rounds that are not over yet.

    :param run: locked.
    :param stop: set by a signal.
    """
    config, device = run.config, choose_device(run.config.device)
    finished = len(run.finished_rounds())
    if finished > config.rounds:
        return
    studio = make_studio(config)
    print(f"{config.env}: {len(studio.subject.keypoints)} keypoints, {config.method}, {config.rounds} rounds of "
          f"{config.training.steps} steps, {config.cameras} cameras of {config.image_size} px, seed {config.seed}",
          flush=True)  # fmt: skip
    material = film(config, studio, stop)
    studio.close()
    detector: KeypointDetector | None = run.detector().to(device) if finished else None
    if detector is None and config.reference is not None:
        detector = take_over(run, BootstrapRun.open(config.reference))
        finished = 1
    for number in range(finished, config.rounds + 1):
        detector = run_round(run, number, detector, material, studio.subject, stop)


def take_over(run: BootstrapRun, reference: BootstrapRun) -> KeypointDetector:
    """The first round of another run as this one's."""
    detector = reference.detector(0)
    run.folder(0).mkdir(exist_ok=True)
    run.finish(0, detector, dict(reference.numbers(0)))
    return detector


if __name__ == "__main__":
    run_main(main)
