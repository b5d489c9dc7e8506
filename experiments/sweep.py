"""Every run of a plan, on this machine or on a cluster: ``python -m experiments.sweep --plan plan.yaml``.

What was done before is skipped, what was cut off goes on from its last checkpoint, what fails is tried again and told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.errors import UserError
from experiments.options.cli import parse, run_main
from experiments.runs.folder import locked
from experiments.sweeps.cluster import Cluster, connected, require_room
from experiments.sweeps.nodes import backend_of, description
from experiments.sweeps.plan import Plan
from experiments.sweeps.plan_file import read_plan
from experiments.sweeps.single import is_made
from experiments.sweeps.state import Entry, place_file, read_attempts, seconds_left, write_state
from experiments.sweeps.table import SweepView
from experiments.sweeps.work import PATIENCE, Outcome, Task
from experiments.training.building import cores
from kp3d_rl.storage.files import write_whole

EVERY = 1.0
"""Seconds between two looks at what the runs are at."""


@dataclass(frozen=True)
class SweepConfig:
    """A plan, and where it is carried out.

    :param plan: YAML file of environments, encoders, algorithms, overrides and seeds (docs/sweeps.md).
    :param address: of a ray cluster's head, or "auto" for the one that runs on this machine; by default ray is started
        here and stopped at the end.
    :param jobs: runs at a time where ray is started here; 0 is as many as there are cores for.
    :param list: say which runs there are and which of them are done, and run nothing.
    """

    plan: Path | None = None
    address: str | None = None
    jobs: int = 0
    list: bool = False

    def __post_init__(self) -> None:
        if self.plan is None:
            raise ValueError("say which plan: PLAN=<file>, as docs/plans/reach.yaml")
        if self.jobs < 0:
            raise ValueError("jobs must be at least 0")


def main(argv: Sequence[str]) -> None:
    """Read the plan, hand out what is missing, and say what became of it."""
    config = parse(SweepConfig, argv)
    plan = read_plan(config.plan)
    entries = entries_of(plan)
    if config.list:
        print(*(f"{entry.status:8} {entry.run.label}" for entry in entries), sep="\n")
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    with locked(plan.folder, "sweep"):
        write_whole(plan.folder / "plan.yaml", config.plan.read_bytes())
        missing = [entry for entry in entries if entry.status != "done"]
        print(f"{plan.name}: {len(entries)} runs, {len(entries) - len(missing)} done before", flush=True)
        if missing:
            jobs = config.jobs or max(1, cores() // plan.cores)
            with connected(config.address, jobs, plan.cores) as cluster, SweepView(plan.name) as view:
                Sweep(plan, entries, cluster, view).run()
        else:
            write_state(plan, entries, ())
    report(plan, entries)


def entries_of(plan: Plan) -> list[Entry]:
    """All runs of a plan, with what is known of them from earlier calls."""
    attempts, found = read_attempts(plan), []
    for run in plan.runs():
        before = attempts.get(run.label, [])
        status = "done" if is_made(run) else "waiting"
        found.append(Entry(run, run.config().total_steps or 1, status, before, len(before)))
    return found


class Sweep:
    """Carries a plan out.

    :param plan: the plan.
    :param entries: its runs.
    :param cluster: where.
    :param view: shows how far it is.
    """

    def __init__(self, plan: Plan, entries: Sequence[Entry], cluster: Cluster, view: SweepView) -> None:
        self.plan, self.entries, self.cluster, self.view = plan, entries, cluster, view
        self.by_label = {entry.run.label: entry for entry in entries}
        self.since: dict[str, float] = {}
        moment = time.time_ns()  # a name of its own: network file systems remember what a file held for a while
        self.token = (str(plan.folder / f"token-{moment}"), f"{plan.name} {moment}")
        self.expected = description()
        self.backends: dict[str, str] = {}
        self.told: set[str] = set()

    def run(self) -> None:
        """Hand out all runs, and again those that fail, until there is nothing left to do."""
        write_whole(Path(self.token[0]), self.token[1].encode())
        try:
            for entry in self.entries:
                place_file(self.plan.folder, entry.run).unlink(missing_ok=True)
                if entry.status != "done":
                    self.cluster.hand_out(self.task(entry))
            while self.cluster.handed:
                if not require_room(self.cluster):
                    self.say_once("no node is there at the moment: waiting for one")
                for task, outcome in self.cluster.wait(EVERY):
                    self.take(self.by_label[task.label], outcome)
                self.look()
        except BaseException:
            self.view.say("stopping where the runs can go on later; the same command goes on with them")
            self.cluster.stop(PATIENCE + 10)
            raise
        finally:
            for entry in self.entries:
                entry.status = "waiting" if entry.status == "running" else entry.status
            Path(self.token[0]).unlink(missing_ok=True)
            self.write()

    def write(self) -> None:
        """Write how far it is; where that cannot be written the runs go on all the same."""
        try:
            write_state(self.plan, self.entries, list(self.cluster.refused.values()))
        except OSError as error:
            self.say_once(f"warning: sweep.json cannot be written: {error.strerror or error}")

    def say_once(self, line: str) -> None:
        """Say something that need not be said again."""
        if line not in self.told:
            self.told.add(line)
            self.view.say(line)

    def task(self, entry: Entry) -> Task:
        """What a node is told of a run."""
        run, folder, config = entry.run, self.plan.folder, entry.run.config()
        asked = config.render.backend if config.encoder.sees else None
        if asked is not None and asked not in self.backends:
            self.backends[asked] = backend_of(asked)
        return Task(
            label=run.label,
            root=str(Path.cwd()),
            plan=str(folder / "plan.yaml"),
            folder=str(run.folder),
            log=str(folder / "logs" / f"{run.label.replace('/', ',')}.log"),
            place=str(place_file(folder, run)),
            cores=self.plan.cores,
            token=self.token,
            expected=self.expected,
            backend=None if asked is None else (asked, self.backends[asked]),
        )

    def take(self, entry: Entry, outcome: Outcome) -> None:
        """Note what became of an attempt, and hand the run out again where it failed."""
        place_file(self.plan.folder, entry.run).unlink(missing_ok=True)
        started = self.since.pop(entry.run.label, None)
        if outcome.refused:
            self.say_once(f"node {outcome.host} is left out: {outcome.refused}")
            entry.status = "waiting"
            return self.cluster.hand_out(self.task(entry))
        failed = outcome.failed
        if failed is None and not is_made(entry.run):
            failed = "was stopped" if outcome.stopped else "ended without an error, but something of it is missing"
        seconds = outcome.seconds or (0.0 if started is None else round(time.monotonic() - started, 1))
        where = outcome.host or entry.place
        entry.attempts.append({"host": where, "seconds": seconds, "problem": failed})
        entry.place = ""
        if failed is None:
            entry.status = "done"
            self.view.say(f"done     {entry.run.label} on {where}")
        elif entry.failures <= self.plan.retries:
            entry.status = "waiting"
            self.view.say(f"again    {entry.run.label}: {failed}")
            self.cluster.hand_out(self.task(entry))
        else:
            entry.status = "failed"
            self.view.say(f"failed   {entry.run.label}: {failed}")
        self.write()

    def look(self) -> None:
        """Read what the runs are at, and show it."""
        for entry in self.entries:
            if entry.status in ("waiting", "running"):
                entry.look(self.plan.folder)
                if entry.status == "running":
                    self.since.setdefault(entry.run.label, time.monotonic())
        elapsed = {label: time.monotonic() - since for label, since in self.since.items()}
        self.view.show(self.entries, seconds_left(self.entries, self.cluster.slots(), elapsed))


def report(plan: Plan, entries: Sequence[Entry]) -> None:
    """Say what became of the runs.

    :raises UserError: where some failed for good.
    """
    retried = [entry for entry in entries if len(entry.attempts) > 1]
    for entry in retried:
        problems = [attempt["problem"] for attempt in entry.attempts if attempt["problem"]]
        print(f"{entry.run.label}: {len(entry.attempts)} attempts ({'; '.join(problems)})")
    failed = [entry for entry in entries if entry.status == "failed"]
    if failed:
        first = failed[0].run.label
        log = plan.folder / "logs" / f"{first.replace('/', ',')}.log"
        raise UserError(f"{len(failed)} of {len(entries)} runs failed, the first is {first}: see {log}")
    print(f"all {len(entries)} runs are done: {plan.folder / 'sweep.json'}\nnext: make report RUNS={plan.folder}")


if __name__ == "__main__":
    run_main(main)
