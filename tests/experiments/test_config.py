"""Configurations as YAML: round trip, and errors that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from envs.errors import UserError
from experiments.config import (
    EncoderConfig,
    LogConfig,
    PPOConfig,
    PretrainConfig,
    SACConfig,
    TrainConfig,
    from_yaml,
    to_yaml,
)


def test_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(env="Ant-v5", cameras="a.yaml", ppo=PPOConfig(envs=3), log=LogConfig(wandb="off"))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert from_yaml(path) == config
    pretraining = PretrainConfig(policy="mixed", redraw=3)
    (tmp_path / "pretrain.yaml").write_text(to_yaml(pretraining))
    assert from_yaml(tmp_path / "pretrain.yaml") == pretraining
    assert list(yaml.safe_load(to_yaml(config)))[:2] == ["env", "run"]  # in the order of the fields


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": {"keypoint": 3}}, "'encoder.keypoint': did you mean 'encoder.keypoints'?"),
        ({"ppo": {"steps": "many"}}, "key 'ppo.steps' must be int, got 'many'"),
        ({"ppo": {"steps": True}}, "key 'ppo.steps' must be int, got True"),
        ({"encoder": {"kind": "pixel"}}, "did you mean 'pixels'?"),
        ({"seed": -1}, "seed must lie between 0 and 9999"),
        ({"ppo": {"learning_rate": float("nan")}}, "ppo.learning_rate must be a number, got nan"),
        ({"encoder": 3}, "'encoder.' must be a mapping, got int"),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(change))
    with pytest.raises(UserError) as error:
        from_yaml(path)
    assert str(path) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_damaged_yaml_names_the_line_and_nothing_is_constructed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("env: reach\nppo: [1, 2\n")
    with pytest.raises(UserError, match="line 3: not valid YAML"):
        from_yaml(path)
    path.write_bytes(b"\x80\xff\x00")
    with pytest.raises(UserError, match="not valid YAML"):
        from_yaml(path)
    path.write_text("env: !!python/object/apply:os.system ['false']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        from_yaml(path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PPOConfig(batch_size=5000), "at most envs x steps = 1024, got 5000"),
        (lambda: PPOConfig(envs=0), "ppo envs must be above 0"),
        (lambda: LogConfig(evaluation_episodes=0), "evaluation_episodes"),
        (lambda: LogConfig(picture_every=-1), "at least 0"),
        (lambda: TrainConfig(image_size=8), "between 16 and 1024 pixels, got 8"),
        (lambda: TrainConfig(total_steps=0), "total_steps"),
        (lambda: TrainConfig(seed=10_000), "evaluation has other seeds"),
        (lambda: TrainConfig(ppo=PPOConfig(envs=1001)), "at most 1000"),
        (lambda: TrainConfig(algorithm="sac", sac=SACConfig(envs=1001)), "sac envs must be at most 1000"),
        (lambda: TrainConfig(redraw=-1), "redraw must be at least 0"),
        (lambda: TrainConfig(pretrained="x", encoder=EncoderConfig(kind="pixels")), "do not fit an encoder of kind"),
        (lambda: SACConfig(batch_size=0), "sac batch_size must be above 0"),
        (lambda: SACConfig(tau=1.5), "sac tau must be between 0 and 1, got 1.5"),
        (lambda: PretrainConfig(steps=0), "steps must be above 0, got 0"),
        (lambda: PretrainConfig(encoder=EncoderConfig(kind="state")), "only keypoints can be pretrained"),
        (lambda: TrainConfig(threads=-1), "threads must be at least 0"),
        (lambda: TrainConfig(image_size=40, encoder=EncoderConfig(layers="paper")), "40 x 40 pixels leaves fewer"),
        (lambda: PPOConfig(gamma=1.5), "ppo gamma must be between 0 and 1, got 1.5"),
        (lambda: PPOConfig(target_kl=-1.0), "ppo target_kl must be at least 0, got -1.0"),
    ],
)
def test_impossible_values_are_refused_with_the_reason(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_off_policy_runs_are_half_as_long_by_default_and_the_file_says_so() -> None:
    assert TrainConfig().total_steps == 40_000 and TrainConfig(algorithm="tqc").total_steps == 20_000
    assert yaml.safe_load(to_yaml(TrainConfig(algorithm="sac")))["total_steps"] == 20_000
    assert TrainConfig(algorithm="sac", total_steps=7).total_steps == 7
