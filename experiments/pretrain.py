"""Learn keypoints alone: ``python -m experiments.pretrain --env reach-multiview``.

Plays episodes at random or by the task's script and trains encoder and decoder on their frames, without rewards. The
run folder is that of a training run: ``kp3d_rl.load`` reads it, and ``train --pretrained`` starts from it.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from agents.buffers import Frames, to_tensors
from agents.clipping import ClipConfig, GroupClipper, install_clippers
from agents.finite import NonFiniteError, refuse_nonfinite
from agents.policies import KeypointPolicy
from agents.scene import Scene
from agents.unsupervised import UnsupervisedTrainer
from envs.errors import UserError
from experiments.judging.episodes import Actors
from experiments.logs import metrics_logger
from experiments.options.cli import flat, parse, run_main, typed
from experiments.options.config import LogConfig, PretrainConfig
from experiments.options.presets import expanded
from experiments.runs import Run
from experiments.training.building import (
    SEEDS_PER_RUN,
    choose_device,
    note_of_strange_cameras,
    side_by_side,
    use_threads,
)
from experiments.training.checkpointing import disk_error
from experiments.training.collecting import ENVS, HELD_OUT_STRIDE, collect_frames, held_out_frames
from experiments.training.estimate import Estimate, resident_memory
from experiments.training.pictures import keypoint_sheet, write_picture
from experiments.training.progress import Progress
from experiments.training.recording import StopRequest
from kp3d_rl.keypoint3d import Keypoint3DConfig

FINAL_LEARNING_RATE = 0.1
"""Learning rate at the end, relative to the start."""


SCENE_OPTIONS = ("cameras", "redraw", "image_size", "action_repeat")
"""What a training on these keypoints must have alike, beside the encoder; repeated actions need not, but are meant."""


def main(argv: Sequence[str]) -> int:
    """Build environments, encoder and run folder, then collect frames and learn."""
    config = parse(PretrainConfig, expanded(argv, PretrainConfig))
    use_threads(config.threads)
    path = Run.new_path(config)
    with contextlib.closing(side_by_side(config, ENVS)) as env:
        scene = Scene.of(env)
        trainer = build_trainer(config, env, scene)
        describe(config, env, scene, trainer)
        run = Run.create(path, config, scene)
        with run.locked(), StopRequest().listening() as stop:
            pretrain(run, env, trainer, stop)
    print(f"done: {run.path}\nnext: {run.command('probe')}   {next_training(run)}")
    return stop.exit_code


def next_training(run: Run) -> str:
    """What to type to train a policy on these keypoints: in the same scene, with an encoder of the same sizes.

    :param run: of pretraining.
    """
    default, own = flat(PretrainConfig()), flat(run.config)
    taken = [name for name in own if name in SCENE_OPTIONS or name.startswith("encoder.")]
    taken.remove("encoder.loss.equivariance")  # with a policy it was not tried
    changed = {name: own[name] for name in taken if own[name] != default[name]}
    arguments = shlex.join(["--pretrained", str(run.path), *typed(changed)])
    return f'make train ENV={run.config.env} ARGS="{arguments}"'


def build_trainer(config: PretrainConfig, env: VecEnv, scene: Scene) -> UnsupervisedTrainer:
    """A policy on keypoints, of which only encoder and decoder will be trained, and what trains them.

    :param config: of the run.
    :param env: its environments.
    :param scene: their cameras.
    """
    set_random_seed(config.seed)
    options = {name: getattr(config.encoder, name) for name in Keypoint3DConfig.__dataclass_fields__}
    policy = KeypointPolicy(
        env.observation_space,
        env.action_space,
        lambda _: config.learning_rate,
        scene=scene,
        encoder=Keypoint3DConfig(**options),
        learning_rate_scale=1.0,  # there is no policy's rate to be relative to
    )
    policy.to(choose_device(config.device))
    return UnsupervisedTrainer(policy, config.batch_size, config.frames, config.seed)


def describe(config: PretrainConfig, env: VecEnv, scene: Scene, trainer: UnsupervisedTrainer) -> None:
    """Say what will be learnt and what it will cost.

    :raises UserError: for a policy that the task does not have, or a NaN in what it shows.
    """
    parts = {"encoder": trainer.extractor.encoder, "decoder": trainer.policy.decoder}
    sizes = ", ".join(f"{name} {sum(p.numel() for p in part.parameters())}" for name, part in parts.items())
    views = f"{len(scene.cameras.names)} views of {config.image_size} px"
    print(f"{config.env}: keypoints from {views}, {config.frames} frames of the {config.policy} policy, "
          f"{config.steps} steps of {config.batch_size}, seed {config.seed}")  # fmt: skip
    print(f"parameters: {sizes}")
    print(estimate(config, env, trainer), flush=True)
    note_of_strange_cameras(config)


def estimate(config: PretrainConfig, env: VecEnv, trainer: UnsupervisedTrainer, steps: int = 10) -> Estimate:
    """Time a few steps of environments and networks; weights and random state are left as they were.

    :param steps: how many of the environments'.
    """
    env.seed(SEEDS_PER_RUN * config.seed)
    env.reset()
    actors, started = Actors(config.policy, env, config.seed), time.perf_counter()
    for step in range(steps):
        observation = env.step(actors(step))[0]
    step_time = (time.perf_counter() - started) / steps
    rows = np.arange(config.batch_size) % env.num_envs
    batch = to_tensors({key: observation[key][rows] for key in trainer.frames.keys}, trainer.policy.device)
    with torch.random.fork_rng():
        update_time = min(_time_update(trainer, batch) for _ in range(2))
    trainer.policy.zero_grad(set_to_none=True)
    spaces = [env.observation_space[key] for key in trainer.frames.keys]
    frame = sum(math.prod(space.shape) * space.dtype.itemsize for space in spaces)
    held_out = held_out_frames(config)
    played = config.frames + held_out * HELD_OUT_STRIDE
    weights = 4 * sum(parameter.numel() for parameter in trainer.policy.parameters())
    checkpoints = 1 + (config.steps // config.picture_every if config.picture_every else 0)
    return Estimate(
        seconds=played / env.num_envs * step_time + config.steps * update_time,
        memory=resident_memory() + (config.frames + held_out) * frame + 4 * weights,
        disk=checkpoints * 4 * weights,
        disk_free=shutil.disk_usage(Path.cwd()).free,
    )


def _time_update(trainer: UnsupervisedTrainer, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    started = time.perf_counter()
    sum(trainer.extractor.terms(batch).values()).backward()
    return time.perf_counter() - started


def pretrain(run: Run, env: VecEnv, trainer: UnsupervisedTrainer, stop: StopRequest) -> None:
    """Collect, learn, log; a checkpoint is written at the end and when a signal asks to stop.

    :param run: where everything goes.
    :param env: as built.
    :param trainer: as built.
    :param stop: set by a signal.
    :raises UserError: where a number is NaN or Inf, with the step, the term and the last good checkpoint.
    """
    with metrics_logger(run, LogConfig(wandb="off")) as logger:
        learning = Learning(run, trainer, logger)
        try:
            held_out = collect_frames(run.config, env, trainer, stop)
            learning.learn(held_out, stop)
        except NonFiniteError as error:
            raise UserError(
                f"pretraining stopped at step {learning.step}: {error}; last good checkpoint: {run.last_good()}"
            ) from error
        except OSError as error:
            raise disk_error(run, learning.step, error, "pretrain again") from error


class Learning:
    """The gradient steps, and what is written between them.

    :param run: where everything goes.
    :param trainer: with its frames.
    :param logger: of the run.
    """

    def __init__(self, run: Run, trainer: UnsupervisedTrainer, logger: Logger) -> None:
        self.run, self.trainer, self.logger = run, trainer, logger
        self.policy = trainer.policy
        self.step, self.started, self.note = 0, time.monotonic(), ""
        self.show = Progress("learning keypoints", "steps")
        self.clipper: GroupClipper = install_clippers(
            self.policy, trainer.auxiliary.parameters, ClipConfig(), refuse_nonfinite
        )[0]

    def learn(self, held_out: Frames, stop: StopRequest) -> None:
        """Train for as many steps as the run says, or until a signal asks to stop.

        :param held_out: frames that are not trained on.
        :param stop: set by a signal.
        """
        config: PretrainConfig = self.run.config
        frames = to_tensors(held_out, self.policy.device)
        self.trainer.look()
        self.log(frames)
        while self.step < config.steps and not stop:
            pauses = [every - self.step % every for every in (config.log_every, config.picture_every) if every]
            chunk = min(config.steps - self.step, *pauses)
            self.trainer.train(chunk, self._on_step, lambda: bool(stop))
            if self.step % config.log_every == 0 or self.step == config.steps:
                self.log(frames)
            if config.picture_every and self.step % config.picture_every == 0 and self.step < config.steps:
                self.save(frames)
        self.save(frames)
        self.clipper.remove()
        print(f"step {self.step}: {self.note}")

    def _on_step(self, done: int, total: int) -> None:
        """Count, and set the rate of the next step."""
        config = self.run.config
        self.step += 1
        rate = config.learning_rate * (1.0 + (FINAL_LEARNING_RATE - 1.0) * self.step / config.steps)
        for group in self.policy.encoder_optimizer.param_groups:
            group["lr"] = rate
        self.show(self.step, config.steps, self.note)

    def log(self, frames: dict[str, torch.Tensor]) -> None:
        """Quality on frames that are not trained on; losses and gradient norms since the last time."""
        quality = self.trainer.extractor.quality(frames)
        self.note = f"reconstruction {quality['keypoints/reconstruction_ratio']:.2f} of mean image"
        if "keypoints/view_disagreement_cm" in quality:
            self.note += f", views {quality['keypoints/view_disagreement_cm']:.1f} cm apart"
        values = {
            "time/gradient_steps": self.step,
            "time/seconds": time.monotonic() - self.started,
            "train/learning_rate": self.policy.encoder_optimizer.param_groups[0]["lr"],
            **{f"auxiliary/{name}": value for name, value in self.trainer.auxiliary.mean_terms().items()},
            **{f"gradients/{name}": value for name, value in self.clipper.mean_norms().items()},
            **quality,
        }
        for name, value in values.items():
            self.logger.record(name, value)
        self.logger.dump(self.step)

    def save(self, frames: dict[str, torch.Tensor]) -> None:
        """A checkpoint and a picture of the first frame."""
        optimizers = {"policy": self.policy.encoder_optimizer}
        state = {"gradient_steps": self.step, "frames": len(self.trainer.frames)}
        self.run.checkpoints.write(self.step, self.policy, optimizers, state)
        images, poses = frames["images"][:1], frames["camera_poses"][:1] if "camera_poses" in frames else None
        picture = keypoint_sheet(self.trainer.extractor.encoder, self.policy.decoder, images, poses)
        write_picture(self.run, self.step, picture)


if __name__ == "__main__":
    run_main(main)
