"""Exported policies: the graph does what the policy does, needs no torch, and says what it is."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces

from agents.scene import Scene
from envs.cameras import CameraSpec, save_cameras
from envs.errors import UserError
from envs.tasks.reach import ReachEnv
from experiments import export
from experiments.judging.evaluation import stack
from experiments.options.cli import write_result
from experiments.options.config import EncoderConfig, PPOConfig, SACConfig, TrainConfig
from experiments.runs import Run
from experiments.training.algorithms import load_policy, policy_arguments, policy_class
from experiments.training.building import make_env
from kp3d_rl.geometry import fuse
from tests.experiments.conftest import run_in
from tests.tasks import ALL

BOUNDS = spaces.Box(np.float32([-1, -0.5, 0, 2]), np.float32([1, 3, 0.5, 4]))
"""Neither symmetric nor alike, so that clipping and scaling show."""
SMALL = TrainConfig(
    image_size=48,
    threads=1,
    encoder=EncoderConfig(keypoints=4, width=4, decoder_width=8, precision="float32"),
    ppo=PPOConfig(hidden=16),
    sac=SACConfig(hidden=16),
)
KEYPOINTS = {
    "as it is": {},
    "attended": {"depth": "attended", "confidence": False, "depth_trust": 1.0},
    "per view": {"depth": "map", "view_weights": "per_view", "layers": "paper", "standardise": False},
    "flat": {"kind": "keypoint2d"},
}
CASES = {
    **{name: ("ppo", {"kind": "keypoint3d"} | options, None) for name, options in KEYPOINTS.items()},
    "autoencoder ppo": ("ppo", {"kind": "autoencoder"}, None),
    **{f"moving {kind}": ("ppo", {"kind": kind}, "wrist.yaml") for kind in ("keypoint3d", "pixels")},
    **{f"{kind} {algorithm}": (algorithm, {"kind": kind}, None)
       for kind in ("keypoint3d", "pixels", "state", "drqv2", "curl") for algorithm in ("ppo", "sac", "tqc")
       if (kind, algorithm) not in [("keypoint3d", "ppo"), ("pixels", "ppo")]
       and (kind not in ("drqv2", "curl") or algorithm == "sac")},
}  # fmt: skip

UNLIKE = ("as it is", "per view", "moving keypoint3d", "keypoint3d sac", "pixels tqc", "drqv2 sac", "state ppo")
"""Cases whose graphs differ most; `make test-all` takes all."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory):
    """A function that gives environment, scene and five observations for a configuration."""
    made, file = {}, tmp_path_factory.mktemp("cameras") / "wrist.yaml"
    on_hand = CameraSpec("wrist", (0.25, 0.0, -0.2), look_at=(0.0, 0.0, 0.1), up=(0, 1, 0), fovy=80.0, body="hand")
    save_cameras(file, [ReachEnv.cameras[0], on_hand])

    def look(config: TrainConfig):
        config = dataclasses.replace(config, cameras=config.cameras and str(file))
        key = config.encoder.kind == "state", config.cameras
        if key not in made:
            env = make_env(config)
            observations = [env.reset(seed=seed)[0] for seed in range(2)]
            env.action_space.seed(0)
            observations += [env.step(env.action_space.sample())[0] for _ in range(3)]
            made[key] = env, None if key[0] else Scene.of(env), stack(observations)
        return made[key]

    yield look
    for env, *_ in made.values():
        env.close()


def configured(algorithm: str, options: dict, cameras: str | None = None) -> TrainConfig:
    encoder = dataclasses.replace(SMALL.encoder, **options)
    return dataclasses.replace(SMALL, algorithm=algorithm, encoder=encoder, cameras=cameras)


def perturbed(config: TrainConfig, seen, space: spaces.Space = BOUNDS):
    """A policy that was never trained, but whose weights are far from where they start, and what it may see."""
    env, scene, observations = seen(config)
    torch.manual_seed(0)
    arguments = policy_arguments(config, scene)
    policy = policy_class(config)(env.observation_space, space, lambda _: 0.0, **arguments)
    with torch.no_grad():
        for parameter in policy.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 10
            parameter += torch.randn_like(parameter) / fan_in**0.5
    return policy, observations


def ran(model: onnx.ModelProto, observations) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, observations), strict=True))


def first(observations, count: int):
    return {name: entry[:count] for name, entry in observations.items()}


