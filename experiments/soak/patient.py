"""A run that was stopped half way, which is damaged, loaded, trained on and mended again and again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.buffers import Stream
from agents.training_state import save_random_state, save_training_state
from experiments.logs import metrics_logger
from experiments.options.cli import parse
from experiments.options.config import TrainConfig
from experiments.resume import as_it_was, find_checkpoint
from experiments.runs import Checkpoint, Run
from experiments.runs.checkpoints import DESCRIPTION, FILES
from experiments.runs.segments import Segment
from experiments.soak.judge import Loaded
from experiments.soak.kills import TRAININGS
from experiments.train import build, callbacks, train
from experiments.training.algorithms import load_policy
from experiments.training.building import make_env, make_training_env, require_same_scene, use_threads
from experiments.training.checkpointing import CheckpointCallback, is_finished, load_checkpoint, report_circumstances
from experiments.training.recording import Evaluator, StopRequest

_UNREAD = ("lock", "origin.json", "pictures", "wandb")
"""What is in a run folder that a load does not read."""
_WEIGHTS = {"state.json": 24.0, "training.safetensors": 8.0, "config.yaml": 6.0, "optimizer.safetensors": 5.0,
            "policy.safetensors": 4.0, "rig.json": 4.0, "metrics.csv": 4.0,
            "SHA256SUMS": 3.0, "latest": 2.0}  # fmt: skip
"""How often a file is damaged, by its name; most of what can be said stands in a few small files."""
_FREE = (
    "seed", "run", "ppo.final_learning_rate", "ppo.learning_rate", "ppo.gamma", "ppo.gae_lambda", "ppo.clip_range",
    "ppo.entropy", "ppo.value", "ppo.target_kl", "ppo.log_std", "ppo.normalize_reward", "sac.learning_rate",
    "sac.gamma", "sac.reward_scale", "sac.tau", "sac.entropy", "sac.learning_starts", "sac.buffer_size",
    "auxiliary.joint", "auxiliary.final_scale", "auxiliary.policy_gradient", "auxiliary.learning_rate",
    "auxiliary.clip.policy", "auxiliary.clip.encoder", "auxiliary.buffer_frames", "log.evaluate_every",
    "log.checkpoint_every", "log.checkpoints_kept", "log.checkpoints_kept_every", "log.picture_every",
    "log.wandb_project",
)  # fmt: skip
"""Options with which a training takes as long as without, whatever a file says: with these it goes on."""


class _StopAt(StopRequest):
    """As if a signal had come when so many steps are done."""

    def __init__(self, model: BaseAlgorithm, step: int) -> None:
        super().__init__()
        self.model, self.step = model, step

    def __bool__(self) -> bool:
        return self.model.num_timesteps >= self.step


class Patient:
    """A run that was stopped half way. One that stands in the folder already is taken as it was before any damage.

    :param folder: to work in.
    :param algorithm: of :data:`~experiments.soak.kills.TRAININGS`.
    """

    def __init__(self, folder: Path, algorithm: str) -> None:
        folder = folder.resolve()
        name, alone = algorithm.replace(" ", "-"), ["--render.workers", "1"]  # others' messages are pickled: their own
        options = ["--run", f"{name}-damaged", *TRAININGS[algorithm], "--log.checkpoints-kept", "2", *alone]
        self.config = parse(TrainConfig, options)
        self.path, self.outside = folder / self.config.run, folder / f"{name}-outside"
        saved = folder / f"{name}-whole"
        if not saved.is_dir():
            self._train(saved.with_suffix(".partial"))
            saved.with_suffix(".partial").rename(saved)
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(saved, self.path)
        self.whole = {path.relative_to(saved): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
        self.folders = {path.relative_to(saved) for path in saved.rglob("*") if path.is_dir()}
        self.newest = int(self.whole[Path("checkpoints/latest")])
        rollout = self.config.ppo.steps if self.config.algorithm == "ppo" else 3
        self.coming = self.newest + rollout * self.config.envs
        self.targets = [name for name in sorted(self.whole) if name.parts[0] not in _UNREAD]
        self.env, self.model, self.scene, self.built_for = None, None, None, None
        self.mend()
        self.go_on(self.load())  # imports what is imported on demand
        str(self.model.policy.state_dict())  # the same, of messages
        with torch.profiler.record_function("and of what torch compiles when it is first asked for"):
            pass
        self.mend()

    def _train(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.closing(make_training_env(self.config)) as env:
            model, scene = build(self.config, env)
            run = Run.create(path, self.config, scene)
            train(run, model, _StopAt(model, self.config.total_steps // 2))

    def close(self) -> None:
        """Close the environments."""
        if self.env is not None:
            self.env.close()
            self.env = self.built_for = None

    def draw_target(self, draw: Random) -> Path:
        """A file that a load reads, mostly one of the newest checkpoint."""
        return draw.choices(self.targets, [self._weight(name) for name in self.targets])[0]

    def _weight(self, name: Path) -> float:
        old = name.parts[0] == "checkpoints" and name.parts[1] not in ("latest", f"{self.newest:09d}")
        several = sum(other.parts[0] == name.parts[0] for other in self.targets) if len(name.parts) == 2 else 1
        return 0.5 if old else _WEIGHTS.get(name.name, 8.0 / several)

    # -- loading -----------------------------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """As ``resume`` does it, up to the first rollout."""
        run = Run.open(str(self.path))
        with run.locked():
            checkpoint = find_checkpoint(run, None)
            if checkpoint is None or is_finished(checkpoint):
                return Loaded(run, checkpoint)
            as_it_was(run, checkpoint)
            use_threads(1)
            report_circumstances(run, checkpoint)
            if not self._goes_on(run):
                with contextlib.closing(make_env(self.config)) as env:
                    load_policy(run, env, checkpoint)
                return Loaded(run, checkpoint)
            if run.config != self.built_for:
                self._build(run.config)
            require_same_scene(run, self.scene)
            load_checkpoint(run, self.model, checkpoint)
            return Loaded(run, checkpoint, self.model, *self._states(run, checkpoint))

    def _goes_on(self, run: Run) -> bool:
        """Whether a run's configuration is the patient's, or as good."""
        said, own = (_flat(dataclasses.asdict(config)) for config in (run.config, self.config))
        return all(said[name] == own[name] or name in _FREE for name in own)

    def _build(self, config: TrainConfig) -> None:
        """Environments and a model; what a load does not overwrite in them would show in the next one's states."""
        self.close()
        self.env = make_training_env(config)
        self.model, self.scene = build(config, self.env)
        self.built_for = config

    def _states(self, run: Run, checkpoint: Checkpoint) -> tuple[dict[str, Any], list[Stream]]:
        """Put back what comes back when training starts; what everything then says of itself, and the buffers."""
        with metrics_logger(run, run.config.log, checkpoint.state["log"]) as logger:
            self.model.set_logger(logger)
            first, *others = callbacks(run, Evaluator(lambda: make_env(run.config), 1), StopRequest(), checkpoint)
            parts = first.parts
            for callback in (first, *others[:-2], others[-1]):
                callback.init_callback(self.model)
            started = bool(checkpoint.step)
            try:
                self._start(first, started)
                states = {"parts": {name: part.state() for name, part in parts.items()}} if started else {}
                states |= {"training": save_training_state(self.model), "random": save_random_state(self.model)}
                states |= {"log": logger.state(), "rollouts": first.rollouts, "due": first.due}
                states["log"]["tensorboard"] = checkpoint.state["log"]["tensorboard"]  # by now there is a new file
                return states, first._streams() if started else []
            finally:
                for part in parts.values() if started else ():
                    part.on_training_end()

    def _start(self, first: CheckpointCallback, started: bool) -> None:
        for part in first.parts.values() if started else ():
            part.on_training_start({}, {})
        first._go_on(started)

    def go_on(self, loaded: Loaded) -> bool:
        """Train on from what was loaded, as ``resume`` does it, until the second rollout is to begin.

        :return: False where nothing is to be gone on with.
        :raises AssertionError: where the checkpoint that is then written cannot be read.
        """
        run = loaded.run
        if loaded.checkpoint is not None and loaded.model is None:
            return False
        with run.locked():
            self._build(run.config)
            checkpoint = run.load() if loaded.checkpoint is not None else None
            if checkpoint is not None:
                load_checkpoint(run, self.model, checkpoint)
                run.checkpoints.go_back(checkpoint.step)
            warm_up = 0 if self.model.num_timesteps else run.config.auxiliary.warmup_frames
            stop = _StopAt(self.model, self.model.num_timesteps + warm_up + self.coming - self.newest)
            train(run, self.model, stop, checkpoint)
        found = Run.open(str(self.path)).load()
        assert found.step == self.model.num_timesteps, "the checkpoint that was written is not the newest"
        return True

    # -- damage and mending ------------------------------------------------------------------------------------------

    def sign(self) -> None:
        """Make all checksums fit the files as they are, as whoever changes one on purpose can."""
        heads = [name for name in self.whole if name.name == "state.json"]
        for name in self.whole:
            now = _content(self.path / name) if name.parts[0] == "segments" else None
            if now is not None and now != self.whole[name]:
                old, new = (hashlib.sha256(data).hexdigest().encode() for data in (self.whole[name], now))
                for head in heads:
                    if (said := _content(self.path / head)) is not None:
                        (self.path / head).write_bytes(said.replace(old, new))
        for head in heads:
            if _content((self.path / head).with_name("SHA256SUMS")) is not None:
                self._sign_folder((self.path / head).parent)

    def _sign_folder(self, folder: Path) -> None:
        lines = []
        for name in (*FILES, *(f"../../{name}" for name in DESCRIPTION)):
            if (data := _content(folder / name)) is not None:
                lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
        try:
            segments = [Segment(**entry) for entry in json.loads(_content(folder / "state.json") or b"")["segments"]]
            listed = dict.fromkeys(f"{segment.sha256}  ../../segments/{segment.name}\n" for segment in segments)
            text = "".join([*lines, *listed]).encode()
        except (ValueError, KeyError, TypeError, RecursionError):  # of damage that leaves no list of segments
            text = "".join(lines).encode()
        (folder / "SHA256SUMS").write_bytes(text)

    def mend(self) -> None:
        """Make the run whole again, whatever has become of it."""
        for folder, names, files in os.walk(self.path, topdown=False):
            for path in (Path(folder) / name for name in (*names, *files)):
                name, is_folder = path.relative_to(self.path), path.is_dir() and not path.is_symlink()
                if is_folder and name not in self.folders:
                    path.rmdir()
                elif not is_folder and _content(path) != self.whole.get(name, b""):
                    path.unlink()
                elif not is_folder and name not in self.whole:
                    path.unlink()
        for name in sorted(self.folders):
            (self.path / name).mkdir(exist_ok=True)
        for name, data in self.whole.items():
            if not (self.path / name).is_file():
                (self.path / name).write_bytes(data)
        shutil.rmtree(self.outside, ignore_errors=True)
        self.outside.mkdir()
        (self.outside / "file").write_bytes(b"nobody's business")

    def outside_is_untouched(self) -> bool:
        """Whether nothing was written by way of a link that leads out of the run."""
        names = [path.name for path in self.outside.iterdir()] if self.outside.is_dir() else []
        return names == ["file"] and (self.outside / "file").read_bytes() == b"nobody's business"


def _content(path: Path) -> bytes | None:
    """Of a regular file; None of anything else."""
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


def _flat(tree: dict[str, Any], name: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        found |= _flat(value, f"{name}{key}.") if isinstance(value, dict) else {f"{name}{key}": value}
    return found
