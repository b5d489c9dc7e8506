"""What a run does beside learning: progress, evaluations, checkpoints; and how it is stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from experiments.judging.evaluation import PERIODIC_SEED, Evaluation, evaluate
from kp3d_rl.storage.trees import Tree, require_like, require_size


class Interrupted(KeyboardInterrupt):
    """A second signal.

    :param exit_code: that a shell expects of a process that the first signal ended.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


class StopRequest:
    """A first SIGINT or SIGTERM asks training to stop where it can go on later; a second one interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals inside the block; only the main thread may."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            raise Interrupted(self.exit_code)
        self.signal = number
        said = f"\n{signal.Signals(number).name}: stopping where the run can go on later (once more: at once)\n"
        os.write(2, said.encode())  # print may be at work itself when the signal comes

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended; 0 without one."""
        return 0 if self.signal is None else 128 + self.signal


class Every(BaseCallback):
    """Calls ``action`` whenever another ``interval`` environment steps have passed; an interval of 0 never does.

    Attributes: ``acted``, the environment step at which it last did, here and not before a training went on.
    """

    def __init__(self, interval: int, action: Callable[[BaseAlgorithm], None]) -> None:
        super().__init__()
        self.interval, self.action = interval, action
        self.due, self.acted = interval, -1

    def state(self) -> dict[str, Tree]:
        """When it is due."""
        return {"due": self.due}

    def load_state(self, state: dict[str, Tree]) -> None:
        """Undo :meth:`state`.

        :raises DamagedError: for a state of another form.
        """
        require_like(state, {"due": require_size}, "due")
        self.due = state["due"]

    def _on_rollout_end(self) -> None:
        if self.interval and self.num_timesteps >= self.due:
            self.due = (self.num_timesteps // self.interval + 1) * self.interval
            self.acted = self.num_timesteps
            self.action(self.model)

    def _on_step(self) -> bool:
        return True


class Evaluator:
    """The periodic evaluation: deterministic, on its own seeds, by the same function as ``evaluate``.

    :param make: makes one environment.
    :param episodes: per evaluation.
    """

    def __init__(self, make: Callable[[], gym.Env], episodes: int) -> None:
        self.make, self.episodes = make, episodes
        self.envs: Sequence[gym.Env] = ()
        self.last: Evaluation | None = None
        self.defines_success = False

    def __call__(self, model: BaseAlgorithm) -> None:
        """Evaluate and put the numbers into the model's log."""
        if not self.envs:
            self.envs = [self.make() for _ in range(min(10, self.episodes))]
        seeds = range(PERIODIC_SEED, PERIODIC_SEED + self.episodes)
        result = evaluate(lambda obs: model.policy.predict(obs, deterministic=True)[0], self.envs, seeds)
        self.last = result
        self.defines_success = bool(self.envs[0].get_wrapper_attr("defines_success"))  # foreign: known after a step
        if not hasattr(self.envs[0].unwrapped, "save_state"):
            self.close()  # a foreign task may carry something from episode to episode, which no checkpoint has
        model.logger.record("evaluation/success_at_end", result.rate("success_at_end"))
        model.logger.record("evaluation/success_once", result.rate("success_once"))
        model.logger.record("evaluation/return", result.mean_return())

    def describe(self) -> str:
        """The last evaluation in a few words: success where there is such a thing, else the return."""
        if self.last is None:
            return "none yet"
        if self.defines_success:
            return f"{100 * self.last.rate():.0f} % of {len(self.last.episodes)} episodes end in success"
        return f"return {self.last.mean_return():.1f}"

    def close(self) -> None:
        """Close the evaluation's environments."""
        for env in self.envs:
            env.close()
        self.envs = ()


class Rows(BaseCallback):
    """Writes the rows of numbers: of PPO one for each rollout, of SAC and TQC one in so many steps, and one for each
    evaluation.

    SB3 would count anew in a training that goes on, and off-policy it would count episodes, which may be so long that
    evaluations are overwritten before they are written. To be listed last: a row holds what the others have logged.

    :param interval: environment steps between two rows; 0: one for each rollout.
    :param evaluations: what evaluates, listed before; the next one would overwrite its numbers.
    """

    def __init__(self, interval: int, evaluations: Every) -> None:
        super().__init__()
        self.interval, self.evaluations, self.due, self.iterations = interval, evaluations, interval, 0

    def state(self) -> dict[str, Tree]:
        """When the next row is due, and how many there were."""
        return {"due": self.due, "iterations": self.iterations}

    def load_state(self, state: dict[str, Tree]) -> None:
        """Undo :meth:`state`.

        :raises DamagedError: for a state of another form.
        """
        require_like(state, {"due": require_size, "iterations": require_size}, "rows")
        self.due, self.iterations = state["due"], state["iterations"]

    def _on_rollout_end(self) -> None:
        if self.interval and self.num_timesteps < self.due and self.evaluations.acted != self.num_timesteps:
            return
        self.iterations += 1
        if self.interval:
            self.due = (self.num_timesteps // self.interval + 1) * self.interval
            self.model.dump_logs()
        else:
            self.model.dump_logs(self.iterations)

    def _on_step(self) -> bool:
        return True


class ProgressCallback(BaseCallback):
    """A progress bar on a terminal, a plain line now and then elsewhere.

    :param total: environment steps of the run.
    :param evaluator: whose latest success is shown.
    :param seconds: between plain lines.
    """

    def __init__(self, total: int, evaluator: Evaluator, seconds: float = 15.0) -> None:
        super().__init__()
        self.total, self.evaluator, self.seconds = total, evaluator, seconds
        self.bar: tqdm | None = None

    def _on_training_start(self) -> None:
        self.started = self.printed = time.monotonic()
        self.first = self.model.num_timesteps
        if sys.stderr.isatty():
            # Not from 0: the steps of the warm-up would count as done at once, and the speed be wrong for long.
            self.bar = tqdm(total=self.total, initial=self.first, unit="step", dynamic_ncols=True, smoothing=0.05)

    def _on_step(self) -> bool:
        if self.bar is not None:
            self.bar.update(min(self.num_timesteps, self.total) - self.bar.n)
        return True

    def _on_rollout_end(self) -> None:
        pool = getattr(self.training_env.unwrapped, "workers", None)
        if pool is not None:
            self.logger.record("time/worker_deaths", pool.deaths)
        parts = self._numbers()
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(parts))
        elif time.monotonic() - self.printed > self.seconds:
            self.printed = time.monotonic()
            speed = (self.num_timesteps - self.first) / (self.printed - self.started)
            steps = f"step {self.num_timesteps:>8} / {self.total}  {speed:6.0f} steps/s"
            print("  ".join([steps, *parts]), flush=True)

    def _on_training_end(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _numbers(self) -> list[str]:
        """Success of the training episodes and of the last evaluation, reconstruction against the mean image."""
        parts = []
        if self.model.ep_success_buffer and self.training_env.get_attr("defines_success", [0])[0]:
            parts.append(f"success {100 * np.mean(self.model.ep_success_buffer):3.0f} %")
        if self.evaluator.last is not None:
            parts.append(f"evaluation: {self.evaluator.describe()}")
        values = self.logger.name_to_value
        if "keypoints/reconstruction_ratio" in values:
            parts.append(f"reconstruction {values['keypoints/reconstruction_ratio']:.2f} of mean image")
        if "keypoints/view_disagreement_cm" in values:
            parts.append(f"views {values['keypoints/view_disagreement_cm']:.1f} cm apart")
        return parts
