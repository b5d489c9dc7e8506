"""A plan of many trainings: environments x encoders x algorithms x overrides x seeds, as a YAML file.

Every training that it stands for is checked before the first one starts: each is an ordinary run folder, which the
command that stands beside it would have made, too.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.errors import UserError, unknown
from envs.registry import env_ids
from envs.yaml_files import Key, YamlTree, read_yaml, shown, unknown_key
from experiments.options.cli import options, parse
from experiments.options.config import TrainConfig
from experiments.options.files import from_yaml
from experiments.options.presets import expanded
from experiments.runs.folder import LONGEST, ROOT, folder_name
from experiments.training.algorithms import policy_class
from experiments.training.bootstrapped import with_detector
from kp3d_rl.options import OptionError, bounded, check_options

LIMIT = 100_000
"""Bytes of the largest plan that is read."""
MOST_RUNS = 10_000
"""A plan that stands for more is a slip of the hand."""
NOT_FOR_PLANS = ("env", "run", "seed", "algorithm", "encoder.kind")
"""Options that the plan itself gives to each run."""
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


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Options of a dataclass by their dotted names.

    :param config: frozen dataclass with nested ones.
    :param prefix: of the names.
    """
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        own = flat(value, f"{prefix}{entry.name}.") if dataclasses.is_dataclass(value) else {prefix + entry.name: value}
        found |= own
    return found


def typed(given: Options) -> list[str]:
    """Options as a person types them.

    :param given: names without dashes.
    """
    arguments: list[str] = []
    for name, value in given.items():
        group, dot, last = name.replace("_", "-").rpartition(".")
        if value is True or value is False:
            arguments.append(f"--{group}{dot}{'' if value else 'no-'}{last}")
        else:
            arguments += [f"--{group}{dot}{last}", str(value)]
    return arguments


# -- reading ---------------------------------------------------------------------------------------------------------


def read_plan(path: Path, check: bool = True) -> Plan:
    """Read a plan.

    :param path: of the YAML file.
    :param check: every run's options, and that what is there of it was made with them.
    :raises UserError: naming file, line and key for whatever is wrong.
    """
    tree = read_yaml(path, LIMIT)
    plan = _plan(tree)
    for run in _runs(tree, plan) if check else ():
        try:
            config = run.config()
        except UserError as error:
            raise tree.refusal(_blamed(tree, run, str(error)), f"{run.method} on {run.env}: {error}") from None
        if (run.folder / "config.yaml").is_file():
            run.require_same(config)
    return plan


def _plan(tree: YamlTree) -> Plan:
    """The plan that a file says, its own fields checked."""
    fields = {entry.name: entry for entry in dataclasses.fields(Plan)}
    if not isinstance(tree.data, dict):
        raise tree.refusal((), f"must be a mapping with some of the keys {', '.join(fields)}, got {shown(tree.data)}")
    for name in tree.data:
        if name not in fields:
            raise unknown_key(tree, (name,), fields)
    for name in ("name", "environments"):
        if name not in tree.data:
            raise tree.refusal((name,), "is missing")
    own = {entry.name for entry in dataclasses.fields(Conduct)}
    conduct = Conduct(**{name: value for name, value in tree.data.items() if name in own})
    try:
        check_options(conduct, "")
    except OptionError as error:
        raise tree.refusal((error.option,), error.problem) from None
    readers = {
        "name": _plain_name, "environments": _texts, "encoders": _texts, "algorithms": _texts, "seeds": _seeds,
        "options": _options, "overrides": _overrides, "leave_out": _combinations,
    }  # fmt: skip
    read = {name: readers[name](tree, (name,), tree.data[name]) for name in tree.data if name in readers}
    return Plan(**dataclasses.asdict(conduct), **read)


def _plain_name(tree: YamlTree, key: Key, value: Any) -> str:
    """A name of the sweep, which is a folder's."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", value) or len(value) > LONGEST // 2:
        raise tree.refusal(key, f"must be of letters, digits, '-', '_' and '.', got {shown(value)}")
    return value


def _texts(tree: YamlTree, key: Key, value: Any) -> tuple[str, ...]:
    """Different texts in a list, at least one."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
        raise tree.refusal(key, f"must be a list of names, as [a, b], got {shown(value)}")
    _require_different(tree, key, value)
    return tuple(value)


