"""The encoders that keypoints are compared with: pixels, RAD, DrQ-v2 and CURL, and a plain autoencoder.

All of them see the same views and ``proprio``, none the cameras. Sources:

- pixels: Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015, as SB3's NatureCNN.
- RAD: Laskin et al., "Reinforcement Learning with Augmented Data", NeurIPS 2020.
- DrQ-v2: Yarats et al., "Mastering Visual Continuous Control: Improved Data-Augmented Reinforcement Learning", 2021.
- CURL: Laskin, Srinivas, Abbeel, "Contrastive Unsupervised Representations for Reinforcement Learning", ICML 2020.
- autoencoder: the networks of the keypoint encoder around a bottleneck of numbers (:mod:`kp3d_rl.autoencoder`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from agents.extractors import (
    AuxiliaryExtractor,
    KeypointExtractor,
    Observation,
    ViewExtractor,
    each_instant,
    frame_stack,
    stacked,
    with_changes,
    with_proprio,
)
from agents.scene import Scene
from agents.seam import Terms, scale_gradient
from envs.errors import UserError
from kp3d_rl.augmentation import centre_crop, random_crop, random_shift
from kp3d_rl.autoencoder import Autoencoder
from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig, to_network_layout
from kp3d_rl.networks import Precision, convolve_in
from kp3d_rl.reconstruction import reconstruction_quality, views_to_decode

CROP = 0.84
"""Share of a view's height and width that a random crop keeps: 84 of 100 pixels in RAD and CURL, 108 of 128 in
Keypoint3D's baseline."""
SHIFT = 4 / 84
"""Share of a view's side by which DrQ-v2 shifts at most."""
NORMALISED_FEATURES = 50
"""Of DrQ-v2's and CURL's encoders."""
MOMENTUM = 0.975
"""What CURL's key encoder keeps of itself in a step: the original's 0.95 in every second one."""


