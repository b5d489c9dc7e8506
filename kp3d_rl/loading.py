"""A trained encoder from a run folder, without simulator and without Stable-Baselines3."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open

from kp3d_rl.cameras import Rig, Workspace
from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig
from kp3d_rl.losses import LossWeights

_PREFIX = "features_extractor.encoder."


def load(run: str | Path, step: int | None = None) -> Keypoint3D:
    """The keypoint encoder of a run, ready to use; its cameras are ``encoder.rig``.

    Nothing is unpickled: configuration is YAML, cameras are JSON, weights are safetensors.

    :param run: run folder.
    :param step: which checkpoint; None takes the newest.
    :return: in evaluation mode, on the CPU: (B, V, H, W, 3) uint8 views in,
        :class:`~kp3d_rl.keypoint3d.Keypoints` out.
    :raises FileNotFoundError: where the folder lacks configuration, cameras or checkpoint.
    :raises ValueError: where it holds no keypoint encoder or is damaged.
    """
    run = Path(run)
    folder = _checkpoint(run, step)
    try:
        config = _config(yaml.safe_load((run / "config.yaml").read_text())["encoder"])
        described = json.loads((run / "rig.json").read_text())
        cameras, box = described["cameras"], described["workspace"]
        rig = Rig.from_arrays(cameras["intrinsics"], cameras["world_from_camera"], cameras["height"], cameras["width"])
        encoder = Keypoint3D(config, rig, Workspace.from_arrays(box["centre"], box["half_extents"]))
        encoder.load_state_dict(_weights(folder / "policy.safetensors"))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split("\n\t", 2)[:2])  # torch lists every tensor, one a line: the first will do
        raise ValueError(f"{run} holds no usable keypoint encoder: {type(error).__name__}: {reason}") from None
    return encoder.eval()


def _checkpoint(run: Path, step: int | None) -> Path:
    """The folder of the wanted checkpoint; only complete ones (with their state.json) count."""
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} is not a run: it has no config.yaml")
    found = (path.parent for path in (run / "checkpoints").glob("*/state.json"))
    complete = {int(folder.name): folder for folder in found if folder.name.isdigit()}
    if not complete:
        raise FileNotFoundError(f"{run} has no checkpoint yet")
    if step is not None and step not in complete:
        raise FileNotFoundError(f"{run} has no checkpoint at step {step}, only at {sorted(complete)}")
    return complete[max(complete) if step is None else step]


def _config(fields: dict) -> Keypoint3DConfig:
    """The encoder's options out of a training configuration, which holds more than those."""
    if fields["kind"] != "keypoint3d":
        raise ValueError(f"the run acts on '{fields['kind']}', not on keypoints")
    known = {name: fields[name] for name in Keypoint3DConfig.__dataclass_fields__ if name in fields}
    return Keypoint3DConfig(**known | {"loss": LossWeights(**known.get("loss", {}))})


def _weights(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith(_PREFIX)]
        return {name.removeprefix(_PREFIX): tensors.get_tensor(name) for name in names}
