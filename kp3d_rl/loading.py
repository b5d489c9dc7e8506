"""A trained encoder from a run folder, without simulator and without Stable-Baselines3."""

from __future__ import annotations

from pathlib import Path

import torch

from kp3d_rl.cameras import Rig, Workspace
from kp3d_rl.keypoint3d import SCENE_BUFFERS, Keypoint3D, Keypoint3DConfig
from kp3d_rl.losses import LossWeights
from kp3d_rl.storage.files import TENSOR_LIMIT, parse_json, parse_tensors, read_checked, read_sums
from kp3d_rl.storage.steps import complete_steps, folder_of, latest_step

_PREFIX = "features_extractor.encoder."


def load(run: str | Path, step: int | None = None) -> Keypoint3D:
    """The keypoint encoder of a run, ready to use; its cameras are ``encoder.rig``.

    Nothing is unpickled: options and cameras are JSON, weights are safetensors; all are checked against the checksums
    that the checkpoint holds.

    :param run: run folder.
    :param step: which checkpoint; None takes the newest.
    :return: in evaluation mode, on the CPU: (B, V, H, W, 3) uint8 views in, and where cameras move their poses
        (B, V, 4, 4), :class:`~kp3d_rl.keypoint3d.Keypoints` out.
    :raises FileNotFoundError: where the folder lacks configuration, cameras or checkpoint.
    :raises ValueError: where it holds no keypoint encoder or is damaged.
    """
    run = Path(run)
    folder = _checkpoint(run, step)
    try:
        sums = read_sums(folder)
        config = _config(parse_json(read_checked(folder / "state.json", sums), "state.json")["encoder"])
        described = parse_json(read_checked(run / "rig.json", sums, name="../../rig.json"), "rig.json")
        cameras, box = described["cameras"], described["workspace"]
        rig = Rig.from_arrays(cameras["intrinsics"], cameras["world_from_camera"], cameras["height"], cameras["width"])
        encoder = Keypoint3D(config, rig, Workspace.from_arrays(box["centre"], box["half_extents"]), cameras["moving"])
        data = read_checked(folder / "policy.safetensors", sums, TENSOR_LIMIT)
        weights = _of_the_encoder(parse_tensors(data, "policy.safetensors"))
        for name in SCENE_BUFFERS:
            if not torch.allclose(weights[name], getattr(encoder, name), atol=1e-5):
                raise ValueError(f"'{name}' of its weights is not that of rig.json")
        encoder.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split("\n\t", 2)[:2])  # torch lists every tensor, one a line: the first will do
        raise ValueError(f"{run} holds no usable keypoint encoder: {type(error).__name__}: {reason}") from None
    return encoder.eval()


def _checkpoint(run: Path, step: int | None) -> Path:
    """The folder of the wanted checkpoint; only complete ones (with their state.json) count."""
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} is not a run: it has no config.yaml")
    checkpoints = run / "checkpoints"
    latest, complete = latest_step(checkpoints), complete_steps(checkpoints)
    if latest is None:
        raise FileNotFoundError(f"{run} has no checkpoint yet")
    if step is not None and step not in complete:
        raise FileNotFoundError(f"{run} has no checkpoint at step {step}, only at {complete}")
    folder = folder_of(checkpoints, latest if step is None else step)
    if not folder.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"{folder} is a link that leads out of the run")
    return folder


def _config(fields: dict) -> Keypoint3DConfig:
    """The encoder's options out of a training configuration, which holds more than those."""
    if fields["kind"] not in ("keypoint3d", "keypoint2d"):
        raise ValueError(f"the run acts on '{fields['kind']}', not on keypoints")
    known = {name: fields[name] for name in Keypoint3DConfig.__dataclass_fields__ if name in fields}
    return Keypoint3DConfig(**known | {"loss": LossWeights(**known.get("loss", {}))})


def _of_the_encoder(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
