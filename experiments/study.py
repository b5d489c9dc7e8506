"""Conditions against each other over seeds: ``python -m experiments.study --name learning``.

Trains, evaluates and probes every run of a study that is not there yet, several at a time, each on one thread; then
writes ``docs/<name>.json`` with every number, command, commit and machine, and ``docs/<name>.png`` with the curves.
A study that was stopped goes on with the run at which it was, from its last checkpoint; a folder of other options is
moved aside. What that JSON says of runs that are not in this folder, of the same command, stays; with ``--extend``
these are not run again, so that seeds can come from several machines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import UserError, unknown
from experiments.bootstrapping import study as bootstrapping
from experiments.bootstrapping import study_report as bootstrapping_report
from experiments.geometry_aware import study as geometry_aware
from experiments.geometry_aware import study_report as geometry_aware_report
from experiments.keypointnet import study as keypointnet
from experiments.keypointnet import study_report as keypointnet_report
from experiments.options.cli import flat, parse, run_main
from experiments.options.config import PretrainConfig, TrainConfig
from experiments.options.files import from_yaml
from experiments.options.presets import expanded
from experiments.pages import fill_pages
from experiments.runs import ROOT, folder_name
from experiments.studies.conditions import AUTOENCODER_SEEDS, STUDIES, Condition
from experiments.studies.report import recorded, write_report
from kp3d_rl.storage.steps import complete_steps

PLAIN: dict[str, tuple[Any, Any]] = {
    bootstrapping.NAME: (bootstrapping, bootstrapping_report),
    keypointnet.NAME: (keypointnet, keypointnet_report),
    geometry_aware.NAME: (geometry_aware, geometry_aware_report),
}
"""Studies of what has no policy: what runs them, and what reports."""


@dataclass(frozen=True)
class StudyConfig:
    """A comparison over seeds.

    :param name: of the study, and of the files in ``docs``.
    :param only: names of some of its conditions, separated by commas; by default all.
    :param seeds: at most so many seeds of each; 0 is as many as the study says.
    :param jobs: runs at a time.
    :param report: run nothing, report what is there.
    :param extend: run only what the docs have no numbers of.
    :param docs: folder to write to.
    """

    name: str = "learning"
    only: str | None = None
    seeds: int = 0
    jobs: int = 2
    report: bool = False
    extend: bool = False
    docs: Path = Path("docs")

    def __post_init__(self) -> None:
        if self.seeds < 0 or self.jobs < 1:
            raise ValueError("seeds must be at least 0 and jobs at least 1")


@dataclass(frozen=True)
class Job:
    """One run of a condition."""

    env: str
    study: str
    condition: Condition
    seed: int

    @property
    def run(self) -> str:
        """Name of the run folder."""
        return f"{self.study}-{self.condition.name.replace(' ', '-')}-{self.seed}".lower().replace("'", "")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return ROOT / folder_name(self.env) / self.run

    @property
    def command(self) -> str:
        """What a person would type to train it."""
        arguments = " ".join([*self.condition.arguments.split(), *self.limits])
        return f'make {self.condition.program} ENV={self.env} RUN={self.run} SEED={self.seed} ARGS="{arguments}"'

    @property
    def limits(self) -> list[str]:
        """Options that keep a run to its cores."""
        cores = self.condition.cores
        return ["--threads", str(cores), "--render.workers", str(cores)] if cores else []

    @property
    def options(self) -> list[str]:
        """What its program is given."""
        named = ["--env", self.env, "--run", self.run, "--seed", str(self.seed)]
        return [*named, *self.limits, *self.condition.arguments.split()]

    @property
    def is_another(self) -> bool:
        """Whether a folder of its name was made with other options: a condition, or a preset, has changed since."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            return False
        kind = TrainConfig if self.condition.program == "train" else PretrainConfig
        try:
            return what_counts(from_yaml(path)) != what_counts(parse(kind, expanded(self.options, kind)))
        except UserError:  # of another version
            return True

    @property
    def is_done(self) -> bool:
        """Whether it is trained."""
        return (self.folder / "done").is_file() and not self.is_another

    @property
    def goes_on(self) -> bool:
        """Whether it was stopped half-way and has a checkpoint to go on from, which pretrainings do not."""
        stopped = self.condition.program == "train" and not (self.folder / "done").is_file() and not self.is_another
        return stopped and bool(complete_steps(self.folder / "checkpoints"))

    def steps(self) -> list[list[str]]:
        """The programs that are still to be run, in this order."""
        found = []
        anew = not self.is_done and not self.goes_on
        if self.goes_on:
            found.append(["resume", "--run", str(self.folder)])
        elif anew:
            found.append([self.condition.program, *self.options])
        path = ["--run", str(self.folder)]
        if self.condition.program == "train" and (anew or not (self.folder / "eval.json").is_file()):
            found.append(["evaluate", *path, *(["--ablate"] if self.condition.ablate else [])])
        if self.condition.probe and (anew or not (self.folder / "probe.json").is_file()):
            # The autoencoder is the same for all conditions of an environment, and takes longer than the probe's rest.
            first = self.condition.env or self.condition == STUDIES[self.study].conditions[0]
            leads = first and self.seed < AUTOENCODER_SEEDS
            asked = self.condition.asked.split()
            found.append(["probe", *path, *asked, *([] if leads else ["--autoencoder-steps", "0"])])
        return found


