"""What takes too long for the tests: ``python -m experiments.soak``.

Trainings are killed hundreds of times, thousands of files are damaged, and one training is watched for an hour. Writes
``docs/soak.json`` with command, seed, machine and commit, and fills the tables of the pages that ask for them.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import unknown
from experiments.options.cli import parse, run_main
from experiments.pages import fill_pages
from experiments.records import record
from experiments.soak.damage import damage
from experiments.soak.endurance import endurance
from experiments.soak.kills import TRAININGS, differences, kill_again_and_again, train
from experiments.training.building import cores

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class SoakConfig:
    """What to try, and for how long.

    :param only: sections, separated by commas; by default all.
    :param kills: how many, over trainings of several kinds.
    :param files: how many are damaged.
    :param minutes: for which a training is watched.
    :param warmup: minutes of it that do not count.
    :param warmup_steps: environment steps of it that do not count, however long they take.
    :param seed: of the moments of kills and of the damage.
    :param docs: folder to write to.
    """

    only: str | None = None
    kills: int = 200
    files: int = 10_000
    minutes: float = 60.0
    warmup: float = 10.0
    warmup_steps: int = 20_000
    seed: int = 0
    docs: Path = Path("docs")

    def __post_init__(self) -> None:
        if self.kills < 1 or self.files < 1:
            raise ValueError("kills and files must be at least 1")
        if not 0 <= self.warmup < self.minutes:
            raise ValueError(f"warmup must be at least 0 and below minutes, got {self.warmup} of {self.minutes}")


def kills(config: SoakConfig) -> Rows:
    """Trainings of each kind, killed at random moments; as many at a time as there are cores."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(cores(), len(TRAININGS))) as pool:
        share = -(-config.kills // len(TRAININGS))
        return list(pool.map(lambda what: _killed(Path(folder), what, share, config.seed), TRAININGS))


def _killed(folder: Path, what: str, count: int, seed: int) -> dict[str, Any]:
    alone = train(folder, what)
    outcome = kill_again_and_again(folder, f"{what.replace(' ', '-')}-killed", alone, count, seed)
    differing = {str(run.name): found for run in outcome.finished if (found := differences(run, alone.run))}
    return {
        "what": what, "kills": outcome.kills, "in_a_write": outcome.in_a_write, "resumes": outcome.resumes,
        "states": outcome.states, "lost": outcome.lost, "runs": len(outcome.finished),
        "identical": len(outcome.finished) - len(differing), "differences": differing,
    }  # fmt: skip


def damaged(config: SoakConfig) -> Rows:
    """Files of stopped runs, damaged one at a time."""
    with tempfile.TemporaryDirectory() as folder:
        report = damage(Path(folder), config.files, config.seed)
    return [
        {"what": "files", "files": config.files, "counts": dict(report.counts), "after": dict(report.after),
         "failures": report.failures, "slowest": report.slowest}
    ]  # fmt: skip


SECTIONS: dict[str, Callable[[SoakConfig], Rows]] = {
    "kills": kills,
    "damage": damaged,
    "endurance": lambda config: endurance(config.minutes, config.warmup, config.warmup_steps),
}
"""What is tried, in this order."""


def main(argv: Sequence[str]) -> int:
    """Try section by section, then write what was found.

    :return: 1 where something that must not happen did.
    """
    config = parse(SoakConfig, argv)
    names = list(SECTIONS) if config.only is None else [name.strip() for name in config.only.split(",")]
    for name in names:
        if name not in SECTIONS:
            raise unknown("section", name, SECTIONS)
    made = {"command": f'make soak ARGS="{shlex.join(argv)}"' if argv else "make soak", "seed": config.seed}
    failed = False
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}", file=sys.stderr, flush=True)
        rows = [{"section": name} | made | row for row in SECTIONS[name](config)]
        for row in rows:
            print({key: value for key, value in row.items() if key not in made}, flush=True)
        failed |= any(map(has_failed, rows))
        config.docs.mkdir(parents=True, exist_ok=True)
        record(config.docs / "soak.json", rows)
    fill_pages(config.docs)
    return int(failed)


def has_failed(row: dict[str, Any]) -> bool:
    """Whether a row says something that must not be.

    :param row: of any section.
    """
    return bool(row.get("failures") or row.get("differences") or row.get("lost")) or row.get("growth", 0.0) > 0.01


if __name__ == "__main__":
    run_main(main)
