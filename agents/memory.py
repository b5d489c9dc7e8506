"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that are free on the machine or, where that is less, what a control group (a container's limit) leaves.

    :param root: of the file system that holds ``proc`` and ``sys``.
    :return: None where the system does not say (it does on Linux).
    """
    found = [_free_on_machine(root), *(_left_in_group(*group) for group in _groups(root))]
    known = [number for number in found if number is not None]
    return max(0, min(known)) if known else None


def _free_on_machine(root: Path) -> int | None:
    kilobytes = _entry(root / "proc/meminfo", "MemAvailable:")
    return None if kilobytes is None else 1024 * kilobytes


def _groups(root: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """Folders of the memory groups that this process is in, innermost first, with the names of three numbers there.

    Inside a container the path may be the host's; folders that are not there are passed over.
    """
    groups, base = [], root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = base, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = base / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.lstrip("/")
        inner = [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
        groups += [(level, names) for level in inner]
    return groups


def _left_in_group(folder: Path, names: tuple[str, str, str]) -> int | None:
    """Limit less usage, files that could be dropped not counted; None without a limit."""
    limit, used = (_text(folder / name).strip() for name in names[:2])
    if not (limit.isdigit() and used.isdigit()):
        return None
    return int(limit) - int(used) + (_entry(folder / "memory.stat", names[2]) or 0)


def _entry(path: Path, name: str) -> int | None:
    """The number behind a name in a file of lines "name number ..."."""
    words = (line.split() for line in _text(path).splitlines())
    return next((int(line[1]) for line in words if len(line) > 1 and line[0] == name), None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