# --- the same actions ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES if ALL else UNLIKE)
def test_the_graph_acts_as_the_policy(case: str, seen) -> None:
    config = configured(*CASES[case])
    policy, observations = perturbed(config, seen)
    assert ("camera_poses" in observations) == case.startswith("moving")
    model = export.to_onnx(policy, observations)
    assert {entry.name for entry in model.graph.input} == observations.keys()
    for count in (1, 5):
        some = first(observations, count)
        own, _ = policy.predict(some, deterministic=True)
        found = ran(model, some)
        assert found["actions"].dtype == own.dtype
        np.testing.assert_allclose(found["actions"], own, atol=1e-5, rtol=0)
        if config.encoder.finds_keypoints:
            agree_with_the_encoder(found, policy, some)
        else:
            assert list(found) == ["actions"]
    assert (own.std(0) > 1e-3).any(), "all observations give the same actions, so nothing was compared"
    limits = np.isin(own, [BOUNDS.low, BOUNDS.high])
    assert not limits.all() and limits.any() == (config.algorithm == "ppo"), "clipping, and what is not clipped"


def agree_with_the_encoder(found, policy, observations) -> None:
    poses = observations.get("camera_poses")
    encoder = policy.features_extractor.encoder
    with torch.no_grad():
        own = encoder(torch.as_tensor(observations["images"]), None if poses is None else torch.as_tensor(poses))
    if encoder.config.dimensions == "2d":
        keypoints, confidence, scale = own.uv, own.confidence, encoder.width
    else:
        keypoints, confidence, scale = own.points, own.fused_confidence, 1.0
    assert keypoints.std(-2).max() > 1e-3 * scale, "all keypoints are at one place"
    np.testing.assert_allclose(found["keypoints"], keypoints, atol=1e-5 * scale, rtol=0)
    np.testing.assert_allclose(found["confidence"], confidence, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "space", [spaces.Discrete(5), spaces.MultiDiscrete([3, 2, 4]), spaces.MultiBinary(4), spaces.Box(-0.2, 0.1, (2, 3))]
)
def test_every_kind_of_action_is_exported(space: spaces.Space, seen) -> None:
    config = configured("ppo", {"kind": "state"})
    policy, _ = perturbed(config, seen, space)
    rng = np.random.default_rng(0)
    observations = {"state": rng.normal(size=(40, *policy.observation_space["state"].shape)).astype(np.float32)}
    model = export.to_onnx(policy, observations)
    for count in (1, 40):
        own, _ = policy.predict(first(observations, count), deterministic=True)
        actions = ran(model, first(observations, count))["actions"]
        assert actions.dtype == own.dtype and actions.shape == own.shape
        np.testing.assert_allclose(actions, own, atol=1e-5, rtol=0)
    assert len(np.unique(own, axis=0)) > 1, "all actions are alike, so nothing was compared"


def test_convolutions_in_bfloat16_are_exported_in_float32(seen) -> None:
    exact, observations = perturbed(configured("ppo", {"kind": "keypoint3d"}), seen)
    policy, _ = perturbed(configured("ppo", {"kind": "keypoint3d", "precision": "bfloat16"}), seen)
    found = ran(export.to_onnx(policy, observations), observations)["actions"]
    own, _ = exact.predict(observations, deterministic=True)
    np.testing.assert_allclose(found, own, atol=1e-5, rtol=0)
    rounded, _ = policy.predict(observations, deterministic=True)
    assert np.abs(rounded - own).max() > 1e-4, "the policy itself still convolves in bfloat16"
    assert policy.features_extractor.encoder.config.precision == "bfloat16"