def what_counts(config: TrainConfig | PretrainConfig) -> dict[str, Any]:
    """The options of a run by name, without those of the algorithm that does not train it."""
    others = {"ppo": "sac.", "sac": "ppo.", "tqc": "ppo."}.get(getattr(config, "algorithm", ""))
    return {name: value for name, value in flat(config).items() if others is None or not name.startswith(others)}


def main(argv: Sequence[str]) -> None:
    """Run what is missing, then report."""
    config = parse(StudyConfig, argv)
    if config.name in PLAIN:
        study_plain(config)
    else:
        study_conditions(config)
    fill_pages(config.docs)


def study_conditions(config: StudyConfig) -> None:
    """Policies or pretrainings against each other."""
    jobs, known = chosen(config), {record["command"] for record in recorded(config.docs, config.name)}
    if not config.report:
        run_all([job for job in jobs if not (config.extend and job.command in known)], config.jobs)
    finished = [
        (job.condition.name, job.seed, job.command, None if job.steps() else job.folder)
        for job in in_order(chosen(StudyConfig(config.name)))
        if job.command in known or not job.steps()
    ]
    if not finished:
        raise UserError(f"no run of study '{config.name}' is finished yet in {ROOT}")
    write_report(config.docs, config.name, finished)


def study_plain(config: StudyConfig) -> None:
    """Runs without a policy against each other."""
    study, report = PLAIN[config.name]
    if not config.report:
        study.run_study(names(config), config.seeds, config.jobs)
    report.write_report(config.docs, study.judged_jobs())


def names(config: StudyConfig) -> list[str] | None:
    """Of the conditions that are asked for; None is all of them."""
    return None if config.only is None else [name.strip() for name in config.only.split(",")]


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Condition by condition, as their study lists them, and in each by seed."""
    order = [condition.name for condition in STUDIES[jobs[0].study].conditions]
    return sorted(jobs, key=lambda job: (order.index(job.condition.name), job.seed))


def run_all(jobs: Sequence[Job], at_a_time: int) -> None:
    """Run what is missing.

    :raises UserError: if a program failed, when all others are done.
    """
    with ThreadPoolExecutor(at_a_time) as pool:
        failed = [name for name in pool.map(perform, jobs) if name is not None]
    if failed:
        raise UserError(f"{len(failed)} runs failed, the first is {failed[0]}: see {ROOT}/{failed[0]}.log")


def chosen(config: StudyConfig) -> list[Job]:
    """The runs of a study, seed by seed, so that an early stop leaves comparisons and not single conditions.

    :raises UserError: for an unknown study or condition.
    """
    if config.name not in STUDIES:
        raise unknown("study", config.name, (*STUDIES, *PLAIN))
    study = STUDIES[config.name]
    conditions = {condition.name: condition for condition in study.conditions}
    asked = names(config) or list(conditions)
    for name in asked:
        if name not in conditions:
            raise unknown(f"condition of study '{config.name}'", name, conditions)
    jobs = [
        Job(conditions[name].env or study.env, config.name, conditions[name], seed)
        for name in asked
        for seed in range(min(conditions[name].seeds, config.seeds or conditions[name].seeds))
    ]
    return sorted(jobs, key=lambda job: job.seed)


def perform(job: Job) -> str | None:
    """Do what is missing of a run, on its cores; its output goes to a log beside the run folder.

    :return: the run's name if a program failed.
    """
    if job.folder.exists() and not job.goes_on and not job.is_done:  # kept, but not in the way
        job.folder.rename(job.folder.with_name(f"{job.run}-stopped-{time.strftime('%Y%m%d-%H%M%S')}"))
    environment = os.environ | ({"OMP_NUM_THREADS": str(job.condition.cores)} if job.condition.cores else {})
    log = job.folder.with_name(f"{job.run}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    for program, *arguments in job.steps():
        print(f"{job.run}: {program}", flush=True)
        with log.open("a") as output:
            command = [sys.executable, "-m", f"experiments.{program}", *arguments]
            if subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode:
                return f"{folder_name(job.env)}/{job.run}"
        if program in (job.condition.program, "resume"):
            (job.folder / "done").touch()
    return None


if __name__ == "__main__":
    run_main(main)
