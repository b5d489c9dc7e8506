"""What a geometry-aware run has learnt: poses in 3D from few labels, and how well other views are drawn.

``python -m experiments.evaluate --run runs/human/<name>`` comes here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.renderers import make_renderer
from envs.scenes.clips import TEST
from envs.scenes.people import People, ring
from experiments.geometry_aware.__main__ import eyes_of
from experiments.geometry_aware.config import HUMAN
from experiments.geometry_aware.folder import GeometryAwareRun
from experiments.geometry_aware.pictures import write_picture
from experiments.geometry_aware.seeing import (
    as_inputs,
    one_view,
    people_at,
    people_to_judge_by,
    people_to_learn_from,
    said_usable,
)
from experiments.options.cli import parse, write_result
from experiments.provenance import origin
from experiments.training.building import choose_device, use_threads
from experiments.training.progress import Progress
from kp3d_rl.geometry_aware.metrics import judge_synthesis, mpjpe, pmpjpe
from kp3d_rl.geometry_aware.network import GeometryAwareNetwork
from kp3d_rl.geometry_aware.regression import FittedRegressor, Lifter, PoseRegressor, RegressionConfig, fit
from kp3d_rl.geometry_aware.skeleton import SkeletonViews, relative_rotation
from kp3d_rl.options import bounded, check_options
from kp3d_rl.statistics import bootstrap_mean_interval
from kp3d_rl.storage.files import write_tensors

FRACTIONS = (0.001, 0.01, 0.1, 1.0)
OURS, OURS_LIFTED = "geometry-aware", "lifter + geometry-aware"
REGRESSOR = "regressor.safetensors"
"""The small regressor on the run's points, from all labels, by the first draw: what videos use."""


@dataclass(frozen=True)
class EvaluateGeometryAwareConfig:
    """A geometry-aware run on people, clips and cameras that no training saw.

    :param env: "human", whose newest run is taken where no ``run`` is named.
    :param run: run folder, or its name.
    :param seed: number of the block of test bodies; blocks never overlap, and runs are judged by block 0, in other
        clips, while they learn.
    :param draws: of labels, for each share of them.
    :param poses: to learn from that have 3D labels, in every camera of the ring: all labels there are.
    :param device: "auto" takes a GPU where there is one.
    :param regression: regressors and how they learn.
    """

    env: str | None = None
    run: str | None = None
    seed: int = bounded(1, least=0, most=1_000_000)
    draws: int = bounded(5, least=1, most=1000)
    poses: int = bounded(3000, least=2, most=10_000_000)
    device: str = "auto"
    regression: RegressionConfig = field(default_factory=RegressionConfig)

    def __post_init__(self) -> None:
        check_options(self, "")


@dataclass(frozen=True)
class Samples:
    """Views of poses as regressors take them.

    :param inputs: (N, D) of each kind by name.
    :param joints: (N, J, 3) metres, in the camera's frame.
    """

    inputs: dict[str, Tensor]
    joints: Tensor


Method = tuple[str, Callable[[int], nn.Module]]
"""Kind of the inputs, and what makes a regressor of so many."""


def main(argv: Sequence[str]) -> None:
    """See, fit, judge, print, draw, write."""
    config = parse(EvaluateGeometryAwareConfig, argv)
    run = GeometryAwareRun.find(config.run, config.env)
    use_threads(run.config.threads)
    labelled, test, ring_views = see_all(run, config)
    synthesis = judge_drawing(run, test, ring_views)
    write_picture(run.path / "views.png", run.network("synthesis")[0], one_view(test, 0), ring_views)  # type: ignore[index]
    encoders = encoders_of(run, choose_device(config.device))
    learn, judged = samples(labelled, encoders), samples(test, encoders)
    rows = list(measure(learn, judged, config, run.path / REGRESSOR))
    record = {"env": HUMAN, "seed": config.seed, "finished": run.finished, "labels": len(learn.joints)} | origin()
    record |= {"samples": len(judged.joints), "synthesis": synthesis, "rows": rows}
    print("", *synthesis_table(synthesis), "", *table(rows), sep="\n")
    write_result(run.path / "eval.json", json.dumps(record, indent=1).encode())
    draw(rows, run.path / "labels.png")
    print(f"\nwritten to {run.path / 'eval.json'}; pictures are beside it")


