"""Plans read from YAML files: every training that a plan stands for is checked before the first one starts."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.errors import UserError
from envs.yaml_files import Key, YamlTree, read_yaml, shown, unknown_key
from experiments.options.cli import options
from experiments.options.config import TrainConfig
from experiments.runs.folder import LONGEST
from experiments.sweeps.plan import Conduct, Options, Plan, PlannedRun
from kp3d_rl.options import OptionError, check_options

LIMIT = 100_000
"""Bytes of the largest plan that is read."""
MOST_RUNS = 10_000
"""A plan that stands for more is a slip of the hand."""
NOT_FOR_PLANS = ("env", "run", "seed", "algorithm", "encoder.kind")
"""Options that the plan itself gives to each run."""


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
        group, dot, last = plain.rpartition(".")
        if plain in NOT_FOR_PLANS:
            raise tree.refusal((*key, name), "is given by the plan: see environments, encoders, algorithms and seeds")
        if plain not in valid:
            close = difflib.get_close_matches(plain, valid, n=1)
            question = f"did you mean '{close[0]}'?" if close else "`make train ARGS=--help` lists them"
            raise tree.refusal((*key, name), f"no option of trainings: {question}")
        if isinstance(given, list | dict) or given is None:
            raise tree.refusal((*key, name), f"must be a number, a text, true or false, got {shown(given)}")
        if isinstance(given, bool) and f"{group}{dot}no-{last}" not in valid:
            word = "on, yes or true" if given else "off, no or false"
            raise tree.refusal((*key, name), f'is no flag, and YAML takes a plain {word} for one: write it as "…"')
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
