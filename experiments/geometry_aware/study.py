"""Geometry-aware representations over seeds, beside what the method is made of: ``--name geometry-aware``.

``python -m experiments.study --name geometry-aware``. Every run is judged by the same people in test clips, of a block
that no run is judged by while it learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.geometry_aware.config import HUMAN
from experiments.geometry_aware.folder import GeometryAwareRun
from experiments.studies.plain import JudgedJob, Member, judged, run_judged

NAME = "geometry-aware"
"""Of the study, and of the files in ``docs``."""
MEMBERS = (
    Member("exact joints", ""),
    Member("detected joints", "--preset detected", seeds=1),
    Member("ring alone", "--no-virtual --no-autoencoder", seeds=1),
    Member("without consistency", "--training.consistency 0 --no-autoencoder", seeds=1),
    Member("two networks", "--network.no-shared --no-autoencoder", seeds=1),
)


@dataclass(frozen=True)
class Job(JudgedJob):
    """One run of a member."""

    RUN = GeometryAwareRun

    @property
    def home(self) -> str:
        """All are of people."""
        return HUMAN


def run_study(only: Sequence[str] | None, seeds: int, jobs: int) -> None:
    """See :func:`experiments.studies.plain.run_judged`."""
    run_judged(NAME, MEMBERS, Job, only, seeds, jobs)


def judged_jobs() -> list[Job]:
    """All runs of the study that are in this folder and judged."""
    return judged(Job, MEMBERS)


def rows_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What was measured, a row for each run.

    :param jobs: that are judged.
    """
    return [job.record() for job in jobs]
