"""Show where a training step goes: ``python -m experiments.bench.profile`` with the options of ``train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envs.errors import UserError
from experiments.bench.training import timed_training
from experiments.options.cli import parse, run_main
from experiments.options.config import TrainConfig
from experiments.training.building import make_training_env, use_threads


@dataclass(frozen=True)
class ProfileConfig(TrainConfig):
    """A training that is timed by stage instead of being kept; options as those of ``train``.

    :param rollouts: that are timed, after a first one that is not.
    """

    rollouts: int = 2


def main(argv: Sequence[str]) -> None:
    """Train for some rollouts and print the share of each stage."""
    config = parse(ProfileConfig, argv)
    if config.algorithm != "ppo" or not config.encoder.finds_keypoints:
        raise UserError("only PPO on keypoints can be profiled: leave out --algorithm and --encoder.kind")
    use_threads(config.threads)
    speed, shares = timed_training(config, make_training_env(config), config.rollouts)
    print(f"{config.env}: {speed:.0f} environment steps a second, {1e3 / speed:.1f} ms each")
    for stage, share in shares.items():
        print(f"  {100 * share:5.1f} %  {1e3 * share / speed:6.2f} ms  {stage}")


if __name__ == "__main__":
    run_main(main)
