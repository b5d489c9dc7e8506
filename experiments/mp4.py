"""Frames as an H.264 video that browsers play."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from envs.errors import UserError


def write_mp4(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    """Encode H.264 that browsers play (yuv420p, BT.709, index at the front); nothing half-written is left behind.

    :param path: ends in .mp4; its folder is made, a file there is replaced when the new one is complete.
    :param frames: at least one (height, width, 3) uint8, all of one size; odd sizes get one more row or column.
    :raises UserError: where there is no ffmpeg, the folder cannot be written to, or ffmpeg fails.
    """
    program, partial = _find_ffmpeg(), path.with_name(f".{path.stem}.partial.mp4")
    with _one_line(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # now, not when the first frame has been played
    try:
        _encode(program, partial, frames, fps)
        with _one_line(f"cannot write {path}"):
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _find_ffmpeg() -> str:
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise UserError("no ffmpeg found: pip install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to one") from None


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Failures of the file system as a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}") from error


def _encode(program: str, path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    """Pipe frames through ffmpeg."""
    first = _even(next(frames))
    command = [
        *(program, "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"),
        *("-s", f"{first.shape[1]}x{first.shape[0]}", "-r", str(fps), "-i", "-"),
        *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"),
        *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
        *("-movflags", "+faststart", "-f", "mp4", str(path)),
    ]
    with tempfile.TemporaryFile() as log:
        with _one_line(f"cannot run ffmpeg ({program})"):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log)
        with process:
            try:
                _feed(process.stdin, itertools.chain([first], frames))
            except BaseException:  # of the episodes, or Ctrl-C
                process.kill()
                raise
        if process.returncode:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise UserError(f"ffmpeg ({program}) could not write the video: {said[-1]}")


def _feed(pipe: IO[bytes], frames: Iterable[np.ndarray]) -> None:
    """Write the frames, as long as the reader lives; why it has ended, its exit code and log say."""
    for frame in frames:
        data = _even(frame).tobytes()
        try:
            pipe.write(data)
        except BrokenPipeError:
            break
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _even(frame: np.ndarray) -> np.ndarray:
    """The frame with an even number of rows and columns, as yuv420p needs."""
    rows, columns = (side % 2 for side in frame.shape[:2])
    return np.pad(frame, ((0, rows), (0, columns), (0, 0)), mode="edge")
