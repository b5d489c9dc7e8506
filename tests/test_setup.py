"""What holds the project together: make targets, set-up script, import arrows, quiet imports, pins and the wheel."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kp3d_rl", "envs", "agents", "experiments")
SIMULATION = {"mujoco", "mujoco_warp", "warp", "gymnasium", "metaworld", "stable_baselines3", "sb3_contrib"}
FORBIDDEN = {
    "kp3d_rl": SIMULATION | {"envs", "agents", "experiments"},
    "envs": {"kp3d_rl", "agents", "experiments", "torch", "stable_baselines3", "sb3_contrib"},
    "agents": {"experiments"},
    "experiments": set(),
}
# Installers, and what torch itself pins for GPUs.
UNPINNED = re.compile(r"^(pip|setuptools|wheel|kp3d-rl|triton|nvidia-.*|cuda-.*|pytorch-triton.*)$")


# --- imports ---------------------------------------------------------------------------------------------------------
def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(source: str, package: str) -> set[str]:
    """Top-level names that a module imports anywhere, functions included; relative ones are the package's own."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(package if node.level else (node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            if node.args and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value).split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    assert modules(package), f"{package} has no modules"
    wrong = {
        str(path.relative_to(ROOT)): sorted(forbidden)
        for path in modules(package)
        if (forbidden := imported(path.read_text(), package) & FORBIDDEN[package])
    }
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import torch.nn as nn",
        "def f():\n    from torch import nn",
        "import importlib\nimportlib.import_module('torch.nn')",
    ],
)
def test_the_arrows_see_every_kind_of_import(source):
    assert imported(source, "envs") & FORBIDDEN["envs"] == {"torch"}


def dotted(package: str) -> list[str]:
    parts = (path.relative_to(ROOT).with_suffix("").parts for path in modules(package))
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts if p[-1] != "__main__"]


