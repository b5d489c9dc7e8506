"""Whether a load that was accepted is what the files say, which are read here by other means."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load as parse_safetensors
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.buffers import Stream
from agents.training_state import optimizers
from experiments.runs import Checkpoint, Run
from kp3d_rl.storage.trees import pack

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Loaded:
    """A load that was accepted.

    :param run: as it was opened.
    :param checkpoint: that was read; None where the run begins anew.
    :param model: with everything in it; None where the configuration is another one.
    :param states: what model, callbacks, logs and generators say of themselves after the load.
    :param streams: of the frames in the model's buffers.
    """

    run: Run
    checkpoint: Checkpoint | None
    model: BaseAlgorithm | None = None
    states: dict[str, Any] | None = None
    streams: Sequence[Stream] = ()


def wrong(loaded: Loaded, changed: bool) -> str | None:
    """What is wrong with a load of changed files that was accepted; None where it is what the files say.

    :param loaded: before anything is made of it.
    :param changed: on purpose, with checksums that fit; else the frames' checksums have to fit, too.
    """
    run, checkpoint = loaded.run, loaded.checkpoint
    said = yaml.safe_load((run.path / "config.yaml").read_text())
    if said != json.loads(json.dumps(dataclasses.asdict(run.config))):
        return "a configuration that the file does not say"
    if checkpoint is None:
        return "a checkpoint was overlooked" if list((run.path / "checkpoints").glob("[0-9]*/state.json")) else None
    folder = run.path / "checkpoints" / f"{checkpoint.step:09d}"
    misfit = _misfit(folder, changed)
    if misfit:
        return f"accepted although the checksum of {misfit} does not fit"
    head = json.loads((folder / "state.json").read_text())
    if head["step"] != checkpoint.step:
        return "another step than the file says"
    if head["encoder"] != json.loads(json.dumps(dataclasses.asdict(run.config.encoder))):
        return "options of the encoder that are not the configuration's"
    policy = _parsed(folder, "policy")
    policy |= {alias: policy[name] for alias, name in head["aliases"].items()}
    if _differ(policy, checkpoint.policy):
        return "weights that the file does not say"
    return _wrong_model(folder, head, policy, loaded) if loaded.model is not None else None


def _misfit(folder: Path, changed: bool) -> str | None:
    """The first file whose checksum is not the one that is written down."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    needed = {"policy.safetensors", "optimizer.safetensors", "training.safetensors", "state.json",
              "../../config.yaml", "../../rig.json"}  # fmt: skip
    read = needed if changed else needed | sums.keys()
    return next((n for n in sorted(read) if sums.get(n) != hashlib.sha256((folder / n).read_bytes()).hexdigest()), None)


def _wrong_model(folder: Path, head: dict[str, Any], policy: Tensors, loaded: Loaded) -> str | None:
    model = loaded.model
    if _differ(policy, model.policy.state_dict()):
        return "a model with weights that the file does not say"
    if model.num_timesteps != head["step"]:
        return "a model at another step than the file says"
    moments, groups = {}, {}
    for name, optimizer in optimizers(model).items():
        state = optimizer.state_dict()
        groups[name] = state["param_groups"]
        moments |= {f"{name}.{n}.{entry}": v for n, part in state["state"].items() for entry, v in part.items()}
    if _differ(_parsed(folder, "optimizer"), moments):
        return "moments of the optimisers that the file does not say"
    if _plain(groups) != _plain(head["optimizer_groups"]):
        return "groups of the optimisers that the file does not say"
    return _wrong_states(folder, head["state"], loaded.states or {}) or _wrong_frames(loaded)


def _wrong_frames(loaded: Loaded) -> str | None:
    """Buffers hold what the segments hold."""
    streams = {stream.name: stream for stream in loaded.streams}
    for segment in loaded.checkpoint.segments:
        stream = streams[segment.stream]
        gone = max(0, stream.first - segment.first)
        if gone < segment.count:
            said = parse_safetensors((loaded.run.path / "segments" / segment.name).read_bytes())
            found = stream.read(segment.first + gone, segment.end)
            if different := _differ({name: values[gone:] for name, values in said.items()}, found):
                return f"frames {different} of {segment.name} that the file does not say"
    return None


def _wrong_states(folder: Path, said: dict[str, Any], states: dict[str, Any]) -> str | None:
    """States that went through the objects whose they are come out as they were."""
    plain, arrays = pack(states)
    said = copy.deepcopy(said)
    if "training" in plain:  # a pool of workers that is not there, as on a smaller machine, counts no deaths
        said["training"]["counters"]["worker_deaths"] = plain["training"]["counters"]["worker_deaths"]
    known = _parsed(folder, "training")
    for name, part in plain.items():
        if _plain(part) != _plain(said[name]):
            return f"'{name}' is not what the file says: {_first_difference(part, said[name], name)}"
    physics = {name for name in arrays if name.endswith(".physics")}
    for name in sorted(physics):
        if not _is_same_physics(known[name].numpy(), arrays[name].numpy()):
            return f"the array {name!r} is not what the file says"
    different = _differ(*({name: some[name] for name in arrays.keys() - physics} for some in (known, arrays)))
    return f"the array {different} is not what the file says" if different else None


def _is_same_physics(said: np.ndarray, found: np.ndarray) -> bool:
    """Whether MuJoCo's state is the one that the file says, but for quaternions, whose norms it makes 1."""
    if said.shape != found.shape:
        return False
    free = set()
    for start in range(max(0, said.size - 3)):
        quaternion, norm = said[start : start + 4], np.linalg.norm(said[start : start + 4])
        is_unit = np.isclose(np.linalg.norm(found[start : start + 4]), 1.0, atol=1e-9)
        if is_unit and np.allclose(found[start : start + 4] * norm, quaternion, rtol=1e-9, atol=1e-12):
            free |= set(range(start, start + 4))
    return all(index in free for index in np.flatnonzero(said != found))


def _parsed(folder: Path, name: str) -> Tensors:
    return parse_safetensors((folder / f"{name}.safetensors").read_bytes())


def _differ(said: Tensors, found: Tensors) -> str | None:
    """Name of the first tensor that is not the same, bit for bit."""
    if said.keys() != found.keys():
        return min(map(repr, said.keys() ^ found.keys()))
    return next((repr(name) for name in sorted(said) if _bits(said[name]) != _bits(found[name])), None)


def _bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    values = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    return tensor.dtype, tuple(tensor.shape), values.view(torch.uint8).numpy().tobytes()


def _plain(tree: Any) -> str:
    """As text, in which NaN equals NaN."""
    return json.dumps(tree, sort_keys=True)


def _first_difference(found: Any, said: Any, name: str) -> str:
    if isinstance(found, dict) and isinstance(said, dict) and found.keys() == said.keys():
        keys = found
    elif isinstance(found, list) and isinstance(said, list) and len(found) == len(said):
        keys = range(len(found))
    else:
        return f"{name}: {_plain(said)[:60]} became {_plain(found)[:60]}"
    key = next(key for key in keys if _plain(found[key]) != _plain(said[key]))
    return _first_difference(found[key], said[key], f"{name}.{key}")
