"""Multi-camera MuJoCo environments for Gymnasium. Importing this package registers its tasks and does nothing else."""

from __future__ import annotations

import os
import sys


def _import_mujoco() -> None:
    """Import MuJoCo also where ``MUJOCO_GL`` names a platform whose library is missing.

    MuJoCo then fails at import, although physics needs no OpenGL. So it is imported without the variable, which the
    renderer reads later and reports on in one line.
    """
    try:
        import mujoco  # noqa: F401
    except Exception:
        platform = os.environ.pop("MUJOCO_GL", None)
        bindings = os.environ.pop("PYOPENGL_PLATFORM", None)
        if platform is None:
            raise
        for name in list(sys.modules):
            if name.split(".")[0] == "OpenGL" or name.startswith(("mujoco.egl", "mujoco.osmesa", "mujoco.rendering")):
                del sys.modules[name]
        try:
            import mujoco  # noqa: F401
        finally:
            os.environ["MUJOCO_GL"] = platform
            if bindings not in (None, platform):
                os.environ["PYOPENGL_PLATFORM"] = bindings


_import_mujoco()

from envs import tasks as tasks  # noqa: E402