class PixelExtractor(ViewExtractor):
    """One convolutional network over all views, stacked on channels, and ``proprio``.

    :param observation_space: Dict with ``images`` and optionally ``proprio``.
    :param features: size of the image features.
    :param random_shift: pixels by which off-policy training shifts the views, as in DrQ (:mod:`kp3d_rl.augmentation`).
    :param precision: of the convolutions, as with keypoints.
    :raises UserError: for views that are too small for the layers.
    """

    least, least_of = 36, "views"

    def __init__(
        self,
        observation_space: gym.spaces.Dict,
        features: int = 256,
        random_shift: int = 0,
        precision: Precision = "auto",
    ) -> None:
        views, *size = observation_space["images"].shape[:3]
        proprio = observation_space.spaces.get("proprio")
        super().__init__(observation_space, features + (proprio.shape[0] if proprio else 0))
        views *= frame_stack(observation_space)
        self.views, self.random_shift, self.precision = views, random_shift, precision
        height, width = self.input_size(*size)
        if min(height, width) < self.least:
            least = f"{self.least_of} of at least {self.least} x {self.least} pixels"
            raise UserError(f"the encoder's layers need {least}, got {height} x {width}")
        self.cnn = self.layers(3 * views)
        with torch.no_grad():
            flat = self.cnn(torch.zeros(1, 3 * views, height, width)).shape[1]
        self.linear = self.head(flat, features)

    def layers(self, channels: int) -> nn.Sequential:
        """The convolutions, (B, channels, h, w) to (B, flat)."""
        return nn.Sequential(
            nn.Conv2d(channels, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(),
            nn.Flatten(),
        )

    def head(self, flat: int, features: int) -> nn.Sequential:
        """From what the convolutions found to the features, (B, flat) to (B, features)."""
        return nn.Sequential(nn.Linear(flat, features), nn.ReLU())

    def encode(self, observations: Observation, augment: bool = False) -> tuple[Tensor, Any]:
        """Features of the views, and ``proprio``.

        :param observations: as in :meth:`forward`; poses, where cameras move, are ignored: there is no geometry here.
        :param augment: see :meth:`ViewExtractor.encode`.
        :return: (B, features_dim), and nothing.
        """
        seen = self.see(self.prepare(stacked(observations), augment))
        with convolve_in(self.precision, seen.device):
            found = self.cnn(seen)
        return with_proprio(self.linear(found.float()), observations), None

    @contextlib.contextmanager
    def in_precision(self, precision: Precision) -> Iterator[None]:
        """See :meth:`ViewExtractor.in_precision`."""
        before, self.precision = self.precision, precision
        try:
            yield
        finally:
            self.precision = before

    def see(self, images: Tensor) -> Tensor:
        """Views (B, V, h, w, 3 S) uint8 as the layers take them: (B, 3 S V, h, w) in [0, 1]."""
        return on_channels(images)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Of what the layers see of views of (height, width) pixels."""
        return height, width

    def prepare(self, images: Tensor, augment: bool) -> Tensor:
        """What the layers are to see, (B, V, h, w, 3 S) of views (B, V, H, W, 3 S)."""
        return random_shift(images, self.random_shift)[0] if augment and self.random_shift else images


class RADExtractor(PixelExtractor):
    """The same on crops: in gradient steps each view of each sample at its own random place, else in the middle.

    As the baseline of Keypoint3D's paper has it: with PPO, too, the crops of an update are not those of the rollout.
    """

    least_of = "crops"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The original's share of the views."""
        return crop_size(height, width)

    def prepare(self, images: Tensor, augment: bool) -> Tensor:
        """Crops: random ones where gradients are wanted of a batch."""
        size = self.input_size(*images.shape[2:4])
        trains = self.training and torch.is_grad_enabled()
        return random_crop(images, *size) if augment or trains else centre_crop(images, *size)


class DrQExtractor(PixelExtractor):
    """DrQ-v2's encoder on views that are shifted at random in gradient steps, for off-policy training.

    Four convolutions of 3 x 3, and a projection with layer norm and tanh. "Style", since the learner is SB3's SAC or
    TQC, with one-step returns and one projection for actor and critics, which the critics train.

    :param observation_space: Dict with ``images`` and optionally ``proprio``.
    :param random_shift: pixels; 0 is the original's share of the views, 4 of 84.
    :param precision: of the convolutions.
    """

    least = 12

    def __init__(
        self, observation_space: gym.spaces.Dict, random_shift: int = 0, precision: Precision = "auto"
    ) -> None:
        side = max(observation_space["images"].shape[1:3])
        super().__init__(observation_space, NORMALISED_FEATURES, random_shift or round(SHIFT * side), precision)

    def layers(self, channels: int) -> nn.Sequential:
        """The original's convolutions."""
        return convolutions(channels)

    def head(self, flat: int, features: int) -> nn.Sequential:
        """The original's projection, each feature between -1 and 1."""
        return nn.Sequential(*projection(flat, features), nn.Tanh())

    def see(self, images: Tensor) -> Tensor:
        """Around 0, as the original."""
        return super().see(images) - 0.5


class CURLExtractor(AuxiliaryExtractor):
    """CURL: features of a random crop must tell its own sample's other crop from all other samples' crops.

    The layers are those of :class:`DrQExtractor` but for the tanh (the original's ``output_logits``) and for pixels
    from 0 to 1; the keys are encoded by a copy that follows them slowly. Scores are bilinear, the loss is the
    cross-entropy over the batch. Acting sees the middle of the views. Unlike the original, the loss is added to the
    critic's and goes through the same optimiser, next observations are encoded by the encoder itself and not by the one
    of the keys, each view is cut at a place of its own, one instant is seen and not three, and before the policy learns
    the encoder is warmed up like the other ones that have a loss.

    :param observation_space: Dict with ``images`` and optionally ``proprio``.
    :param scene: as of every extractor with a loss of its own; it is not used.
    :param config: of which only the precision of convolutions is used.
    :param policy_gradient_scale: share of the critic's gradient that reaches the encoder.
    """

    log_prefix = "curl"

    def __init__(
        self,
        observation_space: gym.spaces.Dict,
        scene: Scene,
        config: Keypoint3DConfig,
        policy_gradient_scale: float = 1.0,
    ) -> None:
        super().__init__(observation_space, NORMALISED_FEATURES, policy_gradient_scale)
        views, *size = observation_space["images"].shape[:3]
        channels = 3 * views * frame_stack(observation_space)
        self.size = crop_size(*size)
        if min(self.size) < 12:
            raise UserError(f"CURL's layers need crops of at least 12 x 12 pixels, got {self.size[0]} x {self.size[1]}")
        self.precision: Precision = config.precision
        trunk = convolutions(channels)
        with torch.no_grad():
            flat = trunk(torch.zeros(1, channels, *self.size)).shape[1]
        self.encoder = nn.ModuleList([trunk, projection(flat, NORMALISED_FEATURES)])
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.similarity = nn.Parameter(torch.rand(NORMALISED_FEATURES, NORMALISED_FEATURES))

    @property
    def frame_entries(self) -> tuple[str, ...]:
        """Crops of all instants are contrasted."""
        return tuple(name for name in ("images", "previous") if name in self._observation_space.spaces)

    def encode(self, observations: Observation, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Features of the views, and ``proprio``.

        :param observations: as in :meth:`forward`; poses are ignored.
        :param augment: whether crops are random.
        :return: (B, features_dim), and the views' (B, 50) with the whole gradient.
        """
        anchors = self._run(self.encoder, self._crops(stacked(observations), augment))
        return with_proprio(scale_gradient(anchors, self.policy_gradient_scale), observations), anchors

    def terms(self, observations: Observation, found: Tensor | None = None) -> dict[str, Tensor]:
        """The contrast of a batch with other crops of itself; the key encoder follows by a step.

        :param observations: with ``images``.
        :param found: features of random crops of them, if known.
        :return: ``contrast``.
        """
        if torch.is_grad_enabled():
            self._follow()
        return {"contrast": nn.functional.cross_entropy(*self.scores(stacked(observations), found))}

    def scores(self, images: Tensor, anchors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """How alike each sample's crop is to another crop of each sample.

        :param images: (B, V, H, W, 3 S) uint8.
        :param anchors: (B, 50) features of crops, if known.
        :return: (B, B) logits, and which one of each row is right.
        """
        anchors = self._run(self.encoder, self._crops(images, True)) if anchors is None else anchors
        with torch.no_grad():
            keys = self._run(self.key_encoder, self._crops(images, True))
        return anchors @ self.similarity @ keys.T, torch.arange(len(images), device=images.device)

    def total(self, terms: Terms) -> Tensor:
        """The contrast."""
        return terms["contrast"]

    @torch.no_grad()
    def quality(self, observations: Observation) -> dict[str, float]:
        """How many samples are told from all others of the batch.

        :param observations: ``images`` (N, V, H, W, 3), and ``previous`` where frames are stacked, not trained on.
        """
        logits, right = self.scores(stacked(observations))
        return {"curl/recognised": float((logits.argmax(1) == right).float().mean())}

    in_precision = PixelExtractor.in_precision

    def _run(self, encoder: nn.ModuleList, crops: Tensor) -> Tensor:
        convolve, project = encoder
        with convolve_in(self.precision, crops.device):
            found = convolve(crops)
        return project(found.float())

    def _crops(self, images: Tensor, random: bool) -> Tensor:
        crops = random_crop(images, *self.size) if random else centre_crop(images, *self.size)
        return on_channels(crops)

    @torch.no_grad()
    def _follow(self) -> None:
        pairs = zip(self.key_encoder.parameters(), self.encoder.parameters(), strict=True)
        for key, query in pairs:
            key.lerp_(query, 1.0 - MOMENTUM)


class AutoencoderExtractor(AuxiliaryExtractor):
    """A plain autoencoder with as many numbers in its bottleneck as the keypoints would have.

    Convolutions, decoder, background and weights of pixels are those of the keypoint encoder with the same options.

    :param observation_space: Dict with ``images`` and optionally ``proprio``.
    :param scene: the environment's cameras, of which sizes and background are used.
    :param config: options of the keypoint encoder that it stands in for.
    :param policy_gradient_scale: share of the policy's gradient that reaches the encoder.
    """

    log_prefix = "autoencoder"

    def __init__(
        self,
        observation_space: gym.spaces.Dict,
        scene: Scene,
        config: Keypoint3DConfig,
        policy_gradient_scale: float = 1.0,
    ) -> None:
        latent = 4 * config.keypoints
        super().__init__(observation_space, frame_stack(observation_space) * latent, policy_gradient_scale)
        like = Keypoint3D(config, scene.rig, scene.workspace)
        self.encoder = Autoencoder(like, latent, scene.background_tensor())

    def encode(self, observations: Observation, augment: bool = False) -> tuple[Tensor, Tensor]:
        """The bottleneck, and ``proprio``.

        :param observations: as in :meth:`forward`; poses are ignored.
        :param augment: changes nothing: there are no shifts here.
        :return: (B, features_dim), and the bottleneck (B, 4 K) with the whole gradient.
        """
        count = frame_stack(self._observation_space)
        latent = self.encoder.encode(each_instant(stacked(observations)))
        features = scale_gradient(with_changes(latent, count), self.policy_gradient_scale)
        return with_proprio(features, observations), latent[::count]

    def terms(self, observations: Observation, found: Tensor | None = None) -> dict[str, Tensor]:
        """The reconstruction of a batch.

        :param observations: with ``images``.
        :param found: the bottleneck, if known.
        :return: ``reconstruction``.
        """
        images, encoder = observations["images"], self.encoder
        latent = encoder.encode(images) if found is None else found
        views = views_to_decode(encoder.config.decoded_views, encoder.num_views, images.device)
        planes, maps = images.permute(0, 1, 4, 2, 3), encoder.maps(latent)[:, views]
        foreground = encoder.decoder.foreground(planes)[:, views]
        return {"reconstruction": encoder.decoder.error(maps, planes[:, views], views, foreground)}

    def total(self, terms: Terms) -> Tensor:
        """The reconstruction, at the weight that it has beside keypoints."""
        return self.encoder.config.loss.reconstruction * terms["reconstruction"]

    in_precision = KeypointExtractor.in_precision

    @property
    def has_looked(self) -> bool:
        """Whether pixels have their weights."""
        return self.encoder.decoder.has_looked

    def look_at(self, images: Tensor) -> None:
        """Tell the decoder how much each pixel varies.

        :param images: (N, V, H, W, 3) uint8 frames of many instants.
        """
        self.encoder.decoder.weigh_pixels(images)

    @torch.no_grad()
    def quality(self, observations: Observation) -> dict[str, float]:
        """Reconstruction against the frames' mean image.

        :param observations: ``images`` (N, V, H, W, 3) that were not trained on.
        """
        images, encoder = observations["images"], self.encoder
        drawn = encoder(encoder.encode(images), torch.arange(encoder.num_views, device=images.device))
        return reconstruction_quality(drawn, images, self.log_prefix)


def on_channels(images: Tensor) -> Tensor:
    """Views of all instants (B, V, h, w, 3 S) uint8 as (B, 3 S V, h, w) in [0, 1]."""
    views = images.shape[1] * (images.shape[-1] // 3)
    return to_network_layout(each_instant(images)).unflatten(0, (-1, views)).flatten(1, 2)


def crop_size(height: int, width: int) -> tuple[int, int]:
    """Of a random crop of views of (height, width) pixels."""
    return round(CROP * height), round(CROP * width)


def convolutions(channels: int) -> nn.Sequential:
    """DrQ-v2's and CURL's, (B, channels, h, w) to (B, flat)."""
    layers: list[nn.Module] = []
    for number, stride in enumerate((2, 1, 1, 1)):
        layers += [nn.Conv2d(32 if number else channels, 32, 3, stride), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def projection(flat: int, features: int) -> nn.Sequential:
    """CURL's, and DrQ-v2's before its tanh, (B, flat) to (B, features)."""
    return nn.Sequential(nn.Linear(flat, features), nn.LayerNorm(features))
