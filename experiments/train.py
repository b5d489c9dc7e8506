"""Train a policy: ``python -m experiments.train --env reach-multiview``.

Everything that the run makes goes to ``runs/<env>/<name>/``; evaluation and video need only that path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.callbacks import AuxiliaryCallback, ClippingCallback
from agents.scene import Scene
from agents.seam import NonFiniteError
from envs.errors import UserError
from experiments.algorithms import build_model, describe_replay
from experiments.building import make_env, make_training_env, use_threads
from experiments.cli import parse, run_main
from experiments.config import TrainConfig
from experiments.estimate import estimate
from experiments.pictures import save_picture
from experiments.pretrained import load_pretrained
from experiments.progress import Progress
from experiments.recording import (
    Evaluator,
    Every,
    ProgressCallback,
    StopCallback,
    StopRequest,
    metrics_logger,
    require_login,
    save_checkpoint,
)
from experiments.runs import Run

LOG_EVERY = 1000
"""Environment steps between two rows of numbers of SAC and TQC; PPO writes one for each rollout."""


def main(argv: Sequence[str]) -> int:
    """Build environments, model and run folder, then learn."""
    config = parse(TrainConfig, argv)
    use_threads(config.threads)
    path = Run.new_path(config)
    require_login(config.log)
    env = make_training_env(config)
    scene = None if config.encoder.kind == "state" else Scene.of(env)
    if config.algorithm != "ppo":
        print(describe_replay(config, env))  # before it is allocated
    model = build_model(config, env, scene)
    if config.pretrained is not None:
        load_pretrained(model.policy, config, scene)
    describe(config, model, scene)
    run = Run.create(path, config, scene)
    with StopRequest().listening() as stop:
        train(run, model, stop)
    env.close()
    print(f"done: {run.path}\nnext: make evaluate RUN={run.path}   make video RUN={run.path}")
    return stop.exit_code


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


def train(run: Run, model: BaseAlgorithm, stop: StopRequest) -> None:
    """Learn, log, evaluate; a checkpoint is written at the end and when a signal asks to stop.

    :param run: where everything goes.
    :param model: as built.
    :param stop: set by a signal.
    :raises UserError: where a number is NaN or Inf, with the step, the term and the last good checkpoint.
    """
    config = run.config
    evaluator = Evaluator(lambda: make_env(config), config.log.evaluation_episodes)
    with metrics_logger(run, config.log) as logger:
        model.set_logger(logger)
        try:
            model.learn(config.total_steps, callback=callbacks(run, evaluator, stop), log_interval=log_interval(config))
        except NonFiniteError as error:
            raise UserError(
                f"training stopped at step {model.num_timesteps}: {error}; last good checkpoint: {run.last_good()}"
            ) from error
        save_checkpoint(run, model)
        if not stop:
            evaluator(model)
            save_picture(run, model)
            print(f"final evaluation: {evaluator.describe()}")
        logger.record("time/total_timesteps", model.num_timesteps, exclude="tensorboard")
        logger.dump(model.num_timesteps)
        evaluator.close()


def log_interval(config: TrainConfig) -> int | None:
    """How often SB3 itself writes a row of numbers: PPO for each rollout, SAC and TQC never.

    Off-policy it would count episodes, which may be so long that evaluations are overwritten before they are written.

    :param config: of the run.
    """
    return 1 if config.algorithm == "ppo" else None


def callbacks(run: Run, evaluator: Evaluator, stop: StopRequest) -> list[BaseCallback]:
    """What happens beside learning; the auxiliary loss comes first, so that the rest sees its numbers.

    :param run: as in :func:`train`.
    :param evaluator: for the periodic evaluations.
    :param stop: as in :func:`train`.
    """
    config, log = run.config, run.config.log
    if config.encoder.kind == "keypoint3d":
        auxiliary = config.auxiliary
        if config.pretrained is not None:
            auxiliary = dataclasses.replace(auxiliary, warmup_frames=0, warmup_steps=0)
        gradients: BaseCallback = AuxiliaryCallback(
            auxiliary, should_stop=lambda: bool(stop), on_warmup_step=Progress("warm-up of the keypoints", "steps")
        )
    else:
        gradients = ClippingCallback(config.auxiliary.clip)
    found = [
        gradients,
        StopCallback(stop),
        Every(log.evaluate_every, evaluator),
        Every(log.picture_every, lambda model: save_picture(run, model)),
        Every(log.checkpoint_every, lambda model: save_checkpoint(run, model)),
        ProgressCallback(config.total_steps, evaluator),
    ]
    if config.algorithm != "ppo":  # last: the row holds what the others have logged at this step
        found.append(Every(LOG_EVERY, lambda model: model.dump_logs()))
    return found


if __name__ == "__main__":
    run_main(main)
