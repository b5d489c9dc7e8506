"""Judge a run's keypoints against the simulator: ``python -m experiments.probe --env reach-multiview [--run PATH]``.

Plays fresh episodes and prints how well named bodies can be told from the keypoints alone, beside a constant, an
untrained encoder and a plain autoencoder; how far the views disagree; and which keypoint sits on what. Writes
``probe.json`` and ``probe.png`` into the run folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import imageio.v3 as iio
import numpy as np

import kp3d_rl
from agents.finite import refuse_nonfinite_outputs
from agents.scene import Scene
from envs.errors import UserError, unknown
from experiments.judging.episodes import Act, Episodes, act_by, behaviour, collect, visible_bodies
from experiments.judging.probe_picture import look, probe_picture
from experiments.judging.representation import Baselines, Sitting, find, make_extractor, probe_errors, sitting
from experiments.options.cli import parse, run_main, write_result
from experiments.options.config import PretrainConfig, RunConfig
from experiments.provenance import origin
from experiments.runs import Run
from experiments.training.algorithms import load_policy
from experiments.training.building import choose_device, make_env, require_same_scene, use_threads
from experiments.training.collecting import training_frames
from experiments.training.progress import Progress
from kp3d_rl.keypoint3d import Keypoint3D
from kp3d_rl.metrics import EpisodeSplit, split_episodes

PROBE_SEED = 30_000_000
"""First seed of the probe's episodes; training and evaluations stay below (:mod:`experiments.judging.evaluation`)."""

COLUMNS = 5
"""Instants in the picture."""
AUTOENCODER_STEPS = 1500
"""On the probe's own 2250 frames; they take a few minutes, and it gains little after."""
STILL = 1e-3
"""Centimetres of error below which a body has not moved, so that there is nothing to find."""
VIEW_PIXELS = 224
"""Height of a view in the picture."""