def see_all(
    run: GeometryAwareRun, config: EvaluateGeometryAwareConfig
) -> tuple[SkeletonViews, SkeletonViews, SkeletonViews]:
    """What regressors learn from, on the ring's cameras; what they are judged by, on the held-out ones; and the latter
    on the ring's.

    :param run: whose eyes see it.
    :param config: how much of it.
    """
    renderer = make_renderer() if run.config.source == "detector" else None
    eyes = eyes_of(run, renderer)
    trained, held_out = ring(run.config.cameras, run.config.held_out)
    learners, judges = people_to_learn_from(run.config), people_to_judge_by(run.config, TEST, config.seed)
    labelled = eyes.views(some_of(learners, config.poses), trained, run.config.seed + 1)
    both = eyes.views(judges, np.concatenate([held_out, trained]), config.seed)
    if renderer is not None:
        renderer.close()
    labelled, both = said_usable(labelled, "with 3D labels"), said_usable(both, "to be judged by")
    count = run.config.held_out
    parts = ((both.uv[:, part], both.rotations[:, part]) for part in (slice(count), slice(count, None)))
    return (labelled, *(SkeletonViews(*part, both.joints, both.size) for part in parts))  # type: ignore[return-value]


def some_of(people: People, count: int) -> People:
    """So many of the people, evenly over all bodies; all of them where there are not that many."""
    rows = np.linspace(0, len(people) - 1, min(count, len(people))).round().astype(int)
    return people_at(people, rows)


