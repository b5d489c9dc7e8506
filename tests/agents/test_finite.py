"""What becomes of numbers that are none; ``require_finite`` is tested with the environments that it guards."""

from __future__ import annotations

import pytest
import torch
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution

from agents.finite import NonFiniteError, refuse_nonfinite_outputs


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_policy_whose_output_is_no_number_is_one_line(number: float) -> None:
    gaussian, categorical = DiagGaussianDistribution(2), CategoricalDistribution(2)
    with pytest.raises(NonFiniteError, match="the policy's output is NaN or Inf"), refuse_nonfinite_outputs():
        gaussian.proba_distribution(torch.tensor([[0.0, torch.nan]]), torch.zeros(2))
    with pytest.raises(NonFiniteError, match="the policy's output is NaN or Inf"), refuse_nonfinite_outputs():
        categorical.proba_distribution(torch.tensor([[0.0, number]]))


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(ValueError, match="a bug"), refuse_nonfinite_outputs():
        raise ValueError("a bug")
