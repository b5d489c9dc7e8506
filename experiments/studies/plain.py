"""What studies of programs without a policy share: members, runs that are made in other processes, what failed."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from envs.errors import UserError, unknown
from experiments.runs.folder import ROOT, folder_name
from experiments.runs.plain import PlainRun, read_json


@dataclass(frozen=True)
class Member:
    """One of the things that are compared.

    :param name: as tables have it.
    :param arguments: options that it differs by.
    :param seeds: how many.
    """

    name: str
    arguments: str
    seeds: int = 3

    def folder_name(self, seed: int) -> str:
        """Of its run."""
        return f"study-{self.name.replace(' ', '-')}-{seed}"


class Job(Protocol):
    """One run of a member."""

    @property
    def folder(self) -> Path:
        """The run folder."""

    @property
    def finished(self) -> bool:
        """Whether all of it is done."""

    @property
    def judged(self) -> bool:
        """Whether the study's numbers of it are there."""

    def command(self) -> list[str]:
        """Module and arguments that make the run, or go on with it."""


@dataclass(frozen=True)
class JudgedJob(ABC):
    """A run that is judged by itself, by a block of test data that no run is judged by while it learns."""

    member: Member
    seed: int

    RUN: ClassVar[type[PlainRun]]
    """Kind of the run."""
    TEST_BLOCK: ClassVar[int] = 1

    @property
    @abstractmethod
    def home(self) -> str:
        """Where such runs are, in ``runs``."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return ROOT / folder_name(self.home) / self.member.folder_name(self.seed)

    @property
    def options(self) -> list[str]:
        """All that is typed to make it; each run keeps to one core."""
        return ["--run", self.folder.name, "--seed", str(self.seed), "--threads", "1", *self.member.arguments.split()]

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to learn."""
        return self.folder.is_dir() and self.RUN.open(self.folder).finished

    @property
    def judged(self) -> bool:
        """Whether the result is judged by the study's test data."""
        path = self.folder / "eval.json"
        found = read_json(path) if path.is_file() else {}
        return found.get("seed") == self.TEST_BLOCK and found.get("finished") is True and not found.get("seen")

    def command(self) -> list[str]:
        """Makes the run, or goes on with it."""
        argv = ["--resume", str(self.folder)] if self.folder.is_dir() else self.options
        return [f"experiments.{self.RUN.PROGRAM.replace('-', '_')}", *argv]

    def judge(self) -> str | None:
        """Judge a finished run unless that is done.

        :return: its folder if that failed.
        """
        if self.judged or not self.finished:
            return None
        command = ["experiments.evaluate", "--run", str(self.folder), "--seed", str(self.TEST_BLOCK)]
        return carried_out(self.folder, command)

    def record(self) -> dict[str, Any]:
        """What was measured, with what was typed, where and when: a row of the study's data."""
        run = self.RUN.open(self.folder)
        typed = f'make {self.RUN.PROGRAM} RUN={self.folder.name} SEED={self.seed} ARGS="{" ".join(self.options[4:])}"'
        about = {"section": "result", "condition": self.member.name, "command": typed}
        trained = {"trained": read_json(self.folder / "origin.json"), "steps": run.config.training.steps}
        return about | read_json(self.folder / "eval.json") | trained | {
            "seed": self.seed, "minutes": run.rows()[-1]["minutes"]
        }  # fmt: skip


Stage = tuple[Callable[[Any], str | None], Iterable[Any]]
"""A function that does the work on one of the things beside it and returns the folder of a run that failed."""


def asked_for(
    study: str, members: Sequence[Member], only: Sequence[str] | None, seeds: int
) -> list[tuple[Member, int]]:
    """Members and seeds.

    :param study: its name.
    :param members: all that it has.
    :param only: names of some; None is all of them.
    :param seeds: at most so many of each; 0 is as many as the study has.
    :raises UserError: for an unknown member.
    """
    names = {member.name: member for member in members}
    for name in only or ():
        if name not in names:
            raise unknown(f"condition of study '{study}'", name, names)
    chosen = [names[name] for name in only] if only else members
    return [(member, seed) for member in chosen for seed in range(min(member.seeds, seeds or member.seeds))]


Kind = TypeVar("Kind", bound=Job)


def judged(kind: Callable[[Member, int], Kind], members: Sequence[Member]) -> list[Kind]:
    """All runs of a study that are in this folder and judged.

    :param kind: makes a job of a member and a seed.
    :param members: of the study.
    """
    every = [kind(member, seed) for member in members for seed in range(member.seeds)]
    return [job for job in every if job.finished and job.judged]


def run_judged(
    study: str, members: Sequence[Member], kind: Callable[[Member, int], JudgedJob],
    only: Sequence[str] | None, seeds: int, jobs: int,
) -> None:  # fmt: skip
    """Run and judge what is missing.

    :param study: its name.
    :param members: all that it has.
    :param kind: makes a job of a member and a seed.
    :param only: names of members; None is all of them.
    :param seeds: at most so many of each; 0 is as many as the study has.
    :param jobs: runs at a time.
    :raises UserError: for an unknown member, or if a program failed, when all others are done.
    """
    asked = [kind(*one) for one in asked_for(study, members, only, seeds)]
    do_all([(perform, asked), (JudgedJob.judge, asked)], jobs)


def report_file(docs: Path, study: str, jobs: Sequence[Any]) -> Path:
    """Where a study's data go; the folder is made where it is missing.

    :param docs: folder to write to.
    :param study: its name.
    :param jobs: runs that are judged.
    :raises UserError: where there are none.
    """
    if not jobs:
        raise UserError(f"no run of study '{study}' is finished yet in {ROOT}")
    docs.mkdir(exist_ok=True)
    return docs / f"{study}.json"


def perform(job: Job) -> str | None:
    """Make a run, or what is left of it.

    :return: its folder if that failed.
    """
    return None if job.finished else carried_out(job.folder, job.command())


def do_all(stages: Sequence[Stage], at_a_time: int) -> None:
    """Do one stage after the other, of each several things at a time.

    :param stages: what is done with what.
    :param at_a_time: how many.
    :raises UserError: if a program failed, when all others are done.
    """
    failed: list[str] = []
    with ThreadPoolExecutor(at_a_time) as pool:
        for work, things in stages:
            failed += [name for name in pool.map(work, things) if name]
    if failed:
        raise UserError(f"{len(failed)} runs failed, the first is {failed[0]}: see {failed[0]}.log")


def carried_out(folder: Path, command: Sequence[str]) -> str | None:
    """Run a program; what it prints goes to a log beside a run folder.

    :param folder: of the run.
    :param command: module and arguments.
    :return: the folder if the program failed.
    """
    print(f"{folder.name}: {command[0].rpartition('.')[2]}", flush=True)
    log = folder.with_name(f"{folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        done = subprocess.run([sys.executable, "-m", *command], stdout=output, stderr=output, check=False)
    return str(folder) if done.returncode else None
