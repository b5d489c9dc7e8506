"""Train a policy: ``python -m experiments.train --env reach-multiview``.

Everything that the run makes goes to ``runs/<env>/<name>/``; evaluation and video need only that path. A run that was
stopped or killed goes on with :mod:`experiments.resume`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.callbacks import AuxiliaryCallback, ClippingCallback
from agents.finite import NonFiniteError, refuse_nonfinite_outputs
from agents.scene import Scene
from envs import registry
from envs.errors import UserError
from experiments.judging.evaluation import require_different
from experiments.logs import RunLogger, metrics_logger, require_login
from experiments.options.cli import parse, run_main
from experiments.options.config import TrainConfig
from experiments.options.presets import expanded, taken
from experiments.runs import Checkpoint, Run
from experiments.training.algorithms import build_model, describe_replay, note_of_idle_options, require_effect
from experiments.training.bootstrapped import load_detector, with_detector
from experiments.training.building import make_env, make_training_env, note_of_strange_cameras, use_threads
from experiments.training.checkpointing import CheckpointCallback, Stopped, disk_error, save_finished
from experiments.training.estimate import estimate
from experiments.training.pictures import save_picture
from experiments.training.pretrained import load_pretrained
from experiments.training.progress import Progress
from experiments.training.recording import Evaluator, Every, ProgressCallback, Rows, StopRequest

LOG_EVERY = 1000
"""Environment steps between two rows of numbers of SAC and TQC; PPO writes one for each rollout."""


def main(argv: Sequence[str]) -> int:
    """Build environments, model and run folder, then learn."""
    argv, nodes = taken_nodes(argv)
    config = with_detector(parse(TrainConfig, expanded(argv, TrainConfig)))
    note_of_idle_options(argv, config)
    use_threads(config.threads)
    require_effect(config)
    require_different(config.log.evaluation_episodes, registry.configurations(config.env))
    path = Run.new_path(config)
    require_login(config.log)
    with contextlib.closing(make_training_env(config, nodes)) as env:
        model, scene = build(config, env)
        if config.pretrained is not None:
            load_pretrained(model.policy, config, scene)
        if config.encoder.kind == "bootstrapped":
            load_detector(model.policy, config)
        describe(config, model, scene)
        run = Run.create(path, config, scene)
        with run.locked(), StopRequest().listening() as stop:
            return train(run, model, stop)


def taken_nodes(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Arguments without ``--nodes``, and what it says: where a run is simulated is no part of what it is.

    :raises UserError: where its value is missing.
    """
    rest, nodes = taken(argv, "--nodes")
    if nodes == "":
        raise UserError("--nodes needs a value (address of a ray cluster's head, or auto)")
    return rest, nodes


def build(config: TrainConfig, env: VecEnv) -> tuple[BaseAlgorithm, Scene | None]:
    """The model, and what its encoder knows of the environment.

    :param config: of the run.
    :param env: its environments.
    """
    scene = Scene.of(env) if config.encoder.sees else None
    if config.algorithm != "ppo":
        print(describe_replay(config, env))  # before it is allocated
    return build_model(config, env, scene), scene


def describe(config: TrainConfig, model: BaseAlgorithm, scene: Scene | None) -> None:
    """Say what will be trained and what it will cost.

    :param config: of the run.
    :param model: as built.
    :param scene: its cameras; None on the simulator's state.
    """
    sizes = {
        name: sum(p.numel() for p in module.parameters()) for name, module in model.policy.named_children()
        if name not in ("pi_features_extractor", "vf_features_extractor")
    }  # fmt: skip
    total = sum(parameter.numel() for parameter in model.policy.parameters())
    views = "the simulator's state" if scene is None else f"{len(scene.cameras.names)} views of {config.image_size} px"
    name = config.algorithm.upper()
    print(f"{config.env}: {name} on {config.encoder.kind} from {views}, {config.total_steps} steps, seed {config.seed}")
    print(f"parameters: {total} (" + ", ".join(f"{name} {count}" for name, count in sizes.items() if count) + ")")
    print(estimate(config, model, Path.cwd()), flush=True)
    if scene is not None:
        note_of_strange_cameras(config)
    if config.algorithm != "ppo" and config.sac.learning_starts >= config.total_steps:
        starts = f"step {config.sac.learning_starts} (--sac.learning-starts)"
        print(f"note: {config.algorithm.upper()} learns from {starts} on, when this run is over", file=sys.stderr)


