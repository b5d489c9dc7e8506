"""KeypointNet on all categories, beside the same network taught the parts, and without what it cannot do without.

``python -m experiments.study --name keypointnet``. Every run is judged by the same test objects, of a block that no run
is judged by while it learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.scenes.objects import CATEGORIES
from experiments.keypointnet.folder import KeypointNetRun
from experiments.studies.plain import JudgedJob, Member, judged, run_judged

NAME = "keypointnet"
"""Of the study, and of the files in ``docs``."""
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
class Job(JudgedJob):
    """One run of a member."""

    RUN = KeypointNetRun

    @property
    def home(self) -> str:
        """The category of its objects."""
        return self.member.name.partition(" ")[0]


def run_study(only: Sequence[str] | None, seeds: int, jobs: int) -> None:
    """See :func:`experiments.studies.plain.run_judged`."""
    run_judged(NAME, MEMBERS, Job, only, seeds, jobs)


def judged_jobs() -> list[Job]:
    """All runs of the study that are in this folder and judged."""
    return judged(Job, MEMBERS)


def rows_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What was measured, a row for each run, with the curve of its median error.

    :param jobs: that are judged.
    """
    curves = [[[row["step"], round(row["median_angle"], 2)] for row in Job.RUN.open(job.folder).rows()] for job in jobs]
    return [job.record() | {"curve": curve} for job, curve in zip(jobs, curves, strict=True)]
