"""Run folders: how they are made, found and opened.

``runs/<env>/<name>/`` holds everything of a run: ``config.yaml``, ``origin.json``, ``rig.json``, ``metrics.csv``,
``tensorboard/``, ``wandb/``, ``checkpoints/<step>/``, ``segments/``, ``pictures/``, ``videos/``, ``recordings/``,
``card/``, ``eval.json``, ``probe.json``, and a copy of the cameras file that was used. Such a folder may come from a
stranger: nothing in it is ever unpickled, nothing is imported because it says so, and no path leads out of it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from filelock import FileLock, Timeout

from agents.scene import Scene
from envs.errors import UserError
from envs.registry import env_ids, is_cameras_file, unknown_environment
from experiments.options.config import PretrainConfig, RunConfig, TrainConfig
from experiments.options.files import from_yaml, to_yaml
from experiments.provenance import origin
from experiments.runs.checkpoints import Checkpoint, Checkpoints
from kp3d_rl.storage.files import DamagedError, parse_json, printable, read_whole, remove, sync_folder, write_whole

ROOT = Path("runs")
ORIGIN = "origin.json"
"""Commit and machine that a run was made with."""
CAMERAS = "cameras.yaml"
"""Name of the copy of the cameras file in a run folder, where there was one."""
LONGEST = 200
"""Bytes of the longest name of a run; file systems take 255, and temporary names are longer."""
LOCK = "lock"
"""Name of the file that is locked while a training is at work."""
_FOLDERS = ("checkpoints", "segments", "tensorboard", "wandb", "pictures", "videos", "recordings", "card")
_FILES = (
    "config.yaml", "rig.json", CAMERAS, ORIGIN, "metrics.csv", "eval.json", "probe.json", "probe.png", "policy.onnx",
    LOCK,
)  # fmt: skip


_KINDS = {
    TrainConfig: 'training run, so it has no policy: train one with `make train ENV=<its> ARGS="--pretrained <it>"`',
    PretrainConfig: "pretraining run",
    RunConfig: "run",
}


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
        if len(name.encode()) > LONGEST:
            raise UserError(f"run name '{name[:20]}...' has {len(name.encode())} bytes, at most {LONGEST} are possible")
        path = root / folder_name(config.env) / name
        if path.exists():
            raise UserError(f"run folder {path} already exists: choose another RUN name or remove it")
        return path

    @classmethod
    def create(cls, path: Path, config: RunConfig, scene: Scene | None) -> Run:
        """Make the folder and write what it is; it is a whole run or not there.

        :param scene: cameras and workspace; None for a run on the simulator's state.
        :raises UserError: if the folder exists by now or cannot be made.
        """
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
            partial.mkdir()
            if scene is not None:
                write_whole(partial / "rig.json", json.dumps(scene.to_dict(), indent=1).encode())
            if config.cameras is not None and Path(config.cameras).is_file():
                write_whole(partial / CAMERAS, Path(config.cameras).read_bytes())
            write_whole(partial / ORIGIN, json.dumps(origin(), indent=1).encode())
            write_whole(partial / "config.yaml", to_yaml(config).encode())
            if path.exists():  # made by another training while this one got ready
                raise UserError(f"run folder {path} already exists: choose another RUN name or remove it")
            partial.rename(path)
        except OSError as error:
            raise UserError(f"run folder {path} cannot be made: {error.strerror or error}") from None
        sync_folder(path.parent)
        return cls(path, _with_own_cameras(config, path))

    @classmethod
    def open(
        cls,
        name: str | None,
        env: str | None = None,
        root: Path = ROOT,
        kind: type[RunConfig] = TrainConfig,
        makes_envs: bool = True,
    ) -> Run:
        """Open a run by path, by name within an environment, or the newest of an environment.

        :param name: path of a run folder, or its name if ``env`` is given, or None.
        :param env: environment id.
        :param kind: TrainConfig for what has a policy, PretrainConfig, or RunConfig for either.
        :param makes_envs: whether its environment will be made. An id "module:name" has Gymnasium import the module:
            it must be typed as ``env``, a file that says so is not enough.
        :raises UserError: if there is no such folder, it is not a run of this kind, or something in it leads out of it.
        """
        try:
            path = _find(name, env, root, kind)
            if not (path / "config.yaml").is_file():
                raise UserError(f"{path} is not a run: it has no config.yaml")
            require_contained(path)
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise UserError(f"no run at {printable(name or error.filename, 200)}: {error.strerror}") from None
        config = from_yaml(path / "config.yaml")
        if not isinstance(config, kind):
            raise UserError(f"{path} is no {_KINDS[kind]}")
        if env is not None and config.env != env:
            raise UserError(f"{path} is a run of '{config.env}', not of '{env}'")
        if makes_envs and ":" in config.env and env is None:
            raise UserError(
                f"{path} is a run of '{config.env}', which imports a module of that name: "
                f"if that is to happen, say so: ENV={config.env}"
            )
        if config.cameras is not None and not (path / CAMERAS).is_file() and is_cameras_file(config.cameras):
            raise UserError(f"{path} names a cameras file '{config.cameras}' but has no copy of it ({CAMERAS})")
        return cls(path, _with_own_cameras(config, path))

    def scene(self) -> Scene | None:
        """Cameras and workspace of the run; None for a run on the simulator's state."""
        path = self.path / "rig.json"
        if not path.is_file():
            if not self.config.encoder.sees:
                return None
            raise UserError(f"{self.path} has no rig.json: the cameras it was trained with are unknown")
        try:
            return Scene.from_dict(parse_json(read_whole(path), str(path)))
        except DamagedError as error:
            raise UserError(str(error)) from None
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from None

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.path, dataclasses.asdict(self.config.encoder))

    def steps(self) -> list[int]:
        """Steps at which complete checkpoints stand, ascending."""
        return self.checkpoints.steps()

    def load(self, step: int | None = None) -> Checkpoint:
        """Read a checkpoint; see :meth:`Checkpoints.read`."""
        return self.checkpoints.read(step)

    def last_good(self) -> str:
        """The newest complete checkpoint, as a message names it."""
        step = self.checkpoints.latest()
        return "none was written yet" if step is None else str(self.checkpoints.path(step))

    def command(self, program: str) -> str:
        """What to type to have a program work on this run.

        :param program: a target of the Makefile, or "resume".
        """
        named = f"make train RESUME={self.path}" if program == "resume" else f"make {program} RUN={self.path}"
        return f"{named} ENV={self.config.env}" if ":" in self.config.env else named

    # -- one training at a time --------------------------------------------------------------------------------------

    def locked(self) -> AbstractContextManager[None]:
        """See :func:`locked`."""
        return locked(self.path)


