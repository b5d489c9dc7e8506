"""Run folders of what has no policy: made whole, found, opened; shared by the kinds of such runs.

``runs/<home>/<name>/`` with ``config.yaml``, ``origin.json`` and a folder that tells which kind of run it is. Files are
whole or not there; nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from torch import Tensor

from envs.errors import UserError
from experiments.options.files import read_config
from experiments.provenance import origin
from experiments.runs.folder import LONGEST, ORIGIN, ROOT, folder_name, locked, require_contained
from kp3d_rl.storage.files import (
    TENSOR_LIMIT,
    DamagedError,
    parse_json,
    parse_tensors,
    printable,
    read_whole,
    remove,
    sync_folder,
    write_whole,
)

METRICS = "metrics.csv"
"""A row for each judgement while a run learns."""


@dataclass(frozen=True)
class PlainRun:
    """A run folder.

    :param path: the folder.
    :param config: of the run: a dataclass with ``run``, ``seed``, ``label`` (what is done) and ``home`` (where such
        runs are, in ``runs``).
    """

    path: Path
    config: Any

    KIND: ClassVar[str]
    """What such a run is called."""
    PROGRAM: ClassVar[str]
    """Target of make that makes one."""
    MARK: ClassVar[str]
    """The folder that tells such a run from others."""
    CONFIG: ClassVar[type]
    HOME: ClassVar[str]
    """Where such runs are unless something else is said."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to learn."""
        raise NotImplementedError

    @classmethod
    def create(cls, config: Any, root: Path = ROOT) -> Self:
        """Make a new folder; it is a whole run or not there.

        :param root: folder of all runs.
        :raises UserError: if it exists, its name leads out of it, or it cannot be made.
        """
        name = config.run or f"{config.label}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        if Path(name).name != name or name in (".", "..") or len(name.encode()) > LONGEST:
            raise UserError(
                f"run name '{name[:60]}' must be a plain folder name without '/', of at most {LONGEST} bytes"
            )
        path = root / folder_name(config.home) / name
        if path.exists():
            raise UserError(
                f"run folder {path} already exists: go on with it by `make {cls.PROGRAM} RESUME={path}`, "
                "choose another RUN name or remove it"
            )
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
            partial.mkdir()
            (partial / cls.MARK).mkdir()
            write_whole(partial / ORIGIN, json.dumps(origin(), indent=1).encode())
            text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
            write_whole(partial / "config.yaml", text.encode())
            partial.rename(path)
        except OSError as error:
            raise UserError(f"run folder {path} cannot be made: {error.strerror or error}") from None
        sync_folder(path.parent)
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run.

        :param path: of its folder.
        :raises UserError: where there is none, or something in it leads out of it.
        """
        path = Path(path)
        if not cls.is_one(path):
            raise UserError(f"{printable(path, 200)} is no {cls.KIND} run: it has no config.yaml and {cls.MARK}/")
        require_contained(path)
        return cls(path, read_config(path / "config.yaml", cls.CONFIG))

    @classmethod
    def find(cls, name: str | None, home: str | None, root: Path = ROOT) -> Self:
        """Open a run by path, by name within a home, or the newest of a home.

        :param name: path or name.
        :param home: what such runs are of: an environment, "hand", a category.
        :param root: folder of all runs.
        :raises UserError: where there is no such run.
        """
        path = cls.located(name, home, root)
        if path is None:
            where = f"named '{printable(name, 200)}'" if name else f"in {root / folder_name(home or cls.HOME)}"
            raise UserError(f"no {cls.KIND} run {where}: make one with `make {cls.PROGRAM}`")
        run = cls.open(path)
        if home is not None and run.config.home != home:
            raise UserError(f"{path} is a run of '{run.config.home}', not of '{home}'")
        return run

    @classmethod
    def is_one(cls, path: str | Path) -> bool:
        """Whether a folder is such a run; one that was being made when its program was killed is not."""
        path = Path(path)
        try:
            whole = (path / "config.yaml").is_file() and (path / cls.MARK).is_dir()
            return not path.name.startswith(".") and whole
        except OSError:  # a name that is too long, a folder that may not be looked into
            return False

    @classmethod
    def located(cls, name: str | None, home: str | None, root: Path = ROOT) -> Path | None:
        """The folder of such a run meant by a path, by a name within a home, or by nothing."""
        folder = root / folder_name(home or cls.HOME)
        if name is not None:
            return next((path for path in (Path(name), folder / name) if cls.is_one(path)), None)
        runs = [path for path in folder.iterdir() if cls.is_one(path)] if folder.is_dir() else []
        return max(runs, key=lambda path: (path / "config.yaml").stat().st_mtime, default=None)

    @classmethod
    def is_asked_for(cls, argv: Sequence[str], option: str, homes: Sequence[str], root: Path = ROOT) -> bool:
        """Whether a program that works on all kinds of runs was asked for one of this kind.

        :param argv: its arguments, of which ``--run`` and ``option`` are looked at.
        :param option: that names the home, such as ``--env``.
        :param homes: that only runs of this kind have.
        :param root: folder of all runs.
        """
        given: dict[str, str] = {}
        for at, token in enumerate(argv):
            name, equals, value = token.partition("=")
            if name in ("--run", option):
                given[name] = value if equals else "".join(argv[at + 1 : at + 2])
        if given.get(option) in homes:
            return True
        return "--run" in given and cls.located(given["--run"], given.get(option), root) is not None

    def locked(self) -> AbstractContextManager[None]:
        """See :func:`experiments.runs.folder.locked`."""
        return locked(self.path)

    def rows(self) -> list[dict[str, float]]:
        """Judgements so far, in order: ``metrics.csv``.

        :raises UserError: where the file is damaged.
        """
        path = self.path / METRICS
        if not path.is_file():
            return []
        try:
            with path.open(newline="") as file:
                found = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}") from None
        return [row | {"step": int(row["step"])} for row in found]

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a judgement, with its "step", behind those before it."""
        rows = [*(before for before in self.rows() if before["step"] < row["step"]), row]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path / METRICS, text.getvalue().encode())


def resumed(argv: Sequence[str]) -> str | None:
    """The folder that ``--resume`` names, if that is asked for.

    :param argv: arguments of a program.
    :raises UserError: for anything beside it.
    """
    if not argv or argv[0].partition("=")[0] != "--resume":
        return None
    path = argv[0].partition("=")[2] or (argv[1] if len(argv) == 2 else "")
    if not path or len(argv) > 2:
        raise UserError("--resume takes the folder of a run, and no other option: a run keeps those that it has")
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file.

    :raises UserError: where it is missing or damaged.
    """
    try:
        return parse_tensors(read_whole(path, TENSOR_LIMIT), path.name)
    except DamagedError as error:
        raise UserError(f"{path}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a file.

    :raises UserError: where it is missing or damaged.
    """
    try:
        found = parse_json(read_whole(path), path.name)
    except DamagedError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no mapping")
    return found
