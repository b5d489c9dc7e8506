"""The checkpoints of a run: folders that appear whole or not at all, and hold no code.

``checkpoints/<step>/`` has the weights of policy, encoder and decoder (each shared tensor once, its other names in
``state.json``), the optimisers' moments, the arrays of the training's state, everything else as JSON, and the
checksums of all these and of the run's own description. The replay's frames are in ``segments/`` beside it.

Order of writing: segments, checkpoint under a temporary name, its own name, ``latest``, then older ones go. Whenever
the process dies, the newest whole checkpoint is found. Names that begin with a dot are of what was under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agents.buffers import Stream
from envs.errors import UserError
from experiments.options.files import with_added
from experiments.runs.contents import (
    flatten_optimizers,
    to_json,
    unflatten_optimizers,
    with_aliases,
    without_aliases,
)
from experiments.runs.segments import Segment, SegmentStore, segments_from_json, segments_to_json
from kp3d_rl.storage.files import (
    SUMS,
    TENSOR_LIMIT,
    DamagedError,
    link_or_copy,
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
    write_tensors,
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
        for later in self.steps():
            if later > step:  # of a time that was given up
                self._delete(later)
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
        moments, groups = flatten_optimizers(optimizers)
        plain, arrays = pack(dict(state))
        head = {"format": FORMAT, "step": step, "encoder": self.encoder, "aliases": aliases, "optimizer_groups": groups}
        files = {"policy.safetensors": tensors, "optimizer.safetensors": moments, "training.safetensors": arrays}
        sums = {name: write_tensors(folder / name, content) for name, content in files.items()}
        text = to_json(head | {"state": plain, "segments": segments_to_json(segments)})
        sums["state.json"] = write_whole(folder / "state.json", text)
        sums |= {f"../../{name}": digest for name, digest in self.description_sums().items()}
        sums |= {f"../../segments/{segment.name}": segment.sha256 for segment in segments}
        write_whole(folder / SUMS, sums_text(sums))

    def _give_name(self, partial: Path, folder: Path) -> None:
        """The last but one step: the folder appears under its name; till then :meth:`recover` finds the old one."""
        old = self.folder / f".{folder.name}.old"
        remove(old)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        sync_folder(self.folder)
        remove(old)

    def recover(self) -> None:
        """Bring back, or clear away, what a killed process was about to replace or delete. For who holds the lock."""
        for old in self.folder.glob(".*.old"):
            place = self.folder / old.name[1 : -len(".old")]
            if not place.exists():
                old.rename(place)
        for left in (entry for kind in ("partial", "old", "gone") for entry in self.folder.glob(f".*.{kind}")):
            remove(left)

    def prune(self, last: int, every: int = 0) -> None:
        """Delete older checkpoints, what killed processes left, and segments that no checkpoint needs any more.

        :param last: how many of the newest stay; 0: all of them.
        :param every: of the others, those stay that are the first in such a number of steps; 0: none.
        """
        self.recover()
        steps, newest = self.steps(), self.latest()
        kept = {*(steps[-last:] if last else steps), *_first_in_each(steps, every)}
        for step in steps:
            if step not in kept and step != newest:
                self._delete(step)
        needed = [self._segments(step) for step in self.steps()]
        if None not in needed:  # of a damaged one nobody knows what it needs
            self.store.remove_others(segment for segments in needed for segment in segments)

    def _delete(self, step: int) -> None:
        """Delete a checkpoint, which is there as a whole or not at all, however far this comes."""
        gone = self.folder / f".{self.path(step).name}.gone"
        remove(gone)
        self.path(step).rename(gone)
        remove(gone)

    def go_back(self, step: int) -> None:
        """Make a checkpoint the newest, before a training goes on from it.

        Later ones stay until the next one is written, since their time comes again: who goes back by mistake, or in
        vain, loses nothing.

        :param step: of the checkpoint.
        """
        if self.latest() != step:
            self._set_latest(step)

    def give_up_frames(self, state: Mapping[str, Tree]) -> None:
        """Delete all frames: the run is finished. Checkpoints keep their weights, but nothing goes on from them.

        :param state: in place of theirs, where they do not have it.
        """
        for step in self.steps():
            folder = self.path(step)
            partial = self.folder / f".{folder.name}.partial"
            remove(partial)
            with contextlib.suppress(DamagedError):  # one that is damaged stays as it is
                if self._without_frames(folder, partial, state):
                    self._give_name(partial, folder)
            remove(partial)
        self.store.segments = []
        self.store.remove_others(())

    def _without_frames(self, folder: Path, partial: Path, state: Mapping[str, Tree]) -> bool:
        """Write what a finished run keeps of a checkpoint; False where that is what it has."""
        sums, (plain, arrays) = read_sums(folder), pack(dict(state))
        head = parse_json(read_checked(folder / "state.json", sums), "state.json")
        require_like(head, _HEAD, "state.json")
        if isinstance(head["state"], dict) and plain.items() <= head["state"].items() and head["segments"] == []:
            return False
        partial.mkdir()
        kept = {name: digest for name, digest in sums.items() if not name.startswith("../../segments/")}
        for name in ("policy.safetensors", "optimizer.safetensors"):
            link_or_copy(folder / name, partial / name)
        kept["state.json"] = write_whole(partial / "state.json", to_json(head | {"state": plain, "segments": []}))
        kept["training.safetensors"] = write_tensors(partial / "training.safetensors", arrays)
        write_whole(partial / SUMS, sums_text(kept))
        return True

    def description_sums(self) -> dict[str, str]:
        """Checksums of the files that say what the run is."""
        present = [name for name in DESCRIPTION if (self.run / name).is_file()]
        return {name: hashlib.sha256(read_whole(self.run / name)).hexdigest() for name in present}

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, step: int | None = None) -> Checkpoint:
        """Read a checkpoint; nothing in it is executed.

        :param step: which one; None takes the newest.
        :raises UserError: if there is none, it is damaged or of another version, or the run's description changed.
        """
        while True:
            chosen = self._existing(step)
            try:
                return self._read(chosen)
            except DamagedError as error:
                if self.path(chosen).exists():  # else a training at work has just deleted or replaced it
                    raise UserError(
                        f"checkpoint {self.path(chosen)} is damaged: {error}{self._others(chosen)}"
                    ) from None

    def _read(self, step: int) -> Checkpoint:
        folder = self.path(step)
        sums = read_sums(folder)
        self._require_description(sums, folder)
        head = self._head(folder, sums, step)
        if self.encoder is not None and not self._fits(head["encoder"]):
            raise DamagedError("its encoder's options are not those of the run's config.yaml")
        tensors = with_aliases(_tensors(folder / "policy.safetensors", sums), head["aliases"])
        optimizers = unflatten_optimizers(_tensors(folder / "optimizer.safetensors", sums), head)
        arrays = _tensors(folder / "training.safetensors", sums)
        state = unpack(head["state"], arrays)
        if not isinstance(state, dict) or arrays.keys() != pack(state)[1].keys():
            raise DamagedError("its arrays are not those of its state")
        segments = segments_from_json(head["segments"])
        self._require_listed(sums, segments)
        return Checkpoint(step, tensors, optimizers, state, tuple(segments))

    def _fits(self, encoder: Any) -> bool:
        """Whether the encoder's options in a checkpoint are those of the run."""
        return isinstance(encoder, dict) and with_added(encoder, "encoder") == json.loads(json.dumps(self.encoder))

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.run} has no checkpoint yet")
        if step is not None and step not in steps:
            raise UserError(f"{self.run} has no checkpoint at step {step}, only at {', '.join(map(str, steps))}")
        if step is not None:
            return step
        newest = self.latest()
        return steps[-1] if newest is None else newest

    def _require_description(self, sums: Mapping[str, str], folder: Path) -> None:
        """The weights belong to the configuration and the cameras that they were trained with."""
        found = self.description_sums()
        for name in DESCRIPTION:
            if name in found and f"../../{name}" not in sums:
                raise DamagedError(f"{SUMS} does not list {name}")
            if found.get(name) != sums.get(f"../../{name}"):
                gone = "is gone" if name not in found else "was changed"
                raise UserError(
                    f"{self.run / name} {gone} since checkpoint {folder} was written: "
                    "what a run is cannot be changed; put the file back, or train anew"
                )

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
            raise UserError(
                f"checkpoint {folder} was written by another version: "
                f"it has format {str(head['format'])[:20]}, this version reads format {FORMAT}"
            )
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


def _first_in_each(steps: Sequence[int], every: int) -> set[int]:
    """Of ascending steps the first in each stretch of so many."""
    found: dict[int, int] = {}
    for step in steps if every else ():
        found.setdefault(step // every, step)
    return set(found.values())


def _tensors(path: Path, sums: Mapping[str, str]) -> dict[str, torch.Tensor]:
    return parse_tensors(read_checked(path, sums, TENSOR_LIMIT), path.name)