def train(run: Run, model: BaseAlgorithm, stop: StopRequest, checkpoint: Checkpoint | None = None) -> int:
    """Learn to the end, or to where a signal asks to stop; say what comes next.

    :param run: where everything goes.
    :param model: as built and, to go on, with what the checkpoint holds.
    :param stop: set by a signal.
    :param checkpoint: to go on from; None begins.
    :return: the process's exit code.
    :raises UserError: where a number is NaN or Inf, or the disk is full: with the step and the last good checkpoint.
    """
    evaluator = Evaluator(lambda: make_env(run.config), run.config.log.evaluation_episodes)
    state = None if checkpoint is None else checkpoint.state["log"]
    try:
        with contextlib.closing(evaluator), metrics_logger(run, run.config.log, state) as logger:
            model.set_logger(logger)
            with refuse_nonfinite_outputs():
                learn(run, model, evaluator, stop, checkpoint)
                finish(run, model, evaluator, logger)
    except Stopped:
        print(f"stopped: {run.path}\nnext: {run.command('resume')}")
        return stop.exit_code
    except (KeyboardInterrupt, BrokenPipeError):  # the latter where nobody reads the output any more
        print(f"\nlast good checkpoint: {run.last_good()}\nnext: {run.command('resume')}", file=sys.stderr)
        raise
    except NonFiniteError as error:
        last = run.last_good()
        raise UserError(
            f"training stopped at step {model.num_timesteps}: {error}; last good checkpoint: {last}"
        ) from error
    except OSError as error:
        raise disk_error(run, model.num_timesteps, error) from error
    print(f"done: {run.path}\nnext: {run.command('evaluate')}   {run.command('video')}")
    return 0


def learn(
    run: Run, model: BaseAlgorithm, evaluator: Evaluator, stop: StopRequest, checkpoint: Checkpoint | None
) -> None:
    """SB3's own loop, with everything that happens beside it.

    :param run, model, stop, checkpoint: as in :func:`train`.
    :param evaluator: for the periodic evaluations.
    """
    model.learn(
        run.config.total_steps - model.num_timesteps,  # SB3 adds what is done already
        callback=callbacks(run, evaluator, stop, checkpoint),
        log_interval=None,  # rows are written by a callback, which knows how many there were
        reset_num_timesteps=checkpoint is None,
    )


def finish(run: Run, model: BaseAlgorithm, evaluator: Evaluator, logger: RunLogger) -> None:
    """The last evaluation, picture and row of numbers, then the last checkpoint: with it the run is finished."""
    evaluator(model)
    save_picture(run, model)
    print(f"final evaluation: {evaluator.describe()}")
    logger.record("time/total_timesteps", model.num_timesteps, exclude="tensorboard")
    logger.dump(model.num_timesteps)
    logger.flush()  # what is finished is not logged again
    save_finished(run, model, logger.state())


def callbacks(
    run: Run, evaluator: Evaluator, stop: StopRequest, checkpoint: Checkpoint | None = None
) -> list[BaseCallback]:
    """What happens beside learning, in this order; the auxiliary loss comes early, so that the rest sees its numbers.

    :param run, stop, checkpoint: as in :func:`train`.
    :param evaluator: for the periodic evaluations.
    """
    config, log = run.config, run.config.log
    evaluations = Every(log.evaluate_every, evaluator)
    parts = {
        "gradients": gradients(config, stop),
        "evaluations": evaluations,
        "pictures": Every(log.picture_every, lambda model: save_picture(run, model)),
        "rows": Rows(0 if config.algorithm == "ppo" else LOG_EVERY, evaluations),
    }
    *first, rows = parts.values()
    progress = ProgressCallback(config.total_steps, evaluator)
    return [CheckpointCallback(run, parts, stop, checkpoint), *first, progress, rows]


def gradients(config: TrainConfig, stop: StopRequest) -> AuxiliaryCallback | ClippingCallback:
    """The callback that owns the auxiliary loss, or, where there is none, the clipping alone.

    :param config: of the run.
    :param stop: in the warm-up, which can only be repeated, it stops at once.
    """
    if not config.encoder.has_loss:
        return ClippingCallback(config.auxiliary.clip)
    auxiliary = config.auxiliary
    if config.pretrained is not None:
        auxiliary = dataclasses.replace(auxiliary, warmup_frames=0, warmup_steps=0)

    def stop_now() -> bool:
        if stop:
            raise Stopped
        return False

    show = Progress("warm-up of the encoder", "steps")
    return AuxiliaryCallback(auxiliary, should_stop=stop_now, on_warmup_step=show)


if __name__ == "__main__":
    run_main(main)
