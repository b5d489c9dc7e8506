"""A plan of many trainings: environments x encoders x algorithms x overrides x seeds.

Each training is an ordinary run folder, which a person would have made with the same options, too. Plans are read from
files by :mod:`experiments.sweeps.plan_file`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.errors import UserError, unknown
from envs.registry import configurations, env_ids
from experiments.judging.evaluation import require_different
from experiments.options.cli import flat, parse, typed
from experiments.options.config import TrainConfig
from experiments.options.files import from_yaml
from experiments.options.presets import expanded
from experiments.runs.folder import ROOT, folder_name
from experiments.training.algorithms import policy_class, require_effect
from experiments.training.bootstrapped import with_detector
from kp3d_rl.options import bounded

Options = Mapping[str, Any]
"""Options as they are typed, without the dashes, and their values; a truth sets or unsets a flag."""


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """How each run of a plan is carried out and judged.

    :param evaluation_episodes: of the evaluation at the end; 0 is as many as ``make evaluate`` plays.
    :param evaluation_block: of evaluation seeds.
    :param probe: judge the keypoints, too, of encoders that have such.
    :param cores: of each run.
    :param retries: how often a run is taken up again that was killed or failed.
    """

    evaluation_episodes: int = bounded(0, least=0, most=10_000)
    evaluation_block: int = bounded(0, least=0, most=1_000)
    probe: bool = False
    cores: int = bounded(1, least=1, most=1024)
    retries: int = bounded(3, least=0, most=1_000)


@dataclass(frozen=True, kw_only=True)
class Plan(Conduct):
    """What is trained.

    :param name: of the sweep; the names of its runs begin with it.
    :param environments: registered tasks.
    :param encoders: kinds of encoder.
    :param algorithms: of them all.
    :param seeds: of each combination; in the file also how many, from 0 on.
    :param options: of every run, as ``{total-steps: 20000, encoder.keypoints: 8, preset: fast}``.
    :param overrides: named sets of further options; every run is made with each of them.
    :param leave_out: combinations that are not run, as ``{encoder: rad, algorithm: sac}``.
    """

    name: str
    environments: tuple[str, ...]
    encoders: tuple[str, ...] = ("keypoint3d",)
    algorithms: tuple[str, ...] = ("ppo",)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    options: Options = field(default_factory=dict)
    overrides: Mapping[str, Options] = field(default_factory=lambda: {"": {}})
    leave_out: tuple[Mapping[str, str], ...] = ()

    @property
    def folder(self) -> Path:
        """Where the sweep keeps what is not of one run alone."""
        return ROOT / "sweeps" / self.name

    def runs(self) -> list[PlannedRun]:
        """All of them, seed by seed, so that an early stop leaves comparisons and not single methods."""
        found = [
            PlannedRun(self, env, encoder, algorithm, override, seed)
            for seed in self.seeds
            for env in self.environments
            for encoder in self.encoders
            for algorithm in self.algorithms
            for override in self.overrides
        ]
        return [run for run in found if not any(run.fits(combination) for combination in self.leave_out)]


@dataclass(frozen=True)
class PlannedRun:
    """One training of a plan."""

    plan: Plan
    env: str
    encoder: str
    algorithm: str
    override: str
    seed: int

    def fits(self, combination: Mapping[str, str]) -> bool:
        """Whether the run is one of a combination."""
        return all(getattr(self, name) == value for name, value in combination.items())

    @property
    def method(self) -> str:
        """What differs between the runs that are compared, as tables have it."""
        return " ".join(part for part in (self.encoder, self.algorithm, self.override) if part)

    @property
    def name(self) -> str:
        """Of the run folder."""
        parts = (self.plan.name, self.encoder, self.algorithm, self.override, f"seed{self.seed}")
        return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts if part)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return ROOT / folder_name(self.env) / self.name

    @property
    def label(self) -> str:
        """Environment and name: no two runs have the same."""
        return f"{folder_name(self.env)}/{self.name}"

    @property
    def arguments(self) -> list[str]:
        """What ``python -m experiments.train`` is given; the run keeps to its cores unless the plan says otherwise."""
        own = {"threads": self.plan.cores, "render.workers": self.plan.cores}
        own |= dict(self.plan.options) | dict(self.plan.overrides[self.override])
        named = {"env": self.env, "run": self.name, "seed": self.seed, "algorithm": self.algorithm}
        return typed(named | {"encoder.kind": self.encoder} | own)

    @property
    def evaluation(self) -> list[str]:
        """What ``python -m experiments.evaluate`` is given."""
        episodes = {"episodes": self.plan.evaluation_episodes} if self.plan.evaluation_episodes else {}
        return typed({"run": str(self.folder), "seed": self.plan.evaluation_block} | episodes)

    def config(self) -> TrainConfig:
        """Its options, checked.

        :raises UserError: for an unknown option, or what cannot be together.
        """
        if self.env not in env_ids():
            raise unknown("environment", self.env, env_ids())
        config = with_detector(parse(TrainConfig, expanded(self.arguments, TrainConfig)))
        for episodes in (config.log.evaluation_episodes, self.plan.evaluation_episodes):
            require_different(episodes, configurations(self.env))
        require_effect(config)
        try:
            policy_class(config)
        except UserError as error:
            both = f"{{encoder: {self.encoder}, algorithm: {self.algorithm}}}"
            raise UserError(f"{error}: leave_out takes {both}") from None
        return config

    def require_same(self, config: TrainConfig) -> None:
        """Refuse a run folder that was made with other options.

        :param config: of this run.
        :raises UserError: naming the first option that differs.
        """
        there = from_yaml(self.folder / "config.yaml")
        found, wanted = flat(there), flat(config)
        different = [name for name in wanted if found.get(name) != wanted[name]]
        if different:
            name = different[0]
            raise UserError(
                f"{self.folder} was made with {name} {found.get(name)!r}, the plan says {wanted[name]!r}: "
                "give the plan another name, or remove that folder"
            )
