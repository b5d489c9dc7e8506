"""What a bootstrapping run keeps: ``runs/<env>/<name>/`` with a folder for each round.

``config.yaml``, ``origin.json``, ``eval.json``, ``videos/``; in ``rounds/<i>/``: ``detector.safetensors`` (the round's
result), ``round.json`` (its numbers), ``labels.safetensors`` and ``choice.json`` (chosen frames and their points, and
what was refused), and until the round is over ``training.safetensors`` with what is needed to go on. Files are whole or
not there; nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from envs.errors import UserError
from experiments.bootstrapping.config import HAND, BootstrapConfig
from experiments.options.files import read_config
from experiments.provenance import origin
from experiments.runs.folder import LONGEST, ROOT, folder_name, locked, require_contained
from kp3d_rl.bootstrapping.detector import KeypointDetector
from kp3d_rl.storage.files import (
    TENSOR_LIMIT,
    DamagedError,
    parse_json,
    parse_tensors,
    printable,
    read_whole,
    remove,
    sync_folder,
    write_tensors,
    write_whole,
)

DETECTOR, ROUND, TRAINING = "detector.safetensors", "round.json", "training.safetensors"
LABELS, CHOICE = "labels.safetensors", "choice.json"


@dataclass(frozen=True)
class BootstrapRun:
    """A run folder.

    :param path: the folder.
    :param config: of the run.
    """

    path: Path
    config: BootstrapConfig

    @classmethod
    def create(cls, config: BootstrapConfig, root: Path = ROOT) -> BootstrapRun:
        """Make a new folder; it is a whole run or not there.

        :param root: folder of all runs.
        :raises UserError: if it exists, its name leads out of it, or it cannot be made.
        """
        name = config.run or f"{config.label}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        if Path(name).name != name or name in (".", "..") or len(name.encode()) > LONGEST:
            raise UserError(
                f"run name '{name[:60]}' must be a plain folder name without '/', of at most {LONGEST} bytes"
            )
        path = root / folder_name(config.env) / name
        if path.exists():
            raise UserError(
                f"run folder {path} already exists: go on with it by `make bootstrap RESUME={path}`, "
                "choose another RUN name or remove it"
            )
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
            partial.mkdir()
            (partial / "rounds").mkdir()
            write_whole(partial / "origin.json", json.dumps(origin(), indent=1).encode())
            text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
            write_whole(partial / "config.yaml", text.encode())
            partial.rename(path)
        except OSError as error:
            raise UserError(f"run folder {path} cannot be made: {error.strerror or error}") from None
        sync_folder(path.parent)
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> BootstrapRun:
        """Open a run.

        :param path: of its folder.
        :raises UserError: where there is none, or something in it leads out of it.
        """
        path = Path(path)
        if not is_bootstrap(path):
            raise UserError(f"{printable(path, 200)} is no bootstrapping run: it has no config.yaml and rounds/")
        require_contained(path)
        return cls(path, read_config(path / "config.yaml", BootstrapConfig))

    @classmethod
    def find(cls, name: str | None, env: str | None, root: Path = ROOT) -> BootstrapRun:
        """Open a run by path, by name within an environment, or the newest of an environment.

        :param name: path or name.
        :param env: environment, or "hand".
        :param root: folder of all runs.
        :raises UserError: where there is no such run.
        """
        path = _find(name, env, root)
        if path is None:
            where = f"named '{printable(name, 200)}'" if name else f"in {root / folder_name(env or HAND)}"
            raise UserError(f"no bootstrapping run {where}: make one with `make bootstrap`")
        run = cls.open(path)
        if env is not None and run.config.env != env:
            raise UserError(f"{path} is a run of '{run.config.env}', not of '{env}'")
        return run

    # -- rounds ------------------------------------------------------------------------------------------------------

    def folder(self, number: int) -> Path:
        """Of a round."""
        return self.path / "rounds" / str(number)

    def finished_rounds(self) -> list[int]:
        """Numbers of the rounds that are over, from 0 on."""
        found = []
        while (self.folder(len(found)) / ROUND).is_file() and (self.folder(len(found)) / DETECTOR).is_file():
            found.append(len(found))
        return found

    def detector(self, number: int | None = None, keypoints: int | None = None) -> KeypointDetector:
        """The detector of a round, ready to use.

        :param number: of the round; None is the last one that is over.
        :param keypoints: how many it must have; None takes what it has.
        :raises UserError: where there is none, or its file is damaged.
        """
        finished = self.finished_rounds()
        if not finished or (number is not None and number not in finished):
            asked = "no finished round yet" if number is None else f"no finished round {number}"
            raise UserError(f"{self.path} has {asked}: go on with `make bootstrap RESUME={self.path}`")
        path = self.folder(finished[-1] if number is None else number) / DETECTOR
        weights = read_tensors(path)
        try:
            detector = KeypointDetector(len(weights["nowhere"]), self.config.detector)
            detector.load_state_dict(weights)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path} holds no such detector: {str(error).splitlines()[0]}") from None
        if keypoints is not None and detector.keypoints != keypoints:
            raise UserError(f"{path} finds {detector.keypoints} keypoints, not {keypoints}")
        return detector.eval()

    def numbers(self, number: int) -> dict[str, Any]:
        """What was measured in a round."""
        return read_json(self.folder(number) / ROUND)

    def labels(self, number: int) -> tuple[list[tuple[int, int]], Tensor]:
        """Chosen frames of a round, (sequence, frame) of each, and their points (N, K, 3).

        :raises UserError: where they are missing, damaged, or not of this run's sequences.
        """
        path, config = self.folder(number) / LABELS, self.config
        found = read_tensors(path)
        try:
            sequence, frame, points = found["sequence"], found["frame"], found["points"]
            fits = sequence.shape == frame.shape == points.shape[:1] and points.shape[2:] == (3,) and len(points) > 0
            limits = ((sequence, config.sequences), (frame, config.frames))
            fits = fits and all(bool(((0 <= index) & (index < most)).all()) for index, most in limits)
        except KeyError:
            fits = False
        if not fits:
            raise UserError(f"{path} is damaged: it does not hold frames of this run's sequences and their points")
        return list(zip(sequence.tolist(), frame.tolist(), strict=True)), points

    def finish(self, number: int, detector: KeypointDetector, numbers: Mapping[str, Any]) -> None:
        """Write the result of a round; from then on it is over."""
        write_tensors(self.folder(number) / DETECTOR, detector.state_dict())
        write_whole(self.folder(number) / ROUND, json.dumps(numbers, indent=1).encode())
        remove(self.folder(number) / TRAINING)

    def locked(self) -> AbstractContextManager[None]:
        """See :func:`experiments.runs.folder.locked`."""
        return locked(self.path)


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


def is_bootstrap(path: str | Path) -> bool:
    """Whether a folder is that of a bootstrapping run; one that was being made when its program was killed is not."""
    path = Path(path)
    try:
        return not path.name.startswith(".") and (path / "config.yaml").is_file() and (path / "rounds").is_dir()
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def asks_for_bootstrap(argv: Sequence[str], root: Path = ROOT) -> bool:
    """Whether a program that works on all kinds of runs was asked for a bootstrapping run.

    :param argv: its arguments, of which ``--run`` and ``--env`` are looked at.
    :param root: folder of all runs.
    """
    given: dict[str, str] = {}
    for at, token in enumerate(argv):
        option, equals, value = token.partition("=")
        if option in ("--run", "--env"):
            given[option] = value if equals else "".join(argv[at + 1 : at + 2])
    if given.get("--env") == HAND:
        return True
    return "--run" in given and _find(given["--run"], given.get("--env"), root) is not None


def _find(name: str | None, env: str | None, root: Path) -> Path | None:
    """The folder of a bootstrapping run meant by a path, by a name within an environment, or by nothing."""
    folder = root / folder_name(env or HAND)
    if name is not None:
        return next((path for path in (Path(name), folder / name) if is_bootstrap(path)), None)
    runs = [path for path in folder.iterdir() if is_bootstrap(path)] if folder.is_dir() else []
    return max(runs, key=lambda path: (path / "config.yaml").stat().st_mtime, default=None)
