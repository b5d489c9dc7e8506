"""The doctor: every finding that it can make, and its exit codes."""

import signal
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from envs.renderers.opengl import FIX
from experiments import doctor
from experiments.doctor import Finding


def by_name(findings) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_versions_name_what_is_missing_and_what_differs():
    have = {"torch": doctor.tested_versions()["torch"] + "+cpu", "mujoco": "3.14.0", "stable-baselines3": "2.9.2"}

    def installed(name: str) -> str:
        if name not in have:
            raise metadata.PackageNotFoundError(name)
        return have[name]

    found = by_name(doctor.versions(installed))
    assert found["torch"].level == "ok", "a CPU build of the tested version is the tested version"
    assert found["mujoco"].level == "warning" and "3.14.0" in found["mujoco"].value
    assert doctor.tested_versions()["mujoco"] in found["mujoco"].value
    assert found["gymnasium"].level == "error" and "make setup" in found["gymnasium"].fix
    assert found["mujoco-warp"] == Finding("mujoco-warp", "not installed"), "it is optional"


@pytest.mark.parametrize(
    ("renderer", "software", "gpu", "level"),
    [
        ("llvmpipe (LLVM 15.0.6, 256 bits)", True, False, "ok"),
        ("llvmpipe (LLVM 15.0.6, 256 bits)", True, True, "warning"),
        ("NVIDIA H100 80GB HBM3/PCIe/SSE2", False, True, "ok"),
    ],
)
def test_software_rendering_beside_a_gpu_is_a_warning(renderer, software, gpu, level):
    info = {"renderer": renderer, "platform": "egl", "software": software}
    finding = doctor.opengl_finding(info, "", gpu_present=gpu)
    assert (finding.level, bool(finding.fix)) == (level, level != "ok")
    assert renderer in finding.value


@pytest.mark.parametrize(
    ("why", "fix"),
    [
        (f"no OpenGL (egl: no library); {FIX}", "sudo apt-get install -y libegl1"),
        ("MUJOCO_GL=off forbids OpenGL; unset it", ""),
    ],
)
def test_missing_opengl_says_why_and_what_to_do(why, fix):
    finding = doctor.opengl_finding(None, why, gpu_present=False)
    assert finding.level == "warning", "the renderer warp needs none"
    assert finding.value == why.removesuffix(f"; {FIX}") and finding.fix.startswith(fix)
    assert bool(finding.fix) == bool(fix)


def test_probe_returns_the_last_line():
    assert doctor.run_probe("print('noise'); print('{\"a\": 1}')", 60) == ({"a": 1}, "")


@pytest.mark.parametrize(
    ("code", "timeout", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60, f"signal {int(signal.SIGSEGV)}"),
        ("import time; time.sleep(60)", 0.5, "no answer within"),
        ("raise RuntimeError('no display')", 60, "RuntimeError: no display"),
    ],
)
def test_a_probe_that_fails_leaves_one_line(code, timeout, said):
    result, why = doctor.run_probe(code, timeout)
    assert result is None and said in why and "\n" not in why


def test_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "gpu_devices", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr("torch.version.cuda", None)
    assert doctor.gpu().level == "warning" and "TORCH_INDEX" in doctor.gpu().fix
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert "driver" in doctor.gpu().fix
    monkeypatch.setattr(doctor, "gpu_devices", lambda pattern: [])
    assert doctor.gpu().level == "ok"


def test_ffmpeg_must_write_h264(monkeypatch, tmp_path):
    assert doctor.ffmpeg().level == "ok"
    poor = tmp_path / "ffmpeg"
    poor.write_text("#!/bin/sh\necho V..... mpeg4\n")
    poor.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(poor))
    assert doctor.ffmpeg().level == "error" and "IMAGEIO_FFMPEG_EXE" in doctor.ffmpeg().fix
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    assert doctor.ffmpeg().level == "error"


def test_little_space_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: 2**20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    found = by_name(doctor.machine())
    assert found["free memory"].level == found["free disk"].level == "warning"
    assert found["free disk"].value == "0.0 GiB"
    assert int(found["CPU cores"].value) >= 1


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warning", 0), ("error", 2)])
def test_only_errors_fail(monkeypatch, capsys, level, code):
    monkeypatch.setattr(doctor, "examine", lambda config: iter([Finding("thing", "state", level, "do this")]))
    assert doctor.main([]) == code
    assert "to fix: do this" in capsys.readouterr().out


def run_doctor(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "experiments.doctor", *arguments], capture_output=True, text=True)


def test_this_machine_is_fit():
    done = run_doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("python", "torch", "mujoco-warp", "CPU cores", "GPU", "ffmpeg", "GL_RENDERER", "renderer"):
        assert f"  {name} " in done.stdout or f"! {name} " in done.stdout, name
    rate = next(line for line in done.stdout.splitlines() if "3-view frames" in line)
    assert float(rate.split()[2]) > 0 and "64 px" in rate


def test_an_environment_that_cannot_be_rendered_fails():
    done = run_doctor("--env", "reach-multiveiw")
    assert done.returncode == 2
    assert "X renderer" in done.stdout and "did you mean 'reach-multiview'" in done.stdout


def test_without_opengl_the_ray_tracer_is_measured(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    done = run_doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "! GL_RENDERER        MUJOCO_GL=off" in done.stdout and "  renderer           warp" in done.stdout


def test_unknown_option_is_one_line():
    done = run_doctor("--rendrer", "gl")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--renderer" in done.stderr
