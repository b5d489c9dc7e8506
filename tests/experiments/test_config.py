"""Configurations as YAML: an exact round trip, errors that name file, line and key, and bounds for every number."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import typing
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.callbacks import AuxiliaryConfig
from envs.errors import UserError
from experiments.options.cli import flat
from experiments.options.config import (
    EncoderConfig,
    LogConfig,
    PPOConfig,
    PretrainConfig,
    RenderConfig,
    RunConfig,
    SACConfig,
    TrainConfig,
)
from experiments.options.files import ADDED, from_yaml, to_yaml
from experiments.soak.mutators import CANARY, mutate

STORM = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
TRICKY = ["007", "yes", "null", "~", "1e5", "1.5", "0x1f", "1:30", "1_000", ".inf", "2020-01-01", "=", "<<", "", " a "]
TRICKY += ["- a", "a: b", "#", "&a", "*a", "!a", "%a", "@a", "`a", "'", '"', "\\n", "[", "{}", "ü😀", "a" * 4096]


def refusal(path: Path, text: str | bytes) -> str:
    """The one line with which a file is refused, after its name."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        from_yaml(path)
    message = str(error.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < len(str(path)) + 600
    return message.removeprefix(str(path))


def replaced(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def test_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(env="Ant-v5", cameras="a.yaml", ppo=PPOConfig(envs=3), log=LogConfig(wandb="off"))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert from_yaml(path) == config
    pretraining = PretrainConfig(policy="mixed", redraw=3)
    (tmp_path / "pretrain.yaml").write_text(to_yaml(pretraining))
    assert from_yaml(tmp_path / "pretrain.yaml") == pretraining
    assert list(yaml.safe_load(to_yaml(config)))[:2] == ["env", "run"]  # in the order of the fields


# -- every configuration that there can be -----------------------------------------------------------------------------


def of_kind(kind: Any, bounds: typing.Mapping[str, Any]) -> st.SearchStrategy:
    """Values that a field may have."""
    if typing.get_origin(kind) is Literal:
        return st.sampled_from(typing.get_args(kind))
    if dataclasses.is_dataclass(kind):
        return configurations(kind)
    if type(None) in typing.get_args(kind):
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
        return st.none() | of_kind(kind, bounds)
    if kind is str:
        return st.sampled_from(TRICKY) | st.text(max_size=20).filter(str.isprintable)
    if kind is bool:
        return st.booleans()
    least, above, most = bounds.get("least"), bounds.get("above"), bounds.get("most", 9999)
    lowest = (above + (kind is int) if least is None else least) if bounds else 0
    return st.integers(lowest, most) if kind is int else st.floats(lowest, most, exclude_min=least is None)


@st.composite
def configurations(draw: st.DrawFn, kind: type) -> Any:
    """Any configuration of a dataclass, with what its options ask of each other."""
    kinds = typing.get_type_hints(kind)
    values = {f.name: draw(of_kind(kinds[f.name], f.metadata)) for f in dataclasses.fields(kind)}
    if kind is PPOConfig:
        values["steps"] = max(2, values["steps"])
        values["batch_size"] = draw(st.integers(2, values["envs"] * values["steps"]))
    if kind is AuxiliaryConfig:
        values["warmup_frames"] = max(1, values["warmup_frames"])
    if kind is EncoderConfig:
        values["weights"] = "runs/hand/a" if values["kind"] == "bootstrapped" else None
    if issubclass(kind, RunConfig):
        values["image_size"] = max(64, values["image_size"])
    if kind is PretrainConfig or values.get("pretrained") is not None:
        values["encoder"] = dataclasses.replace(values["encoder"], kind="keypoint3d", weights=None)
    return kind(**values)


@settings(max_examples=100, **STORM)
@given(config=st.one_of(configurations(TrainConfig), configurations(PretrainConfig)))
def test_every_configuration_comes_back_exactly(tmp_path: Path, config: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="ascii")
    found = from_yaml(path)
    assert found == config and type(found) is type(config)
    for name, value in dataclasses.asdict(found).items():
        assert type(value) is type(dataclasses.asdict(config)[name]), name


def groups(kind: type) -> list[type]:
    """A dataclass of options and those within it."""
    kinds = typing.get_type_hints(kind)
    inner = [kinds[f.name] for f in dataclasses.fields(kind) if dataclasses.is_dataclass(kinds[f.name])]
    return [kind, *(found for one in inner for found in groups(one))]


@pytest.mark.parametrize("kind", dict.fromkeys([*groups(TrainConfig), *groups(PretrainConfig)]))
def test_every_number_has_bounds_and_every_option_refuses_another_type(kind: type) -> None:
    kinds, good = typing.get_type_hints(kind), kind()
    for field in dataclasses.fields(kind):
        wrong: list[Any] = [object(), b"x", [1], {"a": 1}, float("nan"), float("inf"), "a\nb", 10**400]
        if {int, float} & {kinds[field.name], *typing.get_args(kinds[field.name])}:
            assert field.name == "seed" or "most" in field.metadata, f"{kind.__name__}.{field.name}"
            wrong += ["1", True, 1e12, 2**40, -1000.5, -1000] if field.name != "redraw" else [True, 1.5, 2**63, -1]
        for value in wrong:
            with pytest.raises(ValueError) as error:
                dataclasses.replace(good, **{field.name: value})
            assert field.name in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 300


# -- faulty files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TrainConfig, PretrainConfig])
def test_a_run_from_before_an_option_is_as_it_was_without(tmp_path: Path, kind: type) -> None:
    """Nothing but the options that came later may be missing, and their values then are no matter of defaults."""
    tree, path = yaml.safe_load(to_yaml(kind())), tmp_path / "config.yaml"
    for option, before in ADDED.items():
        *groups, name = option.split(".")
        group = functools.reduce(lambda part, key: part.get(key, {}), groups, tree)
        if name in group:
            assert group.pop(name) == before == flat(kind())[option]
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert from_yaml(path) == kind()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  keypoints:", "  keypoint:", "key 'encoder.keypoint': unknown key: did you mean 'encoder.keypoints'?"),
        ("  steps: 128", "  steps: many", " line <steps: many>, key 'ppo.steps': must be a whole number, got 'many'"),
        ("  steps: 128", "  steps: true", "key 'ppo.steps': must be a whole number, got True"),
        ("  steps: 128", "  steps: 128.0", "key 'ppo.steps': must be a whole number, got 128.0"),
        ("  steps: 128", "  steps: 1000000000", "key 'ppo.steps': must be above 0 and at most 100,000, got 1000000000"),
        ("  steps: 128", "  steps: " + "9" * 5000, "key 'ppo.steps': write numbers in plain decimal digits"),
        ("  steps: 128\n", "", " line <ppo:>, key 'ppo.steps': is missing (default: 128)"),
        ("run: null\n", "", " line 1, key 'run': is missing (default: null)"),
        ("kind: keypoint3d", "kind: pixel", "must be 'keypoint3d', 'keypoint2d', 'autoencoder', 'pixels', "
         "'rad', 'drqv2', 'curl', 'bootstrapped' or 'state', got 'pixel'"),
        ("seed: 0", "seed: -1", " line 3, key 'seed': must lie between 0 and 9999, got -1"),
        ("learning_rate: 0.0003", "learning_rate: .nan", "key 'ppo.learning_rate': write numbers as 12.5 or 1.0e-3"),
        ("learning_rate: 0.0003", "learning_rate: 3e-4", "key 'ppo.learning_rate': must be a number: write '3e-4'"),
        ("learning_rate: 0.0003", "learning_rate: fast", "key 'ppo.learning_rate': must be a number, got 'fast'"),
        ("learning_rate: 0.0003", "learning_rate: true", "key 'ppo.learning_rate': must be a number, got True"),
        ("gamma: 0.97", "gamma: 2", "key 'ppo.gamma': must be at least 0 and at most 1, got 2.0"),
        ("encoder:\n", "encoder: 3\nencoder2:\n", "unknown key: did you mean 'encoder'?"),
        ("clip:\n    policy: 2.0", "clip: 3\n  x:\n    policy: 2.0", "key 'auxiliary.x': unknown key"),
        ("batch_size: 64\n  epochs", "batch_size: 5000\n  epochs", "key 'ppo.batch_size': must be at most envs x"),
        ("warmup_frames: 4000", "warmup_frames: 0",
         " line <warmup_steps:>, key 'auxiliary.warmup_steps': need warmup_frames"),
        ("image_size: 64", "image_size: 16\n  # ", None),
        ("layers: fast", "layers: paper", None),
        ("pretrained: null", "pretrained: x", None),
        ("total_steps: 40000", "total_steps: null", " line <total_steps:>, key 'total_steps': must be given, got None"),
        ("wandb: offline", "wandb: off", "key 'log.wandb': must be 'offline', 'online' or 'off', got False"),
        ("env: reach", 'env: "reach\\e[2J', "key 'env': must be printable text on one line, got 'reach\\x1b[2J-"),
        ("run: null", "run: " + "x" * 5000, "key 'run': must be text of at most 4,096 printable characters"),
        ("run: null", "run: {a: 1}", "key 'run': must be text of at most"),
        ("standardise: true", "standardise: 1", "key 'encoder.standardise': must be true or false, got 1"),
        ("log:\n", "log: [1]\nlogs:\n", "unknown key: did you mean 'log'?"),
        ("env: reach", "env: &x reach", " line 1: anchors and aliases (& and *) are not read"),
        ("env: reach", "env: !!python/object/apply:os.system [ls] #", " line 1: tags are not read"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_key(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    text, path = replaced(to_yaml(TrainConfig()), (old, new)), tmp_path / "config.yaml"
    if new.startswith('env: "'):
        text = text.replace("-multiview", '-multiview"')
    if message is None:  # what is right by itself and, here, with the rest
        path.write_text(text)
        assert from_yaml(path) != TrainConfig()
    else:
        assert numbered(message, text) in refusal(path, text)


def numbered(message: str, text: str) -> str:
    """The message with ``<start>`` replaced by the number of the first line of the text that starts so."""
    lines = [line.strip() for line in text.splitlines()]

    def number(found: re.Match[str]) -> str:
        return str(1 + next(n for n, line in enumerate(lines) if line.startswith(found[1])))

    return re.sub("line <(.*?)>", lambda found: f"line {number(found)}", message)


def test_options_that_do_not_go_together_name_their_line(tmp_path: Path) -> None:
    path, text = tmp_path / "config.yaml", to_yaml(TrainConfig())
    small = replaced(text, ("image_size: 64", "image_size: 32"), ("layers: fast", "layers: paper"))
    assert " line 7, key 'image_size': is too small: image of 32 x 32 pixels leaves fewer" in refusal(path, small)
    pixels = replaced(text, ("kind: keypoint3d", "kind: pixels"), ("pretrained: null", "pretrained: x"))
    expected = " line <pretrained:>, key 'pretrained': keypoints do not fit an encoder of kind 'pixels'"
    assert numbered(expected, pixels) in refusal(path, pixels)
    state = replaced(to_yaml(PretrainConfig()), ("kind: keypoint3d", "kind: state"))
    expected = " line <kind:>, key 'encoder.kind': is 'state': only keypoints can be pretrained"
    assert numbered(expected, state) in refusal(path, state)
    mapping = replaced(text, ("render:\n  backend: auto\n  quality: light\n  workers: 0\n", "render: 3\n"))
    assert " line 9, key 'render': must be a mapping with the keys backend, quality" in refusal(path, mapping)
    for other in ("[1, 2]", "reach", "3", "null"):
        assert "must hold the options of a run as 'name: value'" in refusal(path, other)


def test_damaged_yaml_names_the_line_and_nothing_is_constructed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert " line 3: not valid YAML" in refusal(path, "env: reach\nppo: [1, 2\n")
    assert " line 1: not valid YAML" in refusal(path, b"\x80\xff\x00")
    assert "larger than" in refusal(path, to_yaml(TrainConfig()) + "#" * 100_000)
    assert "tags are not read" in refusal(path, "env: !!python/object/apply:os.system ['false']\n")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        from_yaml(tmp_path / "pipe")


@settings(max_examples=250, **STORM)
@given(seed=st.integers(0, 2**32), pretraining=st.booleans())
def test_damaged_files_are_one_line_or_say_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, pretraining: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    whole = PretrainConfig(run="a", redraw=1) if pretraining else TrainConfig(run="007", cameras="a.yaml", redraw=1)
    content = mutate(to_yaml(whole).encode(), Random(seed))
    path.write_bytes(content)
    try:
        config = from_yaml(path)
    except UserError as error:
        assert str(error).startswith(str(path)) and str(error).isprintable()
    else:
        assert dataclasses.asdict(config) == yaml.safe_load(content)
        path.write_text(to_yaml(config))
        assert from_yaml(path) == config
    assert not os.path.exists(CANARY)


# -- impossible values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PPOConfig(batch_size=5000), "at most envs x steps = 1024, got 5000"),
        (lambda: PPOConfig(batch_size=1), "ppo batch_size must be at least 2"),
        (lambda: PPOConfig(envs=0), "ppo envs must be above 0"),
        (lambda: PPOConfig(hidden=10**6), "ppo hidden must be above 0 and at most 8,192, got 1000000"),
        (lambda: LogConfig(evaluation_episodes=0), "evaluation_episodes"),
        (lambda: LogConfig(picture_every=-1), "picture_every must be at least 0"),
        (lambda: TrainConfig(image_size=8), "image_size must be at least 16 and at most 1,024, got 8"),
        (lambda: TrainConfig(total_steps=0), "total_steps"),
        (lambda: TrainConfig(seed=10_000), "evaluation has other seeds"),
        (lambda: TrainConfig(ppo=PPOConfig(envs=1001)), "at most 1,000"),
        (lambda: TrainConfig(algorithm="sac", sac=SACConfig(envs=1001)), "sac envs must be above 0 and at most 1,000"),
        (lambda: TrainConfig(redraw=-1), "redraw must be at least 0"),
        (lambda: TrainConfig(pretrained="x", encoder=EncoderConfig(kind="pixels")), "do not fit an encoder of kind"),
        (lambda: SACConfig(batch_size=0), "sac batch_size must be above 0"),
        (lambda: SACConfig(tau=1.5), "sac tau must be above 0 and at most 1, got 1.5"),
        (lambda: PretrainConfig(steps=0), "steps must be above 0 and at most 1,000,000,000, got 0"),
        (lambda: PretrainConfig(encoder=EncoderConfig(kind="state")), "only keypoints can be pretrained"),
        (lambda: TrainConfig(threads=-1), "threads must be at least 0"),
        (lambda: TrainConfig(render=RenderConfig(workers=10**9)), "workers must be at least 0 and at most 1,024"),
        (lambda: TrainConfig(image_size=40, encoder=EncoderConfig(layers="paper")), "40 x 40 pixels leaves fewer"),
        (lambda: PPOConfig(gamma=1.5), "ppo gamma must be at least 0 and at most 1, got 1.5"),
        (lambda: PPOConfig(target_kl=-1.0), "ppo target_kl must be at least 0"),
        (lambda: PPOConfig(learning_rate=float("inf")), "ppo learning_rate must be a finite number, got inf"),
        (lambda: TrainConfig(run="a\nb"), "run must be text of at most 4,096 printable characters on one line"),
        (lambda: TrainConfig(algorithm="pp"), "algorithm must be 'ppo', 'sac' or 'tqc', got 'pp'"),
    ],
)
def test_impossible_values_are_refused_with_the_reason(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_off_policy_runs_are_half_as_long_by_default_and_the_file_says_so() -> None:
    assert TrainConfig().total_steps == 40_000 and TrainConfig(algorithm="tqc").total_steps == 20_000
    assert yaml.safe_load(to_yaml(TrainConfig(algorithm="sac")))["total_steps"] == 20_000
    assert TrainConfig(algorithm="sac", total_steps=7).total_steps == 7
