"""Opening OpenGL without a display: EGL, or OSMesa where there is no EGL.

The choice is made when the first image is asked for, never at import. ``MUJOCO_GL`` and ``PYOPENGL_PLATFORM`` are
obeyed where they are set; ``MUJOCO_EGL_DEVICE_ID`` picks a GPU. On macOS and Windows MuJoCo's default is taken.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

from envs.errors import UserError, unknown

FIX = (
    "type: sudo apt-get install -y libegl1 libgl1-mesa-dri libopengl0 "
    '(or pip install "mujoco-warp == 3.16.*" and choose the renderer warp, which needs no OpenGL)'
)
SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast")
_PLATFORMS = ("egl", "osmesa", "glfw")
_OFF = ("disable", "disabled", "off", "false", "0")
_UNSET = ("", "enable", "enabled", "on", "true", "1")
_GL_STRINGS = {"vendor": 0x1F00, "renderer": 0x1F01, "version": 0x1F02}


class NoOpenGL(UserError):
    """OpenGL cannot be had on this machine; the message says how to get it."""


def open_context() -> tuple[Any, dict[str, str]]:
    """Open an OpenGL context.

    :return: MuJoCo's GLContext, current on this thread, and what OpenGL says about itself: platform, vendor, renderer,
        version.
    :raises NoOpenGL: where no platform works, with the reasons and the fix.
    """
    # Mesa's software renderer starts threads of its own, which at these image sizes win nothing, get in the way of
    # other worker processes, and do not survive a fork. It reads this when it starts.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    reasons = []
    for platform in platforms_to_try():
        before = os.environ.get("PYOPENGL_PLATFORM")
        try:
            context, find = _OPENERS[platform]()
            context.make_current()
            return context, {"platform": platform, **_gl_strings(find)}
        except Exception as error:  # the bindings raise whatever the missing piece happens to lead to
            reasons.append(f"{platform}: {_reason(error)}")
            _forget_bindings(before)
    raise NoOpenGL(f"no OpenGL ({'; '.join(reasons)}); {FIX}")


def platforms_to_try() -> list[str]:
    """Platforms in the order of preference, as the environment variables allow.

    :raises UserError: where the variables name an unknown platform or forbid OpenGL.
    """
    if sys.platform != "linux":
        return ["native"]
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted in _OFF:
        raise NoOpenGL(f"MUJOCO_GL={wanted} forbids OpenGL; unset it, or choose the renderer warp")
    bindings = os.environ.get("PYOPENGL_PLATFORM", "").strip().lower()
    for variable, value in (("MUJOCO_GL", wanted), ("PYOPENGL_PLATFORM", bindings)):
        if value not in (*_PLATFORMS, *_UNSET, "glx"):
            raise unknown(f"value of {variable}", value, _PLATFORMS)
    if wanted in _PLATFORMS:
        return [wanted]
    return [bindings] if bindings in ("egl", "osmesa") else ["egl", "osmesa"]


def release(context: Any) -> None:
    """Make a context current on no thread, so that another thread may use it (EGL allows one thread at a time)."""
    if type(context).__module__ == "mujoco.egl":
        import mujoco.egl as egl

        none = egl.EGL
        none.eglMakeCurrent(egl.EGL_DISPLAY, none.EGL_NO_SURFACE, none.EGL_NO_SURFACE, none.EGL_NO_CONTEXT)


def survives_fork(info: dict[str, str]) -> bool:
    """Whether OpenGL that this process opened can be opened again in a process forked from it."""
    return is_software(info) and os.environ.get("LP_NUM_THREADS") == "0"


def is_software(info: dict[str, str]) -> bool:
    """Whether this OpenGL renders on the CPU."""
    return any(name in info["renderer"].lower() for name in SOFTWARE_RENDERERS)


Lookup = Callable[[str], int | None] | None  # finds the address of an OpenGL function by its name


def _open_egl() -> tuple[Any, Lookup]:
    from mujoco import egl

    return egl.GLContext(64, 64), lambda name: egl.EGL.eglGetProcAddress(name.encode())


def _open_osmesa() -> tuple[Any, Lookup]:
    from mujoco.osmesa import GLContext
    from OpenGL import platform

    library = platform.PLATFORM.OSMesa
    return GLContext(64, 64), lambda name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value


def _open_glfw() -> tuple[Any, Lookup]:
    import glfw
    from mujoco.glfw import GLContext

    return GLContext(64, 64), lambda name: ctypes.cast(glfw.get_proc_address(name), ctypes.c_void_p).value


def _open_native() -> tuple[Any, Lookup]:
    import mujoco

    return mujoco.GLContext(64, 64), None


_OPENERS = {"egl": _open_egl, "osmesa": _open_osmesa, "glfw": _open_glfw, "native": _open_native}


def _gl_strings(find: Lookup) -> dict[str, str]:
    """Ask OpenGL what it is, without importing PyOpenGL's large GL module."""
    if find is None:
        return dict.fromkeys(_GL_STRINGS, "unknown")
    address = find("glGetString")
    if not address:
        raise RuntimeError("no context became current")
    get_string = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_uint)(address)
    answers = {name: get_string(code) for name, code in _GL_STRINGS.items()}
    if answers["renderer"] is None:
        raise RuntimeError("no context became current")
    return {name: (answer or b"unknown").decode(errors="replace") for name, answer in answers.items()}


def _reason(error: Exception) -> str:
    if isinstance(error, AttributeError) and "NoneType" in str(error):  # what PyOpenGL makes of a missing library
        return "library not found"
    return " ".join(str(error).split()) or type(error).__name__


def _forget_bindings(platform_before: str | None) -> None:
    """Undo the import of PyOpenGL, which binds itself to one platform for good, so that another can be tried."""
    if platform_before is None:
        os.environ.pop("PYOPENGL_PLATFORM", None)
    for name in list(sys.modules):
        if name.split(".")[0] == "OpenGL" or name.startswith(("mujoco.egl", "mujoco.osmesa")):
            del sys.modules[name]
