"""The plain autoencoder that keypoints are compared with: the same networks around a bottleneck without geometry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kp3d_rl.keypoint3d import Keypoint3D, to_network_layout
from kp3d_rl.networks import LAYERS, ViewEncoder, convolve_in
from kp3d_rl.reconstruction import KeypointDecoder, views_to_decode


class Autoencoder(nn.Module):
    """All views of an instant to a vector of numbers, and back.

    The convolutions, the decoder, its background and the weights of pixels are those of the keypoint encoder that it is
    compared with; a linear layer from the features of all views to the latent, and one from there to the maps that the
    decoder draws from, stand in place of heat maps, depths, cameras and Gaussians.

    :param encoder: whose options, rig and sizes to take; not owned.
    :param latent: numbers in the bottleneck, for all views together.
    :param background: (V, H, W, 3) uint8 as of :class:`~kp3d_rl.reconstruction.KeypointDecoder`, or None.
    """

    def __init__(self, encoder: Keypoint3D, latent: int, background: Tensor | None = None) -> None:
        super().__init__()
        self.config = config = encoder.config
        self.num_views = encoder.num_views
        networks = 1 if config.view_weights == "shared" else encoder.num_views
        self.trunks = nn.ModuleList(
            ViewEncoder(config.keypoints, config.width, LAYERS[config.layers]).trunk for _ in range(networks)
        )
        self.decoder = KeypointDecoder(encoder, background)
        self.cells = (encoder.rows.cells, encoder.columns.cells)
        area = self.cells[0] * self.cells[1]
        features = self.trunks[0][-2].out_channels * area
        self.to_latent = nn.Linear(encoder.num_views * features, latent)
        self.from_latent = nn.Linear(latent, encoder.num_views * config.keypoints * area)

    def encode(self, images: Tensor) -> Tensor:
        """Views to the bottleneck.

        :param images: (B, V, H, W, 3) uint8.
        :return: (B, latent).
        """
        pixels = (to_network_layout(images) * 2.0 - 1.0).unflatten(0, (-1, self.num_views))
        with convolve_in(self.config.precision, images.device):
            if len(self.trunks) == 1:
                features = self.trunks[0](pixels.flatten(0, 1)).unflatten(0, (-1, self.num_views))
            else:
                features = torch.stack([trunk(pixels[:, view]) for view, trunk in enumerate(self.trunks)], 1)
        return self.to_latent(features.float().flatten(1))

    def forward(self, latent: Tensor, views: Tensor) -> Tensor:
        """Draw some of the views.

        :param latent: (B, latent).
        :param views: (n,) their indices.
        :return: (B, n, 3, H, W) in [0, 1].
        """
        return self.decoder.draw(self.maps(latent)[:, views], views)

    def maps(self, latent: Tensor) -> Tensor:
        """What the decoder reads of each view.

        :param latent: (B, latent).
        :return: (B, V, K, h, w) at the resolution of the heat maps.
        """
        return self.from_latent(latent).unflatten(1, (self.num_views, self.config.keypoints, *self.cells))


def train_autoencoder(
    autoencoder: Autoencoder,
    images: Tensor,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1.2e-3,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Minimise the reconstruction loss with Adam, whose rate falls linearly to a tenth.

    :param autoencoder: trained in place.
    :param images: (N, V, H, W, 3) uint8, on any device.
    :param steps: gradient steps.
    :param batch_size: frames per step.
    :param learning_rate: at the start.
    :param seed: of the frames that are drawn.
    :param on_step: told after each step how many of how many are done.
    """
    decoder, generator = autoencoder.decoder, torch.Generator().manual_seed(seed)
    device = autoencoder.to_latent.weight.device
    decoder.weigh_pixels(images)
    optimizer = torch.optim.Adam(autoencoder.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, max(steps, 1))
    for step in range(steps):
        rows = torch.randint(len(images), (batch_size,), generator=generator).to(images.device)
        batch = images[rows].to(device)
        views = views_to_decode(autoencoder.config.decoded_views, autoencoder.num_views, device)
        maps, planes = autoencoder.maps(autoencoder.encode(batch))[:, views], batch.permute(0, 1, 4, 2, 3)
        optimizer.zero_grad(set_to_none=True)
        decoder.error(maps, planes[:, views], views, decoder.foreground(planes)[:, views]).backward()
        optimizer.step()
        schedule.step()
        on_step(step + 1, steps)
