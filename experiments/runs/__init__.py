"""Run folders and what is in them: everything of a run, whole at any moment, and fit to be passed to strangers."""

from experiments.runs.checkpoints import Checkpoint, Checkpoints
from experiments.runs.folder import ORIGIN, ROOT, Run, folder_name

__all__ = ["ORIGIN", "ROOT", "Checkpoint", "Checkpoints", "Run", "folder_name"]
