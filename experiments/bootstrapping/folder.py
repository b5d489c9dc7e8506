"""What a bootstrapping run keeps: ``runs/<env>/<name>/`` with a folder for each round.

Beside what all such runs have (:mod:`experiments.runs.plain`): ``eval.json``, ``videos/``; in ``rounds/<i>/``:
``detector.safetensors`` (the round's result), ``round.json`` (its numbers), ``labels.safetensors`` and ``choice.json``
(chosen frames and their points, and what was refused), and until the round is over ``training.safetensors`` with what
is needed to go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from envs.errors import UserError
from experiments.bootstrapping.config import HAND, BootstrapConfig
from experiments.runs.folder import ROOT
from experiments.runs.plain import PlainRun, read_json, read_tensors
from kp3d_rl.bootstrapping.detector import KeypointDetector
from kp3d_rl.storage.files import remove, write_tensors, write_whole

DETECTOR, ROUND, TRAINING = "detector.safetensors", "round.json", "training.safetensors"
LABELS, CHOICE, GIVEN_UP = "labels.safetensors", "choice.json", "given-up.json"


class BootstrapRun(PlainRun):
    """A run folder."""

    config: BootstrapConfig
    KIND, PROGRAM, MARK, CONFIG, HOME = "bootstrapping", "bootstrap", "rounds", BootstrapConfig, HAND

    def folder(self, number: int) -> Path:
        """Of a round."""
        return self.path / "rounds" / str(number)

    def finished_rounds(self) -> list[int]:
        """Numbers of the rounds that are over, from 0 on."""
        found = []
        while (self.folder(len(found)) / ROUND).is_file() and (self.folder(len(found)) / DETECTOR).is_file():
            found.append(len(found))
        return found

    @property
    def gave_up(self) -> bool:
        """Whether the round after the last one that is over found no frame to learn from: none will be."""
        return (self.folder(len(self.finished_rounds())) / GIVEN_UP).is_file()

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

    def fingerprint(self, number: int) -> str:
        """What tells the detector of a finished round from any other: the beginning of its file's SHA-256."""
        with (self.folder(number) / DETECTOR).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]

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


def asks_for_bootstrap(argv: Sequence[str], root: Path = ROOT) -> bool:
    """Whether a program that works on all kinds of runs was asked for a bootstrapping run."""
    return BootstrapRun.is_asked_for(argv, "--env", [HAND], root)
