"""Gradients written out by hand, against the chains of operations that they stand for."""

from __future__ import annotations

import pytest
import torch

from kp3d_rl import fused
from kp3d_rl.fused import add_bias, attend, layered_error, seen

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def draws(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attending_is_a_weighted_and_a_plain_mean(layout: torch.memory_format) -> None:
    heat, features = draws((2, 3, 4, 5), (2, 6, 4, 5))
    heat = heat.flatten(2).softmax(-1).view_as(heat).requires_grad_()
    features = features.contiguous(memory_format=layout).requires_grad_()
    attended, mean = attend(heat, features)
    torch.testing.assert_close(attended, torch.einsum("bkhw,bchw->bkc", heat, features))
    torch.testing.assert_close(mean, features.mean((-2, -1)))
    assert torch.autograd.gradcheck(attend, (heat, features))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bias_is_added_to_every_pixel_and_learns_from_all_of_them(layout: torch.memory_format) -> None:
    images, bias = draws((2, 3, 4, 5), (3,))
    leaf, bias = images.clone(memory_format=layout).requires_grad_(), bias.requires_grad_()

    def added(leaf: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return add_bias(leaf.clone(memory_format=torch.preserve_format), bias)  # what it is given, it may overwrite

    torch.testing.assert_close(added(leaf, bias), images + bias.view(1, 3, 1, 1))
    (added(leaf, bias) * images).sum().backward()
    torch.testing.assert_close(leaf.grad, images)
    torch.testing.assert_close(bias.grad, images.sum((0, 2, 3)))


@pytest.mark.parametrize("rows", [1, 100])
def test_the_layered_error_is_that_of_the_composed_view(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CACHED", rows * 2 * 4 * 6 * 5)  # in chunks and at once
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 4, 6, 5, generator=generator, requires_grad=True)
    background = torch.rand(2, 3, 6, 5, generator=generator)
    images = torch.randint(0, 256, (3, 2, 3, 6, 5), generator=generator, dtype=torch.uint8)
    images[:, :, :, :3] = (background[:, :, :3] * 255).round().to(torch.uint8)  # the upper half shows nothing
    weights = 1.0 + torch.rand(2, 6, 5, generator=generator)

    found = layered_error(logits, background, images, weights, threshold=0.1)
    (gradient,) = torch.autograd.grad(3.0 * found, logits)

    colour, opacity = torch.sigmoid(logits[:, :, :3]), torch.sigmoid(logits[:, :, 3:])
    target = images.float() / 255.0
    shows = ((target - background).abs() > 0.1).any(2)
    assert not shows[:, :, :3].any() and shows[:, :, 3:].float().mean() > 0.8
    counted = torch.where(shows, weights, torch.ones_like(weights))
    view = opacity * colour + (1.0 - opacity) * background
    expected = ((view - target) ** 2 * counted[:, :, None]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(3.0 * expected, logits)[0], rtol=1e-4, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(layered_error(logits, background, images, weights, 0.1), found)


def test_half_precision_logits_get_half_precision_gradients_in_their_own_layout() -> None:
    logits = torch.randn(2, 4, 6, 5).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    logits = logits.unsqueeze(1).requires_grad_()
    images = torch.zeros(2, 1, 3, 6, 5, dtype=torch.uint8)
    loss = layered_error(logits, torch.full((1, 3, 6, 5), 0.5), images, torch.ones(1, 6, 5), 0.1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert gradient.stride() == logits.stride()
    exact = logits.detach().float().requires_grad_()
    expected = layered_error(exact, torch.full((1, 3, 6, 5), 0.5), images, torch.ones(1, 6, 5), 0.1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient.float(), torch.autograd.grad(expected, exact)[0], rtol=0.01, atol=1e-6)


def test_mixed_precision_around_it_changes_nothing() -> None:
    heat, features = (values.float().requires_grad_() for values in draws((2, 3, 4, 5), (2, 6, 4, 5)))
    with torch.autocast("cpu", torch.bfloat16):
        attended, _ = attend(heat, features)
    attended.sum().backward()  # where torch wants it: outside
    torch.testing.assert_close(attended, torch.einsum("bkhw,bchw->bkc", heat, features))
    torch.testing.assert_close(heat.grad, features.sum(1, keepdim=True).expand_as(heat))


def test_an_empty_batch_has_no_error_and_no_bias() -> None:
    images = torch.zeros(0, 3, 4, 5).to(memory_format=torch.channels_last)
    assert add_bias(images, torch.ones(3)).shape == (0, 3, 4, 5)
    nothing = torch.zeros(0, 1, 4, 6, 5)
    loss = layered_error(nothing, torch.zeros(1, 3, 6, 5), torch.zeros(0, 1, 3, 6, 5), torch.ones(1, 6, 5), 0.1)
    assert loss.shape == ()


def test_a_pixel_shows_something_where_any_channel_differs() -> None:
    background = torch.full((3, 1, 4), 0.5)
    image = background.clone()
    image[1, 0, 1] += 0.2
    image[:, 0, 2] += 0.05
    assert seen(image, background, 0.1).tolist() == [[False, True, False, False]]
