"""Presets stand for options, which are those of the original where they say so, and what is typed counts more."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.errors import UserError
from envs.registry import task_class
from experiments import pretrain, train
from experiments.options.cli import parse
from experiments.options.config import PPOConfig, PretrainConfig, TrainConfig
from experiments.options.presets import PRESETS, expanded, preset_options
from experiments.runs import Run
from kp3d_rl.losses import LossWeights
from tests.experiments.conftest import TINY, TINY_PRETRAIN, run_in
from tests.tasks import METAWORLD, OWN


def config_of(*argv: str, kind: type = TrainConfig) -> TrainConfig | PretrainConfig:
    return parse(kind, expanded(argv, kind))


def test_the_papers_numbers_are_those_of_the_paper() -> None:
    """Chen et al. 2021, and what their code has where the paper is silent."""
    config = config_of("--env", "metaworld-hammer", "--preset", "paper")
    encoder, ppo = config.encoder, config.ppo
    assert (config.image_size, encoder.keypoints, encoder.layers, encoder.width) == (128, 32, "paper", 16)
    assert config.cameras == "paper-1,paper-2,paper-3" and config.total_steps == 4_000_000
    assert (ppo.envs, ppo.steps, ppo.epochs, ppo.batch_size) == (16, 400, 8, 64)
    assert (ppo.gamma, ppo.gae_lambda, ppo.clip_range) == (0.99, 0.95, 0.2)
    assert (ppo.target_kl, ppo.learning_rate) == (0.12, 3e-4)
    assert (config.auxiliary.steps_per_rollout, config.auxiliary.buffer_frames) == (400, 100_000)


def test_paper_on_the_ant_is_what_it_says() -> None:
    """Chen et al.'s settings for Ant: 16 keypoints, 5 million steps, rollouts of 1000 steps, 10 epochs, two frames."""
    config = config_of("--env", "ant-nocolor-multiview", "--preset", "paper")
    assert (config.encoder.keypoints, config.total_steps, config.ppo.steps, config.ppo.epochs) == (
        16,
        5_000_000,
        1000,
        10,
    )
    assert config.encoder.loss.separation == 2 * LossWeights().separation and config.cameras is None
    assert task_class(config.env).frame_stack == 2


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("env_id", [*OWN, METAWORLD[0], METAWORLD[-1]])
@pytest.mark.parametrize("kind", [TrainConfig, PretrainConfig])
def test_every_environment_has_every_preset(name: str, env_id: str, kind: type) -> None:
    config = config_of("--preset", name, "--env", env_id, kind=kind)
    assert config.env == env_id and (config.image_size == 128) == (name == "paper")


def test_fast_learns_in_larger_steps_and_on_meta_world_from_shorter_rollouts_of_longer_actions() -> None:
    own, theirs = config_of("--preset", "fast"), config_of("--preset", "fast", "--env", "metaworld-window-open")
    for config in (own, theirs):
        assert (config.ppo.learning_rate, config.ppo.target_kl, config.cameras) == (1e-3, 0.12, None)
    assert (own.ppo.epochs, own.ppo.gamma, own.ppo.log_std, own.total_steps, own.action_repeat) == (
        6, PPOConfig().gamma, PPOConfig().log_std, 40_000, 1
    )  # fmt: skip
    assert (theirs.ppo.steps, theirs.ppo.epochs, theirs.ppo.gamma, theirs.ppo.log_std) == (64, 8, 0.95, 0.0)
    assert (theirs.ppo.entropy, theirs.total_steps, theirs.action_repeat) == (0.003, 20_000, 4)
    assert theirs.sac.gamma == theirs.ppo.gamma and theirs.sac.reward_scale * 10 * theirs.action_repeat == 1.0
    auxiliary = theirs.auxiliary
    assert (auxiliary.warmup_frames, auxiliary.warmup_steps, auxiliary.policy_gradient) == (256, 200, 1.0)


def test_fast_looks_for_small_things_where_there_is_an_object() -> None:
    for env_id, outside in (("metaworld-hammer", 0.1), ("push-multiview", 0), ("lift-multiview", 0)):
        for kind in (TrainConfig, PretrainConfig):
            encoder = config_of("--preset", "fast", "--env", env_id, kind=kind).encoder
            assert encoder.outside == outside and encoder.weigh_coverage and encoder.loss.multiview >= 60, env_id
            turning = kind is PretrainConfig and env_id == "push-multiview"
            assert encoder.loss.equivariance == (100 if turning else 0), env_id
    typed = ("--preset", "fast", "--env", "push-multiview", "--encoder.no-weigh-coverage", "--encoder.outside", "0.5")
    assert (config_of(*typed).encoder.weigh_coverage, config_of(*typed).encoder.outside) == (False, 0.5)
    assert config_of("--preset", "fast").encoder.outside == 1, "reach has nothing but a hand and a ball"
    assert config_of("--preset", "fast", kind=PretrainConfig).encoder.loss.equivariance == 0
    assert config_of("--preset", "fast", "--env", "metaworld-hammer", kind=PretrainConfig).steps == 2500


@pytest.mark.parametrize("typed", [("--image-size", "96"), ("--image-size=96",), ("--image_size", "96")])
@pytest.mark.parametrize("first", [True, False])
def test_what_is_typed_counts_more(typed: tuple[str, ...], first: bool) -> None:
    preset = ("--preset=paper", "--env", "metaworld-push")
    config = config_of(*typed, *preset) if first else config_of(*preset, *typed)
    assert config.image_size == 96 and config.encoder.keypoints == 32


def test_a_pretraining_leaves_out_what_it_has_no_use_for() -> None:
    config = config_of("--env", "metaworld-push", "--preset", "paper", kind=PretrainConfig)
    assert config.encoder.keypoints == 32 and config.frames == PretrainConfig().frames


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "papr"], "unknown preset 'papr': did you mean 'paper'\\? valid: fast, paper"),
        (["--preset"], r"--preset needs a value \(fast or paper\)"),
        (["--preset", "--seed", "1"], r"--preset needs a value \(fast or paper\)"),
        (["--preset", "fast", "--env", "metaworld-hamer"], "unknown environment 'metaworld-hamer': did you mean 'meta"),
        (["--preset", "paper", "--env", "Ant-v5"], "preset 'paper' is for this project's environments: for Ant-v5"),
    ],
)
def test_bad_presets_are_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        expanded(argv, TrainConfig)
    assert "\n" not in str(caught.value)


def test_programs_take_them_and_write_what_they_stand_for(tmp_path: Path) -> None:
    larger = ("--image-size", "48")  # the original's layers need more than 32 pixels
    run_in(tmp_path, train.main, ["--preset", "paper", "--run", "a", *TINY, *larger])
    run_in(tmp_path, pretrain.main, ["--preset", "paper", "--run", "b", *TINY_PRETRAIN, *larger])
    for name in ("a", "b"):
        config = Run.open(str(tmp_path / "runs" / "reach-multiview" / name), kind=object).config
        assert config.encoder.view_weights == "per_view" and config.encoder.keypoints == 4
    assert "--image-size" not in preset_options("fast", "reach-multiview")
