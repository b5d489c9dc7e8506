"""The options of runs: frozen dataclasses that are the command line and ``config.yaml`` at once."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from agents.callbacks import AuxiliaryConfig
from envs.errors import UserError, unknown
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.networks import LAYERS, grids


@dataclass(frozen=True)
class EncoderConfig(Keypoint3DConfig):
    """What the policy acts on.

    :param kind: "keypoint3d"; "pixels", a CNN over all views; "state", the simulator's numbers (the upper bound).
    """

    kind: Literal["keypoint3d", "pixels", "state"] = "keypoint3d"


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation as in Stable-Baselines3.

    :param envs: environments that step side by side.
    :param steps: steps of each environment per rollout.
    :param batch_size: samples per gradient step.
    :param epochs: passes over a rollout.
    :param learning_rate: of Adam at the start.
    :param final_learning_rate: at the end, relative to the start; linear in between.
    :param gamma: discount.
    :param gae_lambda: of generalised advantage estimation.
    :param clip_range: of the policy ratio.
    :param entropy: weight of the entropy bonus.
    :param value: weight of the value loss.
    :param target_kl: stop a rollout's updates at 1.5 times this divergence; 0 never stops.
    :param hidden: units of each of the two hidden layers of actor and critic.
    :param log_std: logarithm of the actions' standard deviation at the start.
    :param normalize_reward: divide rewards by the running deviation of the return.
    """

    envs: int = 8
    steps: int = 128
    batch_size: int = 64
    epochs: int = 3
    learning_rate: float = 3e-4
    final_learning_rate: float = 0.1
    gamma: float = 0.97
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy: float = 0.0
    value: float = 0.5
    target_kl: float = 0.03
    hidden: int = 128
    log_std: float = -0.5
    normalize_reward: bool = True

    def __post_init__(self) -> None:
        _require(self, "ppo ", "above 0", "envs", "steps", "epochs", "hidden", "learning_rate", "clip_range")
        _require(self, "ppo ", "at least 0", "final_learning_rate", "entropy", "value", "target_kl")
        _require(self, "ppo ", "between 0 and 1", "gamma", "gae_lambda")
        if self.batch_size < 2 or self.batch_size > self.envs * self.steps:
            raise ValueError(
                f"ppo batch_size must be at least 2 and at most envs x steps = {self.envs * self.steps}, "
                f"got {self.batch_size}"
            )


