"""Muon on convolutions against singular values, Adam itself, and itself in another layout or from a saved state."""

import pytest
import torch
from torch import Tensor, nn

from kp3d_rl.optimizers import MATRIX_SHARE, ConvolutionMuon

RATE = 0.03


def network(layout: torch.memory_format = torch.contiguous_format) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 24, 3), nn.Tanh(), nn.Conv2d(24, 6, 3), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(6, 2, 1)).to(memory_format=layout)


def learn(net: nn.Module, optimizer: ConvolutionMuon, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, wanted = torch.randn(4, 3, 9, 9, generator=generator), torch.randn(4, 2, 3, 3, generator=generator)
    optimizer.zero_grad()
    (net(images) - wanted).square().mean().backward()
    optimizer.step()


def kernels(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def test_kernels_step_by_their_orthogonal_momentum_and_all_else_by_adam() -> None:
    net, other = network(), network()
    before, optimizer = kernels(net), ConvolutionMuon(net, RATE)
    learn(net, optimizer, 0)
    gradients = {name: value.grad for name, value in net.named_parameters()}
    for name, value in other.named_parameters():
        value.grad = gradients[name].clone()
    torch.optim.Adam(other.parameters(), RATE / MATRIX_SHARE).step()
    by_adam = kernels(other)
    for name, after in kernels(net).items():
        if name not in ("2.weight", "4.weight"):
            torch.testing.assert_close(after, by_adam[name])
            continue
        step = (before[name] - after).flatten(1) / RATE
        u, _, v = torch.linalg.svd(gradients[name].flatten(1).double(), full_matrices=False)
        rows, columns = step.shape
        sizes = torch.linalg.svdvals(step) / max(1.0, rows / columns) ** 0.5
        assert 0.5 < sizes.min() and sizes.max() < 1.3, "all directions by about the same length"
        assert torch.nn.functional.cosine_similarity(step.flatten().double(), (u @ v).flatten(), 0) > 0.95


def test_the_memory_format_makes_no_difference() -> None:
    nets = [network(), network(torch.channels_last)]
    optimizers = [ConvolutionMuon(net, RATE) for net in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        learn(net, optimizer, 0)
    for (name, plain), (_, last) in zip(*(net.named_parameters() for net in nets), strict=True):
        torch.testing.assert_close(plain, last, atol=0.03 * RATE, rtol=0.05, msg=name)  # sums in bfloat16, other orders


def test_the_rate_can_be_changed_and_is_kept_in_proportion() -> None:
    steps = []
    for rate in (RATE, 0.1 * RATE):
        net = network()
        before, optimizer = kernels(net), ConvolutionMuon(net, RATE)
        optimizer.set_rate(rate)
        learn(net, optimizer, 0)
        steps.append({name: before[name] - after for name, after in kernels(net).items()})
    for name in steps[0]:
        torch.testing.assert_close(0.1 * steps[0][name], steps[1][name], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("made", [0, 2])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(made: int) -> None:
    net = network()
    optimizer = ConvolutionMuon(net, RATE)
    for seed in range(made):
        learn(net, optimizer, seed)
    kept = {name: value.clone() for name, value in optimizer.state().items()}
    again = network()
    again.load_state_dict(net.state_dict())
    restored = ConvolutionMuon(again, RATE)
    restored.load_state(kept)
    for seed in range(made, 4):
        learn(net, optimizer, seed)
        learn(again, restored, seed)
    for name, value in kernels(net).items():
        assert torch.equal(value, again.get_parameter(name)), name


def test_a_state_of_another_network_is_refused() -> None:
    net = network()
    optimizer = ConvolutionMuon(net, RATE)
    learn(net, optimizer, 0)
    state = optimizer.state()
    with pytest.raises(ValueError, match="shape"):
        optimizer.load_state(state | {"momentum_buffer.2.weight": torch.zeros(1, 2)})
    del state["exp_avg.0.bias"]
    with pytest.raises(KeyError, match="exp_avg"):
        optimizer.load_state(state)
