"""What a bootstrapping run has learnt: each round's detector on test sequences, beside what it is compared with.

``python -m experiments.evaluate --run runs/hand/<name>`` comes here. Runs in the same folder that name this one as
their ``reference`` (the oracle, self-training, random frames) are judged by the same images and listed with it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import UserError
from envs.scenes.footage import Footage
from experiments.bootstrapping.filming import Subject, make_studio
from experiments.bootstrapping.folder import BootstrapRun
from experiments.bootstrapping.judging import judge_detector
from experiments.bootstrapping.views import found_by_views
from experiments.options.cli import parse, write_result
from experiments.provenance import origin
from experiments.training.building import choose_device, use_threads
from experiments.training.progress import Progress
from kp3d_rl.options import bounded, check_options


@dataclass(frozen=True)
class EvaluateBootstrapConfig:
    """The detectors of a bootstrapping run on sequences that no training saw.

    :param env: "hand", whose newest run is taken where no ``run`` is named; or an environment.
    :param run: run folder, or its name within the environment.
    :param seed: number of the block of test sequences; blocks never overlap.
    :param sequences: how many; by default as many as the run was judged by.
    :param device: "auto" takes a GPU where there is one.
    :param alone: leave out the runs that are compared with this one.
    :param turn: degrees by which each image is also seen turned, one way and the other, its confidence maps averaged
        (test-time augmentation); 0 sees it once. What more cameras find is always of images seen once.
    """

    env: str | None = None
    run: str | None = None
    seed: int = bounded(0, least=0, most=1_000_000)
    sequences: int | None = bounded(None, least=1, most=10_000)
    device: str = "auto"
    alone: bool = False
    turn: float = bounded(0.0, least=0, most=180)

    def __post_init__(self) -> None:
        check_options(self, "")


def main(argv: Sequence[str]) -> None:
    """Film, judge every round of every run, print, write."""
    config = parse(EvaluateBootstrapConfig, argv)
    run = BootstrapRun.find(config.run, config.env)
    run.detector()  # refuses a run without one before anything is filmed
    device = choose_device(config.device)
    use_threads(run.config.threads)
    studio, count = make_studio(run.config), config.sequences or run.config.test_sequences
    show, test = Progress("filming", "sequences"), []
    for number in range(count):
        test.append(studio.test(config.seed * 10_000 + number))
        show(number + 1, count)
    studio.close()
    rows = [
        row
        for other in ([run] if config.alone else [run, *compared(run)])
        for row in judge_rounds(other, test, len(studio.held_out), studio.subject, device, config.turn)
    ]
    views = found_by_views(
        run.detector(0).to(device), test, len(studio.held_out), run.config.ransac, studio.subject.groups,
        run.config.calibration_noise, needed=run.config.plausibility.least_inliers,
    )  # fmt: skip
    print("", *table(rows), "", *views_table(views), sep="\n")
    about = {"env": run.config.env, "seed": config.seed, "sequences": count, "turn": config.turn} | origin()
    record = about | {"rounds": rows, "views": views}
    write_result(run.path / "eval.json", json.dumps(record, indent=1).encode())
    print(f"\nwritten to {run.path / 'eval.json'}")


def compared(run: BootstrapRun) -> list[BootstrapRun]:
    """Runs beside this one that were made to be compared with it, by method."""
    found = []
    for path in sorted(run.path.parent.iterdir()):
        if BootstrapRun.is_one(path) and path.resolve() != run.path.resolve():
            try:
                other = BootstrapRun.open(path)
                for number in other.finished_rounds():  # what is damaged is said before anything is filmed
                    other.detector(number)
                    other.numbers(number)
            except UserError as error:  # it may be of another version, or damaged
                print(f"warning: {error}: it is left out", file=sys.stderr)
                continue
            if other.config.reference is not None and Path(other.config.reference).resolve() == run.path.resolve():
                found.append(other)
    return sorted(found, key=lambda other: other.config.method)


def judge_rounds(
    run: BootstrapRun, test: Sequence[Footage], held_out: int, subject: Subject, device: str, turn: float = 0.0
) -> list[dict[str, Any]]:
    """One row for each round that is over.

    :param run: whose detectors are judged.
    :param test: the sequences.
    :param held_out: how many of their views, the first ones, they are judged by.
    :param subject: what is looked for.
    :param device: to compute on.
    :param turn: degrees by which images are also seen turned.
    """
    rows, config = [], run.config
    show, finished = Progress(f"judging {run.path.name}", "rounds"), run.finished_rounds()
    for number in finished:
        detector = run.detector(number, len(subject.keypoints)).to(device)
        found = judge_detector(detector, test, held_out, config.ransac, subject.groups, config.calibration_noise, turn)
        then = run.numbers(number)
        kept = {name: then[name] for name in ("frames", "precision", "accepted") if name in then}
        about = {
            "run": run.path.name,
            "detector": run.fingerprint(number),
            "method": config.method,
            "cameras": config.watching,
            "round": number,
        }
        last = {"gave_up": True} if run.gave_up and number == finished[-1] else {}
        rows.append(about | dataclasses.asdict(found) | kept | last)
        show(number + 1, len(finished))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows as a table in Markdown."""
    heads = (
        "method",
        "cameras",
        "round",
        "PCK@.05",
        "PCK@.1",
        "PCK@.2",
        "AUC",
        "3D median, mm",
        "found",
        "frames",
        "labels right",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        shares = [f"{100 * row['pck'][share]:.1f}" for share in ("0.05", "0.1", "0.2")]
        frames = f"{row['frames']:.0f}" if "frames" in row else "–"
        right = f"{100 * row['precision']:.1f} %" if "precision" in row else "–"
        about = [row["method"], str(row["cameras"]), str(row["round"])]
        cells = [*about, *shares, f"{100 * row['auc']:.1f}", f"{row['error_mm']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{100 * row['found']:.0f} %", frames, right]) + " |")
    return lines


def views_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What so many cameras find with the first detector, as a table in Markdown."""
    lines = [
        "| cameras | a view is right | formula | enough views are right | points found right |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        shares = [f"{100 * row[name]:.1f} %" for name in ("success", "formula", "enough", "found")]
        lines.append("| " + " | ".join([str(row["cameras"]), *shares]) + " |")
    return lines
