"""Our own tasks: importing this package registers them."""

from envs.tasks import reach as reach