def judge_drawing(run: GeometryAwareRun, test: SkeletonViews, ring_views: SkeletonViews) -> dict[str, dict[str, float]]:
    """How well views are drawn, on pairs of cameras that were never seen together, and with wrong rotations.

    :param run: with its networks.
    :param test: poses by held-out cameras.
    :param ring_views: the same by the ring's.
    """
    networks = run.network("synthesis")
    there, back = networks[0], networks[-1]  # type: ignore[index]
    source, target = one_view(test, 0), one_view(test, 1)
    wrong = relative_rotation(source.rotations[:, 0], ring_views.rotations[:, ring_views.uv.shape[1] // 3])
    return {
        "between held-out cameras": judge_synthesis(there, back, source, target),
        "from a held-out camera to the ring's": judge_synthesis(there, back, source, one_view(ring_views, 0)),
        "with another camera's rotation": judge_synthesis(there, back, source, target, wrong),
    }


def encoders_of(run: GeometryAwareRun, device: torch.device) -> dict[str, GeometryAwareNetwork]:
    """Encoders by the name of what regressors learn from: an untrained one, too."""
    found = {"untrained": run.new_network("synthesis")[0], OURS: run.network("synthesis")[0]}  # type: ignore[index]
    if run.config.autoencoder:
        found["autoencoder"] = run.network("autoencoder")[0]  # type: ignore[index]
    return {name: encoder.to(device) for name, encoder in found.items()}


def samples(views: SkeletonViews, encoders: dict[str, GeometryAwareNetwork]) -> Samples:
    """All views of all poses as inputs of each kind, with the truth.

    :param views: N poses in C views.
    :param encoders: by name.
    """
    flat, joints = as_inputs(views)
    uv = views.uv.flatten(0, 1)
    show = Progress("encoding", "networks")
    found = {"2D joints": flat}
    for number, (name, encoder) in enumerate(encoders.items()):
        found[name] = encoder.codes(uv).flatten(1)
        show(number + 1, len(encoders))
    return Samples(found | {OURS_LIFTED: torch.cat([found[OURS], flat], 1)}, joints)


def methods(learn: Samples, config: RegressionConfig) -> dict[str, Method]:
    """What is compared: the same small regressor on all kinds of inputs, and the lifter with and without points."""
    joints, code = learn.joints.shape[1], learn.inputs[OURS].shape[1]
    small = {
        name: (name, lambda inputs: PoseRegressor(inputs, joints, config.hidden))
        for name in learn.inputs
        if name != OURS_LIFTED
    }
    return small | {
        "lifter": ("2D joints", lambda inputs: Lifter(inputs, joints, config.lifter)),
        OURS_LIFTED: (OURS_LIFTED, lambda inputs: Lifter(inputs - code, joints, config.lifter, code)),
    }


def measure(
    learn: Samples, judged: Samples, config: EvaluateGeometryAwareConfig, keep: Path
) -> Iterator[dict[str, Any]]:
    """Fit every method on every share of the labels, several draws each; a row for each.

    :param learn: all labels.
    :param judged: what is judged by.
    :param config: how many draws, and how regressors learn.
    :param keep: file that the regressor of videos goes to.
    """
    compared = methods(learn, config.regression)
    show, done = Progress("fitting regressors", "fits"), 0
    total = len(compared) * len(FRACTIONS) * config.draws
    for fraction in FRACTIONS:
        count = max(2, round(fraction * len(learn.joints)))
        for draw_number in range(config.draws):
            generator = torch.Generator().manual_seed(1000 * config.seed + draw_number)
            rows = torch.randperm(len(learn.joints), generator=generator)[:count]
            for name, (kind, make) in compared.items():
                fitted = fit_one(make, learn.inputs[kind][rows], learn.joints[rows], config.regression, draw_number)
                found = errors(fitted, judged.inputs[kind], judged.joints)
                yield {"method": name, "fraction": fraction, "labels": count, "draw": draw_number} | found
                if name == OURS and fraction == 1.0 and draw_number == 0:
                    write_tensors(keep, fitted.state_dict())
                done += 1
                show(done, total)


def fit_one(
    make: Callable[[int], nn.Module], inputs: Tensor, joints: Tensor, config: RegressionConfig, seed: int
) -> FittedRegressor:
    """A regressor that starts, and learns, the same for the same seed."""
    with torch.random.fork_rng([]):  # dropout, too
        torch.manual_seed(seed)
        return fit(make(inputs.shape[1]), inputs, joints, config, seed)


@torch.no_grad()
def errors(fitted: FittedRegressor, inputs: Tensor, joints: Tensor) -> dict[str, float]:
    """Mean errors in millimetres."""
    said = fitted(inputs)
    return {"mpjpe": 1000 * float(mpjpe(said, joints).mean()), "pmpjpe": 1000 * float(pmpjpe(said, joints).mean())}


def load_regressor(run: GeometryAwareRun, weights: dict[str, Tensor]) -> FittedRegressor:
    """The regressor that evaluation kept.

    :param run: whose points it takes.
    :param weights: of :data:`REGRESSOR`.
    :raises KeyError: where these are of something else.
    :raises RuntimeError: likewise.
    """
    hidden = weights["regressor.layers.0.bias"].shape[0]
    inputs, outputs = weights["inputs_mean"].shape[0], weights["joints_mean"].shape[0]
    if inputs != 3 * run.config.network.points:
        raise KeyError(f"it takes {inputs} numbers, not {3 * run.config.network.points}")
    regressor = PoseRegressor(inputs, outputs // 3, hidden)
    fitted = FittedRegressor(regressor, torch.zeros(2, inputs), torch.zeros(2, outputs // 3, 3))
    fitted.load_state_dict(weights)
    return fitted.eval()


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[float, tuple[float, float, float, float]]]:
    """By method and share of labels: mean MPJPE over draws, its 95 % interval, and mean PMPJPE."""
    found: dict[str, dict[float, tuple[float, float, float, float]]] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        found[name] = {}
        for fraction in FRACTIONS:
            group = [row for row in rows if row["method"] == name and row["fraction"] == fraction]
            values = [row["mpjpe"] for row in group]
            low, high = bootstrap_mean_interval(values)
            found[name][fraction] = (
                float(np.mean(values)),
                low,
                high,
                float(np.mean([row["pmpjpe"] for row in group])),
            )
    return found


PAPER_LABELS = (49, 496, 2_500, 5_000, 25_000, 49_000, 129_000, 179_000, 312_000)
PAPER = {
    "2D joints": (
        (207.5, 127.3, 122.7, 122.0, 121.5, 121.6, 117.6, 115.3, 114.7),
        (135.7, 85.3, 82.9, 82.4, 81.6, 81.5, 78.9, 77.0, 76.1),
    ),
    OURS: (
        (200.0, 107.9, 96.2, 94.5, 93.3, 91.9, 88.5, 83.4, 80.2),
        (153.2, 82.1, 71.3, 70.7, 68.6, 68.0, 62.5, 60.3, 58.2),
    ),
}
"""MPJPE and PMPJPE, mm, of the paper's small regressor on Human3.6M, other data, by the number of labels: 0.1 to 100 %
of one subject's frames, then of more subjects."""
_QUOTED = (0, 1, 3, 8)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Errors by share of labels, in millimetres, the paper's beside them, as a table in Markdown."""
    counts = {row["fraction"]: row["labels"] for row in rows}
    theirs = ", ".join(f"{PAPER_LABELS[at]:,}" for at in _QUOTED)
    heads = ["MPJPE (PMPJPE), mm", *(f"{100 * f:g} % = {counts[f]:,} labels" for f in FRACTIONS)]
    heads.append(f"paper, other data: {theirs} labels")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, by_fraction in summary(rows).items():
        cells = [f"{m:.1f} [{low:.1f}, {high:.1f}] ({p:.1f})" for m, low, high, p in by_fraction.values()]
        lines.append("| " + " | ".join([name, *cells, quoted(name)]) + " |")
    return lines


def quoted(name: str) -> str:
    """The paper's errors of a method, if it has them."""
    if name not in PAPER:
        return "–"
    return ", ".join(f"{PAPER[name][0][at]:.1f} ({PAPER[name][1][at]:.1f})" for at in _QUOTED)


def synthesis_table(found: dict[str, dict[str, float]]) -> list[str]:
    """How well views are drawn, as a table in Markdown."""
    lines = ["| views | IoU | points apart |", "|---|---|---|"]
    return lines + [f"| {name} | {100 * row['iou']:.1f} % | {row['equivariance']:.3f} |" for name, row in found.items()]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """MPJPE over the number of labels, in the layout of the paper's figure, and the paper's own curves beside it.

    :param rows: of :func:`measure`.
    :param path: of the picture to write.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    ours, theirs = figure.subplots(1, 2, sharey=True)
    counts = {row["fraction"]: row["labels"] for row in rows}
    for number, (name, found) in enumerate(summary(rows).items()):
        numbers = np.array([(counts[f], *found[f][:3]) for f in FRACTIONS])
        style = "--" if "lifter" in name else "-"
        ours.plot(numbers[:, 0], numbers[:, 1], f"o{style}", color=f"C{number}", label=name, markersize=3)
        ours.fill_between(numbers[:, 0], numbers[:, 2], numbers[:, 3], color=f"C{number}", alpha=0.15)
    for name, (curve, _) in PAPER.items():
        number = list(summary(rows)).index(name)
        theirs.plot(PAPER_LABELS, curve, "o-", color=f"C{number}", label=name, markersize=3)
    ours.set(title="here: test clips, bodies and cameras", ylabel="MPJPE, mm")
    theirs.set(title="the paper: Human3.6M, other data")
    for axes in (ours, theirs):
        axes.set(xscale="log", xlabel="3D labels")
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)
