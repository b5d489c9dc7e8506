"""What code does that reads files of strangers: what it executes and touches, how long it takes, how much it takes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EXECUTES = (
    "exec", "import", "marshal.loads", "pickle.find_class", "os.system", "os.exec", "os.posix_spawn",
    "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen",
)  # fmt: skip
"""Audit events (PEP 578) that no load of a file may cause."""
_TOUCHES = (
    "open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod",
    "os.utime", "shutil.rmtree", "shutil.copyfile", "shutil.move",
)  # fmt: skip
"""Audit events that say which files are touched."""

_LISTENERS: list[tuple[list[str], Path]] = []


class Hangs(BaseException):
    """Something has not come to its end in time; no handler of errors is meant to catch this."""


@contextlib.contextmanager
def watched(found: list[str], run: Path) -> Iterator[None]:
    """Write down what is executed, and what is touched outside of a run.

    :param found: is added to.
    :param run: the folder; links in it are followed.
    """
    if not getattr(_audit, "installed", False):
        sys.addaudithook(_audit)
        _audit.installed = True
    _LISTENERS.append((found, Path(os.path.realpath(run))))
    try:
        yield
    finally:
        _LISTENERS.pop()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hooks cannot be taken out again, so there is one, which mostly has nobody to tell."""
    if not _LISTENERS:
        return
    found, run = _LISTENERS[-1]
    if event in _EXECUTES and (event, *arguments) != ("ctypes.dlopen", "libc.so.6"):  # for its memory's options
        found.append(f"{event} {str(arguments)[:200]}")
    elif event in _TOUCHES:
        for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
            # Names alone are relative to a descriptor of a folder, as when folders are deleted.
            named = isinstance(path, (str, bytes)) and os.sep in os.fsdecode(path)
            if named and _is_outside(Path(os.fsdecode(path)), event, arguments, run):
                found.append(f"{event} {str(arguments)[:200]}")


def _is_outside(path: Path, event: str, arguments: tuple[Any, ...], run: Path) -> bool:
    follows = event == "open" and not arguments[2] & os.O_NOFOLLOW and not arguments[2] & os.O_EXCL
    real = Path(os.path.realpath(path) if follows else Path(os.path.realpath(path.parent)) / path.name)
    known = [run]
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        known += [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2], Path("/proc"), Path("/sys")]
    return not any(real.is_relative_to(folder) for folder in known) and real != Path(os.devnull)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Context that is left after so many seconds.

    :raises Hangs: then.
    """

    def hangs(number: int, frame: Any) -> None:
        raise Hangs(f"no end after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory(more: int) -> None:
    """Let this process have no more than so many bytes beyond what it has now; what asks for more is refused.

    :param more: bytes of address space.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context in which nothing is printed."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
