"""What stands in a checkpoint's files, from and to what torch's modules and optimisers say of themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from kp3d_rl.storage.files import DamagedError


def to_json(value: Any) -> bytes:
    """As text, one key per line so that people can read it; NaN and infinity as Python writes them."""
    return json.dumps(value, indent=1).encode()


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


def with_aliases(tensors: Mapping[str, torch.Tensor], aliases: Any) -> dict[str, torch.Tensor]:
    """Undo :func:`without_aliases`.

    :raises DamagedError: where an alias is of nothing.
    """
    if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
        raise DamagedError("'aliases' is no mapping of names")
    for name in aliases.values():
        if name not in tensors:
            raise DamagedError(f"tensor '{name[:100]}' is missing")
    return {**tensors, **{alias: tensors[name] for alias, name in aliases.items()}}


def flatten_optimizers(
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


def unflatten_optimizers(moments: Mapping[str, torch.Tensor], head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Undo :func:`flatten_optimizers`.

    :param head: of ``state.json``, where the groups stand.
    :raises DamagedError: for moments of no optimiser.
    """
    groups = head["optimizer_groups"]
    if not isinstance(groups, dict):
        raise DamagedError("'optimizer_groups' is no mapping")
    found: dict[str, dict[str, Any]] = {name: {"state": {}, "param_groups": group} for name, group in groups.items()}
    for key, value in moments.items():
        name, _, rest = key.partition(".")
        parameter, _, entry = rest.partition(".")
        if name not in found or not re.fullmatch(r"\d{1,9}", parameter):
            raise DamagedError(f"moment '{key[:100]}' belongs to no optimiser")
        found[name]["state"].setdefault(int(parameter), {})[entry] = value
    return found
