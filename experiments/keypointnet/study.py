"""KeypointNet on all categories, beside the same network taught the parts, and without what it cannot do without.

``python -m experiments.study --name keypointnet``. Every run is judged by the same test objects, of a block that no run
is judged by while it learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.scenes.objects import CATEGORIES
from experiments.keypointnet.folder import KeypointNetRun
from experiments.runs.folder import ROOT, folder_name
from experiments.runs.plain import read_json
from experiments.studies.plain import Member, asked_for, carried_out, do_all, judged, perform

NAME = "keypointnet"
"""Of the study, and of the files in ``docs``."""
TEST_BLOCK = 1
"""Block of test objects; runs are judged by block 0 while they learn."""
MEMBERS = (
    *(Member(category, f"--category {category}", seeds=1) for category in CATEGORIES),
    *(
        Member(f"{category} supervised", f"--category {category} --training.supervised", seeds=1)
        for category in CATEGORIES
    ),
    Member("chair without pose loss", "--category chair --training.loss.pose 0", seeds=1),
    Member("chair without consistency loss", "--category chair --training.loss.consistency 0", seeds=1),
)


@dataclass(frozen=True)
class Job:
    """One run of a member."""

    member: Member
    seed: int

    @property
    def category(self) -> str:
        """What its objects are."""
        return self.member.name.partition(" ")[0]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return ROOT / folder_name(self.category) / self.member.folder_name(self.seed)

    @property
    def options(self) -> list[str]:
        """All that is typed to make it; each run keeps to one core."""
        return ["--run", self.folder.name, "--seed", str(self.seed), "--threads", "1", *self.member.arguments.split()]

    @property
    def finished(self) -> bool:
        """Whether all steps are made."""
        return self.folder.is_dir() and KeypointNetRun.open(self.folder).finished

    @property
    def judged(self) -> bool:
        """Whether the result is judged by the study's test objects."""
        path = self.folder / "eval.json"
        if not path.is_file():
            return False
        found = read_json(path)
        return found.get("seed") == TEST_BLOCK and found.get("finished") is True and found.get("seen") is False

    def command(self) -> list[str]:
        """Makes the run, or goes on with it."""
        argv = ["--resume", str(self.folder)] if self.folder.is_dir() else self.options
        return ["experiments.keypointnet", *argv]


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
    """What was measured, a row for each run, with the curve of its median error.

    :param jobs: that are judged.
    """
    found = []
    for job in jobs:
        run = KeypointNetRun.open(job.folder)
        command = f'make keypointnet RUN={job.folder.name} SEED={job.seed} ARGS="{" ".join(job.options[4:])}"'
        about = {"section": "result", "condition": job.member.name, "seed": job.seed, "command": command}
        curve = [[row["step"], round(row["median_angle"], 2)] for row in run.rows()]
        minutes = run.rows()[-1]["minutes"]
        judged = read_json(job.folder / "eval.json")
        trained = {"trained": read_json(job.folder / "origin.json"), "steps": run.config.training.steps}
        found.append(about | judged | trained | {"seed": job.seed, "minutes": minutes, "curve": curve})
    return found
