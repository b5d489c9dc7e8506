"""How a detector is trained: on labelled images that are turned, scaled, moved and recoloured at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kp3d_rl.augmentation import AffineChange
from kp3d_rl.bootstrapping.detector import KeypointDetector
from kp3d_rl.gradient_training import GradientTraining
from kp3d_rl.networks import to_input
from kp3d_rl.options import bounded, check_options


@dataclass(frozen=True)
class LabelledImages:
    """Images and where their keypoints are.

    :param images: (N, H, W, 3) uint8.
    :param uv: (N, K, 2) pixels; NaN where a keypoint has no label.
    """

    images: Tensor
    uv: Tensor

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.uv.dim() != 3 or len(self.images) != len(self.uv):
            shapes = f"{tuple(self.images.shape)} and {tuple(self.uv.shape)}"
            raise ValueError(f"labelled images must be (N, H, W, 3) with labels (N, K, 2), not {shapes}")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class AugmentationConfig:
    """How much images are changed: by default little, for thousands of images of many views.

    :param turn: degrees in the image plane, at most, either way.
    :param scale: factor, at most, either way.
    :param shift: share of the image's side, at most, either way.
    :param colour: how much brightness, contrast and the colours' balance change; 0 is not at all.
    :param erase: share of the image's side, at most, of a rectangle that something in one colour hides; the labels
        stay.
    """

    turn: float = bounded(15.0, least=0, most=180)
    scale: float = bounded(1.15, least=1, most=10)
    shift: float = bounded(0.06, least=0, most=1)
    colour: float = bounded(0.25, least=0, most=1)
    erase: float = bounded(0.25, least=0, most=1)

    def __post_init__(self) -> None:
        check_options(self, "augmentation")


STRONG = AugmentationConfig(turn=30.0, scale=1.3, shift=0.1, colour=0.4, erase=0.4)
"""For images that are few or much alike."""


@dataclass(frozen=True)
class DetectorTrainingConfig:
    """How a detector is trained.

    :param steps: gradient steps.
    :param batch_size: images of each.
    :param learning_rate: of Muon, at the start; it falls to nothing along a cosine.
    :param augmentation: of the images.
    """

    steps: int = bounded(2700, least=1, most=10_000_000)
    batch_size: int = bounded(32, least=2, most=4096)
    learning_rate: float = bounded(0.02, above=0, most=1)
    augmentation: AugmentationConfig = AugmentationConfig()

    def __post_init__(self) -> None:
        check_options(self, "training")


class DetectorTraining(GradientTraining):
    """The gradient steps on a detector.

    :param detector: that learns.
    :param parts: sets of labelled images, all of which are drawn alike: the paper trains on the first labels and the
        round's together.
    :param config: how.
    :param seed: of batches and augmentation: with the same one a training is the same again.
    """

    def __init__(
        self, detector: KeypointDetector, parts: list[LabelledImages], config: DetectorTrainingConfig, seed: int
    ) -> None:
        super().__init__(detector, config.steps, config.learning_rate, seed)
        self.detector, self.config = detector, config
        self.sets = [part for part in parts if len(part)]
        if not self.sets:
            raise ValueError("there is no labelled image to train on")

    def batch_loss(self) -> Tensor:
        """See :meth:`GradientTraining.batch_loss`."""
        return map_loss(self.detector, *self._batch())

    def _batch(self) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] and (B, K, 2), augmented."""
        drawn = torch.randint(sum(map(len, self.sets)), (self.config.batch_size,), generator=self.generator)
        images, labels, start = [], [], 0
        for part in self.sets:
            rows = drawn[(drawn >= start) & (drawn < start + len(part))] - start
            images.append(part.images[rows])
            labels.append(part.uv[rows])
            start += len(part)
        device = next(self.detector.parameters()).device
        changed, uv = augment(to_input(torch.cat(images)), torch.cat(labels), self.config.augmentation, self.generator)
        return changed.to(device), uv.to(device)


def map_loss(detector: KeypointDetector, images: Tensor, uv: Tensor) -> Tensor:
    """How far the maps are from what they should be, for those keypoints that have a label: mean relative entropy.

    :param detector: to be trained.
    :param images: (B, 3, H, W) in [-1, 1].
    :param uv: (B, K, 2) pixels, NaN where there is no label; beyond the image the right answer is nowhere.
    :return: nats, 0 where all maps are right.
    """
    known = uv.isfinite().all(-1)
    wanted = detector.targets(torch.where(known.unsqueeze(-1), uv, 0.0), *images.shape[-2:]).flatten(2)
    logits, nowhere = detector.logits(images)
    said = torch.cat([logits.flatten(2), nowhere], -1).log_softmax(-1)
    wanted = torch.cat([wanted, (1.0 - wanted.sum(-1, keepdim=True)).clamp(min=0.0)], -1)
    error = (torch.xlogy(wanted, wanted) - wanted * said).sum(-1)
    return (error * known).sum() / known.sum().clamp(min=1)


def augment(
    images: Tensor, uv: Tensor, config: AugmentationConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images turned, scaled, moved and recoloured, and their labels with them.

    :param images: (B, 3, H, W) in [-1, 1].
    :param uv: (B, K, 2) pixels.
    :param config: how much.
    :param generator: to draw from.
    :return: of the same shapes; labels may come to lie beyond the image.
    """
    count, _, height, width = images.shape
    change = AffineChange.drawn((count, height, width), config.turn, config.scale, config.shift, generator)
    warped, moved = change.images(images), change.points(uv, height, width)

    def uniform(*shape: int) -> Tensor:
        return 2.0 * torch.rand(count, *shape, generator=generator) - 1.0

    contrast, tint = 1.0 + config.colour * uniform(1, 1, 1), config.colour * uniform(3, 1, 1)
    if config.erase:
        warped = _erase(warped, config.erase, uniform)
    recoloured = (warped * contrast * (1.0 + 0.5 * config.colour * uniform(3, 1, 1)) + 0.5 * tint).clamp(-1.0, 1.0)
    return recoloured.contiguous(memory_format=torch.channels_last), moved


def _erase(images: Tensor, most: float, uniform: Callable[..., Tensor]) -> Tensor:
    """Images (B, 3, H, W) each with one rectangle in a colour of its own."""
    half = 0.25 * most * (1.0 + uniform(2))
    middle, colour = 0.5 + 0.5 * uniform(2), uniform(3)[:, :, None, None]
    sides = images.shape[-2:]
    rows, columns = ((torch.arange(side) + 0.5) / side for side in sides)
    inside = ((rows - middle[:, :1]).abs() < half[:, :1])[:, None, :, None] & (
        ((columns - middle[:, 1:]).abs() < half[:, 1:])[:, None, None, :]
    )
    return torch.where(inside, colour, images)
