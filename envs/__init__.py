"""Multi-camera MuJoCo environments for Gymnasium. Importing this package registers its tasks and does nothing else."""

from envs import tasks as tasks
