"""Files that are whole or not there, and files that are read without trust.

Whatever is written goes to a temporary file first, is flushed to the disk, and takes its name last: a reader, and
whoever comes after a power cut, finds the old file or the new one. Whatever is read may come from a stranger: it must
be a regular file of a sensible size, tensors are safetensors, the rest is JSON; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file

SUMS = "SHA256SUMS"
"""Checksums of a folder's files as ``sha256sum`` writes and checks them (``sha256sum -c SHA256SUMS``)."""
TEXT_LIMIT = 16 << 20
"""Bytes of the largest JSON file that is read."""
TENSOR_LIMIT = 2 << 30
"""Bytes of the largest file of tensors that is read."""


_DEEPEST = 100
"""Levels of the most deeply nested JSON that is read."""
_MOST = 1_000_000
"""Values in the largest JSON that is read: an empty mapping is two bytes of text and hundreds of memory."""


class DamagedError(ValueError):
    """A file is not what it should be; the message names file and fault in one line, whatever the file says.

    :param message: what is wrong.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, 500))


def printable(text: object, most: int = 1000) -> str:
    """What a file says, on one line and without what a terminal would obey.

    :param text: anything.
    :param most: characters.
    """
    line = " ".join(str(text)[: 2 * most].split())
    return "".join(character if character.isprintable() else "?" for character in line)[:most]


def write_whole(path: Path, data: bytes) -> str:
    """Write a file that is whole or not there, and on the disk when this returns.

    :param path: its folder must exist; a file, or a link, that stands there is replaced.
    :param data: its content.
    :return: its SHA-256 as hexadecimal digits.
    :raises OSError: where the disk is full, say, or where a folder stands there, which is nobody's to delete.
    """

    def fill(partial: Path) -> None:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as file:
            file.write(data)

    return _replace_by(fill, path)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write a safetensors file as :func:`write_whole` does, from where the tensors are: without copies on the way.

    :param path: its folder must exist.
    :param tensors: by name; the same ones give the same bytes.
    :return: its SHA-256 as hexadecimal digits.
    :raises OSError: as :func:`write_whole`.
    """
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    try:
        return _replace_by(functools.partial(save_file, ready), path)
    except SafetensorError:  # keeps to itself what the system said; the same the slow way says it
        return write_whole(path, save(ready))


def _replace_by(fill: Callable[[Path], object], path: Path) -> str:
    """Have a file written under a temporary name, flush it, and give it its own; its SHA-256, read back."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        remove(partial)  # left by a process that was killed; might be a link to somewhere else
        fill(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(os, "posix_fadvise"):  # nobody reads it soon: the next one may have the memory of its pages
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.replace(partial, path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            partial.unlink()  # on a full disk the half of a file is the last thing that is needed
        raise
    sync_folder(path.parent)
    return digest


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder, if it is there."""
    remove_folder(path)
    path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a whole folder, if one stands there; a link to one is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)


def link_or_copy(path: Path, other: Path) -> None:
    """Give a file another name, or make a copy where the file system has one name per file.

    :param path: of the file, which nobody will write into: files here are replaced.
    :param other: the other name.
    """
    try:
        os.link(path, other, follow_symlinks=False)
    except OSError:
        shutil.copyfile(path, other, follow_symlinks=False)


def make_folder(path: Path) -> None:
    """Make a folder whose parent exists, and have its name on the disk; if it is there already, do nothing."""
    if not path.is_dir():
        path.mkdir()
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names; does nothing where the system cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_whole(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """Read a regular file; links, pipes and devices are none.

    :param limit: largest size, bytes.
    :raises DamagedError: for anything else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DamagedError(f"{path} is damaged: not a regular file")
            if found.st_size > limit:
                raise DamagedError(f"{path} is damaged: {found.st_size} bytes, at most {limit} make sense")
            return file.read(found.st_size)  # as much memory as that is asked for, so not the limit
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from None


def read_checked(path: Path, sums: Mapping[str, str], limit: int = TEXT_LIMIT, name: str | None = None) -> bytes:
    """Read a file whose checksum is known.

    :param sums: from :func:`read_sums`.
    :param limit: largest size, bytes.
    :param name: under which the sum is listed; None: the file's own.
    :raises DamagedError: where it differs, is not listed or cannot be read.
    """
    name = name or path.name
    if name not in sums:
        raise DamagedError(f"{path} is damaged: {SUMS} does not list it")
    data = read_whole(path, limit)
    if hashlib.sha256(data).hexdigest() != sums[name]:
        raise DamagedError(f"{path} is damaged: its checksum is not the one in {SUMS}")
    return data


def read_sums(folder: Path) -> dict[str, str]:
    """Checksums of a folder's files, by name. The names are for looking up: none of them is ever opened.

    :raises DamagedError: where the list is not one.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(read_whole(folder / SUMS).decode(errors="replace").splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if not gap or len(digest) != 64 or set(digest) - set("0123456789abcdef") or not name or name in sums:
            raise DamagedError(f"{folder / SUMS} line {number} is damaged: expected a SHA-256, two spaces and a name")
        sums[name] = digest
    return sums


def sums_text(sums: Mapping[str, str]) -> bytes:
    """Undo :func:`read_sums`."""
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()


def parse_json(data: bytes, name: str) -> Any:
    """JSON without duplicate keys.

    :param data: UTF-8 text.
    :param name: of the file, for the message.
    :raises DamagedError: where it is something else, nested too deeply, or of too many values.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > _MOST:
        raise DamagedError(f"{name} is damaged: more than {_MOST} values")
    try:
        found = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DamagedError(f"{name} is damaged: {reason[:200]}") from None
    level, depth = [found], 0
    while level:
        level = [part for value in level for part in _parts(value)]
        depth += 1
        if depth > _DEEPEST:
            raise DamagedError(f"{name} is damaged: nested too deeply")
    return found


def parse_tensors(data: bytes, name: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    :param data: its content.
    :param name: of the file, for the message.
    :raises DamagedError: where it is something else.
    """
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise DamagedError(f"{name} is damaged: {' '.join(str(error).split())[:200]}") from None


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found
