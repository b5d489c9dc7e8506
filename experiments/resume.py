"""Go on with a run that was stopped or killed: ``python -m experiments.resume --run runs/reach-multiview/<name>``.

It goes on from its newest checkpoint, with the options, threads and renderer that it had, as if nothing had happened:
on the same machine, weights and logged numbers are those of a run that was never stopped, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from envs.errors import UserError
from envs.renderers import chosen_backend
from experiments.logs import complete_record, read_back, require_login, require_state
from experiments.options.cli import parse, run_main
from experiments.options.config import TrainConfig
from experiments.runs import Checkpoint, Run
from experiments.train import build, describe, train
from experiments.training.building import make_training_env, require_same_scene, use_threads
from experiments.training.checkpointing import (
    FINISHED,
    disk_error,
    is_finished,
    load_checkpoint,
    recorded_circumstances,
    report_circumstances,
)
from experiments.training.recording import StopRequest
from kp3d_rl.storage.files import DamagedError


@dataclass(frozen=True)
class ResumeConfig:
    """Going on with a run.

    :param env: environment; with no ``run`` its newest run is taken.
    :param run: run folder, or its name within the environment.
    :param checkpoint: step of the checkpoint to go on from; by default the newest.
    :param nodes: address of a ray cluster whose nodes step and render the environments; by default this machine does.
    """

    env: str | None = None
    run: str | None = None
    checkpoint: int | None = None
    nodes: str | None = None


def main(argv: Sequence[str]) -> int:
    """Open the run, build what it was built of, put everything back, then learn."""
    config = parse(ResumeConfig, argv)
    run = Run.open(config.run, config.env)
    with run.locked():
        try:
            run.checkpoints.recover()
            checkpoint = find_checkpoint(run, config.checkpoint)
            if checkpoint is None or not is_finished(checkpoint):
                return go_on(as_it_was(run, checkpoint), checkpoint, config.nodes)
            run.checkpoints.give_up_frames(FINISHED)  # where it was killed before it had
            complete_record(run, checkpoint.state.get("log"))
        except OSError as error:
            raise disk_error(run, run.checkpoints.latest() or 0, error) from error
    print(f"{run.path} is finished: {run.checkpoints.latest()} steps are done\nnext: {run.command('evaluate')}")
    return 0


def find_checkpoint(run: Run, step: int | None) -> Checkpoint | None:
    """What to go on from; None where the run was killed before it wrote anything, and begins anew.

    :param run: whose checkpoints are looked at.
    :param step: of the wanted one; None takes the newest.
    :raises UserError: where there is none such, or a beginning cannot be repeated.
    """
    if step is not None or run.steps():
        return run.load(step)
    rows = run.path / "metrics.csv"
    if rows.is_file() and rows.stat().st_size:  # the first checkpoint is older than the first row
        raise UserError(f"{run.path} has logged numbers but no checkpoint: without one nothing can go on; train anew")
    if run.config.pretrained is not None or run.config.encoder.weights is not None:
        raise UserError(f"{run.path} was killed before it took over the keypoints of another run: train anew")
    print(f"{run.path} has no checkpoint yet: it begins anew")
    return None


def as_it_was(run: Run, checkpoint: Checkpoint | None) -> Run:
    """The run with the threads and the renderer that were chosen for it when it began.

    :param run: as its configuration says.
    :param checkpoint: in which they stand.
    """
    use_threads(run.config.threads)
    then = {} if checkpoint is None else recorded_circumstances(checkpoint)
    if type(then.get("threads")) is int and 0 < then["threads"] <= 1024:
        use_threads(then["threads"])
    if not can_render(then.get("renderer")):
        return run
    render = dataclasses.replace(run.config.render, backend=then["renderer"])
    return Run(run.path, dataclasses.replace(run.config, render=render))


def can_render(backend: object) -> bool:
    """Whether a renderer of this name works here."""
    if backend == "warp":
        return importlib.util.find_spec("mujoco_warp") is not None
    return backend == "gl" and chosen_backend("auto") == "gl"


def go_on(run: Run, checkpoint: Checkpoint | None, nodes: str | None = None) -> int:
    """Build, restore, learn.

    :param run: locked.
    :param checkpoint: None begins anew.
    :param nodes: of the cluster that steps and renders; None: this machine does.
    :return: the process's exit code.
    """
    config: TrainConfig = run.config
    require_login(config.log)
    with contextlib.closing(make_training_env(config, nodes)) as env:
        model, scene = build(config, env)
        require_same_scene(run, scene)
        if checkpoint is None:
            describe(config, model, scene)
        else:
            report_circumstances(run, checkpoint)
            load_checkpoint(run, model, checkpoint)
            go_back(run, checkpoint)
            print(f"{run.path} goes on at step {checkpoint.step} of {config.total_steps}", flush=True)
        with StopRequest().listening() as stop:
            return train(run, model, stop, checkpoint)


def go_back(run: Run, checkpoint: Checkpoint) -> None:
    """Make an older checkpoint the newest, once all is there that it refers to: logs are cut when training starts.

    :param run: that goes on.
    :param checkpoint: from which.
    :raises UserError: where frames or logged numbers are missing or damaged.
    """
    if checkpoint.step == run.checkpoints.latest():
        return
    log = checkpoint.state["log"]
    require_state(log)
    read_back(run.path / "metrics.csv", log["metrics"])
    try:
        run.checkpoints.store.require(checkpoint.segments)
    except DamagedError as error:
        raise UserError(f"checkpoint {run.checkpoints.path(checkpoint.step)} cannot be gone on from: {error}") from None
    run.checkpoints.go_back(checkpoint.step)


if __name__ == "__main__":
    run_main(main)
