"""What nodes of a cluster must have in common for their runs to be comparable."""

from __future__ import annotations

import functools
import platform

from envs.errors import UserError
from envs.renderers import chosen_backend, gl_info
from experiments.provenance import NUMERICAL, sources, version


def description() -> dict[str, str]:
    """Versions of what may change a number, and a digest of the project's code, of this node now."""
    return {"python": platform.python_version(), "code": sources()} | {name: version(name) for name in NUMERICAL}


@functools.cache
def backend_of(asked: str) -> str:
    """The renderer that this node takes where one is asked for, or "none" where it has not got it.

    :param asked: "auto", "gl" or "warp".
    """
    try:
        if asked == "gl":
            gl_info()
        return chosen_backend(asked)
    except UserError:
        return "none"
