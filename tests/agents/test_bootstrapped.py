"""What a policy reads of bootstrapped keypoints: against the simulator's truth, with a detector that knows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.bootstrapped import BootstrappedExtractor, put_together
from agents.scene import Scene
from envs import registry
from envs.errors import UserError
from kp3d_rl.bootstrapping.detector import DetectorConfig
from kp3d_rl.triangulation import triangulate
from tests.kp3d_rl.rigs import normal, ring

BODIES = ["end_effector", "target", "wrist"]


def made(env_id: str, steps: int = 3, **options):
    """An environment after some steps: observations with a batch dimension, scene, and true points (3, 3)."""
    env = registry.make(env_id, height=32, width=32, **options)
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(steps):
        observation, *_ = env.step(env.action_space.sample())
    tensors = {name: torch.as_tensor(np.asarray(value))[None] for name, value in observation.items()}
    bodies = [body for body in BODIES if body in env.body_names]
    scene, rig, points = Scene.of(env), env.rig, torch.as_tensor(env.body_positions(bodies))
    space = env.observation_space
    env.close()
    return space, scene, tensors, points, rig


def knowing(extractor: BootstrappedExtractor, uv: torch.Tensor, confidence: torch.Tensor) -> BootstrappedExtractor:
    """Put a detector in place that says this of the views, whatever they show."""
    extractor.detector.detect = lambda images, batch=64: (uv.flatten(0, -3), confidence.flatten(0, -2))
    return extractor


@pytest.mark.parametrize("env_id", ["reach-multiview", "reach-wrist-multiview"])
def test_features_are_the_true_points_in_the_workspace_also_where_cameras_move(env_id: str) -> None:
    from experiments.bootstrapping.filming import to_rig

    space, scene, observation, points, rig = made(env_id)
    uv = to_rig(rig).project(points)[0].float()
    extractor = BootstrappedExtractor(space, scene, 3, DetectorConfig(width=8))
    features = knowing(extractor, uv, torch.full(uv.shape[:-1], 0.9))(observation)
    found = features[0, :12].view(3, 4)
    expected = scene.workspace.normalise(points.float())
    torch.testing.assert_close(found[:, :3], expected.clamp(-2, 2), atol=2e-3, rtol=0)
    torch.testing.assert_close(found[:, 3], torch.full((3,), 0.9))
    assert torch.equal(features[:, 12:], observation["proprio"].float())
    assert features.shape[1] == extractor.features_dim and not extractor.learns
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_two_views_that_agree_are_enough_and_what_nobody_agrees_on_is_not_sure() -> None:
    rig, points = ring(0, 3), 0.1 * normal(5, 2, 3)
    uv = rig.project(points)[0]
    uv[:, 2, 0] += 25.0  # the third view is wrong of the first point
    uv[0, :, 1] = torch.tensor([[5.0, 60.0], [60.0, 5.0], [30.0, 60.0]])  # and in one frame all of the second
    confidence = torch.full(uv.shape[:-1], 0.8, dtype=torch.float64)
    found, sure = put_together(rig, uv, confidence)
    assert (found[:, 0] - points[:, 0]).norm(dim=-1).max() < 1e-3
    assert torch.allclose(sure[:, 0], torch.full((5,), 0.8, dtype=torch.float64))
    assert found.isfinite().all() and sure[0, 1] == 0 and (sure[1:, 1] > 0.7).all()
    torch.testing.assert_close(found[0, 1], triangulate(rig, uv[0], confidence[0])[1])
    confidence[0, 0, 0] = torch.nan
    assert all(result.isfinite().all() for result in put_together(rig, uv, confidence))
    blind, none = put_together(rig, uv, torch.zeros_like(confidence))
    assert blind.isfinite().all() and not none.any()


def test_a_stack_of_frames_tells_how_points_move() -> None:
    space, scene, observation, points, rig = made("ant-multiview")
    assert "previous" in space.spaces
    extractor = BootstrappedExtractor(space, scene, 2, DetectorConfig(width=8))
    features = extractor(observation)
    proprio = space["proprio"].shape[0] if "proprio" in space.spaces else 0
    assert features.shape == (1, 2 * 4 * 2 + proprio) and features.isfinite().all()


def test_one_camera_cannot_triangulate() -> None:
    space, scene, *_ = made("reach-multiview", cameras="left")
    with pytest.raises(UserError, match="they need at least two cameras at two places"):
        BootstrappedExtractor(space, scene, 2, DetectorConfig(width=8))


def test_another_precision_is_put_back() -> None:
    space, scene, observation, *_ = made("reach-multiview")
    extractor = BootstrappedExtractor(space, scene, 2, DetectorConfig(width=8, precision="auto"))
    with extractor.in_precision("float32"):
        assert extractor.detector.config.precision == "float32"
    assert extractor.detector.config.precision == "auto"
