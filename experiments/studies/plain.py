"""What studies of programs without a policy share: members, runs that are made in other processes, what failed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from envs.errors import UserError, unknown


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
