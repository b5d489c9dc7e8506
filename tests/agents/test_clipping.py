"""Clipping by group against torch's own clip."""

from __future__ import annotations

import pytest
import torch

from agents.clipping import ClipConfig, GroupClipper


def parameters(*sizes: int) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    for p in made:
        p.grad = torch.randn(p.shape) * 10
    return made


def test_each_group_is_clipped_as_torch_would_clip_it_alone() -> None:
    policy, encoder = parameters(3, 4), parameters(5)
    twins = [torch.nn.Parameter(torch.zeros_like(p)) for p in [*policy, *encoder]]
    for twin, p in zip(twins, [*policy, *encoder], strict=True):
        twin.grad = p.grad.clone()
    torch.nn.utils.clip_grad_norm_(twins[:2], 2.0)
    torch.nn.utils.clip_grad_norm_(twins[2:], 7.0)
    clipper = GroupClipper(policy, encoder, ClipConfig(policy=2.0, encoder=7.0), on_nonfinite=pytest.fail)
    optimizer = torch.optim.SGD([*policy, *encoder], lr=1.0)
    clipper.install(optimizer)
    optimizer.step()
    for twin, p in zip(twins, [*policy, *encoder], strict=True):
        assert torch.allclose(p.grad, twin.grad, rtol=1e-5)
        assert torch.allclose(p.detach(), -twin.grad, rtol=1e-5)  # what the step really used
    clipper.remove()
    assert not optimizer._optimizer_step_pre_hooks


def test_small_gradients_pass_untouched_and_norms_are_averaged() -> None:
    (p,) = parameters(2)
    p.grad = torch.tensor([3.0, 4.0])
    clipper = GroupClipper([p], [], ClipConfig(policy=100.0), on_nonfinite=pytest.fail)
    optimizer = torch.optim.SGD([p], lr=0.0)
    clipper.install(optimizer)
    optimizer.step()
    p.grad = torch.tensor([6.0, 8.0])
    optimizer.step()
    assert p.grad.tolist() == [6.0, 8.0]
    assert clipper.mean_norms() == {"policy": pytest.approx(7.5)} and clipper.mean_norms() == {}


def test_the_encoders_clip_falls_to_its_floor_as_in_the_original() -> None:
    clip = ClipConfig()
    assert [clip.encoder_at(n) for n in (0, 100, 1000, 10_000)] == pytest.approx([15.0, 14.0, 5.0, 5.0])
    assert ClipConfig(encoder=3.0).encoder_at(50) == 3.0  # a clip below the floor stays where it is


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"policy": 0.0}, "gradient clip policy must be above 0 and at most 1,000,000,000, got 0.0"),
        ({"encoder": -1.0}, "gradient clip encoder must be above 0"),
        ({"encoder_floor": 0.0}, "gradient clip encoder_floor must be above 0"),
        ({"encoder_decay": -1.0}, "gradient clip encoder_decay must be at least 0"),
        ({"policy": float("inf")}, "gradient clip policy must be a finite number, got inf"),
    ],
)
def test_impossible_clips_are_refused(bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipConfig(**bad)


def test_a_clipper_that_an_aborted_training_left_is_replaced() -> None:
    (p,) = parameters(2)
    optimizer = torch.optim.SGD([p], lr=0.0)
    clippers = [GroupClipper([p], [], ClipConfig(), on_nonfinite=pytest.fail) for _ in range(2)]
    for clipper in clippers:
        clipper.install(optimizer)
    optimizer.step()
    assert [len(clipper.norms["policy"]) for clipper in clippers] == [0, 1]
