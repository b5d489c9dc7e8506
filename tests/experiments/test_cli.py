"""The command line: dataclass options, one-line errors, exit codes."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from envs.errors import UserError
from experiments.options.cli import options, parse, run_main, write_result
from experiments.options.config import TrainConfig


@dataclass(frozen=True)
class Inner:
    kind: Literal["keypoint3d", "pixels"] = "keypoint3d"
    keypoints: int = 8
    background: bool = True

    def __post_init__(self) -> None:
        if self.keypoints < 1:
            raise ValueError("keypoints must be at least 1")


@dataclass(frozen=True)
class Outer:
    env: str = "reach"
    rate: float = 0.5
    total_steps: int = 10
    cameras: Path | None = None
    encoder: Inner = field(default_factory=Inner)


def test_options_are_flat_and_typed_as_people_type_them() -> None:
    made = parse(Outer, "--env push --encoder.keypoints 4 --encoder.no-background --total_steps 7 --rate=2".split())
    assert made == Outer("push", 2.0, 7, None, Inner(keypoints=4, background=False))
    assert parse(Outer, ["--cameras", "a.yaml"]).cameras == Path("a.yaml") and parse(Outer, []) == Outer()
    assert options(Outer)["--encoder.no-background"] is bool


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--encoder.keypoint 4",
            "unknown option '--encoder.keypoint': did you mean '--encoder.keypoints'? valid: --env",
        ),
        ("--encoder.kind keypoints3d", "unknown value for --encoder.kind 'keypoints3d': did you mean 'keypoint3d'?"),
        ("--total-steps 1e3", "--total-steps needs a whole number, got '1e3'"),
        ("--rate fast", "--rate needs a number, got 'fast'"),
        ("--total-steps", "--total-steps needs a value (a whole number)"),
        ("--env --rate 1", "--env needs a value"),
        ("--encoder.background=yes", "takes no value"),
        ("reach", "unexpected argument 'reach'"),
        ("--encoder.keypoints 0", "keypoints must be at least 1"),
    ],
)
def test_bad_input_is_one_line_that_says_what_would_be_right(arguments: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(Outer, arguments.split())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_help_names_every_option_of_training(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, ["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for name, kind in options(TrainConfig).items():
        assert name in shown or (kind is bool and "no-" in name), name


@pytest.mark.parametrize(("raised", "code"), [(None, 0), (UserError("bad"), 2), (KeyboardInterrupt(), 130)])
def test_exit_codes(raised, code: int, capsys: pytest.CaptureFixture) -> None:
    def main(argv):
        if raised:
            raise raised

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == code
    assert capsys.readouterr().err == {0: "", 2: "error: bad\n", 130: "interrupted\n"}[code]


def test_a_planted_bug_keeps_its_traceback_and_exits_with_1() -> None:
    program = "from experiments.options.cli import run_main\ndef main(argv):\n    return 1 / 0\nrun_main(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


ENDINGS = {
    "prints on and on": ("for number in range(100_000):\n        print(number)", 141, ""),
    "prints its help": ("print('usage')\n    sys.exit()", 141, ""),
    "prints few words": ("print('few words')", 141, ""),
    "prints nothing": ("pass", 0, ""),
    "refuses": ("print('few words')\n    raise UserError('no')", 2, "error: no\n"),
    "is interrupted": ("print('few words')\n    raise KeyboardInterrupt", 130, "interrupted\n"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_reader_who_has_left_is_no_error_of_ours(ending: str) -> None:
    """As with ``| head``: no word of it on stderr, and the exit code that other programs have."""
    body, code, said = ENDINGS[ending]
    done = run_program(body, " | true")
    assert (done.returncode, done.stderr) == (code, said)


def test_a_program_without_an_output_ends_as_ever() -> None:
    done = run_program("print('few words')", " >&-")
    assert (done.returncode, done.stderr) == (0, "")


def run_program(body: str, output: str) -> subprocess.CompletedProcess:
    """Run a program with this main through a shell.

    :param output: where its output goes: a reader has left when it begins.
    """
    imports = "import sys\nfrom envs.errors import UserError\nfrom experiments.options.cli import run_main\n"
    program = shlex.quote(f"{imports}def main(argv):\n    {body}\nrun_main(main)")
    command = f"set -o pipefail; (sleep 0.5; exec {sys.executable} -c {program}){output}"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=buffered)


def test_a_broken_pipe_of_another_kind_keeps_its_traceback() -> None:
    program = "from experiments.options.cli import run_main\ndef main(argv):\n    raise BrokenPipeError(32, 'a worker')"
    done = subprocess.run([sys.executable, "-c", program + "\nrun_main(main)"], capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr and "a worker" in done.stderr


def test_every_option_has_its_documentation() -> None:
    """Public dataclasses explain every field in their docstring."""

    def check(config_class: type) -> None:
        documented = "".join(c.__doc__ or "" for c in config_class.__mro__)
        for f in dataclasses.fields(config_class):
            assert f":param {f.name}:" in documented, f"{config_class.__name__}.{f.name}"
            made = getattr(config_class(), f.name)
            if dataclasses.is_dataclass(made):
                check(type(made))

    check(TrainConfig)


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_result(path, b"old")

    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="cannot write .*result.json: No space left on device"):
        write_result(path, b"new one")
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_result_does_not_replace_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.tex").write_text("three years of work")
    with pytest.raises(UserError, match="cannot write .*home: it is a folder"):
        write_result(folder, b"{}")
    with pytest.raises(UserError, match="cannot write .*nowhere/a.onnx: there is no folder"):
        write_result(tmp_path / "nowhere" / "a.onnx", b"{}")
    with pytest.raises(UserError, match="cannot write .: it is a folder"):
        write_result(Path("."), b"{}")
    with pytest.raises(UserError, match="cannot write a+: File name too long"):
        write_result(Path("a" * 300), b"{}")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot write .*pipe: it is not a regular file"):
        write_result(tmp_path / "pipe", b"{}")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["home", "pipe"]
    (tmp_path / "pipe").unlink()
    assert (folder / "thesis.tex").read_text() == "three years of work"
