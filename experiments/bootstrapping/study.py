"""Bootstrapping beside what it is compared with: ``python -m experiments.study --name bootstrapping``.

For each seed one run bootstraps; the others take over its first detector. All are judged by the same test sequences, of
a block that no run is judged by while it learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.bootstrapping.config import HAND
from experiments.bootstrapping.folder import BootstrapRun
from experiments.bootstrapping.views import COUNTS
from experiments.runs.folder import ROOT, folder_name
from experiments.runs.plain import read_json
from experiments.studies.plain import Member, asked_for, carried_out, do_all, judged, perform

NAME = "bootstrapping"
"""Of the study, and of the files in ``docs``."""
TEST_BLOCK = 1
"""Block of test sequences; runs are judged by block 0 while they learn."""


MEMBERS = (
    Member("bootstrapping", ""),
    Member("self-training", "--method self-training"),
    Member("oracle", "--method oracle"),
    Member("random frames", "--method random"),
    *(Member(f"{count} cameras", f"--use {count} --rounds 1", seeds=1) for count in COUNTS[:-1]),
)
"""The first one is what the others are compared with; it uses all 24 cameras."""


@dataclass(frozen=True)
class Job:
    """One run of a member."""

    member: Member
    seed: int

    @property
    def leader(self) -> Job:
        """The run whose first detector this one takes over."""
        return Job(MEMBERS[0], self.seed)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return ROOT / folder_name(HAND) / self.member.folder_name(self.seed)

    @property
    def options(self) -> list[str]:
        """All that is typed to make it; each run keeps to one core."""
        taken = [] if self == self.leader else ["--reference", str(self.leader.folder)]
        return ["--run", self.folder.name, "--seed", str(self.seed), "--threads", "1", *self.member.arguments.split(),
                *taken]  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether all rounds are over, or one found nothing to learn from, which is a result, too."""
        if not self.folder.is_dir():
            return False
        run = BootstrapRun.open(self.folder)
        return len(run.finished_rounds()) > run.config.rounds or run.gave_up

    @property
    def judged(self) -> bool:
        """Whether the leader's evaluation is by the study's test sequences and has all detectors of this run."""
        path, run = self.leader.folder / "eval.json", BootstrapRun.open(self.folder)
        found = read_json(path) if path.is_file() else {}
        asked = {"seed": TEST_BLOCK, "sequences": run.config.test_sequences, "turn": 0.0}
        if any(found.get(name, 0.0) != value for name, value in asked.items()):
            return False
        judged = {row["round"]: row.get("detector") for row in found["rounds"] if row["run"] == self.folder.name}
        return judged == {number: run.fingerprint(number) for number in run.finished_rounds()}

    def command(self) -> list[str]:
        """Makes the run, or goes on with it."""
        argv = ["--resume", str(self.folder)] if self.folder.is_dir() else self.options
        return ["experiments.bootstrap", *argv]


def run_study(only: Sequence[str] | None, seeds: int, jobs: int) -> None:
    """Run what is missing: first those that others refer to, then these, then judge all.

    :param only: names of members; None is all of them.
    :param seeds: at most so many of each; 0 is as many as the study has.
    :param jobs: runs at a time.
    :raises UserError: for an unknown member, or if a program failed, when all others are done.
    """
    asked = [Job(*one) for one in asked_for(NAME, MEMBERS, only, seeds)]
    leaders = list(dict.fromkeys(job.leader for job in asked))
    others = [job for job in asked if job not in leaders]
    do_all([(made, leaders), (made, others), (judge, leaders)], jobs)


def made(job: Job) -> str | None:
    """Make a run, or what is left of it.

    :return: its folder if that failed, and not because there was nothing to learn from.
    """
    failed = perform(job)
    return None if job.finished else failed


def judged_jobs() -> list[Job]:
    """All runs of the study that are in this folder and judged."""
    return judged(Job, MEMBERS)


def judge(leader: Job) -> str | None:
    """Judge a run and all that refer to it, unless that is done.

    :return: its folder if that failed.
    """
    beside = [job for job in (Job(member, leader.seed) for member in MEMBERS) if job.finished]
    if leader not in beside or all(job.judged for job in beside):
        return None
    command = ["experiments.evaluate", "--run", str(leader.folder), "--seed", str(TEST_BLOCK)]
    return carried_out(leader.folder, command)


def rows_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What was measured, a row for each round of each run, and one for each number of cameras.

    :param jobs: that are judged.
    """
    found: list[dict[str, Any]] = []
    for job in jobs:
        evaluation = read_json(job.leader.folder / "eval.json")
        command = f'make bootstrap RUN={job.folder.name} SEED={job.seed} ARGS="{" ".join(job.options[4:])}"'
        about = {"condition": job.member.name, "seed": job.seed, "command": command}
        about["trained"] = read_json(job.folder / "origin.json")
        rounds = [row for row in evaluation["rounds"] if row["run"] == job.folder.name]
        found += [{"section": "rounds"} | about | row for row in rounds]
        if job == job.leader:
            found += [{"section": "views", "round": row["cameras"]} | about | row for row in evaluation["views"]]
    return found
