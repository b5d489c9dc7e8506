"""Geometry-aware representations over seeds, beside what the method is made of: ``--name geometry-aware``.

``python -m experiments.study --name geometry-aware``. Every run is judged by the same people in test clips, of a block
that no run is judged by while it learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.geometry_aware.config import HUMAN
from experiments.geometry_aware.folder import GeometryAwareRun
from experiments.runs.folder import ROOT, folder_name
from experiments.runs.plain import read_json
from experiments.studies.plain import Member, asked_for, carried_out, do_all, judged, perform

NAME = "geometry-aware"
"""Of the study, and of the files in ``docs``."""
TEST_BLOCK = 1
"""Block of test bodies; runs are judged by block 0, in other clips, while they learn."""
MEMBERS = (
    Member("exact joints", ""),
    Member("detected joints", "--preset detected", seeds=1),
    Member("ring alone", "--no-virtual --no-autoencoder", seeds=1),
    Member("without consistency", "--training.consistency 0 --no-autoencoder", seeds=1),
    Member("two networks", "--network.no-shared --no-autoencoder", seeds=1),
)


@dataclass(frozen=True)
class Job:
    """One run of a member."""

    member: Member
    seed: int

    @property
    def folder(self) -> Path:
        """The run folder."""
        return ROOT / folder_name(HUMAN) / self.member.folder_name(self.seed)

    @property
    def options(self) -> list[str]:
        """All that is typed to make it; each run keeps to one core."""
        return ["--run", self.folder.name, "--seed", str(self.seed), "--threads", "1", *self.member.arguments.split()]

    @property
    def finished(self) -> bool:
        """Whether all stages are over."""
        return self.folder.is_dir() and GeometryAwareRun.open(self.folder).finished

    @property
    def judged(self) -> bool:
        """Whether the result is judged by the study's test people."""
        path = self.folder / "eval.json"
        found = read_json(path) if path.is_file() else {}
        return found.get("seed") == TEST_BLOCK and found.get("finished") is True

    def command(self) -> list[str]:
        """Makes the run, or goes on with it."""
        argv = ["--resume", str(self.folder)] if self.folder.is_dir() else self.options
        return ["experiments.geometry_aware", *argv]


def run_study(only: Sequence[str] | None, seeds: int, jobs: int) -> None:
    """Run and judge what is missing.

    :param only: names of members; None is all of them.
    :param seeds: at most so many of each; 0 is as many as the study has.
    :param jobs: runs at a time.
    :raises UserError: for an unknown member, or if a program failed, when all others are done.
    """
    asked = [Job(*one) for one in asked_for(NAME, MEMBERS, only, seeds)]
    do_all([(perform, asked), (judge, asked)], jobs)


def judged_jobs() -> list[Job]:
    """All runs of the study that are in this folder and judged."""
    return judged(Job, MEMBERS)


def judge(job: Job) -> str | None:
    """Judge a finished run unless that is done.

    :return: its folder if that failed.
    """
    if job.judged or not job.finished:
        return None
    return carried_out(job.folder, ["experiments.evaluate", "--run", str(job.folder), "--seed", str(TEST_BLOCK)])


def rows_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What was measured, a row for each run.

    :param jobs: that are judged.
    """
    found = []
    for job in jobs:
        run = GeometryAwareRun.open(job.folder)
        command = f'make geometry-aware RUN={job.folder.name} SEED={job.seed} ARGS="{" ".join(job.options[4:])}"'
        about = {"section": "result", "condition": job.member.name, "seed": job.seed, "command": command}
        judged = {name: value for name, value in read_json(job.folder / "eval.json").items() if name != "seed"}
        trained = {"trained": read_json(job.folder / "origin.json"), "steps": run.config.training.steps}
        found.append(about | judged | trained | {"minutes": run.rows()[-1]["minutes"]})
    return found
