"""``make doctor``: what this machine has, how fast it renders, what to fix. Exits with 2 where training cannot work."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from experiments.options.cli import parse, run_main

PACKAGES = ("torch", "mujoco", "stable-baselines3", "gymnasium")
MARKS = {"ok": "  ", "warning": "! ", "error": "X "}
GIB = 2**30

# Run in processes of their own: a driver that crashes or hangs must not take the doctor down with it.
PROBE = "import json; from {} import {} as ask; from experiments.options.cli import run_main; "
PROBE += "run_main(lambda argv: print(json.dumps(ask(*{}))))"


@dataclass(frozen=True)
class DoctorConfig:
    """Options of ``python -m experiments.doctor``."""

    env: str = "reach-multiview"
    """environment whose rendering speed is measured"""
    renderer: Literal["auto", "gl", "warp"] = "auto"
    """renderer to measure; auto is what training picks"""
    timeout: float = 120.0
    """seconds after which a probe is given up"""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    :param name: what was looked at.
    :param value: what was found.
    :param level: "ok", "warning" (works, but worse than it could) or "error" (training cannot work).
    :param fix: what to do, empty where nothing is wrong.
    """

    name: str
    value: str
    level: Literal["ok", "warning", "error"] = "ok"
    fix: str = ""

    def __str__(self) -> str:
        advice = f"\n    to fix: {self.fix}" if self.fix else ""
        return f"{MARKS[self.level]}{self.name:<18} {self.value}{advice}"


def main(argv: Sequence[str]) -> int:
    """Print the report line by line.

    :param argv: command-line arguments.
    :return: 0 where everything that training needs works, else 2.
    """
    config = parse(DoctorConfig, argv)
    findings = []
    for finding in examine(config):
        print(finding, flush=True)
        findings.append(finding)
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    print(f"{errors} error(s), {warnings} warning(s)" if errors + warnings else "all is well")
    return 2 if errors else 0


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """Look at everything, the quick things first.

    :param config: what to measure.
    :return: findings in the order of the report.
    """
    yield from versions()
    yield from machine()
    yield ffmpeg()
    yield from rendering(config)


def versions(installed: Callable[[str], str] = metadata.version) -> Iterator[Finding]:
    """Compare installed versions with those that the project is tested with.

    :param installed: version of a package by its name, raises ``PackageNotFoundError``.
    """
    tested = tested_versions()
    yield Finding("python", f"{sys.version.split()[0]} ({sys.executable})")
    for name in (*PACKAGES, "mujoco-warp"):
        try:
            version = installed(name)
        except metadata.PackageNotFoundError:
            optional = name == "mujoco-warp"
            fix = "" if optional else "make setup"
            yield Finding(name, "not installed", "ok" if optional else "error", fix)
            continue
        wanted = tested.get(name, version)
        if version.split("+")[0] == wanted:
            yield Finding(name, version)
        else:
            yield Finding(name, f"{version} (tested with {wanted})", "warning", "make clean setup")


def tested_versions() -> dict[str, str]:
    """Read the pins of the checkout: ``{"torch": "2.13.0", ...}``; empty where the project lies there without them."""
    pins = Path(__file__).resolve().parents[1] / "constraints.txt"
    lines = pins.read_text().splitlines() if pins.exists() else []
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in pairs}


def machine() -> Iterator[Finding]:
    """Look at processor cores, memory, disk and GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("CPU cores", str(cores))
    memory = free_memory()
    if memory is not None:
        yield _enough("free memory", memory, 2 * GIB, "close other programs, or train with fewer environments")
    yield _enough("free disk", shutil.disk_usage(".").free, 2 * GIB, "free some space: runs are written to ./runs")
    yield gpu()


def free_memory() -> int | None:
    """Bytes of memory that programs can still have; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def gpu() -> Finding:
    """Say which GPU torch can use, and why not where there is one that it cannot use."""
    try:
        import torch
    except ImportError as error:
        return Finding("GPU", f"torch cannot be imported: {error}", "error", "make clean setup")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("GPU", f"{', '.join(names)} (CUDA {torch.version.cuda})")
    if gpu_devices("nvidia[0-9]*"):
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch's CUDA does not start"
        fix = "make clean setup without TORCH_INDEX" if torch.version.cuda is None else "update the NVIDIA driver"
        return Finding("GPU", f"present, but {reason}", "warning", fix)
    return Finding("GPU", "none (training runs on the CPU)")


