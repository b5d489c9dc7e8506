"""Makes what is missing of one run of a plan: ``python -m experiments.sweeps.single PLAN LABEL``.

It trains, or goes on from the run's last checkpoint, then evaluates and probes: the run is the one that ``make train``,
``make evaluate`` and ``make probe`` make with the same options.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from envs.errors import UserError
from experiments import evaluate, probe, resume, train
from experiments.options.cli import run_main
from experiments.runs import Run
from experiments.runs.folder import is_locked
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.plan_file import read_plan
from experiments.training.checkpointing import is_finished
from kp3d_rl.storage.files import remove
from kp3d_rl.storage.steps import latest_step


def main(argv: Sequence[str]) -> int:
    """Make what is missing.

    :param argv: the plan's file and the run's label.
    """
    plan, label = argv
    run = next(run for run in read_plan(Path(plan), check=False).runs() if run.label == label)
    if not is_trained(run):
        code = resume.main(["--run", str(run.folder)]) if has_begun(run) else train.main(run.arguments)
        if code:
            return code
    if not is_evaluated(run):
        evaluate.main(run.evaluation)
    if not is_probed(run):
        probe.main(["--run", str(run.folder)])
    return 0


def has_begun(run: PlannedRun) -> bool:
    """Whether there is something to go on from; a folder that was left before its first checkpoint is removed."""
    if not (run.folder / "config.yaml").is_file():
        return False
    if Run.open(str(run.folder), run.env).steps() or is_locked(run.folder):
        return True
    remove(run.folder)
    return False


def is_made(run: PlannedRun) -> bool:
    """Whether nothing is missing of a run."""
    return is_trained(run) and is_evaluated(run) and is_probed(run)


def is_trained(run: PlannedRun) -> bool:
    """Whether all its steps are done; a folder that cannot be read is not, and training says why."""
    try:
        opened = Run.open(str(run.folder), run.env)
        return bool(opened.steps()) and is_finished(opened.load())
    except UserError:
        return False


def is_evaluated(run: PlannedRun) -> bool:
    """Whether it was evaluated at its end, as the plan asks for."""
    found = _found(run.folder / "eval.json")
    if found.get("checkpoint") != latest_step(run.folder / "checkpoints") or found.get("reject_outliers"):
        return False  # by hand, on the way or otherwise
    if not isinstance(found.get("results"), dict) or "as trained" not in found["results"]:
        return False
    asked = run.plan.evaluation_episodes
    played = found["results"]["as trained"].get("summary", {}).get("success_at_end", {}).get("n")
    return found.get("seed") == run.plan.evaluation_block and (not asked or played == asked)


def is_probed(run: PlannedRun) -> bool:
    """Whether its keypoints were judged, where the plan asks for it and there are any."""
    asked = run.plan.probe and run.encoder in ("keypoint3d", "keypoint2d")
    found = _found(run.folder / "probe.json")
    return not asked or found.get("checkpoint") == latest_step(run.folder / "checkpoints")


def _found(path: Path) -> dict:
    """What a JSON file holds; nothing where it is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    run_main(main)