@dataclass(frozen=True)
class ProbeConfig:
    """Keypoints against the simulator, on fresh episodes.

    :param env: environment; with no ``run`` its newest run, of training or pretraining, is taken.
    :param run: run folder, or its name within the environment.
    :param checkpoint: step of the checkpoint; by default the newest.
    :param seed: number of the block of probe seeds; blocks never overlap.
    :param episodes: how many; a quarter of them judge the probe.
    :param steps: longest part of an episode that is played, in actions.
    :param frames: instants of each episode that are looked at, spread evenly.
    :param policy: "random", actions held for some steps; "scripted", the task's own; "mixed", by turns; or "own", the
        run's policy, deterministic.
    :param bodies: names of the bodies to find, separated by commas; by default those that the task names.
    :param confident: fused confidence from which on a keypoint counts; 1 is an average one.
    :param radius: centimetres to a body, within which a keypoint sits on it.
    :param random_encoders: untrained encoders to compare with; 0 leaves them out.
    :param autoencoder_steps: gradient steps of the plain autoencoder to compare with; 0 leaves it out. Of a
        pretraining it is trained on the very frames of the run, by default for as many steps; of a training, whose
        frames depend on its policy, on those of the episodes that fit the probe, by default for 1500.
    :param device: "auto" takes a GPU where there is one.
    """

    env: str | None = None
    run: str | None = None
    checkpoint: int | None = None
    seed: int = 0
    episodes: int = 120
    steps: int = 200
    frames: int = 25
    policy: Literal["random", "scripted", "mixed", "own"] = "random"
    bodies: str | None = None
    confident: float = 0.5
    radius: float = 5.0
    random_encoders: int = 3
    autoencoder_steps: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1000 or not 3 <= self.episodes <= 10_000:
            raise ValueError("seed must lie in 0 … 999 and episodes in 3 … 10000: some fit the probe, some judge it")
        for name in ("steps", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("confident", "radius", "random_encoders", "autoencoder_steps"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    @property
    def seeds(self) -> range:
        """Of the episodes; disjoint from those of training and evaluation."""
        first = PROBE_SEED + 10_000 * self.seed
        return range(first, first + self.episodes)


@dataclass(frozen=True)
class Findings:
    """What was measured.

    :param bodies: B names.
    :param errors: (B,) cm for each kind of probe; ``keypoints`` first.
    :param sitting: of the keypoints; None in 2D, where there is nothing to sit in.
    :param judging: how many episodes judged the probe.
    """

    bodies: tuple[str, ...]
    errors: dict[str, np.ndarray]
    sitting: Sitting | None
    judging: int

    def times_better(self, than: str) -> np.ndarray:
        """(B,) how many times larger another probe's error is; NaN for a body that stands still."""
        still = self.errors["constant"] < STILL
        return np.where(still, np.nan, self.errors[than] / np.maximum(self.errors["keypoints"], STILL))


@refuse_nonfinite_outputs()
def main(argv: Sequence[str]) -> None:
    """Load, play, measure, print, write."""
    config = parse(ProbeConfig, argv)
    run = Run.open(config.run, config.env, kind=RunConfig)
    step, encoder = load_encoder(run, config.checkpoint)
    use_threads(run.config.threads)
    with contextlib.closing(make_env(run.config)) as env:
        require_same_scene(run, Scene.of(env))
        bodies = probed_bodies(config, env)
        act = actions(config, run, step, env)
        episodes = play(config, env, act, bodies)
        against = baselines(config, run)
        findings = measure(config, encoder.to(choose_device(config.device)), env, episodes, bodies, against)
        picture = draw(config, encoder, env, act, findings, f"{run.path.name}, step {step}")
    write(run, config, argv, step, findings, against)
    write_result(run.path / "probe.png", iio.imwrite("<bytes>", picture, extension=".png"))
    print("\n".join([f"{run.path}, checkpoint {step}", *table(config, findings)]))
    print(f"\nwritten to {run.path}/probe.json and probe.png")


def load_encoder(run: Run, checkpoint: int | None) -> tuple[int, Keypoint3D]:
    """The step of a checkpoint, and the keypoint encoder in it.

    :param checkpoint: step; None takes the newest.
    :raises UserError: where there is none.
    """
    if not run.config.encoder.finds_keypoints:
        raise UserError(f"{run.path} acts on '{run.config.encoder.kind}': it has no keypoints to probe")
    step = run.checkpoints.latest() if checkpoint is None else checkpoint
    try:
        return step, kp3d_rl.load(run.path, step)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None


def probed_bodies(config: ProbeConfig, env: gym.Env) -> tuple[str, ...]:
    """The bodies that were asked for, or those that the task names.

    :raises UserError: for one that the model does not have.
    """
    if config.bodies is None:
        return tuple(env.get_wrapper_attr("probe_bodies"))
    names = tuple(dict.fromkeys(name.strip() for name in config.bodies.split(",")))
    known = env.get_wrapper_attr("body_names")
    for name in names:
        if name not in known:
            raise unknown("body", name, known)
    return names


def actions(config: ProbeConfig, run: Run, step: int, env: gym.Env) -> Callable[[int, int], Act]:
    """Who acts: from the seed and the number of an episode to its actions.

    :param step: of the checkpoint, whose policy may be asked for.
    :param env: of the episodes.
    :raises UserError: for the own policy of a run that has none.
    """
    if config.policy != "own":
        return lambda seed, number: behaviour(config.policy, env, seed, number)
    if isinstance(run.config, PretrainConfig):
        raise UserError(f"{run.path} is a pretraining run, so it has no policy of its own: --policy random")
    policy = load_policy(run, env, run.load(step), config.device)
    own = act_by(lambda observation: policy.predict(observation, deterministic=True)[0])
    return lambda seed, number: own


def play(config: ProbeConfig, env: gym.Env, act: Callable[[int, int], Act], bodies: Sequence[str]) -> Episodes:
    """Collect the episodes.

    :param act: as :func:`actions` gives it.
    :param bodies: that are looked for.
    :raises UserError: for a script that the task does not have.
    """
    show, names = Progress("playing", "episodes"), visible_bodies(env, bodies)
    blind = config.policy != "own"
    return collect(env, config.seeds, act, config.steps, config.frames, names, show, blind)


def baselines(config: ProbeConfig, run: Run) -> Baselines:
    """What keypoints are compared with: of a pretraining, an autoencoder that saw as much.

    :param run: whose frames may be played again.
    """
    steps, frames = config.autoencoder_steps, None
    if isinstance(run.config, PretrainConfig):
        steps = run.config.steps if steps is None else steps
        frames = training_frames(run.config) if steps else None
    steps = AUTOENCODER_STEPS if steps is None else steps
    return Baselines(config.random_encoders, steps, frames, config.seed)


def measure(
    config: ProbeConfig,
    encoder: Keypoint3D,
    env: gym.Env,
    episodes: Episodes,
    bodies: Sequence[str],
    against: Baselines,
) -> Findings:
    """Probe, compare, and see what sits on what.

    :param encoder: on the device where it is to run.
    :param episodes: that were played in ``env``.
    :param bodies: to look for.
    :param against: what the keypoints are compared with.
    """
    found = find(make_extractor(env, encoder), episodes)
    split = split_of(config, env)
    show = Progress("training the plain autoencoder", "steps")
    errors = probe_errors(found, encoder, env, episodes, bodies, split, against, show)
    flat = encoder.config.dimensions == "2d"
    sits = None if flat else sitting(found, episodes, config.confident)
    return Findings(tuple(bodies), errors, sits, len(split.test))


def split_of(config: ProbeConfig, env: gym.Env) -> EpisodeSplit:
    """Which episodes fit the probe and which judge it: no configuration of a task does both.

    :param env: of the episodes.
    """
    count = getattr(env.unwrapped, "configurations", None)
    groups = None if count is None else [seed % count for seed in config.seeds]
    return split_episodes(config.episodes, seed=config.seed, groups=groups)


def draw(
    config: ProbeConfig,
    encoder: Keypoint3D,
    env: gym.Env,
    act: Callable[[int, int], Act],
    findings: Findings,
    name: str,
) -> np.ndarray:
    """The picture of the first episode.

    :param name: of the run and its checkpoint.
    """
    seed, bodies = config.seeds[0], findings.bodies
    instants = look(env, seed, lambda: act(seed, 0), config.steps, bodies, COLUMNS, VIEW_PIXELS)
    errors = zip(bodies, findings.errors["keypoints"], findings.errors["constant"], strict=True)
    title = [name, *(f"{body}: probe error {error:.1f} cm" for body, error, constant in errors if constant > STILL)]
    cameras = env.get_wrapper_attr("rig").names
    return probe_picture(encoder, instants, cameras, bodies, findings.sitting, config.radius, title)


def table(config: ProbeConfig, findings: Findings) -> list[str]:
    """What was found, as people read it.

    :return: lines.
    """
    judging = findings.judging
    compared = [name for name in findings.errors if name in ("constant", "random encoder")]
    heading = ["probe error, cm", *findings.errors, *(f"{name} / keypoints" for name in compared)]
    rows = []
    for number, body in enumerate(findings.bodies):
        errors = [said(values[number]) for values in findings.errors.values()]
        rows.append([body, *errors, *(said(findings.times_better(name)[number]) for name in compared)])
    heard = f"{config.episodes} {config.policy} episodes, {config.frames} instants of each, {judging} episodes held out"
    if findings.sitting is None:
        return [heard, "", *aligned([heading, *rows]), "", "keypoints in 2D have no place in the room to be judged"]
    return [heard, "", *aligned([heading, *rows]), "", *sitting_lines(findings.sitting, findings.bodies, config.radius)]


def sitting_lines(sits: Sitting, bodies: Sequence[str], radius: float) -> list[str]:
    """Keypoint by keypoint, those that count first; then what these add up to."""
    numbers = sits.to_dict()
    order = sorted(numbers["each"], key=lambda each: (not each["counted"], each["body"], each["distance_cm"]))
    rows = [["keypoint", "confidence", "its body", "median distance, cm", "on it, %", "views apart, cm", "counts"]]
    for each in order:
        values = [f"{each['distance_cm']:.1f}", f"{100 * each['same_body_share']:.0f}", f"{each['views_apart_cm']:.1f}"]
        counts = "yes" if each["counted"] else "no"
        rows.append([str(each["keypoint"]), f"{each['confidence']:.2f}", each["body"], *values, counts])
    sums = [
        ["count: confident, and on a body that moves", f"{numbers['counted']} of {numbers['keypoints']}"],
        ["view disagreement of those, mean", said(numbers["view_disagreement_cm"], "cm")],
        ["the same, views not weighted by confidence", said(numbers["view_disagreement_unweighted_cm"], "cm")],
        ["same-body share of those", said(numbers["same_body_share"], "%", 100)],
    ]
    for body in bodies:
        on = sits.on(body, radius)
        away = ", ".join(f"{value:.1f}" for value in np.sort(sits.distance[on]))
        sums.append([f"on {body}, within {radius:g} cm", f"{len(on)}" + (f" (at {away} cm)" if away else "")])
    return [*aligned(rows), "", *aligned(sums, left=2)]


def said(value: float | None, unit: str = "", factor: float = 1.0) -> str:
    """A number with its unit, or that there is none."""
    return "-" if value is None or math.isnan(value) else f"{factor * value:.1f} {unit}".rstrip()


def number_or_none(value: float) -> float | None:
    """As JSON can hold it: NaN is none."""
    return None if math.isnan(value) else float(value)


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of a table with columns of equal width.

    :param rows: of equally many texts.
    :param left: how many columns are aligned to the left, from the first on; the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if number < left else ">" for number in range(len(widths))]
    return [
        "   ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]


def write(
    run: Run, config: ProbeConfig, argv: Sequence[str], step: int, findings: Findings, against: Baselines
) -> None:
    """Everything that was found, with command, seed, commit and machine, as ``probe.json``; never half of it.

    :param run: whose folder it goes to.
    :param argv: the arguments that were given.
    :param step: of the checkpoint.
    :param against: what the keypoints were compared with.
    """
    command = shlex.join(["python", "-m", "experiments.probe", *argv])
    record = {"command": command, "env": run.config.env, "run": run.path.name, "checkpoint": step} | origin()
    record |= {name: getattr(config, name) for name in ("seed", "episodes", "steps", "frames", "policy")}
    if against.autoencoder_steps:
        frames = "of the probe" if against.frames is None else len(against.frames)
        record["autoencoder"] = {"steps": against.autoencoder_steps, "frames": frames}
    record["probe_error_cm"] = {
        body: {name: number_or_none(values[number]) for name, values in findings.errors.items()}
        for number, body in enumerate(findings.bodies)
    }
    better = {name: findings.times_better(name) for name in findings.errors if name != "keypoints"}
    record["times_better_than"] = {
        body: {name: number_or_none(values[number]) for name, values in better.items()}
        for number, body in enumerate(findings.bodies)
    }
    if findings.sitting is not None:
        record |= {"confident": config.confident, "radius_cm": config.radius} | findings.sitting.to_dict()
        record["on_body"] = {
            body: [int(k) for k in findings.sitting.on(body, config.radius)] for body in findings.bodies
        }
    path = run.path / "probe.json"
    write_result(path, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    run_main(main)
