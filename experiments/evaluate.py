"""Evaluate a run: ``python -m experiments.evaluate --env reach-multiview [--run PATH]``.

Prints how many episodes end in success, with 95 % intervals, and writes ``eval.json`` into the run folder.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
from stable_baselines3.common.policies import BasePolicy
from tqdm import tqdm

from agents.finite import refuse_nonfinite_outputs
from experiments.bootstrapping import evaluating as bootstrapping
from experiments.bootstrapping.folder import asks_for_bootstrap
from experiments.geometry_aware import evaluating as geometry_aware
from experiments.geometry_aware.folder import asks_for_geometry_aware
from experiments.judging.ablations import Environments, conditions
from experiments.judging.evaluation import Evaluation, Transform, evaluate, evaluation_seeds, require_different, table
from experiments.judging.outliers import check_outliers, rejecting_outliers
from experiments.keypointnet import evaluating as keypointnet
from experiments.keypointnet.folder import asks_for_keypointnet
from experiments.options.cli import parse, run_main, write_result
from experiments.provenance import origin
from experiments.runs import Run
from experiments.training.algorithms import load_policy
from experiments.training.building import make_env, use_threads


@dataclass(frozen=True)
class EvaluateConfig:
    """Deterministic evaluation on fixed seeds that training never sees.

    :param env: environment; with no ``run`` its newest run is taken.
    :param run: run folder, or its name within the environment.
    :param seed: number of the block of evaluation seeds; blocks never overlap, but of a task that has 50 test
        configurations each has all of these.
    :param episodes: how many; by default 100, or one for each of the task's test configurations.
    :param envs: how many episodes are played at a time.
    :param checkpoint: step of the checkpoint; by default the newest.
    :param device: "auto" takes a GPU where there is one.
    :param reject_outliers: centimetres by which the rays of a 3D keypoint may miss each other; where they miss by more
        and one view contradicts all others, that view has no weight in it, as where a camera was moved; 0: off.
    :param ablate: also evaluate the same policy on blacked-out views, on views of another state, without each of its
        cameras, and with shuffled colours.
    """

    env: str | None = None
    run: str | None = None
    seed: int = 0
    episodes: int | None = None
    envs: int = 10
    checkpoint: int | None = None
    device: str = "auto"
    reject_outliers: float = 0.0
    ablate: bool = False

    def __post_init__(self) -> None:
        if self.envs < 1:
            raise ValueError("envs must be at least 1")
        check_outliers(self.reject_outliers)
        evaluation_seeds(self.seed, 1 if self.episodes is None else self.episodes)  # refuses what is out of bounds


@refuse_nonfinite_outputs()
def main(argv: Sequence[str]) -> None:
    """Load, evaluate, print, write."""
    if asks_for_bootstrap(argv):
        return bootstrapping.main(argv)
    if asks_for_keypointnet(argv):
        return keypointnet.main(argv)
    if asks_for_geometry_aware(argv):
        return geometry_aware.main(argv)
    config = parse(EvaluateConfig, argv)
    run = Run.open(config.run, config.env)
    checkpoint = run.load(config.checkpoint)
    use_threads(run.config.threads)
    envs = [make_env(run.config) for _ in range(min(config.envs, config.episodes or config.envs))]
    config = dataclasses.replace(config, episodes=episodes_of(config, envs[0]))
    policy = load_policy(run, envs[0], checkpoint, config.device)
    print(f"{run.path}, checkpoint {checkpoint.step}: {config.episodes} episodes, deterministic")
    results = {}
    for name, condition in conditions(envs[0], config.ablate).items():
        with rejecting_outliers(policy, config.reject_outliers), condition(policy, envs) as (shown, transform):
            results[name] = measure(config, policy, shown, transform, name)
    print("\nas trained", *("  " + line for line in results["as trained"].lines()), sep="\n")
    if config.ablate:
        print("", *table(results), sep="\n")
    if not envs[0].get_wrapper_attr("defines_success"):  # known of a foreign environment after its first step only
        print(f"\nnote: '{run.config.env}' defines no success; read the return")
    write(run, config, checkpoint.step, results)
    for env in envs:
        env.close()


def episodes_of(config: EvaluateConfig, env: gym.Env) -> int:
    """How many episodes are played.

    :param env: in which.
    :raises UserError: for more than differ from each other: intervals would pretend to know what they do not.
    """
    most = getattr(env.unwrapped, "configurations", None)
    require_different(config.episodes or 0, most)
    return config.episodes or most or 100


def measure(
    config: EvaluateConfig, policy: BasePolicy, envs: Environments, transform: Transform | None, name: str
) -> Evaluation:
    """Play the block of evaluation seeds, with a progress bar on a terminal.

    :param config: how many episodes, and of which block.
    :param policy: SB3's, as :func:`experiments.training.algorithms.load_policy` gives it.
    :param envs: to play in, side by side.
    :param transform: changes batched observations; None changes nothing.
    :param name: of the condition, for the progress bar.
    """
    shown = sys.stderr.isatty()
    with tqdm(total=config.episodes, desc=name, unit="episode", leave=False, disable=not shown) as bar:
        return evaluate(
            lambda observation: policy.predict(observation, deterministic=True)[0],
            envs,
            evaluation_seeds(config.seed, config.episodes),
            transform,
            on_episode=lambda _: bar.update(),
        )


def write(run: Run, config: EvaluateConfig, step: int, results: dict[str, Evaluation]) -> None:
    """Everything that was measured, with seeds, commit and machine, as ``eval.json``; never half of it.

    :param run: whose folder it goes to.
    :param config: how it was measured.
    :param step: of the checkpoint.
    :param results: by condition.
    """
    record = {"env": run.config.env, "checkpoint": step, "seed": config.seed, "device": config.device} | origin()
    record["reject_outliers"] = config.reject_outliers
    record["results"] = {name: result.to_dict() for name, result in results.items()}
    path = run.path / "eval.json"
    write_result(path, json.dumps(record, indent=1).encode())
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    run_main(main)
