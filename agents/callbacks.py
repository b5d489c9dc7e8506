"""The callback that owns the auxiliary loss: when it runs, how much it counts, and what is logged of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn

from agents.buffers import Stream
from agents.clipping import ClipConfig, install_clippers
from agents.extractors import AuxiliaryExtractor
from agents.finite import refuse_nonfinite
from agents.unsupervised import UnsupervisedTrainer
from agents.vec_env import held_decisions
from envs.errors import UserError
from envs.snapshots import save_random, set_random
from kp3d_rl.options import OptionError, bounded, check_options
from kp3d_rl.storage.files import DamagedError
from kp3d_rl.storage.trees import Tree, anything, require_like, require_size


@dataclass(frozen=True)
class AuxiliaryConfig:
    """How the auxiliary loss trains the encoder beside the policy.

    :param joint: carry the loss in the policy's own updates.
    :param warmup_frames: environment steps with random actions before the first rollout; they count as steps. Where
        that is more than half of the run, frames and steps of the warm-up shrink to half of it. Off-policy, the
        replay gets them too.
    :param warmup_steps: unsupervised steps on those frames before the first rollout.
    :param steps_per_rollout: unsupervised steps before each rollout, once there are frames; on-policy only.
    :param batch_size: frames per unsupervised step.
    :param buffer_frames: how many of the latest frames the unsupervised steps draw from; off-policy they are given
        back after the warm-up.
    :param final_scale: the loss's weight at the end of training relative to the start, linear in between.
    :param policy_gradient: share of the policy's gradient that reaches the encoder (1 as the original, 0 none); by
        default 0.1 with keypoints and 1 with other encoders.
    :param learning_rate: of encoder and decoder, relative to the policy's; by default 1 with CURL and 4 with others.
    :param clip: largest gradient norms of policy and encoder.
    """

    joint: bool = True
    warmup_frames: int = bounded(4000, least=0, most=1_000_000_000)
    warmup_steps: int = bounded(1500, least=0, most=1_000_000_000)
    steps_per_rollout: int = bounded(24, least=0, most=1_000_000)
    batch_size: int = bounded(64, least=1, most=1_000_000)
    buffer_frames: int = bounded(10_000, least=1, most=1_000_000_000)
    final_scale: float = bounded(1.0, least=0, most=1_000_000)
    policy_gradient: float | None = bounded(None, least=0, most=1_000_000)
    learning_rate: float | None = bounded(None, above=0, most=10_000)
    clip: ClipConfig = field(default_factory=ClipConfig)

    def __post_init__(self) -> None:
        check_options(self, "auxiliary")
        if self.warmup_steps and not self.warmup_frames:
            raise OptionError("auxiliary", "warmup_steps", "need warmup_frames to train on, got 0")


class _GradientCallback(BaseCallback):
    """Clips and checks the gradients of every optimiser, and knows when it is time to log.

    :param clip: largest norms.
    :param period: off-policy, how many environment steps lie between two logs; on-policy every rollout is logged.
    """

    def __init__(self, clip: ClipConfig, period: int) -> None:
        super().__init__()
        self.clip, self.period = clip, period

    def _install_clippers(self, encoder: Iterable[nn.Parameter] = ()) -> None:
        """Hooks do not survive a load, so the clippers are installed at every training start."""
        self.off_policy = isinstance(self.model, OffPolicyAlgorithm)
        self.clippers = install_clippers(self.model.policy, encoder, self.clip, refuse_nonfinite)
        self.clipper = self.clippers[0]
        self._updates_seen = self.model._n_updates
        self._period_start = self.model.num_timesteps

    def _period_is_over(self) -> bool:
        """Whether it is time to log; counts the updates that set the encoder's clip."""
        if self.off_policy and self.model.num_timesteps - self._period_start < self.period:
            return False
        self.clipper.updates += self.model._n_updates > self._updates_seen
        self._updates_seen = self.model._n_updates
        self._period_start = self.model.num_timesteps
        return True

    def state(self) -> dict[str, Tree]:
        """What a training that goes on elsewhere must know, at a rollout's start: plain values and arrays."""
        return {
            "clip_updates": self.clipper.updates,
            "updates_seen": self._updates_seen,
            "period_start": self._period_start,
            "norms": [{name: list(values) for name, values in clipper.norms.items()} for clipper in self.clippers],
        }

    def load_state(self, state: dict[str, Tree]) -> None:
        """Undo :meth:`state`, after training has started.

        :raises DamagedError: for a state of another form.
        """
        counts = dict.fromkeys(("clip_updates", "updates_seen", "period_start"), require_size)
        require_like(state, {**counts, "norms": [_lists]}, "clipping")
        if [norms.keys() for norms in state["norms"]] != [clipper.norms.keys() for clipper in self.clippers]:
            raise DamagedError("'clipping.norms' is of other optimisers")
        self.clipper.updates = state["clip_updates"]
        self._updates_seen, self._period_start = state["updates_seen"], state["period_start"]
        for clipper, norms in zip(self.clippers, state["norms"], strict=True):
            clipper.norms = norms

    def _log_norms(self) -> None:
        for clipper in self.clippers:
            for name, value in clipper.mean_norms().items():
                self.logger.record(f"gradients/{name}", value)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._log_norms()
        for clipper in self.clippers:
            clipper.remove()


