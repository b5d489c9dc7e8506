"""Training of an encoder by its own loss alone, on frames: in warm-up and pretraining, and between rollouts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from agents.buffers import FrameBuffer, Frames, to_tensors


class UnsupervisedTrainer:
    """Frames, the gradient steps on them, and how good the keypoints are on frames that were not trained on.

    Gradient steps use the policy's own optimiser, so that every weight of the encoder has one Adam state; what that
    loss does not reach gets no gradient, so the optimiser leaves it as it is.

    :param policy: with ``features_extractor`` (an AuxiliaryExtractor), ``auxiliary`` and ``encoder_optimizer``.
    :param batch_size: frames per step.
    :param buffer_frames: how many of the latest frames the steps draw from.
    :param seed: of the draws.
    :param quality_frames: on how many frames quality is judged.
    """

    def __init__(
        self,
        policy: torch.nn.Module,
        batch_size: int = 64,
        buffer_frames: int = 10_000,
        seed: int | None = 0,
        quality_frames: int = 128,
    ) -> None:
        self.policy, self.batch_size, self.quality_frames = policy, batch_size, quality_frames
        self.extractor, self.auxiliary = policy.features_extractor, policy.auxiliary
        self.frames = FrameBuffer(buffer_frames, self.extractor.frame_entries)
        self.generator = np.random.default_rng(seed)
        self.fresh = 0

    def add(self, observations: Frames) -> None:
        """Keep the views of a batch of observations.

        :param observations: arrays (N, ...), one row per environment.
        """
        self.frames.add(observations)
        self.fresh += len(observations["images"])

    def forget(self, capacity: int) -> None:
        """Give back the memory of all frames.

        :param capacity: how many frames to keep from now on.
        """
        self.frames = FrameBuffer(capacity, self.frames.keys)
        self.fresh = 0

    def train(
        self,
        steps: int,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Gradient steps on frames drawn from the buffer.

        :param steps: how many.
        :param on_step: told after each step how many of how many are done.
        :param should_stop: asked before each step.
        """
        optimizer = self.policy.encoder_optimizer
        self.policy.set_training_mode(True)
        for step in range(steps):
            if should_stop():
                break
            optimizer.zero_grad(set_to_none=True)
            batch = to_tensors(self.frames.sample(self.batch_size, self.generator), self.policy.device)
            self.auxiliary.loss(self.extractor.terms(batch)).backward()
            optimizer.step()
            on_step(step + 1, steps)
        optimizer.zero_grad(set_to_none=True)
        self.policy.set_training_mode(False)

    def look(self, frames: int = 2000) -> None:
        """Show the extractor once what the task looks like; what it makes of that stays, and losses comparable.

        :param frames: how many of the buffer to look at.
        """
        images = self.frames.sample(min(frames, len(self.frames)), self.generator)["images"]
        self.extractor.look_at(torch.as_tensor(images, device=self.policy.device))

    def fresh_frames(self) -> dict[str, torch.Tensor]:
        """Some of the frames that came since this was last asked, evenly spread; :meth:`train` has drawn none yet."""
        frames = self.frames.last(self.fresh)
        self.fresh = 0
        count = len(frames["images"])
        # Not a fixed stride: one that the number of environments divides would show the same environment each time.
        rows = np.linspace(0, count - 1, min(count, self.quality_frames)).astype(int)
        return to_tensors({key: value[rows] for key, value in frames.items()}, self.policy.device)

    def quality(self) -> dict[str, float]:
        """What the encoder is worth on :meth:`fresh_frames`, by the names of the log."""
        return self.extractor.quality(self.fresh_frames())
