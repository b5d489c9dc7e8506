"""Building blocks of networks against torch's own."""

import torch
from torch import nn

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
