"""Building blocks of networks against torch's own."""

import pytest
import torch
from torch import nn

from kp3d_rl import networks
from kp3d_rl.networks import GroupNorm, to_input


def test_group_norm_is_torchs_whatever_the_precision():
    torch.manual_seed(0)
    ours, theirs = GroupNorm(4, 8), nn.GroupNorm(4, 8)
    images = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(images), theirs(images))
    half = ours(images.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, theirs(images), atol=0.03, rtol=0.03)


def test_images_become_input_from_minus_one_to_one():
    images = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    torch.testing.assert_close(to_input(images), torch.tensor([[[[-1.0]], [[1.0]], [[-0.6]]]]))


@pytest.mark.parametrize(
    ("tiles", "vectors", "vendor", "faster"),
    [
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),
        (False, True, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_bfloat16_is_taken_where_it_was_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, vectors: bool, vendor: str, faster: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors, raising=False)
    monkeypatch.setattr(networks, "_cpu_vendor", lambda: vendor)
    assert networks.computes_in_bfloat16.__wrapped__("cpu") == faster
