"""Export a run's policy: ``python -m experiments.export --env reach-multiview [--run PATH] [--output FILE]``.

Writes one ONNX graph, from the environment's observation (uint8 views and all) to its deterministic actions, for use
without torch and Stable-Baselines3. Policies on keypoints give the keypoints too. The graph computes in float32, also
where training convolved in bfloat16.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from torch import Tensor, nn

from agents.extractors import ViewExtractor, with_proprio
from agents.finite import refuse_nonfinite_outputs
from agents.policies import keypoint_extractor
from agents.scene import Scene
from envs.errors import UserError
from experiments.judging.evaluation import EVALUATION_SEED, Observation, stack
from experiments.judging.outliers import check_outliers, rejecting_outliers
from experiments.options.cli import parse, require_place, run_main, write_result
from experiments.runs import Checkpoint, Run
from experiments.training.algorithms import load_policy
from experiments.training.building import make_env, use_threads

if TYPE_CHECKING:
    import onnx

COMPARED = 8
"""Observations in the batch that the graph and the policy are compared on."""


@dataclass(frozen=True)
class ExportConfig:
    """A trained policy as one ONNX graph.

    :param env: environment; with no ``run`` its newest run is taken.
    :param run: run folder, or its name within the environment.
    :param checkpoint: step of the checkpoint; by default the newest.
    :param output: file to write; by default ``policy.onnx`` in the run folder.
    :param reject_outliers: centimetres, as for ``evaluate``; 0: off.
    """

    env: str | None = None
    run: str | None = None
    checkpoint: int | None = None
    output: Path | None = None
    reject_outliers: float = 0.0

    def __post_init__(self) -> None:
        check_outliers(self.reject_outliers)


@refuse_nonfinite_outputs()
def main(argv: Sequence[str]) -> None:
    """Load, translate, check, write, compare, say how it is used."""
    config = parse(ExportConfig, argv)
    require_onnx()
    run = Run.open(config.run, config.env)
    if run.config.encoder.kind == "bootstrapped":
        raise UserError(f"{run.path} acts on bootstrapped keypoints: the search among views is no ONNX graph")
    path = config.output or run.path / "policy.onnx"
    require_place(path)
    checkpoint = run.load(config.checkpoint)
    use_threads(run.config.threads)
    with contextlib.closing(make_env(run.config)) as env:
        policy = load_policy(run, env, checkpoint, "cpu")
        with rejecting_outliers(policy, config.reject_outliers):
            observations = play(env, policy, COMPARED)
            model = to_onnx(policy, observations, about(run, checkpoint, env))
            write_result(path, model.SerializeToString())
            found = difference(path, policy, observations)
    print(f"{run.path}, checkpoint {checkpoint.step}: {path}, {path.stat().st_size / 1e6:.2f} MB")
    print(*signature(model), sep="\n")
    if found is None:
        print("not compared with the policy: that needs onnxruntime (pip install -c constraints.txt onnxruntime)")
    else:
        print(f"largest difference from the policy's actions, {COMPARED} observations: {found:.1e}")
    print("", "To use it:", "", *example(path, policy), sep="\n")


# --- the graph -------------------------------------------------------------------------------------------------------
class ActingPolicy(nn.Module):
    """What a policy does when it acts deterministically, in tensors from observation to action.

    SB3's ``predict`` does the last steps in numpy, and asks a distribution, which cannot be exported, for its mode.

    :param policy: of PPO, SAC or TQC, as :func:`experiments.training.algorithms.load_policy` gives it.
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy = policy
        if isinstance(policy.action_space, spaces.Box):
            self.register_buffer("low", torch.as_tensor(policy.action_space.low))
            self.register_buffer("high", torch.as_tensor(policy.action_space.high))

    @property
    def inputs(self) -> list[str]:
        """Names of what :meth:`forward` takes: the observation's entries, in its space's order."""
        return list(self.policy.observation_space.spaces)

    @property
    def outputs(self) -> list[str]:
        """Names of what :meth:`forward` returns."""
        return ["actions", "keypoints", "confidence"] if keypoint_extractor(self.policy) else ["actions"]

    @property
    def acting(self) -> BaseModel:
        """The part of the policy that acts; on-policy it is all one."""
        return getattr(self.policy, "actor", self.policy)

    def forward(self, *entries: Tensor) -> tuple[Tensor, ...]:
        """Act.

        :param entries: of the observation, (B, ...) each, named by :attr:`inputs`.
        :return: actions (B, ...) as the environment takes them. On keypoints also keypoints (B, K, 3), metres in the
            workspace frame, and confidence (B, K), of which 1 is average; in two dimensions, where each view has its
            own, keypoints (B, V, K, 2), pixels, and confidence (B, V, K), which sums to 1 over K.
        """
        observation = dict(zip(self.inputs, entries, strict=True))
        extractor = keypoint_extractor(self.policy)
        if extractor is None:
            return (self._act(self.acting.extract_features(observation, self.acting.features_extractor)),)
        described, found = extractor.read(observation)
        actions = self._act(with_proprio(described, observation))
        if extractor.encoder.config.dimensions == "2d":
            return actions, found.uv, found.confidence
        return actions, found.points, found.fused_confidence

    def _act(self, features: Tensor) -> Tensor:
        """(B, F) features to actions."""
        space = self.policy.action_space
        if self.policy.squash_output:  # SAC and TQC: squashed to [-1, 1], then brought to the bounds
            squashed = torch.tanh(self.acting.mu(self.acting.latent_pi(features))).reshape(-1, *space.shape)
            return self.low + 0.5 * (squashed + 1.0) * (self.high - self.low)
        said = self.policy.action_net(self.policy.mlp_extractor.forward_actor(features))
        if isinstance(space, spaces.Box):
            return torch.clamp(said.reshape(-1, *space.shape), self.low, self.high)
        if isinstance(space, spaces.Discrete):
            return said.argmax(1)
        if isinstance(space, spaces.MultiDiscrete):
            return torch.stack([part.argmax(1) for part in said.split(space.nvec.tolist(), 1)], 1)
        return (said > 0).float()  # MultiBinary: what is more probable than not


