"""The seam: gradients, gate and record of an auxiliary loss."""

from __future__ import annotations

import math

import pytest
import torch

from agents.finite import NonFiniteError
from agents.seam import AuxiliaryLoss, carry_gradient, global_norm, scale_gradient


@pytest.mark.parametrize("upstream", [1.0, -3.0, 0.0])
def test_carried_loss_gets_gradient_one_whatever_the_features_get(upstream: float) -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = torch.tensor(3.0, requires_grad=True)
    features = carry_gradient(x * 2.0, y**2)
    assert torch.equal(features, x.detach() * 2.0)
    (upstream * features.sum()).backward()
    assert torch.allclose(x.grad, torch.full((2,), 2.0 * upstream))
    assert float(y.grad) == 6.0


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0])
def test_scale_gradient_changes_the_gradient_alone(scale: float) -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = scale_gradient(x * 3.0, scale)
    assert torch.equal(y, x.detach() * 3.0)
    (y.sum() + 0.0 * x.sum()).backward()
    assert torch.allclose(x.grad, torch.full((2,), 3.0 * scale))


def make_loss(parameter: torch.nn.Parameter) -> AuxiliaryLoss:
    return AuxiliaryLoss(lambda terms: sum(terms.values()), [parameter])


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_wanted_needs_gate_training_mode_and_gradients(is_open: bool, training: bool, gradients: bool) -> None:
    loss, module = make_loss(torch.nn.Parameter(torch.zeros(1))), torch.nn.Linear(1, 1)
    loss.is_open = is_open
    module.train(training)
    with torch.set_grad_enabled(gradients):
        assert loss.wanted(module) == (is_open and training and gradients)


def test_scale_multiplies_and_terms_are_recorded_unscaled() -> None:
    parameter = torch.nn.Parameter(torch.tensor(2.0))
    loss = make_loss(parameter)
    loss.scale = 0.5
    total = loss.loss({"a": parameter * 3.0, "b": parameter * 1.0})
    assert float(total.detach()) == pytest.approx(4.0)
    loss.loss({"a": parameter * 5.0, "b": parameter * 1.0})
    assert loss.mean_terms() == {"a": pytest.approx(8.0), "b": pytest.approx(2.0)}
    assert loss.mean_terms() == {} and loss.calls == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_term_that_is_no_number_is_refused_by_name(bad: float) -> None:
    loss = make_loss(torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(NonFiniteError, match="'multiview'"):
        loss.loss({"reconstruction": torch.tensor(1.0), "multiview": torch.tensor(bad)})


def test_gradient_norms_separate_the_two_gradients() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    loss = make_loss(parameter)
    loss.measure_next = True
    features = loss.attach(parameter * 1.0, {"a": (parameter**2).sum()})
    (3.0 * features.sum()).backward()  # policy: 3 on each entry; auxiliary: 2 x
    norms = loss.gradient_norms()
    assert norms["policy"] == pytest.approx(math.sqrt(18.0), rel=1e-6)
    assert norms["auxiliary"] == pytest.approx(math.sqrt(4.0 + 16.0), rel=1e-6)
    assert loss.gradient_norms() is None  # measured once, told once


def test_global_norm_is_that_of_all_entries() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5)]
    assert global_norm(tensors) == pytest.approx(float(torch.cat([t.flatten() for t in tensors]).norm()), rel=1e-6)
    assert global_norm([]) == 0.0