def gpu_devices(pattern: str) -> list[str]:
    """Device files of GPUs.

    :param pattern: shell pattern below ``/dev``.
    """
    return sorted(glob.glob(f"/dev/{pattern}"))


def ffmpeg() -> Finding:
    """Look for the H.264 encoder that ``make video`` writes with."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        command = [program, "-hide_banner", "-encoders"]
        encoders = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (ImportError, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return Finding("ffmpeg", f"not usable, make video needs it: {error}", "error", "make clean setup")
    if "libx264" not in encoders:
        fix = "unset IMAGEIO_FFMPEG_EXE: the packaged ffmpeg has it"
        return Finding("ffmpeg", f"{program} cannot write H.264, make video needs it", "error", fix)
    return Finding("ffmpeg", f"{imageio_ffmpeg.get_ffmpeg_version()} (H.264)")


def rendering(config: DoctorConfig) -> Iterator[Finding]:
    """Probe OpenGL, then measure the renderer that training would pick.

    :param config: environment, renderer and time limit of the probes.
    """
    opengl, why = run_probe(PROBE.format("envs.renderers", "gl_info", ()), config.timeout)
    yield opengl_finding(opengl, why, gpu_present=bool(gpu_devices("nvidia[0-9]*") or gpu_devices("dri/renderD*")))
    chosen = config.renderer if config.renderer != "auto" else ("gl" if opengl else "warp")
    speed, why = run_probe(PROBE.format("experiments.doctor", "measure_views", (config.env, chosen)), config.timeout)
    if speed is None:
        yield Finding("renderer", f"{chosen} cannot render {config.env}: {why}", "error")
        return
    yield Finding("renderer", chosen)
    rate = f"{speed['frames_per_second']:.0f} per second at {speed['pixels']} px ({config.env})"
    yield Finding(f"{speed['views']}-view frames", rate)


def opengl_finding(info: dict[str, Any] | None, why: str, gpu_present: bool) -> Finding:
    """Judge what OpenGL reports about itself.

    :param info: ``envs.renderers.gl_info()`` of the probe, None where it failed.
    :param why: last line of what the failed probe said.
    :param gpu_present: whether the machine has a GPU that could render.
    """
    if info is None:
        value, _, fix = why.partition("; type: ")
        return Finding("GL_RENDERER", value, "warning", fix)
    if info["software"] and gpu_present:
        fix = "install the GPU driver's EGL library (NVIDIA: libnvidia-gl; containers: NVIDIA_DRIVER_CAPABILITIES=all)"
        return Finding("GL_RENDERER", f"{info['renderer']}: software rendering beside a GPU", "warning", fix)
    return Finding("GL_RENDERER", f"{info['renderer']} ({info['platform']})")


def run_probe(code: str, timeout: float) -> tuple[dict[str, Any] | None, str]:
    """Run Python code in a process of its own.

    :param code: program that prints one JSON object as its last line.
    :param timeout: seconds after which it is ended.
    :return: the object and "", or None and one line that says what went wrong.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=Path(__file__).resolve().parents[1],
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {timeout:.0f} s"
    if done.returncode < 0:
        return None, f"crashed with signal {-done.returncode} (update the GPU driver, or use the renderer warp)"
    if done.returncode > 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return None, lines[-1].removeprefix("error: ")
    return json.loads(done.stdout.strip().splitlines()[-1]), ""


def measure_views(env_id: str, renderer: str, pixels: int = 64, seconds: float = 2.0) -> dict[str, Any]:
    """Time how many times a second all views of an environment can be rendered (physics not included).

    :param env_id: environment of the project.
    :param renderer: "gl" or "warp".
    :param pixels: height and width of a view.
    :param seconds: how long to measure.
    :return: views, pixels, frames_per_second (observations of all views).
    """
    from time import perf_counter

    from envs.registry import make

    env = make(env_id, height=pixels, width=pixels, renderer=renderer)
    try:
        images = env.reset(seed=0)[0]["images"]
        env.render_views()  # the first picture pays for compiling and loading
        frames, start = 0, perf_counter()
        while (elapsed := perf_counter() - start) < seconds:
            env.render_views()
            frames += 1
        return {"views": len(images), "pixels": pixels, "frames_per_second": frames / elapsed}
    finally:
        env.close()


def _enough(name: str, amount: float, least: float, fix: str) -> Finding:
    short = amount < least
    return Finding(name, f"{amount / GIB:.1f} GiB", "warning" if short else "ok", fix if short else "")


if __name__ == "__main__":
    run_main(main)
