"""SAC and TQC beside PPO: options arrive, runs go end to end, and what does not fit is refused in one line."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import replay
from agents.scene import Scene
from envs.errors import UserError
from experiments import evaluate, train, video
from experiments.options.config import AuxiliaryConfig, EncoderConfig, PretrainConfig, SACConfig, TrainConfig
from experiments.runs import Run
from experiments.training.algorithms import EXTRACTORS, ONLY_FOR, build_model, describe_replay, note_of_idle_options
from experiments.training.pretrained import load_pretrained
from kp3d_rl.options import option_kinds
from tests.dotworld import DotEnv, dot_scene
from tests.experiments.conftest import TINY, run_in

SMALL = TrainConfig(
    algorithm="sac",
    encoder=EncoderConfig(keypoints=2, width=4, decoder_width=8),
    sac=SACConfig(envs=2, batch_size=4, buffer_size=100, hidden=8, learning_starts=8),
    threads=1,
)


def build(algorithm: str = "sac", **sac):
    config = dataclasses.replace(SMALL, algorithm=algorithm, sac=dataclasses.replace(SMALL.sac, **sac))
    return build_model(config, DummyVecEnv([functools.partial(DotEnv, dot_scene())] * 2), dot_scene())


@pytest.mark.parametrize("algorithm", ["sac", "tqc"])
@pytest.mark.parametrize(
    ("option", "value", "read"),
    [
        ("steps", 3, lambda m: m.train_freq.frequency),
        ("gradient_steps", 5, lambda m: m.gradient_steps),
        ("batch_size", 6, lambda m: m.batch_size),
        ("buffer_size", 64, lambda m: m.buffer_size),
        ("learning_starts", 30, lambda m: m.learning_starts),
        ("learning_rate", 1e-3, lambda m: m.lr_schedule(1.0)),
        ("gamma", 0.5, lambda m: m.gamma),
        ("reward_scale", 0.5, lambda m: m.replay_buffer.reward_scale),
        ("tau", 0.3, lambda m: m.tau),
        ("entropy", 0.2, lambda m: 0.0 if m.ent_coef == "auto_1.0" else m.ent_coef),
        ("hidden", 24, lambda m: m.policy.actor.mu.in_features),
    ],
)
def test_every_option_of_sac_arrives(algorithm: str, option: str, value: float, read) -> None:
    assert read(build(algorithm, **{option: value})) == pytest.approx(value)
    assert read(build(algorithm)) != pytest.approx(value)


@pytest.mark.parametrize("algorithm", ["sac", "tqc"])
def test_scaled_rewards_are_weighed_against_the_entropy_as_unscaled_ones(algorithm: str) -> None:
    """Of an objective of which all parts are scaled alike the best policy is the same."""
    start = build(algorithm).log_ent_coef.exp()
    assert float(start) == pytest.approx(1.0), "SB3's"
    assert float(build(algorithm, reward_scale=0.025).log_ent_coef.exp()) == pytest.approx(0.025)
    assert build(algorithm, reward_scale=0.025, entropy=0.2).ent_coef == 0.2, "what is typed counts"


@pytest.mark.parametrize("algorithm", ["ppo", "sac", "tqc"])
@pytest.mark.parametrize("kind", get_args(option_kinds(EncoderConfig)["kind"]))
def test_every_kind_of_encoder_has_a_policy_of_every_algorithm_that_trains_it(algorithm: str, kind: str) -> None:
    bootstrapped = {"weights": "runs/any", "width": 8} if kind == "bootstrapped" else {}
    encoder = dataclasses.replace(SMALL.encoder, kind=kind, random_shift=2, **bootstrapped)
    config = dataclasses.replace(SMALL, algorithm=algorithm, image_size=44, encoder=encoder)
    scene = dot_scene()
    observed = {"images": spaces.Box(0, 255, (3, 44, 44, 3), "uint8")}
    if kind == "state":
        observed = {"state": spaces.Box(-1, 1, (3,))}
    elif encoder.has_loss:
        observed = dict(DotEnv(scene).observation_space.spaces)
    env = DummyVecEnv([lambda: Fixed(spaces.Dict(observed))])
    able = ONLY_FOR.get(kind, ("ppo", "sac", "tqc"))
    if algorithm not in able:
        with pytest.raises(UserError, match=f"encoder '{kind}' is trained by {' or '.join(able)}, not by {algorithm}"):
            build_model(config, env, scene)
        return
    policy = build_model(config, env, scene).policy
    assert policy.action_space.shape == (2,)
    if kind != "state":
        assert type(policy.features_extractor) is EXTRACTORS[kind]


def test_two_dimensions_are_a_kind_of_encoder() -> None:
    """Whichever way they are asked for, and the policy then reads each view's own (u, v)."""
    flat = EncoderConfig(kind="keypoint2d")
    assert flat == EncoderConfig(dimensions="2d") and (flat.kind, flat.dimensions) == ("keypoint2d", "2d")
    config = dataclasses.replace(SMALL, encoder=dataclasses.replace(SMALL.encoder, kind="keypoint2d"))
    scene = dot_scene()
    env = DummyVecEnv([lambda: Fixed(DotEnv(scene).observation_space)])
    extractor = build_model(config, env, scene).policy.features_extractor
    assert extractor.encoder.config.dimensions == "2d" and extractor.features_dim == 3 * 3 * 2 + 2