def to_onnx(policy: BasePolicy, observations: Observation, about: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Translate a policy, and check what comes out.

    :param policy: of PPO, SAC or TQC, on the CPU.
    :param observations: a batch of at least two, (B, ...) each; the graph takes any number.
    :param about: what the file is to say of itself.
    :return: the graph; inputs and outputs are those of :class:`ActingPolicy`, the batch comes first in all of them.
    """
    import onnx

    policy.set_training_mode(False)
    graph = ActingPolicy(policy).eval()
    entries = tuple(torch.as_tensor(observations[name]) for name in graph.inputs)
    batched = {"entries": tuple({0: torch.export.Dim("batch")} for _ in entries)}
    with torch.no_grad(), in_float32(policy), _quiet():
        program = torch.onnx.export(
            torch.export.export(graph, entries, dynamic_shapes=batched, strict=False),
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=batched,  # for the names of the sizes
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_the_source(model)
    onnx.helper.set_model_props(model, dict(about or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


def _forget_the_source(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes on the code that every part comes from: paths of this machine, and half of the file."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]


@contextlib.contextmanager
def in_float32(policy: BasePolicy) -> Iterator[None]:
    """Context in which a policy convolves in float32, as its graph does.

    :param policy: with or without convolutions of a precision of their own.
    """
    extractor = getattr(policy, "features_extractor", None)
    with extractor.in_precision("float32") if isinstance(extractor, ViewExtractor) else contextlib.nullcontext():
        yield


def about(run: Run, checkpoint: Checkpoint, env: gym.Env) -> dict[str, str]:
    """What the file says of itself: plain texts, lists as JSON.

    :param run: the run.
    :param checkpoint: whose weights are exported.
    :param env: an environment like those that it was trained in.
    """
    facts: dict[str, object] = {
        "env": run.config.env,
        "run": run.path.resolve().name,
        "checkpoint": checkpoint.step,
        "algorithm": run.config.algorithm,
        "encoder": run.config.encoder.kind,
        "action_repeat": run.config.action_repeat,
    }
    if isinstance(env.action_space, spaces.Box):
        facts |= {"action_low": env.action_space.low.tolist(), "action_high": env.action_space.high.tolist()}
    else:
        facts["action_space"] = str(env.action_space)
    if run.config.encoder.sees:
        cameras = Scene.of(env).cameras
        facts |= {"cameras": list(cameras.names), "image_size": [cameras.height, cameras.width]}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


# --- the check, the file, and what is said of it ---------------------------------------------------------------------
def play(env: gym.Env, policy: BasePolicy, count: int) -> Observation:
    """Observations of an evaluation episode, and of the next ones where it is too short.

    :param env: environment of the policy.
    :param policy: acts in it, deterministically.
    :param count: how many.
    :return: (count, ...) each.
    """
    seen: list[Observation] = []
    over = True
    while len(seen) < count:
        if over:
            observation, _ = env.reset(seed=EVALUATION_SEED + len(seen))
            over = False
        else:
            observation, _, terminated, truncated, _ = env.step(policy.predict(seen[-1], deterministic=True)[0])
            over = terminated or truncated
        seen.append(observation)
    return stack(seen)


def difference(path: Path, policy: BasePolicy, observations: Observation) -> float | None:
    """How far the actions of a written graph lie from the policy's own, in units of the action space.

    :param path: of the graph.
    :param policy: that was exported.
    :param observations: a batch, (B, ...) each.
    :return: the largest difference; None where there is no onnxruntime.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (actions,) = session.run(["actions"], observations)
    with in_float32(policy):
        own, _ = policy.predict(observations, deterministic=True)
    return float(np.abs(actions.astype(np.float64) - own).max())


def signature(model: onnx.ModelProto) -> list[str]:
    """Inputs and outputs of a graph with type and shape, a line each.

    :param model: the graph.
    """
    import onnx

    lines = []
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            sizes = ", ".join(size.dim_param or str(size.dim_value) for size in tensor.shape.dim)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            lines.append(f"  {kind:<7} {value.name:<13} ({sizes}) {dtype}")
    return lines


def example(path: Path, policy: BasePolicy) -> list[str]:
    """A script that uses the file with numpy and onnxruntime alone.

    :param path: of the graph.
    :param policy: that was exported.
    """
    entries = (
        f'"{name}": np.zeros({(1, *space.shape)}, np.{space.dtype})'
        for name, space in policy.observation_space.spaces.items()
    )
    return [
        "import numpy as np, onnxruntime",
        f"session = onnxruntime.InferenceSession({str(path)!r})",
        f"observation = {{{', '.join(entries)}}}",
        "names = [output.name for output in session.get_outputs()]",
        "found = dict(zip(names, session.run(names, observation)))",
        'print(found["actions"])',
    ]


def require_onnx() -> None:
    """Refuse to go on without the libraries that are an extra.

    :raises UserError: naming the one that is missing.
    """
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise UserError(
                f"export needs {name}: pip install -c constraints.txt onnx onnxscript (the extra 'export')"
            ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context in which torch's exporter keeps its remarks to itself: on packages that it does not need, on names."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


if __name__ == "__main__":
    run_main(main)