@dataclass(frozen=True)
class LogConfig:
    """What is written while training.

    :param evaluate_every: environment steps between deterministic evaluations; 0 evaluates at the end only.
    :param evaluation_episodes: episodes of each of them.
    :param checkpoint_every: environment steps between checkpoints; one is always written at the end.
    :param picture_every: environment steps between pictures of views, keypoints and reconstructions.
    :param wandb: Weights & Biases "offline", "online" or "off".
    :param wandb_project: project that an online run is filed under.
    """

    evaluate_every: int = 10_000
    evaluation_episodes: int = 20
    checkpoint_every: int = 20_000
    picture_every: int = 10_000
    wandb: Literal["offline", "online", "off"] = "offline"
    wandb_project: str = "kp3d_rl"

    def __post_init__(self) -> None:
        if self.evaluation_episodes < 1:
            raise ValueError(f"log evaluation_episodes must be at least 1, got {self.evaluation_episodes}")
        if min(self.evaluate_every, self.checkpoint_every, self.picture_every) < 0:
            raise ValueError("log intervals must be at least 0")


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic as in Stable-Baselines3, and truncated quantile critics as in sb3-contrib.

    :param envs: environments that step side by side.
    :param steps: steps of each environment between two phases of training.
    :param gradient_steps: gradient steps in each phase.
    :param batch_size: transitions per gradient step.
    :param buffer_size: transitions kept for replay; each frame is kept once.
    :param learning_starts: environment steps, those of the warm-up included, before the first phase.
    :param learning_rate: of Adam, for actor, critics and entropy coefficient.
    :param gamma: discount.
    :param tau: share of the critics that their targets take over per gradient step.
    :param entropy: entropy coefficient; 0 learns it.
    :param hidden: units of each of the two hidden layers of actor and critics.
    """

    envs: int = 8
    steps: int = 1
    gradient_steps: int = 4
    batch_size: int = 64
    buffer_size: int = 50_000
    learning_starts: int = 1000
    learning_rate: float = 5e-4
    gamma: float = 0.97
    tau: float = 0.01
    entropy: float = 0.0
    hidden: int = 256

    def __post_init__(self) -> None:
        _require(
            self, "sac ", "above 0", "envs", "steps", "gradient_steps", "batch_size", "buffer_size", "hidden",
            "learning_rate", "tau",
        )  # fmt: skip
        _require(self, "sac ", "at least 0", "learning_starts", "entropy")
        _require(self, "sac ", "between 0 and 1", "gamma", "tau")


@dataclass(frozen=True)
class RenderConfig:
    """How the cameras' images are made.

    :param backend: "auto" takes OpenGL ("gl") where it works and the ray tracer ("warp") where it does not.
    :param quality: "light" draws simplified meshes without multisampling, shadows and reflections; "full" draws what
        the task's file says, at many times the cost.
    :param workers: processes that step and render training's environments; 0 takes as many as there are cores, and 1
        none beside the main process.
    """

    backend: Literal["auto", "gl", "warp"] = "auto"
    quality: Literal["light", "full"] = "light"
    workers: int = 0

    def __post_init__(self) -> None:
        _require(self, "render ", "at least 0", "workers")


@dataclass(frozen=True)
class RunConfig:
    """What every run has: an environment, how it is seen, and an encoder.

    :param env: registered task, or any MuJoCo Gymnasium id together with ``cameras``.
    :param run: name of the run folder ``runs/<env>/<run>``; by default what is trained, the seed and the time.
    :param seed: of environments, networks and sampling.
    :param device: "auto" takes a GPU where there is one.
    :param cameras: YAML file of cameras in place of the task's own, or names of some of those, separated by commas.
    :param redraw: draw the scene's colours, the start and the camera rig anew from this number.
    :param image_size: pixels per side of every view.
    :param render: how images are made.
    :param threads: threads of the network library; 0 takes all cores.
    :param encoder: what the policy acts on.
    """

    env: str = "reach-multiview"
    run: str | None = None
    seed: int = 0
    device: str = "auto"
    cameras: str | None = None
    redraw: int | None = None
    image_size: int = 64
    render: RenderConfig = field(default_factory=RenderConfig)
    threads: int = 0
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        if not 16 <= self.image_size <= 1024:
            raise ValueError(f"image_size must lie between 16 and 1024 pixels, got {self.image_size}")
        if not 0 <= self.seed < 10_000:
            raise ValueError(f"seed must lie between 0 and 9999, got {self.seed}: evaluation has other seeds")
        if self.redraw is not None and self.redraw < 0:
            raise ValueError(f"redraw must be at least 0, got {self.redraw}")
        if self.threads < 0:
            raise ValueError(f"threads must be at least 0, got {self.threads}")
        if self.encoder.kind == "keypoint3d":
            grids(LAYERS[self.encoder.layers], self.image_size, self.image_size)  # refuses images that are too small
        _refuse_nan(self)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run; everything that is needed to repeat it.

    :param algorithm: "ppo", "sac" or, with sb3-contrib, "tqc".
    :param total_steps: environment steps, warm-up included; by default 40,000 for PPO and 20,000 for SAC and TQC.
    :param pretrained: run folder whose encoder and decoder training starts from, in place of the warm-up.
    :param auxiliary: how the keypoints are trained beside the policy.
    :param ppo: options of PPO.
    :param sac: options of SAC and TQC.
    :param log: what is written.
    """

    algorithm: Literal["ppo", "sac", "tqc"] = "ppo"
    total_steps: int | None = None
    pretrained: str | None = None
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_steps is None:
            object.__setattr__(self, "total_steps", 40_000 if self.algorithm == "ppo" else 20_000)
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {self.total_steps}")
        if self.envs > 1000:
            raise ValueError(f"{self.algorithm} envs must be at most 1000, got {self.envs}: evaluation has other seeds")
        if self.pretrained is not None and self.encoder.kind != "keypoint3d":
            raise ValueError(f"pretrained keypoints do not fit an encoder of kind '{self.encoder.kind}'")

    @property
    def envs(self) -> int:
        """Environments that step side by side."""
        return self.ppo.envs if self.algorithm == "ppo" else self.sac.envs

    @property
    def label(self) -> str:
        """What is trained, for the names of run folders."""
        return f"{self.encoder.kind}-{self.algorithm}"


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """The representation alone, on episodes of a scripted or random policy.

    :param policy: "random", actions held for some steps; "scripted", the task's own; or "mixed", half of each.
    :param frames: frames to train on.
    :param steps: gradient steps.
    :param batch_size: frames per step.
    :param learning_rate: of Adam; falls linearly to a tenth.
    :param log_every: gradient steps between measurements on frames that are not trained on.
    :param picture_every: gradient steps between checkpoints, each with a picture of views, keypoints and
        reconstructions; 0: at the end only.
    """

    policy: Literal["random", "scripted", "mixed"] = "random"
    frames: int = 8000
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 1.2e-3
    log_every: int = 200
    picture_every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "", "above 0", "frames", "steps", "batch_size", "learning_rate", "log_every")
        if self.picture_every < 0:
            raise ValueError(f"picture_every must be at least 0, got {self.picture_every}")
        if self.encoder.kind != "keypoint3d":
            raise ValueError(f"only keypoints can be pretrained, not an encoder of kind '{self.encoder.kind}'")

    @property
    def label(self) -> str:
        """What is trained, for the names of run folders."""
        return "pretrain"