@pytest.mark.parametrize(
    ("kind", "expected"), [("keypoint3d", (0.1, 4.0)), ("autoencoder", (1.0, 4.0)), ("curl", (1.0, 1.0))]
)
def test_what_is_not_given_of_the_auxiliary_loss_goes_by_the_kind_of_encoder(kind: str, expected: tuple) -> None:
    auxiliary = TrainConfig(algorithm="sac", encoder=EncoderConfig(kind=kind)).auxiliary
    assert (auxiliary.policy_gradient, auxiliary.learning_rate) == expected
    given = AuxiliaryConfig(policy_gradient=0.5, learning_rate=2.0)
    assert TrainConfig(algorithm="sac", encoder=EncoderConfig(kind=kind), auxiliary=given).auxiliary == given


class Fixed(DotEnv):
    """Spaces alone."""

    def __init__(self, observed: spaces.Dict) -> None:
        super().__init__()
        self.observation_space, self.action_space = observed, spaces.Box(-1, 1, (2,))


@pytest.fixture(scope="module")
def sac_run(workplace: Path) -> Path:
    options = "--algorithm sac --sac.envs 2 --sac.gradient-steps 1 --sac.batch-size 8 --sac.hidden 16".split()
    run_in(workplace, train.main, ["--run", "sac", *TINY, *options])
    return workplace / "runs" / "reach-multiview" / "sac"


def test_a_run_of_sac_is_trained_evaluated_and_filmed(sac_run: Path) -> None:
    checkpoint = Run.open(str(sac_run)).load()
    assert set(checkpoint.optimizers) == {"actor", "critic", "entropy"}
    assert (sac_run / "metrics.csv").read_text().count("auxiliary/reconstruction") == 1
    evaluate.main(["--run", str(sac_run), "--episodes", "2", "--envs", "2", "--ablate"])
    assert (sac_run / "eval.json").is_file()
    video.main(["--run", str(sac_run), "--episodes", "1", "--steps", "3", "--size", "64"])
    assert list((sac_run / "videos").glob("*.mp4"))


@pytest.mark.parametrize("interval, ordinary", [(20, range(40, 161, 20)), (100, (40, 80, 100, 120, 160))])
def test_every_evaluation_is_a_row_at_its_own_step_however_long_episodes_are(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, interval: int, ordinary: Sequence[int]
) -> None:
    monkeypatch.setattr(train, "LOG_EVERY", interval)
    options = "--algorithm sac --sac.envs 2 --sac.gradient-steps 1 --sac.batch-size 4 --sac.hidden 8".split()
    run_in(workplace, train.main, ["--run", f"rows-{interval}", *TINY, *options, "--log.evaluate-every", "40"])
    with open(workplace / "runs" / "reach-multiview" / f"rows-{interval}" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["time/total_timesteps"]) for row in rows] == [32, *([34] if interval == 20 else []), *ordinary, 160]
    evaluated = [int(row["time/total_timesteps"]) for row in rows if row["evaluation/success_at_end"]]
    assert evaluated == [40, 80, 120, 160, 160]  # the last one is the final one