class AuxiliaryCallback(_GradientCallback):
    """Trains the encoder of a policy beside it: PPO's, SAC's or TQC's (:class:`~agents.policies.AuxiliaryParts`).

    The gate opens at a rollout's end and closes at the next one's start, so only ``train()`` lies inside. Extra
    unsupervised steps run at a rollout's start, never after it: stored values and log-probabilities belong to the
    encoder that made them. They use the policy's own optimiser, so every encoder weight has one Adam state.

    Off-policy, where a rollout may be a single step, the warm-up is the same, and its transitions go into the replay;
    but there are no extra steps between rollouts, since the replay trains on old frames anyway.

    :param config: schedule, amounts and clips.
    :param quality_frames: frames on which quality is logged: spread over what was collected since the last training
        step, so that none of them has been trained on. Off-policy: the last ones, which training may have drawn.
    :param should_stop: asked between steps of the warm-up, which takes minutes.
    :param on_warmup_step: told after each step of the warm-up how many of how many are done.
    :param period: off-policy, environment steps between two measurements of quality and gradient norms; on-policy
        every rollout is measured.
    """

    def __init__(
        self,
        config: AuxiliaryConfig | None = None,
        quality_frames: int = 128,
        should_stop: Callable[[], bool] = lambda: False,
        on_warmup_step: Callable[[int, int], None] = lambda done, total: None,
        period: int = 1000,
    ) -> None:
        self.config = config or AuxiliaryConfig()
        super().__init__(self.config.clip, period)
        self.should_stop, self.on_warmup_step = should_stop, on_warmup_step
        self.quality_frames = quality_frames

    # -- SB3's hooks -------------------------------------------------------------------------------------------------

    def _on_training_start(self) -> None:
        self.extractor = self._find_extractor()
        self.auxiliary = self.extractor.auxiliary
        self.auxiliary.is_open = False  # an exception may have left it open
        config = self.config
        self.unsupervised = UnsupervisedTrainer(
            self.model.policy, config.batch_size, config.buffer_frames, self.model.seed, self.quality_frames
        )
        self.gradient_norms: dict[str, float] = {}
        self._install_clippers(self.auxiliary.parameters)
        self.clipper.before_clip = self._measure
        if self.model.num_timesteps == 0 and config.warmup_frames:
            self._warm_up()
        self._period_start = self.model.num_timesteps
        if self.off_policy:
            self.unsupervised.forget(4 * self.quality_frames)  # the replay has the frames
            self.auxiliary.measure_next = config.joint

    def _on_rollout_start(self) -> None:
        self.auxiliary.is_open = False
        done = self.model.num_timesteps / max(1, self.model._total_timesteps)
        self.auxiliary.scale = 1.0 + (self.config.final_scale - 1.0) * min(1.0, done)
        if not self._period_is_over():
            return
        self._log_training()
        if self.off_policy:
            self._log_quality()
            self.auxiliary.measure_next = self.config.joint
        elif len(self.unsupervised.frames):
            self.unsupervised.train(self.config.steps_per_rollout)

    def _on_step(self) -> bool:
        self.unsupervised.add(self.locals["new_obs"])
        return True

    def _on_rollout_end(self) -> None:
        if self.model._n_updates == 0 and not self.extractor.has_looked and self._updates_come_next():
            self.unsupervised.look()
        if not self.off_policy:
            self._log_quality()
            self.auxiliary.measure_next = self.config.joint
        self.auxiliary.is_open = self.config.joint

    def _on_training_end(self) -> None:
        self.auxiliary.is_open = False
        self._log_training()
        super()._on_training_end()

    def _updates_come_next(self) -> bool:
        """Whether training follows this rollout: off-policy not before so many steps have been collected."""
        return not self.off_policy or self.model.num_timesteps > self.model.learning_starts

    # -- warm-up -----------------------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        """Random frames, what the untrained encoder makes of them, and unsupervised steps on them."""
        # A short run keeps half of its steps for the policy; its warm-up shrinks as a whole.
        share = min(1.0, 0.5 * self.model._total_timesteps / self.config.warmup_frames)
        self._collect_random_frames(math.ceil(share * self.config.warmup_frames))
        self.unsupervised.look()
        self._log_quality()
        self.logger.record("time/total_timesteps", self.model.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.model.num_timesteps)  # of the untrained encoder
        steps = math.ceil(share * self.config.warmup_steps)
        self.unsupervised.train(steps, self.on_warmup_step, self.should_stop)

    def _collect_random_frames(self, count: int) -> None:
        """Step the training environments with random actions, each held for some steps so that they get somewhere."""
        env, model, held = self.training_env, self.model, None
        hold = held_decisions(env)
        for step in range(math.ceil(count / env.num_envs)):
            if step and self.should_stop():
                break
            if held is None or step % hold == 0:
                held = np.stack([model.action_space.sample() for _ in range(env.num_envs)])
            observations, *rest = env.step(held)
            self.unsupervised.add(observations)
            if self.off_policy:  # also because these steps count towards SB3's learning_starts
                model._store_transition(model.replay_buffer, model.policy.scale_action(held), observations, *rest)
            model.num_timesteps += env.num_envs
        model._last_obs = env.reset()
        if model._vec_normalize_env is not None:
            model._last_original_obs = model._vec_normalize_env.get_original_obs()

    # -- state -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tree]:
        """See :meth:`_GradientCallback.state`; the frames themselves are in :meth:`streams`."""
        auxiliary, unsupervised = self.auxiliary, self.unsupervised
        own = {
            "measure_next": auxiliary.measure_next,
            "record": {name: list(values) for name, values in auxiliary.record.items()},
            "gradient_norms": dict(self.gradient_norms),
            "frames": unsupervised.frames.added,
            "fresh": unsupervised.fresh,
            "generator": save_random(unsupervised.generator),
        }
        return {"clipping": super().state(), "auxiliary": own}

    def load_state(self, state: dict[str, Tree]) -> None:
        """See :meth:`_GradientCallback.load_state`; frames are put into :meth:`expected_streams`."""
        require_like(state, {"clipping": anything, "auxiliary": _AUXILIARY}, "callback")
        super().load_state(state["clipping"])
        own, auxiliary = state["auxiliary"], self.auxiliary
        auxiliary.measure_next = own["measure_next"]
        auxiliary.record, self.gradient_norms = own["record"], own["gradient_norms"]
        self.unsupervised.fresh = own["fresh"]
        set_random(self.unsupervised.generator, own["generator"], "'auxiliary.generator'")

    def streams(self) -> list[Stream]:
        """The frames of the unsupervised steps, to be written down."""
        return self.unsupervised.frames.streams()

    def expected_streams(self, state: dict[str, Tree]) -> list[Stream]:
        """Where the frames that :meth:`streams` gave must be put back.

        :param state: what :meth:`state` gave, after :meth:`load_state` has accepted it.
        """
        return self.unsupervised.frames.expect(state["auxiliary"]["frames"], self.model._last_obs)

    # -- checks and logs ---------------------------------------------------------------------------------------------

    def _find_extractor(self) -> AuxiliaryExtractor:
        """The policy's extractor; training without one would silently train nothing."""
        extractor = getattr(self.model.policy, "features_extractor", None)
        if not isinstance(extractor, AuxiliaryExtractor) or extractor.auxiliary is None:
            raise UserError(
                f"AuxiliaryCallback needs a policy whose encoder has a loss of its own (KeypointPolicy, "
                f"KeypointSACPolicy, KeypointTQCPolicy), got "
                f"{type(self.model.policy).__name__} with {type(extractor).__name__}"
            )
        common_clip = getattr(self.model, "max_grad_norm", math.inf)  # off-policy algorithms have none
        if common_clip != math.inf:
            raise UserError(
                f"SB3 would clip policy and encoder together: build the model with max_grad_norm=math.inf, "
                f"got {common_clip}"
            )
        return extractor

    def _measure(self) -> None:
        self.gradient_norms = self.auxiliary.gradient_norms() or self.gradient_norms

    def _log_training(self) -> None:
        for name, value in self.auxiliary.mean_terms().items():
            self.logger.record(f"auxiliary/{name}", value)
        self._log_norms()
        for name, value in self.gradient_norms.items():
            self.logger.record(f"gradients/encoder_from_{name}", value)

    def _log_quality(self) -> None:
        """Of the encoder on fresh frames."""
        for name, value in self.unsupervised.quality().items():
            self.logger.record(name, value)


