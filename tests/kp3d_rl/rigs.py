"""Cameras and points for tests of geometry."""

import numpy as np
import torch

from kp3d_rl.cameras import Rig, intrinsics_from_fovy, look_at


def ring(seed=0, views=4, distance=1.5, origin=(0.0, 0.0, 0.0)):
    """Cameras at random places on a sphere that look at its centre."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(views, 3)) + [0, 0, 0.2]
    origin = torch.tensor(origin, dtype=torch.float64)
    positions = origin + distance * torch.tensor(direction / np.linalg.norm(direction, axis=-1, keepdims=True))
    k = intrinsics_from_fovy(torch.tensor(rng.uniform(35, 70, views)), 64, 64)
    return Rig.from_arrays(k, look_at(positions, origin), 64, 64, torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