def in_fresh_python(code: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


@pytest.mark.parametrize(("package", "unwanted"), [("envs", {"torch", "stable_baselines3"}), ("kp3d_rl", {"mujoco"})])
def test_heavy_libraries_stay_out(package, unwanted, tmp_path):
    """Environment workers must start without torch, keypoint code without a simulator, also through third parties."""
    names = ", ".join(dotted(package))
    done = in_fresh_python(f"import sys, {names}; print(sorted(set({sorted(unwanted)}) & set(sys.modules)))", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


QUIET = """
import os, random, sys, threading
import gymnasium, imageio, mujoco, numpy, stable_baselines3, torch, tyro, wandb  # what they do is theirs
def state():
    return dict(
        environ=dict(os.environ), argv=list(sys.argv), threads=threading.active_count(),
        random=random.getstate(), numpy=str(numpy.random.get_state()), torch=torch.get_rng_state().tolist(),
        dtype=torch.get_default_dtype(), grad=torch.is_grad_enabled(), cuda=torch.cuda.is_initialized(),
        torch_threads=torch.get_num_threads(), opengl={m for m in sys.modules if m.split('.')[0] == 'OpenGL'},
        files=sorted(os.listdir('.')),
    )
before = state()
import %s
after = state()
for key in before:
    assert before[key] == after[key], (key, before[key], after[key])
"""


def test_imports_do_no_work(tmp_path):
    """No file, OpenGL, environment variable, thread, random draw or global torch setting changes at import."""
    done = in_fresh_python(QUIET % ", ".join(name for package in PACKAGES for name in dotted(package)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and not list(tmp_path.iterdir())


# --- pins and ranges -------------------------------------------------------------------------------------------------
def requirements() -> dict[str, list[Requirement]]:
    """Extra (empty for the base) -> what setup.cfg asks for."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    sections = {"": parser["options"]["install_requires"], **dict(parser["options.extras_require"])}
    return {
        extra: [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
        for extra, text in sections.items()
    }


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "constraints.txt holds name==version lines only"
    versions = {canonicalize_name(name): version for name, version in pairs}
    assert len(versions) == len(lines), "a package is pinned twice"
    return versions


def test_pins_lie_within_the_ranges():
    for extra, wanted in requirements().items():
        for requirement in wanted:
            name = canonicalize_name(requirement.name)
            if not UNPINNED.match(name):
                assert name in pins(), f"{name} of [{extra}] is not pinned"
                assert requirement.specifier.contains(pins()[name]), f"{name}=={pins()[name]} is not {requirement}"


def tree(wanted: list[Requirement], extras: frozenset[str], seen: set) -> Iterator[str]:
    """Names of all installed packages that the requirements bring, in this environment."""
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        markers = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker and not any(requirement.marker.evaluate(marker) for marker in markers):
            continue
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        yield name
        try:
            further = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        yield from tree(further, frozenset(requirement.extras), seen)


def test_the_whole_tree_is_pinned():
    wanted = requirements()
    names = set(tree(wanted[""] + wanted["test"] + wanted["warp"] + wanted["contrib"], frozenset(), set()))
    assert {"werkzeug", "warp-lang", "pluggy"} <= names, "the walk reaches what others need"
    assert sorted(name for name in names - set(pins()) if not UNPINNED.match(name)) == []


def test_no_pin_names_a_local_build():
    assert not [version for version in pins().values() if "+" in version or "@" in version]


# --- the wheel -------------------------------------------------------------------------------------------------------
def test_the_wheel_holds_every_file_of_the_packages(tmp_path):
    for name in (*PACKAGES, "setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    code = "import setuptools.build_meta as backend; backend.build_wheel('wheels')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(tmp_path))
        for package in PACKAGES
        for path in (tmp_path / package).rglob("*")
        if path.is_file()
    }
    assert "envs/assets/reach.xml" in wanted
    assert sorted(wanted - packed) == []
    assert not [name for name in packed if name.startswith("tests/")]


# --- make ------------------------------------------------------------------------------------------------------------
def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    # `make test ARGS=...` hands its own variables down; they are not what is tested here.
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ENV", "RUN", "SEED", "DEVICE", "CAMERAS", "ARGS")
    environment = {key: value for key, value in os.environ.items() if key not in inherited}
    command = ["make", "--no-print-directory", *arguments, *(f"{key}={value}" for key, value in variables.items())]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_help_lists_every_target():
    shown = make()
    assert shown.returncode == 0 and shown.stdout == make("help").stdout, "help is the default"
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", shown.stdout, re.MULTILINE))
    assert listed == targets() and {"train", "evaluate", "video", "preview", "doctor", "test"} <= listed


def test_every_target_is_phony():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony and set(phony[1].split()) == targets(), "a file of the same name would hide the target"


@pytest.mark.parametrize(
    ("target", "variables", "command"),
    [
        ("train", {}, "-m experiments.train"),
        ("train", {"ENV": "reach-multiview"}, "-m experiments.train --env reach-multiview"),
        (
            "train",
            dict(ENV="Ant-v5", RUN="a", SEED="0", DEVICE="cpu", CAMERAS="my rig.yaml", ARGS="--total-steps 9"),
            '-m experiments.train --env Ant-v5 --run a --seed 0 --device cpu --cameras "my rig.yaml" --total-steps 9',
        ),
        ("train", {"RESUME": "runs/a/b"}, "-m experiments.resume --run runs/a/b"),
        (
            "train",
            {"RESUME": "b", "ENV": "e", "ARGS": "--checkpoint 9"},
            "-m experiments.resume --env e --run b --checkpoint 9",
        ),
        ("evaluate", {"ENV": "e", "RUN": "r", "SEED": "1"}, "-m experiments.evaluate --env e --run r --seed 1"),
        (
            "pretrain",
            {"ENV": "e", "RUN": "r", "CAMERAS": "c", "ARGS": "--steps 9"},
            '-m experiments.pretrain --env e --run r --cameras "c" --steps 9',
        ),
        ("probe", {"RUN": "r", "SEED": "1", "ARGS": "--bodies a"}, "-m experiments.probe --run r --seed 1 --bodies a"),
        ("video", {"RUN": "r", "DEVICE": "cuda"}, "-m experiments.video --run r --device cuda"),
        ("preview", {"ENV": "e", "CAMERAS": "c"}, '-m experiments.preview --env e --cameras "c"'),
        ("doctor", {}, "-m experiments.doctor"),
        ("view", {"RUN": "r", "SEED": "1"}, "-m experiments.view --run r --seed 1"),
        ("card", {"RUN": "r"}, "-m experiments.card --run r"),
        ("report", {"RUNS": "runs/a docs/b.json"}, '-m experiments.report --runs "runs/a docs/b.json"'),
        ("sweep", {"PLAN": "p.yaml", "ARGS": "--jobs 2"}, "-m experiments.sweep --plan p.yaml --jobs 2"),
    ],
)
def test_targets_forward_only_what_is_given(target, variables, command):
    shown = make("-n", target, **variables).stdout.splitlines()[-1]
    assert " ".join(shown.split()).removeprefix("exec .venv/bin/python ") == command


def test_resume_takes_no_options_of_a_new_run():
    refused = make("-n", "train", RESUME="runs/a/b", SEED="1")
    assert refused.returncode != 0 and "leave out RUN, SEED, DEVICE, PRESET and CAMERAS" in refused.stderr


# --- the set-up script, in a copy of the project and with a Python that only pretends --------------------------------
FAKE_PYTHON = """#!/bin/bash
echo "$*" >>"$LOG"
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"--only-binary pybullet"*) exit "${PYBULLET_EXIT:-0}" ;;
    *"-m pip install"*) exit "${PIP_EXIT:-0}" ;;
    *gl_info*) exit "${OPENGL_EXIT:-0}" ;;
    *"version_info[:2]"*) echo 3.11 ;;
    *ensurepip*) exit "${VENV_EXIT:-0}" ;;
    *version_info*) exit "${OLD:-0}" ;;
