"""Trainings whose checkpoints are kept as they were written: ``python -m experiments.soak.recorder train|resume …``.

A finished run gives up all states and frames, and pruning deletes older checkpoints. So that nothing is lost to a
comparison, the files of each checkpoint get a second name beside the run, ``<run>-record/<step>.<n>/``, where ``n``
counts how often a checkpoint of this step was written: a training that was killed comes to some steps again. A kill
between a checkpoint and its record means that this one is not recorded; half a record is never there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.errors import UserError, unknown
from experiments import resume, train
from experiments.options.cli import run_main
from experiments.runs import Checkpoints
from kp3d_rl.storage.files import link_or_copy, remove

PROGRAMS = {"train": train.main, "resume": resume.main}


def record_of(run: Path) -> Path:
    """The folder of a run's records.

    :param run: the run's folder.
    """
    return run.with_name(f"{run.name}-record")


def records(run: Path) -> list[Path]:
    """All that were made of a run's checkpoints, by step and then by number.

    :param run: the run's folder.
    """
    found = (path.name.split(".") for path in record_of(run).glob("[0-9]*.[0-9]*"))
    return [record_of(run) / f"{step}.{number}" for step, number in sorted(found, key=lambda name: (*map(int, name),))]


@contextmanager
def recording() -> Iterator[None]:
    """Record every checkpoint that this process writes inside the block."""
    write = Checkpoints.write

    def write_and_record(checkpoints: Checkpoints, *args: Any, **kwargs: Any) -> Path:
        folder = write(checkpoints, *args, **kwargs)
        _record(checkpoints.run, folder)
        return folder

    Checkpoints.write = write_and_record
    try:
        yield
    finally:
        Checkpoints.write = write


def _record(run: Path, checkpoint: Path) -> None:
    folder = record_of(run)
    folder.mkdir(exist_ok=True)
    place = folder / f"{checkpoint.name}.{len(list(folder.glob(f'{checkpoint.name}.*')))}"
    partial = folder / f".{place.name}.partial"
    remove(partial)
    partial.mkdir()
    for file in checkpoint.iterdir():
        link_or_copy(file, partial / file.name)
    partial.rename(place)


def main(argv: Sequence[str]) -> int | None:
    """Run one of :data:`PROGRAMS` with the arguments that follow its name."""
    if not argv:
        raise UserError(f"say which program: {' or '.join(PROGRAMS)}")
    name, *arguments = argv
    if name not in PROGRAMS:
        raise unknown("program", name, PROGRAMS)
    with recording():
        return PROGRAMS[name](arguments)


if __name__ == "__main__":
    run_main(main)