def test_the_replay_says_its_size_first_and_must_fit(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = DummyVecEnv([functools.partial(DotEnv, dot_scene())] * 2)
    assert "replay: 100 transitions, each frame once, 0.00 GB" == describe_replay(SMALL, env)
    monkeypatch.setattr(replay, "available_memory", lambda: 100_000)
    with pytest.raises(
        UserError, match="a replay of 100 transitions needs .* GB of memory, .* at most .* fit"
    ) as error:
        describe_replay(SMALL, env)
    assert "\n" not in str(error.value)


def test_a_run_that_ends_before_it_learns_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(train, "estimate", lambda *_: "soon done")
    short = dataclasses.replace(SMALL, total_steps=300)
    for starts, said in ((300, True), (299, False)):
        config = dataclasses.replace(short, sac=dataclasses.replace(SMALL.sac, learning_starts=starts))
        train.describe(config, build(), None)
        note = "SAC learns from step 300 (--sac.learning-starts) on, when this run is over"
        assert (note in capsys.readouterr().err) == said


@pytest.mark.parametrize(
    ("algorithm", "typed", "note"),
    [
        ("sac", ["--ppo.envs", "3", "--sac.envs", "2", "--ppo.envs=4"], "sac's options are --sac.*: --ppo.envs\n"),
        ("tqc", ["--ppo.epochs", "3", "--ppo.hidden=8"], "tqc's options are --sac.*: --ppo.epochs, --ppo.hidden\n"),
        ("ppo", ["--sac.tau", "0.1"], "ppo's options are --ppo.*: --sac.tau\n"),
        ("ppo", ["--ppo.envs", "3"], ""),
        ("sac", ["--sac.envs", "3"], ""),
    ],
)
def test_options_of_another_algorithm_are_named(
    capsys: pytest.CaptureFixture, algorithm: str, typed: list[str], note: str
) -> None:
    note_of_idle_options(typed, dataclasses.replace(SMALL, algorithm=algorithm))
    said = capsys.readouterr().err
    assert (said == "") == (note == "") and note in said


def test_the_replay_is_never_larger_than_the_run() -> None:
    config = dataclasses.replace(SMALL, total_steps=40)
    assert describe_replay(config, DummyVecEnv([functools.partial(DotEnv, dot_scene())])).startswith("replay: 40 ")


def test_an_algorithm_that_does_not_fit_the_actions_is_refused() -> None:
    class Buttons(DotEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Discrete(3)

    with pytest.raises(UserError, match=r"SAC acts in Box, this environment's actions are Discrete\(3\)"):
        build_model(SMALL, DummyVecEnv([Buttons]), dot_scene())


def test_tqc_without_sb3_contrib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named '{name}'", name="sb3_contrib")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match="'tqc' needs sb3-contrib: pip install"):
        build("tqc")


# -- pretrained keypoints --------------------------------------------------------------------------------------------


def test_training_starts_from_pretrained_keypoints_without_a_warm_up(
    tiny_run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def learn(model, *args, callback, **kwargs):
        started.append({n: p.clone() for n, p in model.policy.state_dict().items()})
        started.append(callback[0].parts["gradients"].config)

    monkeypatch.setattr("stable_baselines3.PPO.learn", learn)
    run_in(workplace, train.main, ["--run", "continued", *TINY, "--pretrained", str(tiny_run), "--seed", "1"])
    earlier = Run.open(str(tiny_run)).load().policy
    weights, auxiliary = started
    assert auxiliary.warmup_frames == auxiliary.warmup_steps == 0
    taken = [name for name in weights if name.startswith(("features_extractor.", "decoder."))]
    assert len(taken) > 10 and all(torch.equal(weights[name], earlier[name]) for name in taken)
    assert not torch.equal(weights["action_net.weight"], earlier["action_net.weight"])


def test_the_background_is_that_of_the_new_runs_scene(tiny_run: Path) -> None:
    config = dataclasses.replace(Run.open(str(tiny_run)).config, pretrained=str(tiny_run))
    env, scene = scene_of(config)
    scene = dataclasses.replace(scene, background=255 - scene.background)
    policy = build_model(config, env, scene).policy
    before = policy.decoder.background.clone()
    load_pretrained(policy, config, scene)
    assert torch.equal(policy.decoder.background, before)
    assert not torch.equal(before, Run.open(str(tiny_run)).load().policy["decoder.background"])
    env.close()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--encoder.keypoints", "5"], "has encoder keypoints 4, this one asks for 5"),
        (["--encoder.width", "6"], "has encoder width 4, this one asks for 6"),
        (["--image-size", "48"], "has image size 32 x 32 against 48 x 48"),
        (["--cameras", "left,front"], "has cameras left, right, front against left, front"),
        (["--pretrained", "nowhere"], "no run folder at nowhere"),
    ],
)
def test_pretrained_keypoints_that_do_not_fit_are_refused_and_nothing_is_written(
    tiny_run: Path, workplace: Path, option: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        run_in(workplace, train.main, ["--run", "misfit", *TINY, "--pretrained", str(tiny_run), *option])
    assert "\n" not in str(error.value)
    assert not (workplace / "runs" / "reach-multiview" / "misfit").exists()


def test_pretrained_state_runs_and_lying_folders_are_refused(tiny_run: Path, state_run: Path, tmp_path: Path) -> None:
    config = TrainConfig(pretrained=str(state_run))
    with pytest.raises(UserError, match="acts on 'state', it has no keypoints"):
        load_pretrained(torch.nn.Module(), config, dot_scene())
    opened = Run.open(str(tiny_run))
    lying = Run.create(tmp_path / "lying", dataclasses.replace(opened.config, run=None), opened.scene())
    lying.checkpoints.write(1, torch.nn.Linear(1, 1), {}, {})
    model_config = dataclasses.replace(opened.config, pretrained=str(lying.path))
    with pytest.raises(UserError, match="does not fit its config.yaml"):
        load_pretrained(train.build_model(model_config, *scene_of(model_config)).policy, model_config, opened.scene())


def scene_of(config: TrainConfig):
    env = train.make_training_env(config)
    return env, Scene.of(env)


def test_a_pretraining_has_no_policy_to_evaluate(tiny_run: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "pretraining", PretrainConfig(), Run.open(str(tiny_run)).scene())
    with pytest.raises(UserError, match="is no training run, so it has no policy"):
        Run.open(str(run.path))


def test_auxiliary_options_reach_the_off_policy_policies() -> None:
    config = dataclasses.replace(SMALL, auxiliary=AuxiliaryConfig(policy_gradient=0.7, learning_rate=9.0))
    policy = build_model(config, DummyVecEnv([DotEnv]), dot_scene()).policy
    assert policy.features_extractor.policy_gradient_scale == 0.7
    assert [group.get("lr_scale") for group in policy.critic.optimizer.param_groups] == [None, 9.0]