def to_yaml(config: Any) -> str:
    """A configuration as YAML, in the order of its fields.

    :param config: frozen dataclass, nested ones become mappings.
    """
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def from_yaml(path: Path, config_class: type | None = None) -> Any:
    """Read a configuration back, checked against the dataclass.

    :param path: file that :func:`to_yaml` wrote.
    :param config_class: the dataclass; None tells a pretraining by its options from a training.
    :raises UserError: naming file and key for anything that is not as the dataclass says.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML") from None
    if config_class is None:
        pretraining = isinstance(data, dict) and "policy" in data and "ppo" not in data
        config_class = PretrainConfig if pretraining else TrainConfig
    return _from_dict(data, config_class, str(path), "")


def _require(config: Any, prefix: str, where: str, *names: str) -> None:
    """Refuse the first of some options whose value does not lie where it should; NaN has a message of its own."""
    misses = {
        "above 0": lambda value: value <= 0,
        "at least 0": lambda value: value < 0,
        "between 0 and 1": lambda value: value < 0 or value > 1,
    }[where]
    for name in names:
        value = getattr(config, name)
        if misses(value):
            raise ValueError(f"{prefix}{name} must be {where}, got {value}")


def _refuse_nan(config: Any, prefix: str = "") -> None:
    """Every comparison with NaN is false, so that it would pass all other checks."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            _refuse_nan(value, f"{prefix}{entry.name}.")
        elif isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{prefix}{entry.name} must be a number, got nan")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _from_dict(data: Any, config_class: type, file: str, prefix: str) -> Any:
    """Build a dataclass from a mapping; unknown keys, wrong types and refused values name file and key."""
    if not isinstance(data, dict):
        raise UserError(f"{file}: '{prefix or 'top level'}' must be a mapping, got {type(data).__name__}")
    hints, values = typing.get_type_hints(config_class), {}
    names = {field.name for field in dataclasses.fields(config_class)}
    for key, value in data.items():
        if key not in names:
            raise unknown(f"key in {file}:", prefix + str(key), [prefix + name for name in sorted(names)])
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            values[key] = _from_dict(value, typing.cast(type, kind), file, f"{prefix}{key}.")
        else:
            values[key] = _typed(value, kind, f"{file}: key '{prefix}{key}'")
    try:
        return config_class(**values)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def _typed(value: Any, kind: Any, where: str) -> Any:
    """A YAML value as the annotated type, or a UserError that says where."""
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise unknown(f"value at {where}:", str(value), map(str, typing.get_args(kind)))
        return value
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where} must be {kind.__name__}, got {value!r}")
    return value