class ClippingCallback(_GradientCallback):
    """The same measuring, checking and clipping of gradients for policies whose encoder has no loss of its own.

    :param config: its ``policy`` clip counts for all parameters of each optimiser.
    :param period: off-policy, environment steps between two logs.
    """

    def __init__(self, config: ClipConfig | None = None, period: int = 1000) -> None:
        super().__init__(config or ClipConfig(), period)

    def _on_training_start(self) -> None:
        self._install_clippers()

    def _on_rollout_start(self) -> None:
        if self._period_is_over():
            self._log_norms()


_NAME = re.compile(r"[A-Za-z0-9_]{1,60}")
"""Names of losses and of groups of parameters, which become those of columns."""


def _numbers(tree: Tree, name: str) -> None:
    if not _is_named(tree) or not all(type(value) is float for value in tree.values()):
        raise DamagedError(f"'{name}' is no mapping of numbers")


def _lists(tree: Tree, name: str) -> None:
    lists = tree.values() if _is_named(tree) else [None]
    if not all(isinstance(some, list) and all(type(number) is float for number in some) for some in lists):
        raise DamagedError(f"'{name}' is no mapping of lists of numbers")


def _filled_lists(tree: Tree, name: str) -> None:
    """Of which means are taken."""
    _lists(tree, name)
    if not all(tree.values()):
        raise DamagedError(f"'{name}' is no mapping of lists of numbers: one is empty")


def _is_named(tree: Tree) -> bool:
    return isinstance(tree, dict) and all(_NAME.fullmatch(name) for name in tree)


_AUXILIARY = {
    "measure_next": False, "record": _filled_lists, "gradient_norms": _numbers, "frames": require_size,
    "fresh": require_size, "generator": anything,
}  # fmt: skip
