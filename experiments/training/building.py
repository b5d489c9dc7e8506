"""From a configuration to environments and devices, and what must agree between a run and an environment."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import VecEnv

from agents.batch_env import BatchVecEnv
from agents.scene import Scene
from agents.vec_env import NormalizeReward, make_vec_env, watched_over
from envs import registry, remote
from envs.errors import UserError
from envs.renderers import chosen_backend
from envs.sight import bodies_outside
from experiments.options.config import RunConfig, TrainConfig
from experiments.runs import Checkpoint, Run

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt, from malloc.h
MOST_WORKERS_PER_CORE = 8
SEEDS_PER_RUN = 1000
"""Training seed s resets environment i with 1000 s + i; evaluations use other ranges
(:mod:`experiments.judging.evaluation`)."""


def make_env(config: RunConfig) -> gym.Env:
    """One environment that observes what the run's encoder needs, to look at or to be judged in: of the test split.

    :param config: of the run.
    """
    return constructor(config, "test")()


def constructor(config: RunConfig, split: str) -> Callable[[], gym.Env]:
    """What :func:`make_env` calls; fit to be sent to a worker process, which then need not know of experiments.

    :param config: of the run.
    :param split: "train" or "test" (:data:`envs.registry.SPLITS`).
    """
    return functools.partial(
        registry.make,
        config.env,
        cameras=config.cameras,
        height=config.image_size,
        width=config.image_size,
        observe=("images", "proprio") if config.encoder.sees else ("state",),
        renderer=config.render.backend,
        quality=config.render.quality,
        redraw=config.redraw,
        split=split,
        action_repeat=config.action_repeat,
    )


def workers(config: RunConfig) -> int:
    """How many processes step and render the environments of a run.

    Without images a step takes less time than its way to another process and back.
    """
    if not config.encoder.sees:
        return 1
    most = MOST_WORKERS_PER_CORE * cores()
    if config.render.workers > most:
        raise UserError(f"render workers {config.render.workers}: on {cores()} cores at most {most} make sense")
    return config.render.workers or cores()


def make_training_env(config: TrainConfig, nodes: str | None = None) -> VecEnv:
    """The run's environments side by side, seeded, rewards normalised if asked for.

    :param config: of the run.
    :param nodes: address of a ray cluster whose nodes step and render them; None: this machine does.
    """
    env = side_by_side(config, config.envs) if nodes is None else on_nodes(config, config.envs, nodes)
    # A replay would mix rewards of different scales.
    normalize = config.algorithm == "ppo" and config.ppo.normalize_reward
    return NormalizeReward(env, config.ppo.gamma) if normalize else env


def side_by_side(config: RunConfig, count: int) -> VecEnv:
    """Environments to train in: in worker processes where OpenGL draws, in one process where the ray tracer does.

    They are of the training split. The ray tracer draws all of them in one launch, on a GPU without the images ever
    leaving it.

    :param config: of the run.
    :param count: how many.
    """
    makers = [constructor(config, "train")] * count
    if not config.encoder.sees or chosen_backend(config.render.backend) != "warp":
        return make_vec_env(makers, workers=workers(config))
    device = choose_device(config.device)
    return watched_over(BatchVecEnv(makers, "warp", device, device.startswith("cuda"), workers(config)))


def on_nodes(config: RunConfig, count: int, address: str) -> VecEnv:
    """Environments to train in, in workers on the nodes of a ray cluster, which draw by what this machine would take.

    :param config: of the run.
    :param count: how many.
    :param address: of the cluster.
    :raises UserError: where there is no such cluster, or it has fewer cores than workers are asked for.
    """
    most = remote.join(address)
    asked = config.render.workers or most
    if not 0 < asked <= most:
        raise UserError(f"render workers {asked}: the cluster at '{address}' has {most} cores, one for each of them")
    if config.encoder.sees:
        backend = chosen_backend(config.render.backend)
        config = dataclasses.replace(config, render=dataclasses.replace(config.render, backend=backend))
    return make_vec_env([constructor(config, "train")] * count, workers=asked, remote=True)


def note_of_strange_cameras(config: RunConfig) -> None:
    """Look once at what a file of cameras leaves out, for it may be of another task.

    :param config: of the run; the task's own cameras are not judged.
    """
    if config.cameras is not None and registry.is_cameras_file(config.cameras):
        with contextlib.closing(make_env(config)) as env:
            env.reset(seed=0)
            note_bodies_outside(env)


def note_bodies_outside(env: gym.Env) -> None:
    """Say which of the task's bodies no keypoint can sit on.

    :param env: after a reset.
    """
    if outside := bodies_outside(env):
        names = ", ".join(f"'{name}'" for name in outside)
        print(f"note: outside of the workspace box at the start, where no keypoint can be: {names}", file=sys.stderr)


def choose_device(name: str) -> str:
    """ "auto", "cpu", "cuda" or "cuda:<n>" as a torch device that exists.

    :raises UserError: for a GPU that is not there or an unknown name.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{name}': valid: auto, cpu, cuda, cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' asked for, but {torch.cuda.device_count()} CUDA devices are present")
    return name


def use_threads(count: int) -> None:
    """Give the network library this many threads, and let it keep its memory.

    :param count: 0 is all cores that this process may use, which can be fewer than the machine has.
    """
    torch.set_num_threads(count or cores())
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next time instead of giving it back to the system.

    A gradient step frees and asks for the same tens of megabytes; given back in between, each page of them costs a
    fault: up to 10,000 of them and a fifth of the time of a step were measured. Does nothing where that is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20)):
            mallopt(option, size)


@contextlib.contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Context in which memory that cannot be had is one line for the user.

    :param what: is being made.
    :raises UserError: where it does not fit.
    """
    try:
        yield
    except MemoryError as error:
        raise UserError(f"{what} does not fit into memory: {error}") from None
    except RuntimeError as error:  # torch has no class of its own for the memory of a CPU
        if "alloc" not in str(error) and "out of memory" not in str(error):
            raise
        raise UserError(f"{what} does not fit into memory: {str(error).splitlines()[0]}") from None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_same_scene(run: Run, scene: Scene | None) -> None:
    """Refuse a run whose cameras, image size or workspace differ from the environment's.

    :param run: as trained.
    :param scene: of the environment at hand.
    :raises UserError: naming the first difference with both values.
    """
    trained = run.scene()
    if trained is None or scene is None:
        return
    differences = trained.differences(scene)
    if differences:
        raise UserError(f"{run.path} was trained with {differences[0]} in this environment")


def require_same_keypoints(run: Run, checkpoint: Checkpoint) -> None:
    """Refuse weights whose number of keypoints is not the configuration's.

    :param run: with its configuration.
    :param checkpoint: with the weights.
    :raises UserError: naming both values.
    """
    heads = [t for name, t in checkpoint.policy.items() if name.endswith("encoder.views.0.head.weight")]
    if run.config.encoder.finds_keypoints and heads and heads[0].shape[0] != run.config.encoder.keypoints:
        raise UserError(
            f"{run.path}: its weights have {heads[0].shape[0]} keypoints, "
            f"its config.yaml says {run.config.encoder.keypoints}"
        )
