"""Run folders and their checkpoints.

``runs/<env>/<name>/`` holds everything of a run: ``config.yaml``, ``origin.json``, ``rig.json``, ``metrics.csv``,
``tensorboard/``, ``wandb/``, ``checkpoints/<step>/``, ``pictures/``, ``videos/``, ``eval.json``, ``probe.json``, and a
copy of the cameras file that was used. Nothing in it is ever unpickled: tensors are safetensors, the rest is JSON and
YAML.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agents.scene import Scene
from envs.errors import UserError, unknown
from envs.registry import env_ids
from experiments.config import PretrainConfig, RunConfig, TrainConfig, from_yaml, to_yaml
from experiments.provenance import origin

FORMAT = 2
ROOT = Path("runs")
ORIGIN = "origin.json"
"""Commit and machine that a run was made with."""
CAMERAS = "cameras.yaml"
"""Name of the copy of the cameras file in a run folder, where there was one."""


_KINDS = {
    TrainConfig: "training run, so it has no policy: train one from it with `make train ARGS=\"--pretrained <it>\"`",
    PretrainConfig: "pretraining run",
    RunConfig: "run",
}


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint folder holds.

    :param step: environment steps done.
    :param policy: state dict of the policy, aliases resolved.
    :param optimizers: state dicts of the optimisers, by name.
    :param state: counters and statistics, as plain JSON values.
    """

    step: int
    policy: dict[str, torch.Tensor]
    optimizers: dict[str, dict[str, Any]]
    state: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder.

    :param path: the folder.
    :param config: what it was trained with: a TrainConfig, or a PretrainConfig.
    """

    path: Path
    config: Any

    # -- making and finding ------------------------------------------------------------------------------------------

    @classmethod
    def new_path(cls, config: RunConfig, root: Path = ROOT) -> Path:
        """Where a new run of this configuration goes; refuses a folder that exists.

        :param root: folder of all runs.
        :raises UserError: if the folder exists or the name leads out of it.
        """
        name = config.run or f"{config.label}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        if Path(name).name != name or name in (".", ".."):
            raise UserError(f"run name '{name}' must be a plain folder name without '/'")
        path = root / folder_name(config.env) / name
        if path.exists():
            raise UserError(f"run folder {path} already exists: choose another RUN name or remove it")
        return path

    @classmethod
    def create(cls, path: Path, config: RunConfig, scene: Scene | None) -> Run:
        """Make the folder and write what it is.

        :param scene: cameras and workspace; None for a run on the simulator's state.
        :raises UserError: if the folder exists by now or cannot be made.
        """
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # made by another training while this one got ready
            raise UserError(f"run folder {path} already exists: choose another RUN name or remove it") from None
        except OSError as error:
            raise UserError(f"run folder {path} cannot be made: {error.strerror or error}") from None
        (path / "config.yaml").write_text(to_yaml(config))
        (path / ORIGIN).write_text(json.dumps(origin(), indent=1))
        if scene is not None:
            (path / "rig.json").write_text(json.dumps(scene.to_dict(), indent=1))
        if config.cameras is not None and Path(config.cameras).is_file():
            shutil.copyfile(config.cameras, path / CAMERAS)
        return cls(path, _with_own_cameras(config, path))

    @classmethod
    def open(
        cls, name: str | None, env: str | None = None, root: Path = ROOT, kind: type[RunConfig] = TrainConfig
    ) -> Run:
        """Open a run by path, by name within an environment, or the newest of an environment.

        :param name: path of a run folder, or its name if ``env`` is given, or None.
        :param env: environment id.
        :param kind: TrainConfig for what has a policy, PretrainConfig, or RunConfig for either.
        :raises UserError: if there is no such folder or it is not a run of this kind.
        """
        path = _find(name, env, root, kind)
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path} is not a run: it has no config.yaml")
        config = from_yaml(path / "config.yaml")
        if not isinstance(config, kind):
            raise UserError(f"{path} is no {_KINDS[kind]}")
        if env is not None and config.env != env:
            raise UserError(f"{path} is a run of '{config.env}', not of '{env}'")
        return cls(path, _with_own_cameras(config, path))

    def scene(self) -> Scene | None:
        """Cameras and workspace of the run; None for a run on the simulator's state."""
        path = self.path / "rig.json"
        if not path.is_file():
            if self.config.encoder.kind == "state":
                return None
            raise UserError(f"{self.path} has no rig.json: the cameras it was trained with are unknown")
        try:
            return Scene.from_dict(json.loads(path.read_text()))
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from None

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps at which complete checkpoints stand, ascending."""
        folder = self.path / "checkpoints"
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(p.name) for p in found if p.name.isdigit() and (p / "state.json").is_file())

    def last_good(self) -> str:
        """The newest complete checkpoint, as a message names it."""
        steps = self.steps()
        return f"{self.path}/checkpoints/{steps[-1]:09d}" if steps else "none was written yet"

    def save(
        self,
        step: int,
        policy: torch.nn.Module,
        optimizers: Mapping[str, torch.optim.Optimizer],
        state: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint: to a temporary folder first, so that a half-written one never looks complete.

        :param step: environment steps done.
        :param policy: its weights.
        :param optimizers: by name.
        :param state: further counters and statistics, plain JSON values.
        :return: the checkpoint's folder.
        """
        folder = self.path / "checkpoints" / f"{step:09d}"
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors, aliases = without_aliases(policy.state_dict())
        save_file(tensors, partial / "policy.safetensors")
        moments, groups = _flatten_optimizers(optimizers)
        save_file(moments, partial / "optimizer.safetensors")
        record = {"format": FORMAT, "step": step, "aliases": aliases, "optimizer_groups": groups, **state}
        (partial / "state.json").write_text(json.dumps(record, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
        return folder

    def load(self, step: int | None = None) -> Checkpoint:
        """Read a checkpoint; nothing in it is executed.

        :param step: which one; None takes the newest.
        :raises UserError: if there is none or it is damaged.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.path} has no checkpoint yet")
        if step is not None and step not in steps:
            raise UserError(f"{self.path} has no checkpoint at step {step}, only at {', '.join(map(str, steps))}")
        folder = self.path / "checkpoints" / f"{steps[-1] if step is None else step:09d}"
        try:
            record = json.loads((folder / "state.json").read_text())
            if record["format"] != FORMAT:
                raise UserError(f"{folder} has format {record['format']}, this version reads format {FORMAT}")
            tensors = load_file(folder / "policy.safetensors")
            tensors |= {alias: tensors[name] for alias, name in record["aliases"].items()}
            moments = load_file(folder / "optimizer.safetensors")
            optimizers = _unflatten_optimizers(moments, record["optimizer_groups"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise UserError(f"checkpoint {folder} is damaged: {type(error).__name__}: {error}") from None
        return Checkpoint(record["step"], tensors, optimizers, record)


def _with_own_cameras(config: RunConfig, path: Path) -> RunConfig:
    """The run's copy of its cameras file in place of the original, which may have changed or be out of reach."""
    own = path / CAMERAS
    return dataclasses.replace(config, cameras=str(own)) if own.is_file() else config


def folder_name(env: str) -> str:
    """Folder of an environment's runs; Gymnasium's namespaces have a slash in them."""
    return env.replace("/", "_").replace(":", "_")


def _is_kind(path: Path, kind: type[RunConfig]) -> bool:
    """Whether a run folder's configuration is of a kind; a damaged one is of none."""
    try:
        return isinstance(from_yaml(path / "config.yaml"), kind)
    except UserError:
        return False


def _find(name: str | None, env: str | None, root: Path, kind: type[RunConfig]) -> Path:
    """The folder meant by a path, by a name within an environment, or by nothing (the newest)."""
    if name is None:
        if env is None:
            raise UserError("say which run: RUN=<path>, or ENV=<id> for its newest run")
        folder = root / folder_name(env)
        runs = [p for p in folder.iterdir() if (p / "config.yaml").is_file()] if folder.is_dir() else []
        if not runs:
            if env not in env_ids() and env not in gym.registry and ":" not in env:
                trained = {p.parent.parent.name for p in root.glob("*/*/config.yaml")}
                raise unknown("environment", env, sorted({*env_ids(), *trained}))
            raise UserError(f"no run of '{env}' in {folder}: train one with `make train ENV={env}`")
        # A run that is still training, or died young, must not hide the ones that can be used.
        usable = [p for p in runs if any(p.glob("checkpoints/[0-9]*/state.json")) and _is_kind(p, kind)]
        return max(usable or runs, key=lambda p: (p / "config.yaml").stat().st_mtime)
    candidates = [Path(name)] + ([root / folder_name(env) / name] if env else [])
    for path in sorted(candidates, key=lambda p: not (p / "config.yaml").is_file()):  # a run before any other folder
        if path.is_dir():
            return path
    raise UserError(f"no run folder at {' or '.join(map(str, candidates))}")


def without_aliases(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Keep each shared tensor once.

    :param tensors: state dict, in which a shared module stands under several names.
    :return: the tensors under their first names, and ``{further name: first name}``.
    """
    first: dict[tuple[int, torch.Size], str] = {}
    kept, aliases = {}, {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            kept[name] = tensor.detach().cpu().contiguous()
    return kept, aliases


def _flatten_optimizers(
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> tuple[dict[str, torch.Tensor], dict[str, list[dict[str, Any]]]]:
    """State of optimisers as flat tensors ("<optimiser>.<parameter>.<moment>"), and their groups, fit for JSON."""
    moments, groups = {}, {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        groups[name] = state["param_groups"]
        for parameter, entries in state["state"].items():
            for entry, value in entries.items():
                moments[f"{name}.{parameter}.{entry}"] = torch.as_tensor(value).cpu().contiguous()
    return moments, groups


def _unflatten_optimizers(
    moments: dict[str, torch.Tensor], groups: dict[str, list[dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {"state": {}, "param_groups": group} for name, group in groups.items()}
    for key, value in moments.items():
        name, parameter, entry = key.split(".")
        found[name]["state"].setdefault(int(parameter), {})[entry] = value
    return found
