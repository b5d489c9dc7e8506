"""What a KeypointNet run keeps: ``runs/<category>/<name>/``.

Beside what all such runs have (:mod:`experiments.runs.plain`): ``network/weights.safetensors`` (the result),
``network/training.safetensors`` until it is done, ``metrics.csv`` with a row for each judgement, ``eval.json``,
``keypoints.png`` and ``videos/``.
"""

from __future__ import annotations

from pathlib import Path

from envs.errors import UserError
from envs.scenes.objects import CATEGORIES
from experiments.keypointnet.config import KeypointNetRunConfig
from experiments.runs.folder import ROOT
from experiments.runs.plain import PlainRun, read_tensors
from kp3d_rl.keypointnet.network import KeypointNet
from kp3d_rl.storage.files import remove, write_tensors


class KeypointNetRun(PlainRun):
    """A run folder."""

    config: KeypointNetRunConfig
    KIND, PROGRAM, MARK, CONFIG, HOME = "KeypointNet", "keypointnet", "network", KeypointNetRunConfig, "chair"

    @property
    def training_file(self) -> Path:
        """What is needed to go on."""
        return self.path / "network" / "training.safetensors"

    @property
    def weights_file(self) -> Path:
        """The result."""
        return self.path / "network" / "weights.safetensors"

    @property
    def finished(self) -> bool:
        """Whether all steps are made."""
        return self.weights_file.is_file()

    def network(self) -> KeypointNet:
        """The network, ready to use: the result, or what there is so far.

        :raises UserError: where there is none, or its file is damaged.
        """
        path = self.weights_file if self.finished else self.training_file
        if not path.is_file():
            raise UserError(f"{self.path} has no network yet: go on with `make keypointnet RESUME={self.path}`")
        weights, prefix = read_tensors(path), "" if self.finished else "network."
        network = KeypointNet(self.config.network)
        try:
            network.load_state_dict({name: weights[prefix + name] for name in network.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{path} holds no such network: {str(error).splitlines()[0]}") from None
        return network.eval()

    def finish(self, network: KeypointNet) -> None:
        """Write the result; from then on the run is over."""
        write_tensors(self.weights_file, network.state_dict())
        remove(self.training_file)


def asks_for_keypointnet(argv: list[str], root: Path = ROOT) -> bool:
    """Whether a program that works on all kinds of runs was asked for a KeypointNet run."""
    return KeypointNetRun.is_asked_for(argv, "--category", list(CATEGORIES), root)
