"""The checkpoints of a run: folders that appear whole or not at all, and hold no code.

``checkpoints/<step>/`` has the weights of policy, encoder and decoder (each shared tensor once, its other names in
``state.json``), the optimisers' moments, the arrays of the training's state, everything else as JSON, and the
checksums of all these and of the run's own description. The replay's frames are in ``segments/`` beside it.

Order of writing: segments, checkpoint under a temporary name, its own name, ``latest``, then older ones go. Whenever
the process dies, the newest whole checkpoint is found.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agents.buffers import Stream
from envs.errors import UserError
from experiments.runs.segments import Segment, SegmentStore, segments_from_json, segments_to_json
from kp3d_rl.storage.files import (
    SUMS,
    TENSOR_LIMIT,
    DamagedError,
    make_folder,
    parse_json,
    parse_tensors,
    read_checked,
    read_sums,
    read_whole,
    remove,
    remove_folder,
    sums_text,
    sync_folder,
    tensors_to_bytes,
    write_whole,
)
from kp3d_rl.storage.steps import LATEST, complete_steps, folder_of, latest_step
from kp3d_rl.storage.trees import Tree, anything, pack, require_like, unpack

FORMAT = 3
DESCRIPTION = ("config.yaml", "rig.json", "cameras.yaml")
"""Files of the run folder that say what the weights belong to; checkpoints hold their checksums."""
FILES = ("policy.safetensors", "optimizer.safetensors", "training.safetensors", "state.json")
"""What a checkpoint's folder holds, beside the checksums."""
_LATER = ("encoder", "aliases", "optimizer_groups", "state", "segments")
_HEAD = {"format": 0, "step": 0} | dict.fromkeys(_LATER, anything)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    :param step: environment steps done; of a pretraining, gradient steps.
    :param policy: state dict of the policy, aliases resolved.
    :param optimizers: state dicts of the optimisers, by name.
    :param state: everything else that the run needs to go on: plain values and arrays.
    :param segments: files of the frames that its buffers held.
    """

    step: int
    policy: dict[str, torch.Tensor]
    optimizers: dict[str, dict[str, Any]]
    state: dict[str, Tree]
    segments: tuple[Segment, ...] = field(default=())


class Checkpoints:
    """All checkpoints of a run.

    :param run: the run's folder.
    :param encoder: the options of its encoder, which are written beside the weights so that these can be used without
        the rest of the run's configuration.
    """

    def __init__(self, run: Path, encoder: Mapping[str, Any] | None = None) -> None:
        self.run, self.folder, self.encoder = run, run / "checkpoints", encoder
        self.store = SegmentStore(run / "segments")

    def steps(self) -> list[int]:
        """Steps at which complete checkpoints stand, ascending."""
        return complete_steps(self.folder)

    def latest(self) -> int | None:
        """Step of the newest one; None where there is none."""
        return latest_step(self.folder)

    def path(self, step: int) -> Path:
        """Folder of a checkpoint."""
        return folder_of(self.folder, step)

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(
        self,
        step: int,
        policy: torch.nn.Module,
        optimizers: Mapping[str, torch.optim.Optimizer],
        state: Mapping[str, Tree],
        streams: Sequence[Stream] = (),
    ) -> Path:
        """Write a checkpoint; it is on the disk when this returns.

        :param step: environment steps done.
        :param policy: its weights.
        :param optimizers: by name.
        :param state: plain values and arrays.
        :param streams: rings of the buffers; what is new in them is appended to the segments.
        :return: the checkpoint's folder.
        :raises OSError: where the disk is full, say; what stood there before still stands.
        """
        folder = self.path(step)
        partial = self.folder / f".{folder.name}.partial"
        make_folder(self.folder)
        remove(partial)
        partial.mkdir()
        try:
            segments = self.store.append(streams)
            self._fill(partial, step, policy, optimizers, state, segments)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._give_name(partial, folder)
        self._set_latest(step)
        return folder

    def _set_latest(self, step: int) -> None:
        """The last step. A folder of that name, which only damage puts there, must not stop a training."""
        path = self.folder / LATEST
        remove_folder(path)
        write_whole(path, f"{self.path(step).name}\n".encode())

    def _fill(
        self,
        folder: Path,
        step: int,
        policy: torch.nn.Module,
        optimizers: Mapping[str, torch.optim.Optimizer],
        state: Mapping[str, Tree],
        segments: Sequence[Segment],
    ) -> None:
        tensors, aliases = without_aliases(policy.state_dict())
        moments, groups = _flatten_optimizers(optimizers)
        plain, arrays = pack(dict(state))
        head = {"format": FORMAT, "step": step, "encoder": self.encoder, "aliases": aliases, "optimizer_groups": groups}
        files = {
            "policy.safetensors": tensors_to_bytes(tensors),
            "optimizer.safetensors": tensors_to_bytes(moments),
            "training.safetensors": tensors_to_bytes(arrays),
            "state.json": to_json(head | {"state": plain, "segments": segments_to_json(segments)}),
        }
        sums = {name: write_whole(folder / name, data) for name, data in files.items()}
        sums |= {f"../../{name}": digest for name, digest in self.description_sums().items()}
        sums |= {f"../../segments/{segment.name}": segment.sha256 for segment in segments}
        write_whole(folder / SUMS, sums_text(sums))

    def _give_name(self, partial: Path, folder: Path) -> None:
        """The last but one step: the folder appears under its name."""
        old = self.folder / f".{folder.name}.old"
        remove(old)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        sync_folder(self.folder)
        remove(old)

    def prune(self, last: int, every: int = 0) -> None:
        """Delete older checkpoints, what killed processes left, and segments that no checkpoint needs any more.

        :param last: how many of the newest stay; 0: all of them.
        :param every: of the others, those stay that are the first in such a number of steps; 0: none.
        """
        steps, newest = self.steps(), self.latest()
        kept = {*(steps[-last:] if last else steps), *_first_in_each(steps, every)}
        for step in steps:
            if step not in kept and step != newest:
                shutil.rmtree(self.path(step), ignore_errors=True)
        for left in (*self.folder.glob(".*.partial"), *self.folder.glob(".*.old")):
            remove(left)
        needed = [self._segments(step) for step in self.steps()]
        if None not in needed:  # of a damaged one nobody knows what it needs
            self.store.remove_others(segment for segments in needed for segment in segments)

    def go_back(self, step: int) -> None:
        """Make a checkpoint the newest, before a training goes on from it: the time of later ones is now to come.

        :param step: of the checkpoint.
        """
        if self.latest() != step:
            self._set_latest(step)
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.path(later))

    def give_up_frames(self, state: Mapping[str, Tree]) -> None:
        """Delete all frames: the run is finished. Checkpoints keep their weights, but nothing goes on from them.

        :param state: in place of theirs.
        """
        for step in self.steps():
            if self._segments(step):  # of a damaged one nothing can be kept
                folder = self.path(step)
                partial = self.folder / f".{folder.name}.partial"
                remove(partial)
                shutil.copytree(folder, partial)
                self._without_frames(partial, state)
                self._give_name(partial, folder)
        self.store.segments = []
        self.store.remove_others(())

    def _without_frames(self, folder: Path, state: Mapping[str, Tree]) -> None:
        sums, (plain, arrays) = read_sums(folder), pack(dict(state))
        head = parse_json(read_checked(folder / "state.json", sums), "state.json")
        kept = {name: digest for name, digest in sums.items() if not name.startswith("../../segments/")}
        kept["state.json"] = write_whole(folder / "state.json", to_json(head | {"state": plain, "segments": []}))
        kept["training.safetensors"] = write_whole(folder / "training.safetensors", tensors_to_bytes(arrays))
        write_whole(folder / SUMS, sums_text(kept))

    def description_sums(self) -> dict[str, str]:
        """Checksums of the files that say what the run is."""
        present = [name for name in DESCRIPTION if (self.run / name).is_file()]
        return {name: hashlib.sha256(read_whole(self.run / name)).hexdigest() for name in present}

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, step: int | None = None) -> Checkpoint:
        """Read a checkpoint; nothing in it is executed.

        :param step: which one; None takes the newest.
        :raises UserError: if there is none, or it or the run's description is damaged.
        """
        step = self._existing(step)
        folder = self.path(step)
        try:
            sums = read_sums(folder)
            self._require_description(sums)
            head = self._head(folder, sums, step)
            if self.encoder is not None and head["encoder"] != json.loads(json.dumps(self.encoder)):
                raise DamagedError("its encoder's options are not those of the run's config.yaml")
            tensors = _tensors(folder / "policy.safetensors", sums)
            require_like(head["aliases"], _texts, "aliases")
            tensors |= {alias: _known(tensors, name) for alias, name in head["aliases"].items()}
            optimizers = _unflatten_optimizers(_tensors(folder / "optimizer.safetensors", sums), head)
            arrays = _tensors(folder / "training.safetensors", sums)
            state = unpack(head["state"], arrays)
            if not isinstance(state, dict) or arrays.keys() != pack(state)[1].keys():
                raise DamagedError("its arrays are not those of its state")
            segments = segments_from_json(head["segments"])
            self._require_listed(sums, segments)
            return Checkpoint(step, tensors, optimizers, state, tuple(segments))
        except DamagedError as error:
            raise UserError(f"checkpoint {folder} is damaged: {error}{self._others(step)}") from None

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.run} has no checkpoint yet")
        if step is not None and step not in steps:
            raise UserError(f"{self.run} has no checkpoint at step {step}, only at {', '.join(map(str, steps))}")
        return step if step is not None else self.latest() or steps[-1]

    def _require_description(self, sums: Mapping[str, str]) -> None:
        """The weights belong to the configuration and the cameras that they were trained with."""
        found = self.description_sums()
        for name in DESCRIPTION:
            if found.get(name) != sums.get(f"../../{name}"):
                gone = "is gone" if name not in found else "was changed"
                raise DamagedError(f"{self.run / name} {gone} since the checkpoint was written")

    def _require_listed(self, sums: Mapping[str, str], segments: Sequence[Segment]) -> None:
        """The list of checksums is of what the checkpoint consists of, no more and no less."""
        frames = {f"../../segments/{segment.name}": segment.sha256 for segment in segments}
        described = {f"../../{name}" for name in self.description_sums()}
        if sums.keys() != {*FILES, *described, *frames} or any(sums[name] != frames[name] for name in frames):
            raise DamagedError(f"{SUMS} does not list what the checkpoint consists of")

    def _head(self, folder: Path, sums: Mapping[str, str], step: int) -> dict[str, Any]:
        data = read_checked(folder / "state.json", sums)
        head = parse_json(data, "state.json")
        if isinstance(head, dict) and type(head.get("format")) is int and head["format"] != FORMAT:
            raise DamagedError(f"it has format {str(head['format'])[:20]}, this version reads format {FORMAT}")
        require_like(head, _HEAD, "state.json")
        if head["step"] != step:
            raise DamagedError(f"it is of step {str(head['step'])[:20]}")
        return head

    def _segments(self, step: int) -> list[Segment] | None:
        """What a checkpoint refers to; None where it is damaged."""
        try:
            head = parse_json(read_whole(self.path(step) / "state.json"), "state.json")
            return segments_from_json(head.get("segments") if isinstance(head, dict) else None)
        except DamagedError:
            return None

    def _others(self, step: int) -> str:
        others = [other for other in self.steps() if other != step]
        return f" (others stand at step {', '.join(map(str, others))})" if others else ""


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


def _first_in_each(steps: Sequence[int], every: int) -> set[int]:
    """Of ascending steps the first in each stretch of so many."""
    found: dict[int, int] = {}
    for step in steps if every else ():
        found.setdefault(step // every, step)
    return set(found.values())


def _tensors(path: Path, sums: Mapping[str, str]) -> dict[str, torch.Tensor]:
    return parse_tensors(read_checked(path, sums, TENSOR_LIMIT), path.name)


def _known(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in tensors:
        raise DamagedError(f"tensor '{name[:100]}' is missing")
    return tensors[name]


def _texts(tree: Any, name: str) -> None:
    if not isinstance(tree, dict) or not all(isinstance(value, str) for value in tree.values()):
        raise DamagedError(f"'{name}' is no mapping of names")


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


def _unflatten_optimizers(moments: Mapping[str, torch.Tensor], head: dict[str, Any]) -> dict[str, dict[str, Any]]:
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
