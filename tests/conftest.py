"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest
import torch

from agents.scene import Scene
from tests.dotworld import dot_scene


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def scene() -> Scene:
    return dot_scene()
