"""Replay frames in append-only files: each frame is written and hashed once, and checkpoints refer to the files.

A buffer shows its rings as :class:`~agents.buffers.Stream` objects, in which every item has a number that never
changes. A segment holds items ``first`` to ``first + count`` of one stream. Its file's name is made of these, so that
a checkpoint can refer to nothing outside of the folder of segments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from agents.buffers import Stream
from kp3d_rl.storage.files import (
    DamagedError,
    make_folder,
    parse_tensors,
    read_checked,
    remove,
    remove_folder,
    write_tensors,
)
from kp3d_rl.storage.trees import require_like

LARGEST = 64 << 20
"""Bytes of a segment, about; what is read into memory at a time."""
_STREAM = re.compile(r"[a-z][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class Segment:
    """A file of items of one stream.

    :param stream: its name.
    :param first: number of the first item.
    :param count: how many.
    :param sha256: of the file.
    """

    stream: str
    first: int
    count: int
    sha256: str

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.stream}-{self.first:012d}-{self.end:012d}.safetensors"

    @property
    def end(self) -> int:
        """Number after the last item."""
        return self.first + self.count


def segments_to_json(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """As plain values."""
    return [asdict(segment) for segment in segments]


def segments_from_json(found: Any) -> list[Segment]:
    """Undo :func:`segments_to_json`.

    :raises DamagedError: for values of another form.
    """
    require_like(found, [{"stream": "", "first": 0, "count": 0, "sha256": ""}], "segments")
    segments = [Segment(**entry) for entry in found]
    for segment in segments:
        if not _STREAM.fullmatch(segment.stream) or not 0 <= segment.first < 1 << 62 or not 0 < segment.count < 1 << 40:
            raise DamagedError(f"'segments' has an entry that is none: {str(asdict(segment))[:200]}")
    return segments


class SegmentStore:
    """The folder of segments of a run.

    :param folder: made when it is needed.
    :param segments: that stand there already and are still of use, as the last checkpoint lists them.
    """

    def __init__(self, folder: Path, segments: Sequence[Segment] = ()) -> None:
        self.folder, self.segments = folder, list(segments)

    def append(self, streams: Sequence[Stream]) -> list[Segment]:
        """Write what is new since the last time.

        :param streams: of the buffers, as they are now.
        :return: the segments that hold everything that is in the rings now.
        """
        kept: list[Segment] = []
        for stream in streams:
            known = [s for s in self.segments if s.stream == stream.name and s.end > stream.first]
            start = max([stream.first, *(segment.end for segment in known)])
            kept += [*known, *(self._write(stream, *piece) for piece in _pieces(stream, start))]
        self.segments = kept
        return kept

    def fill(self, streams: Sequence[Stream], segments: Sequence[Segment]) -> None:
        """Read items back into rings, checked against their sums.

        :param streams: with the numbers that they had, and rings to be filled.
        :param segments: of the checkpoint.
        :raises DamagedError: where a file is missing or damaged, does not fit a ring, or items are missing.
        """
        for stream in streams:
            reached = stream.first
            for segment in sorted((s for s in segments if s.stream == stream.name), key=lambda s: s.first):
                if segment.first > reached or not reached < segment.end <= stream.count:
                    break
                stream.write(segment.first, self._read(segment, stream))
                reached = segment.end
            if reached != stream.count:
                raise DamagedError(f"{self.folder}: items {reached} to {stream.count} of '{stream.name}' are missing")
        self.segments = list(segments)

    def require(self, segments: Sequence[Segment]) -> None:
        """Check that files are what they were when they were written.

        :raises DamagedError: naming the first that is not.
        """
        for segment in segments:
            self._bytes(segment)

    def _bytes(self, segment: Segment) -> bytes:
        return read_checked(self.folder / segment.name, {segment.name: segment.sha256}, 2 * LARGEST + (64 << 20))

    def remove_others(self, used: Iterable[Segment]) -> None:
        """Delete every file that is not among those that are used."""
        names = {segment.name for segment in used}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in names:
                remove(path)

    def _write(self, stream: Stream, first: int, end: int) -> Segment:
        make_folder(self.folder)
        path = self.folder / Segment(stream.name, first, end - first, "").name
        remove_folder(path)  # only damage puts one there; it must not stop a training
        return Segment(stream.name, first, end - first, write_tensors(path, stream.read(first, end)))

    def _read(self, segment: Segment, stream: Stream) -> dict[str, torch.Tensor]:
        path = self.folder / segment.name
        items = parse_tensors(self._bytes(segment), str(path))
        expected = {key: (segment.count, *ring.shape[1:]) for key, ring in stream.rings.items()}
        found = {key: tuple(values.shape) for key, values in items.items()}
        kinds = {key: stream.kind(key) for key in expected}
        if found != expected or {key: values.dtype for key, values in items.items()} != kinds:
            raise DamagedError(f"{path} does not fit: it holds {str(found)[:200]}, expected {str(expected)[:200]}")
        for key, values in items.items():
            if values.is_floating_point() and not torch.isfinite(values).all():  # no training stores such ones
                raise DamagedError(f"{path}: '{key}' is not finite")
        return items


def _pieces(stream: Stream, start: int) -> Iterator[tuple[int, int]]:
    """Numbers of the first item and of the one after the last, of pieces that are whole in the ring and not large."""
    if not stream.rings:
        return
    most = max(1, LARGEST // max(1, stream.item_bytes))
    while start < stream.count:
        wrap = (start // stream.capacity + 1) * stream.capacity
        end = min(stream.count, start + most, wrap)
        yield start, end
        start = end
