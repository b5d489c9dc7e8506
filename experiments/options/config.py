"""The options of runs: frozen dataclasses that are the command line and ``config.yaml`` at once.

Every number has bounds (:func:`kp3d_rl.options.bounded`), so that neither a slip of the hand nor a file that came from
somewhere asks for more than a machine has. :mod:`experiments.options.files` writes and reads the files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from agents.callbacks import AuxiliaryConfig
from envs.yaml_files import shown
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.networks import LAYERS, grids
from kp3d_rl.options import OptionError, bounded, check_options


@dataclass(frozen=True)
class EncoderConfig(Keypoint3DConfig):
    """What the policy acts on.

    :param kind: "keypoint3d"; "keypoint2d", the same heat maps without depth, fusion or consistency; "autoencoder", as
        many numbers of a plain one; "pixels", a CNN over all views; "rad", the same CNN on random crops, with PPO;
        "drqv2" and "curl", those encoders with SAC or TQC; "bootstrapped", what the detector of ``weights`` finds in
        each view, triangulated; "state", the simulator's numbers (the upper bound).
    :param weights: folder of a bootstrapping run of the same environment (``make bootstrap``).
    """

    kind: Literal[
        "keypoint3d", "keypoint2d", "autoencoder", "pixels", "rad", "drqv2", "curl", "bootstrapped", "state"
    ] = "keypoint3d"
    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.kind == "bootstrapped") != (self.weights is not None):
            wanted = "must name a bootstrapping run where, and only where, the encoder is of kind 'bootstrapped'"
            raise OptionError("encoder", "weights", f"{wanted}, got {shown(self.weights)}")
        if self.kind == "keypoint3d" and self.dimensions == "2d":
            object.__setattr__(self, "kind", "keypoint2d")
        elif self.kind == "keypoint2d":
            object.__setattr__(self, "dimensions", "2d")

    @property
    def sees(self) -> bool:
        """Whether views are rendered for it."""
        return self.kind != "state"

    @property
    def finds_keypoints(self) -> bool:
        """Whether there are any, in three dimensions or two."""
        return self.kind in ("keypoint3d", "keypoint2d")

    @property
    def has_loss(self) -> bool:
        """Whether a loss of its own trains it beside the policy."""
        return self.finds_keypoints or self.kind in ("autoencoder", "curl")


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

    envs: int = bounded(8, above=0, most=1000)
    steps: int = bounded(128, above=0, most=100_000)
    batch_size: int = bounded(64, least=2, most=1_000_000_000)
    epochs: int = bounded(3, above=0, most=100_000)
    learning_rate: float = bounded(3e-4, above=0, most=100)
    final_learning_rate: float = bounded(0.1, least=0, most=10_000)
    gamma: float = bounded(0.97, least=0, most=1)
    gae_lambda: float = bounded(0.95, least=0, most=1)
    clip_range: float = bounded(0.2, above=0, most=10_000)
    entropy: float = bounded(0.0, least=0, most=10_000)
    value: float = bounded(0.5, least=0, most=10_000)
    target_kl: float = bounded(0.03, least=0, most=10_000)
    hidden: int = bounded(128, above=0, most=8192)
    log_std: float = bounded(-0.5, least=-20, most=20)
    normalize_reward: bool = True

    def __post_init__(self) -> None:
        check_options(self, "ppo")
        if self.batch_size > self.envs * self.steps:
            problem = f"must be at most envs x steps = {self.envs * self.steps}, got {self.batch_size}"
            raise OptionError("ppo", "batch_size", problem)


@dataclass(frozen=True)
class LogConfig:
    """What is written while training.

    :param evaluate_every: environment steps between deterministic evaluations; 0 evaluates at the end only.
    :param evaluation_episodes: episodes of each of them.
    :param checkpoint_every: environment steps between checkpoints that a run can go on from, or ten minutes if they
        take longer; one more is written before anything else, when the warm-up is over, and at the end. 0: those alone.
    :param checkpoints_kept: how many of the newest are kept; 0 keeps all of them.
    :param checkpoints_kept_every: beside those, the first in every so many environment steps is kept; 0: none.
    :param picture_every: environment steps between pictures of views, keypoints and reconstructions.
    :param wandb: Weights & Biases "offline", "online" or "off".
    :param wandb_project: project that an online run is filed under.
    """

    evaluate_every: int = bounded(10_000, least=0, most=1_000_000_000)
    evaluation_episodes: int = bounded(20, least=1, most=100_000)
    checkpoint_every: int = bounded(5_000, least=0, most=1_000_000_000)
    checkpoints_kept: int = bounded(2, least=0, most=1_000_000)
    checkpoints_kept_every: int = bounded(0, least=0, most=1_000_000_000)
    picture_every: int = bounded(10_000, least=0, most=1_000_000_000)
    wandb: Literal["offline", "online", "off"] = "offline"
    wandb_project: str = "kp3d_rl"

    def __post_init__(self) -> None:
        check_options(self, "log")


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
    :param reward_scale: what rewards are multiplied by before they are learnt from. The critics' gradient grows with
        them: where an action brings far more than 1, it drowns the auxiliary loss's in the encoder. An entropy
        coefficient that is learnt starts at it instead of 1, so that actors are asked for the same.
    :param tau: share of the critics that their targets take over per gradient step.
    :param entropy: entropy coefficient, beside scaled rewards; 0 learns it.
    :param hidden: units of each of the two hidden layers of actor and critics.
    """

    envs: int = bounded(8, above=0, most=1000)
    steps: int = bounded(1, above=0, most=1_000_000)
    gradient_steps: int = bounded(4, above=0, most=1_000_000)
    batch_size: int = bounded(64, above=0, most=1_000_000)
    buffer_size: int = bounded(50_000, above=0, most=1_000_000_000)
    learning_starts: int = bounded(1000, least=0, most=1_000_000_000)
    learning_rate: float = bounded(5e-4, above=0, most=100)
    gamma: float = bounded(0.97, least=0, most=1)
    reward_scale: float = bounded(1.0, above=0, most=1e6)
    tau: float = bounded(0.01, above=0, most=1)
    entropy: float = bounded(0.0, least=0, most=10_000)
    hidden: int = bounded(256, above=0, most=8192)

    def __post_init__(self) -> None:
        check_options(self, "sac")


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
    workers: int = bounded(0, least=0, most=1024)

    def __post_init__(self) -> None:
        check_options(self, "render")


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
    :param action_repeat: steps of the task that each action is applied for; every number of steps, an episode's too,
        then counts actions. Rewards add up.
    :param render: how images are made.
    :param threads: threads of the network library; 0 takes all cores.
    :param encoder: what the policy acts on.
    """

    env: str = "reach-multiview"
    run: str | None = None
    seed: int = 0
    device: str = "auto"
    cameras: str | None = None
    redraw: int | None = bounded(None, least=0, most=2**63 - 1)
    image_size: int = bounded(64, least=16, most=1024)
    action_repeat: int = bounded(1, least=1, most=1000)
    render: RenderConfig = field(default_factory=RenderConfig)
    threads: int = bounded(0, least=0, most=1024)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        check_options(self, "")
        if not 0 <= self.seed < 10_000:
            problem = f"must lie between 0 and 9999, got {shown(self.seed)}: evaluation has other seeds"
            raise OptionError("", "seed", problem)
        if self.encoder.finds_keypoints or self.encoder.kind == "autoencoder":
            try:
                grids(LAYERS[self.encoder.layers], self.image_size, self.image_size)
            except ValueError as error:
                raise OptionError("", "image_size", f"is too small: {error}") from None


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run; everything that is needed to repeat it.

    "--preset fast" (two cores, no GPU) and "--preset paper" (the original's sizes, keypoints, steps and cameras) stand
    for the options that experiments/options/presets.py lists; those that are typed count more. "--nodes auto", or the
    address of a ray cluster's head, has its nodes step and render the environments, and this machine learn.

    :param algorithm: "ppo", "sac" or, with sb3-contrib, "tqc".
    :param total_steps: environment steps, warm-up included; by default 40,000 for PPO and 20,000 for SAC and TQC.
    :param pretrained: run folder whose encoder and decoder training starts from, in place of the warm-up.
    :param auxiliary: how the keypoints are trained beside the policy.
    :param ppo: options of PPO.
    :param sac: options of SAC and TQC.
    :param log: what is written.
    """

    algorithm: Literal["ppo", "sac", "tqc"] = "ppo"
    total_steps: int | None = bounded(None, least=1, most=1_000_000_000)
    pretrained: str | None = None
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_steps is None:
            object.__setattr__(self, "total_steps", 40_000 if self.algorithm == "ppo" else 20_000)
        self._complete_auxiliary()
        if self.pretrained is not None and not self.encoder.finds_keypoints:
            raise OptionError("", "pretrained", f"keypoints do not fit an encoder of kind '{self.encoder.kind}'")

    def _complete_auxiliary(self) -> None:
        """Numbers that were not given, by the kind of encoder."""
        auxiliary, keypoints = self.auxiliary, self.encoder.finds_keypoints
        if auxiliary.policy_gradient is None:
            auxiliary = replace(auxiliary, policy_gradient=0.1 if keypoints else 1.0)
        if auxiliary.learning_rate is None:
            auxiliary = replace(auxiliary, learning_rate=1.0 if self.encoder.kind == "curl" else 4.0)
        object.__setattr__(self, "auxiliary", auxiliary)

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

    "--preset fast" and "--preset paper" stand for options, as with training.

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
    frames: int = bounded(8000, above=0, most=1_000_000_000)
    steps: int = bounded(2000, above=0, most=1_000_000_000)
    batch_size: int = bounded(64, above=0, most=1_000_000)
    learning_rate: float = bounded(1.2e-3, above=0, most=100)
    log_every: int = bounded(200, above=0, most=1_000_000_000)
    picture_every: int = bounded(1000, least=0, most=1_000_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.encoder.finds_keypoints:
            kinds = "of kind 'keypoint3d' or 'keypoint2d'"
            problem = f"is '{self.encoder.kind}': only keypoints can be pretrained, {kinds}"
            raise OptionError("", "encoder.kind", problem)

    @property
    def label(self) -> str:
        """What is trained, for the names of run folders."""
        return "pretrain"