def test_the_fusion_without_a_solver_is_the_same() -> None:
    """Also where one view has all the weight, and depth is hardly known."""

    class Fusion(torch.nn.Module):
        def forward(self, points, weights, rays):
            return fuse(points, weights, rays, 0.01)

    generator = torch.Generator().manual_seed(0)
    points, rays = (torch.randn(20, 3, 7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.rand(20, 3, 7, generator=generator, dtype=torch.float64)
    weights[:5, 1:] = 0.0
    given = points, weights, torch.nn.functional.normalize(rays, dim=-1)
    program = torch.export.export(Fusion(), given)
    assert not [node for node in program.graph.nodes if "solve" in str(node.target)]
    torch.testing.assert_close(program.module()(*given), fuse(*given, 0.01), atol=1e-12, rtol=1e-12)


# --- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def exported(tiny_run: Path, workplace: Path) -> tuple[Path, str]:
    """The file of the tiny run, and what the command printed."""
    command = [sys.executable, "-m", "experiments.export", "--run", str(tiny_run)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=workplace, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return tiny_run / "policy.onnx", done.stdout


def test_the_command_writes_checks_and_explains(exported: tuple[Path, str], opened: Run) -> None:
    path, said = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert f"checkpoint 160: {path}, " in said and "MB" in said
    for line in (
        "input   images        (batch, 3, 32, 32, 3) uint8",
        "input   proprio       (batch, 7) float32",
        "output  actions       (batch, 4) float32",
        "output  keypoints     (batch, 4, 3) float32",
        "output  confidence    (batch, 4) float32",
    ):
        assert line in said
    (largest,) = re.findall(r"largest difference from the policy's actions, 8 observations: (\S+)\n", said)
    assert float(largest) < 1e-5
    assert not list(path.parent.glob("*.partial")) and not list(path.parent.glob(".*.partial"))


def test_the_file_says_what_it_is(exported: tuple[Path, str]) -> None:
    facts = {entry.key: entry.value for entry in onnx.load(exported[0]).metadata_props}
    assert {name: facts[name] for name in ("env", "run", "checkpoint", "algorithm", "encoder")} == {
        "env": "reach-multiview", "run": "tiny", "checkpoint": "160", "algorithm": "ppo", "encoder": "keypoint3d"
    }  # fmt: skip
    assert facts["action_repeat"] == "1"
    assert json.loads(facts["cameras"]) == ["left", "right", "front"] and json.loads(facts["image_size"]) == [32, 32]
    assert json.loads(facts["action_low"]) == [-1.0] * 4 and json.loads(facts["action_high"]) == [1.0] * 4
    assert b".py" not in exported[0].read_bytes(), "nothing of the machine that it was made on"


def test_the_printed_example_needs_neither_torch_nor_this_project(exported: tuple[Path, str], tmp_path: Path) -> None:
    path, said = exported
    code = said.partition("To use it:\n\n")[2]
    assert len(code.splitlines()) == 6
    code = code.replace("np.zeros", "np.ones") + (
        "import sys\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'stable_baselines3', 'gymnasium', 'kp3d_rl', 'experiments'}, loaded\n"
        "np.savez('found.npz', **found)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run.open(str(path.parent))
    env = make_env(run.config)
    policy = load_policy(run, env, run.load(), "cpu")
    env.close()
    observation = {
        name: np.ones((1, *space.shape), space.dtype) for name, space in policy.observation_space.spaces.items()
    }
    with export.in_float32(policy):
        own, _ = policy.predict(observation, deterministic=True)
        found = np.load(tmp_path / "found.npz")
        np.testing.assert_allclose(found["actions"], own, atol=1e-5, rtol=0)
        agree_with_the_encoder(found, policy, observation)


def test_the_script_of_the_documentation_runs(exported: tuple[Path, str], tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "runs/reach-multiview/<name>/policy.onnx" in script and "64, 64" in script
    script = script.replace("runs/reach-multiview/<name>/policy.onnx", str(exported[0])).replace("64, 64", "32, 32")
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and '["left", "right", "front"] [-1.0, -1.0, -1.0, -1.0]' in done.stdout, done.stderr


def test_a_run_on_the_state_is_exported_where_it_is_told(
    state_run: Path, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "mine.onnx"
    arguments = ["--env", "reach-multiview", "--run", "state", "--checkpoint", "128", "--output", str(path)]
    run_in(workplace, export.main, arguments)
    assert "not compared with the policy: that needs onnxruntime" in capsys.readouterr().out
    model = onnx.load(path)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert [entry.name for entry in model.graph.input] == ["state"] and "cameras" not in facts
    assert facts["checkpoint"] == "128" and not (state_run / "policy.onnx").exists()


def test_the_comparison_notices_another_policy(seen, tmp_path: Path) -> None:
    config = configured("sac", {"kind": "state"})
    policy, observations = perturbed(config, seen)
    path = tmp_path / "policy.onnx"
    write_result(path, export.to_onnx(policy, observations).SerializeToString())
    assert export.difference(path, policy, observations) < 1e-5
    with torch.no_grad():
        policy.actor.mu.bias += 0.1
    assert export.difference(path, policy, observations) > 1e-3


# --- what goes wrong -------------------------------------------------------------------------------------------------
def test_refusals(state_run: Path, tiny_pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for arguments, message in (
        (["--run", str(tmp_path)], "is not a run"),
        (["--run", str(tiny_pretrained)], "so it has no policy"),
        (["--run", str(state_run), "--checkpoint", "3"], "no checkpoint at step 3"),
        (["--run", str(state_run), "--output", str(blocked / "a.onnx")], "cannot write .*/file/a.onnx: "),
        (["--run", str(state_run), "--output", str(tmp_path)], "cannot write"),
    ):
        with pytest.raises(UserError, match=message) as error:
            export.main(arguments)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def missing(name: str):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match="export needs onnx: pip install -c constraints.txt"):
        export.main(["--run", str(state_run)])
