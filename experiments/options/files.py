"""The configuration of a run as ``config.yaml``: written whole, and read back exactly or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any

import yaml

from envs.yaml_files import Key, YamlTree, read_yaml, shown, unknown_key
from experiments.options.config import PretrainConfig, RunConfig, TrainConfig
from kp3d_rl.options import OptionError, option_kinds

Config = typing.TypeVar("Config")
LIMIT = 100_000
"""Bytes of the largest configuration that is read; a real one has about 2,000."""
ADDED = {"action_repeat": 1, "sac.reward_scale": 1.0, "encoder.loss.equivariance": 0.0}
"""Options that came when there were runs already, each with what those did that do not have it."""


def to_yaml(config: RunConfig) -> str:
    """A configuration as YAML, in the order of its fields; ASCII, whatever it says.

    :param config: frozen dataclass, nested ones become mappings.
    """
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=math.inf)


def from_yaml(path: str | Path) -> TrainConfig | PretrainConfig:
    """Read a configuration back, checked against the dataclass: every option must be there, and none besides.

    Options of :data:`ADDED` alone may be missing, in runs from before them.

    :param path: file that :func:`to_yaml` wrote.
    :return: with the values of the file; a pretraining's options are told from a training's by their names.
    :raises UserError: naming file, line and key for anything that is not as the dataclass says.
    """
    tree = read_yaml(path, LIMIT)
    if not isinstance(tree.data, dict):
        raise tree.refusal((), f"must hold the options of a run as 'name: value', got {shown(tree.data)}")
    kind = max((TrainConfig, PretrainConfig), key=lambda kind: len(tree.data.keys() & _defaults(kind).keys()))
    return _build(tree, tree.data, kind, ())


def read_config(path: str | Path, kind: type[Config]) -> Config:
    """Read the configuration of another kind of run back, as :func:`from_yaml` does.

    :param path: of the file.
    :param kind: the dataclass.
    :raises UserError: as :func:`from_yaml`.
    """
    tree = read_yaml(path, LIMIT)
    return _build(tree, tree.data, kind, ())


def with_added(options: dict[str, Any], group: str) -> dict[str, Any]:
    """A group of options, as a file of a run has it, with those of :data:`ADDED` that it is older than.

    :param options: by name; groups of them are mappings again.
    :param group: dotted name of the group, as "encoder".
    :return: another mapping.
    """
    filled = {
        name: with_added(value, f"{group}.{name}") if isinstance(value, dict) else value
        for name, value in options.items()
    }
    return _added(group) | filled


def _added(group: str) -> dict[str, Any]:
    """Those of :data:`ADDED` that are in a group, by their names in it; the outermost is ""."""
    parts = ((*option.rpartition("."), before) for option, before in ADDED.items())
    return {name: before for own, _, name, before in parts if own == group}


def _defaults(config_class: type) -> dict[str, Any]:
    """Names of the options with their defaults; groups of options have none."""
    return {field.name: field.default for field in dataclasses.fields(config_class)}


def _build(tree: YamlTree, data: Any, config_class: type, key: Key) -> Any:
    """A dataclass of a mapping.

    :param key: of the mapping.
    """
    defaults, kinds = _defaults(config_class), option_kinds(config_class)
    if not isinstance(data, dict):
        raise tree.refusal(key, f"must be a mapping with the keys {', '.join(defaults)}, got {shown(data)}")
    for name in data:
        if name not in defaults:
            raise unknown_key(tree, (*key, name), defaults)
    data = {name: before for name, before in _added(".".join(key)).items() if name in defaults} | data
    for name, default in defaults.items():
        if name not in data:
            group = default is dataclasses.MISSING
            raise tree.refusal((*key, name), "is missing" if group else f"is missing (default: {json.dumps(default)})")
    values = {name: _value(tree, data[name], kinds[name], (*key, name)) for name in defaults}
    try:
        config = config_class(**values)
    except OptionError as error:
        raise tree.refusal((*key, *error.option.split(".")), error.problem) from None
    for name in defaults:  # one that depends on other options was written with its value
        if getattr(config, name) != values[name]:
            raise tree.refusal((*key, name), f"must be given, got {shown(values[name])}")
    return config


def _value(tree: YamlTree, value: Any, kind: Any, key: Key) -> Any:
    """A value of the tree for a field; the dataclass checks its type."""
    if dataclasses.is_dataclass(kind):
        return _build(tree, value, typing.cast(type, kind), key)
    if kind is not float:
        return value
    if isinstance(value, str) and _is_number(value):
        raise tree.refusal(key, f"must be a number: write {shown(value)} with a point and without quotes, as 1.0e-4")
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