def _seeds(tree: YamlTree, key: Key, value: Any) -> tuple[int, ...]:
    """How many, or which."""
    if type(value) is int and 0 < value <= MOST_RUNS:
        return tuple(range(value))
    if not isinstance(value, list) or not value or not all(type(entry) is int for entry in value):
        raise tree.refusal(key, f"must be a number of seeds, or a list of them, got {shown(value)}")
    _require_different(tree, key, value)
    return tuple(value)


def _require_different(tree: YamlTree, key: Key, values: list[Any]) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise tree.refusal((*key, position), f"stands there twice: {shown(value)}")


def _options(tree: YamlTree, key: Key, value: Any) -> Options:
    """Options of trainings, each of which exists and is not the plan's to give."""
    if not isinstance(value, dict):
        raise tree.refusal(key, f"must be options and values, as {{total-steps: 20000}}, got {shown(value)}")
    valid = [option.removeprefix("--") for option in options(TrainConfig)] + ["preset"]
    for name, given in value.items():
        plain = name.replace("_", "-")
        if plain in NOT_FOR_PLANS:
            raise tree.refusal((*key, name), "is given by the plan: see environments, encoders, algorithms and seeds")
        if plain not in valid:
            close = difflib.get_close_matches(plain, valid, n=1)
            question = f"did you mean '{close[0]}'?" if close else "`make train ARGS=--help` lists them"
            raise tree.refusal((*key, name), f"no option of trainings: {question}")
        if isinstance(given, list | dict) or given is None:
            raise tree.refusal((*key, name), f"must be a number, a text, true or false, got {shown(given)}")
    return value


def _overrides(tree: YamlTree, key: Key, value: Any) -> Mapping[str, Options]:
    """Named sets of options."""
    if not isinstance(value, dict) or not value:
        raise tree.refusal(key, f"must be named sets of options, as {{plain: {{}}, small: {{…}}}}, got {shown(value)}")
    return {name: _options(tree, (*key, name), given) for name, given in value.items()}


def _combinations(tree: YamlTree, key: Key, value: Any) -> tuple[Mapping[str, str], ...]:
    """What is not run; that each of them fits a run is checked where the runs are."""
    names = ("env", "encoder", "algorithm", "override")
    if not isinstance(value, list):
        raise tree.refusal(key, f"must be a list, as [{{encoder: rad, algorithm: sac}}], got {shown(value)}")
    for position, combination in enumerate(value):
        where = (*key, position)
        if not isinstance(combination, dict) or not combination:
            raise tree.refusal(where, f"must have some of the keys {', '.join(names)}, got {shown(combination)}")
        for name in combination:
            if name not in names:
                raise unknown_key(tree, (*where, name), names)
    return tuple(value)


def _runs(tree: YamlTree, plan: Plan) -> list[PlannedRun]:
    """The runs, of which no two are in one folder, and every combination that is left out was one of them."""
    every = dataclasses.replace(plan, leave_out=()).runs()
    for position, combination in enumerate(plan.leave_out):
        if not any(run.fits(combination) for run in every):
            raise tree.refusal(("leave_out", position), f"leaves out nothing: no run has {shown(combination)}")
    runs = plan.runs()
    if not 0 < len(runs) <= MOST_RUNS:
        raise tree.refusal((), f"stands for {len(runs):,} runs; from 1 to {MOST_RUNS:,} are possible")
    names: dict[str, PlannedRun] = {}
    for run in runs:
        other = names.setdefault(run.label, run)
        if other is not run:
            both = f"'{other.override}' and '{run.override}'"
            raise tree.refusal(("overrides",), f"{both} give runs of one name: {run.name}")
    return runs


def _blamed(tree: YamlTree, run: PlannedRun, problem: str) -> Key:
    """The key of a plan that an error of a run is about, as far as its words say so."""
    for key in [("overrides", run.override, name) for name in run.plan.overrides[run.override]] + [
        ("options", name) for name in run.plan.options
    ]:
        words = str(key[-1]).replace("_", "-")
        if words in problem or words.replace("-", "_").replace(".", " ") in problem:
            return key
    for name, value in (("environments", run.env), ("encoders", run.encoder), ("algorithms", run.algorithm)):
        if value in problem and value in getattr(run.plan, name) and name in tree.data:
            return (name, getattr(run.plan, name).index(value))
    return ("seeds",) if "seed" in problem else ()