esac
"""
TOOLS = "bash cat cksum cp dirname env flock grep id mkdir mktemp rm tail".split()  # no apt-get, no sudo


class Checkout:
    """A copy of what the set-up script reads, and a PATH with nothing but a few tools and the pretending Python."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.log = folder / "project", folder / "bin", folder / "log"
        for path in (self.folder / "scripts", self.bin):
            path.mkdir(parents=True)
        for name in ("setup.cfg", "pyproject.toml", "constraints.txt", "scripts/setup.sh"):
            shutil.copy(ROOT / name, self.folder / name)
        for tool in TOOLS:
            if where := shutil.which(tool):
                (self.bin / tool).symlink_to(where)
        (self.bin / "python3").write_text(FAKE_PYTHON)
        (self.bin / "python3").chmod(0o755)

    def setup(self, **variables: str) -> subprocess.CompletedProcess:
        self.log.write_text("")
        environment = {"PATH": str(self.bin), "LOG": str(self.log), "HOME": str(self.folder), **variables}
        command = [str(self.bin / "bash"), "scripts/setup.sh"]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment)

    @property
    def stamped(self) -> bool:
        return (self.folder / ".venv/.stamp").exists()


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_setup_installs_once_and_again_when_the_pins_change(checkout):
    first = checkout.setup()
    assert first.returncode == 0 and checkout.stamped, first.stderr
    assert "-m pip install" in checkout.log.read_text() and "-c constraints.txt" in checkout.log.read_text()
    assert checkout.setup().stderr == "" and "pip" not in checkout.log.read_text(), "it fits: nothing to do"
    with (checkout.folder / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert "installing" in checkout.setup().stderr


def test_an_interrupted_setup_is_taken_up_again(checkout):
    failed = checkout.setup(PIP_EXIT="1")
    assert failed.returncode == 1 and not checkout.stamped and "pip could not install" in failed.stderr
    assert checkout.setup().returncode == 0 and checkout.stamped
    with (checkout.folder / "setup.cfg").open("a") as file:
        file.write("# changed\n")
    assert checkout.setup(PIP_EXIT="1").returncode == 1 and not checkout.stamped, "no stamp of the old set-up is left"


def test_a_venv_whose_python_is_gone_is_built_anew(checkout):
    checkout.setup()
    (checkout.folder / ".venv/bin/python").unlink()
    assert "creating .venv" in checkout.setup().stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OLD": "1"}, "no Python >= 3.11 found"),
        ({"INTERPRETER": "python2"}, "INTERPRETER=python2 is not"),
        ({"VENV_EXIT": "1"}, "sudo apt-get install python3-venv"),
    ],
)
def test_setup_says_in_one_line_what_is_missing(checkout, variables, said):
    done = checkout.setup(**variables)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
    assert not checkout.stamped


def test_setup_without_opengl_says_what_to_type_and_goes_on(checkout):
    done = checkout.setup(OPENGL_EXIT="1")
    assert done.returncode == 0 and checkout.stamped
    assert "sudo apt-get install libegl1" in done.stderr and "MuJoCo Warp" in done.stderr
    extras = "[test,warp,contrib,metaworld,hand,meshes,cluster,view]"
    assert extras in checkout.log.read_text(), "the renderer that needs no OpenGL is installed"


def test_setup_without_a_package_of_pybullet_says_what_does_not_work_and_goes_on(checkout):
    done = checkout.setup(PYBULLET_EXIT="1")
    assert done.returncode == 0 and checkout.stamped
    assert "make geometry-aware needs Python 3.11" in done.stderr
    assert "make geometry-aware" not in checkout.setup(PYBULLET_EXIT="1").stderr, "it fits: nothing is tried again"


def test_torch_can_come_from_another_index(checkout):
    assert checkout.setup(TORCH_INDEX="file:///wheels").returncode == 0
    wanted = f"--index-url file:///wheels torch=={pins()['torch']}"
    assert wanted in checkout.log.read_text()