@contextmanager
def locked(path: Path, what: str = "training") -> Iterator[None]:
    """Keep every other training out of a run folder; the system lets go of the lock however this process ends.

    :param path: of the run.
    :param what: is at work there, as messages have it.
    :raises UserError: where another one is at work there.
    """
    lock = FileLock(path / LOCK, timeout=0, fallback_to_soft=False)  # which a kill would leave
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another {what} is at work in {path}: wait for its end or stop it") from None
    except (NotImplementedError, OSError) as error:  # some network file systems have no locks
        print(f"warning: {path} cannot be locked ({error}): let no other {what} work there", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a training is at work in a run folder, as far as its file system can tell.

    :param path: of the run, which need not be there.
    """
    if not (path / LOCK).is_file():
        return False
    lock = FileLock(path / LOCK, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False
    lock.release()
    return False


def require_contained(path: Path) -> None:
    """Refuse a run folder in which a link leads out of it, or something is neither file nor folder.

    What is inside of ``wandb/`` may: that service links to its logs elsewhere, and nothing here reads them.

    :param path: of the run; may itself be reached by links.
    :raises UserError: naming the first.
    """
    root = path.resolve()
    for folder, names, files in os.walk(root):
        if Path(folder) == root / "wandb":
            names.clear()
            continue
        for entry in (Path(folder) / name for name in (*names, *files)):
            try:
                mode = entry.lstat().st_mode
            except FileNotFoundError:  # a training is at work there
                continue
            if stat.S_ISLNK(mode) and not _leads_inside(entry, root):
                raise UserError(
                    f"{printable(entry)} is a link that leads out of the run: link to the whole run folder instead"
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise UserError(f"{printable(entry)} is neither a file nor a folder: a run holds nothing else")
    for names, is_kind, kind in ((_FOLDERS, Path.is_dir, "folder"), (_FILES, Path.is_file, "file")):
        for entry in (root / name for name in names):
            if os.path.lexists(entry) and not is_kind(entry):
                raise UserError(f"{entry} is damaged: it should be a {kind}")


def _leads_inside(link: Path, root: Path) -> bool:
    """Whether a link ends somewhere in a folder; one that goes in circles does not."""
    try:
        return link.resolve().is_relative_to(root)
    except (RuntimeError, OSError):
        return False


def _with_own_cameras(config: RunConfig, path: Path) -> RunConfig:
    """The run's copy of its cameras file in place of the original, which may have changed or be out of reach."""
    own = path / CAMERAS
    names_a_file = config.cameras is not None and is_cameras_file(config.cameras)
    return dataclasses.replace(config, cameras=str(own)) if names_a_file and own.is_file() else config


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
        runs = [p for p in runs if not (p / "rounds").is_dir()]  # those are of bootstrapping
        if not runs:
            if env not in env_ids() and env not in gym.registry and ":" not in env:
                trained = {p.parent.parent.name for p in root.glob("*/*/config.yaml")}
                raise unknown_environment(env, sorted(trained - set(env_ids())))
            raise UserError(f"no run of '{env}' in {folder}: train one with `make train ENV={env}`")
        # A run that is still training, or died young, must not hide the ones that can be used.
        usable = [p for p in runs if any(p.glob("checkpoints/[0-9]*/state.json")) and _is_kind(p, kind)]
        return max(usable or runs, key=lambda p: (p / "config.yaml").stat().st_mtime)
    candidates = [Path(name)] + ([root / folder_name(env) / name] if env else [])
    for path in sorted(candidates, key=lambda p: not (p / "config.yaml").is_file()):  # a run before any other folder
        if path.is_dir():
            return path
    raise UserError(f"no run folder at {' or '.join(map(str, candidates))}")
