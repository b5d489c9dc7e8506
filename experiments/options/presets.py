"""Named sets of options: ``--preset paper`` stands for what is listed here; options that are typed count more.

What it stands for is written into the run's ``config.yaml`` like any other option: its name is nowhere needed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import gymnasium as gym

from envs import registry
from envs.errors import UserError, unknown
from experiments.options.cli import options
from experiments.options.config import PretrainConfig, RunConfig

_PAPER = {
    "--image-size": "128",
    "--encoder.layers": "paper",
    "--encoder.keypoints": "32",
    "--encoder.view-weights": "per_view",
    "--encoder.decoder-width": "64",
    "--encoder.decoded-views": "0",
    "--total-steps": "4000000",
    "--ppo.envs": "16",
    "--ppo.steps": "400",
    "--ppo.epochs": "8",
    "--ppo.gamma": "0.99",
    "--ppo.target-kl": "0.12",
    "--auxiliary.steps-per-rollout": "400",
    "--auxiliary.buffer-frames": "100000",
}
"""Sizes, number of keypoints and steps of Chen et al. (ICML 2021) on Meta-World; losses and network stay ours."""
_PAPER_ANT = {
    "--encoder.keypoints": "16",
    "--total-steps": "5000000",
    "--ppo.steps": "1000",
    "--ppo.epochs": "10",
    "--encoder.loss.separation": "0.4",
}
"""What it has otherwise on the ant; our separation is twice its default there, as the original's is."""
_FAST_ANT = {"--ppo.gamma": "0.99", "--total-steps": "200000"}
_FAST_ARM = {"--ppo.learning-rate": "1e-3", "--ppo.epochs": "6", "--ppo.target-kl": "0.12"}
"""Twice as soon at 100 % on reach as the defaults, in steps; for a little less time."""
_BOX = {"--encoder.outside": "0", "--encoder.weigh-coverage": None, "--encoder.loss.multiview": "60"}
"""What is in the box alone counts, and small things count more."""
_FAST_TABLE = _FAST_ARM | _BOX
_FAST_METAWORLD = _FAST_ARM | {
    "--action-repeat": "4",
    "--encoder.outside": "0.1",
    "--encoder.weigh-coverage": None,
    "--encoder.loss.multiview": "80",
    "--auxiliary.warmup-frames": "256",
    "--auxiliary.warmup-steps": "200",
    "--auxiliary.policy-gradient": "1",
    "--ppo.steps": "64",
    "--ppo.epochs": "8",
    "--ppo.gamma": "0.95",
    "--ppo.log-std": "0",
    "--ppo.entropy": "0.003",
    "--sac.gamma": "0.95",
    "--sac.reward-scale": "0.025",
    "--total-steps": "20000",
    "--steps": "2500",
}
"""PPO's numbers are what the policy of the state learns window-open by, warm-up and gradient what keypoints do:
docs/results.md lists what was tried, on seed 7. SAC's rewards, up to 10 for each of an action's four steps, come to at
most 1.

What is beside the box counts a tenth there, not nothing: Sawyer's thick forearm crosses the box's walls, and keypoints
wander on the cut."""
_FAST_PUSH_ALONE = {"--encoder.loss.equivariance": "100"}
"""Of keypoints alone, on push; docs/results.md says what it did elsewhere. With a policy it was not tried."""
PRESETS = ("fast", "paper")


def preset_options(name: str, env_id: str, pretraining: bool = False) -> dict[str, str | None]:
    """What a preset stands for: options and their values, None for a flag.

    :param name: one of :data:`PRESETS`. "fast" is for two cores without a GPU.
    :param env_id: a registered environment.
    :param pretraining: whether keypoints are trained alone.
    :raises UserError: for an unknown preset, or an environment that has none.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    if env_id not in registry.env_ids():
        if ":" not in env_id and env_id not in gym.registry:
            raise registry.unknown_environment(env_id)
        raise UserError(f"preset '{name}' is for this project's environments: for {env_id} type the options yourself")
    others, is_ant = getattr(registry.task_class(env_id), "other_cameras", ()), env_id.startswith("ant-")
    if name == "paper" and is_ant:
        return _PAPER | _PAPER_ANT
    if name == "paper":
        return _PAPER | ({"--cameras": ",".join(camera.name for camera in others)} if others else {})
    if is_ant:
        return dict(_FAST_ANT)
    if env_id.startswith("metaworld-"):
        return dict(_FAST_METAWORLD)
    alone = _FAST_PUSH_ALONE if pretraining and env_id == "push-multiview" else {}
    return _FAST_TABLE | alone if env_id in ("push-multiview", "lift-multiview") else dict(_FAST_ARM)


def expanded(argv: Sequence[str], config_class: type[RunConfig]) -> list[str]:
    """The arguments with a preset in place of its name.

    :param argv: as they were typed.
    :param config_class: whose options they are; what a preset says of others is left out.
    :raises UserError: as :func:`preset_options`, or where the name is missing.
    """
    rest, name = taken(argv, "--preset")
    if name is None:
        return rest
    if not name:
        raise UserError(f"--preset needs a value ({' or '.join(PRESETS)})")
    env_id = taken(argv, "--env")[1] or config_class.__dataclass_fields__["env"].default
    valid = options(config_class)
    found = preset_options(name, env_id, issubclass(config_class, PretrainConfig))
    return before_typed({option: value for option, value in found.items() if option in valid}, rest)


def expanded_by(presets: Mapping[str, Mapping[str, str | None]], argv: Sequence[str]) -> list[str]:
    """The arguments with a preset's options before them, except for those that are typed.

    :param presets: options and their values, None for flags, by name of preset; "full" is taken where none is named.
    :param argv: as they were typed.
    :raises UserError: for an unknown preset.
    """
    rest, name = taken(argv, "--preset")
    if name is not None and name not in presets:
        raise unknown("preset", name, presets)
    return before_typed(presets[name or "full"], rest)


def before_typed(found: Mapping[str, str | None], typed: Sequence[str]) -> list[str]:
    """Options of a preset, except for those that are typed, and then these.

    :param found: the preset's options and their values; None is a flag, which has none.
    :param typed: arguments.
    """
    names = {token.partition("=")[0].replace("_", "-") for token in typed}
    missing = (option for option in found.items() if option[0] not in names)
    return [*(part for option in missing for part in option if part is not None), *typed]


def taken(argv: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """Arguments without an option, and its value: empty where it is missing, None where there is no such option."""
    rest, value, position = [], None, 0
    while position < len(argv):
        token, equals, given = argv[position].partition("=")
        if token != option:
            rest.append(argv[position])
        elif equals:
            value = given
        else:
            follows = position + 1 < len(argv) and not argv[position + 1].startswith("--")
            value = argv[position + 1] if follows else ""
            position += follows
        position += 1
    return rest, value
