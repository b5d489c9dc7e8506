"""The command line shared by every entry point: options from frozen dataclasses, one-line errors, exit codes.

Options are checked here before ``tyro`` builds the dataclass, so that a typing error costs the user one line that names
the closest valid option instead of a page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import select
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from envs.errors import UserError, unknown
from kp3d_rl.storage.files import printable, write_whole

Config = TypeVar("Config")
_NUMBERS = {int: "a whole number", float: "a number"}


def run_main(main: Callable[[Sequence[str]], int | None]) -> typing.NoReturn:
    """Run an entry point and leave the process with the project's exit codes.

    A :class:`UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130, a reader of the output who
    has left (``| head``) exit code 141, as of other programs; every other exception keeps its traceback and exits 1.

    :param main: takes the arguments after the program's name; its return value is the exit code (None is 0).
    """
    try:
        code = main(sys.argv[1:]) or 0
    except SystemExit as end:  # as after the help
        code = end.code or 0
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        code = 128 + signal.SIGPIPE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        code = getattr(interrupt, "exit_code", 130)
    if not _flushed() and code == 0:
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _reader_has_left() -> bool:
    """Whether nobody reads the standard output any more: a broken pipe may also be one to another process."""
    if sys.stdout is None:
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def _flushed() -> bool:
    """Hand over what was printed; False where nobody reads it any more, and then it goes nowhere, without a word."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return False
    return True


def require_place(path: Path) -> None:
    """Refuse a place that no file can be written to, before there is anything to write.

    :raises UserError: where the folder is missing, or something that is no file stands there.
    """
    try:
        if not path.name or path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}: there is no folder {path.parent}")
        if path.exists() and not path.is_file():  # as root one would replace the device itself
            raise UserError(f"cannot write {path}: it is not a regular file")
    except OSError as error:
        raise UserError(f"cannot write {printable(path, 200)}: {error.strerror}") from None


def write_result(path: Path, data: bytes) -> None:
    """Write what a program found; what stood there is replaced when the new file is complete, never by half of it.

    :param path: where to; the folder must exist.
    :param data: what.
    :raises UserError: where it cannot be written, as where a folder or a device stands there.
    """
    require_place(path)
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def parse(config_class: type[Config], argv: Sequence[str]) -> Config:
    """Build a frozen dataclass from command-line arguments.

    :param config_class: dataclass whose (nested) fields are the options: ``encoder.keypoints`` is
        ``--encoder.keypoints``, a bool ``wandb.offline`` is ``--wandb.offline`` / ``--wandb.no-offline``.
    :param argv: arguments without the program's name.
    :raises UserError: for an unknown option, a value of the wrong type, or a combination that the dataclass refuses.
    """
    _check(list(argv), options(config_class))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, args=list(argv))
    except (ValueError, SystemExit) as error:
        refusal = _refusal(error)
        if refusal is None:
            sys.stderr.write(said.getvalue())
            raise
        raise UserError(str(refusal)) from error


def _refusal(error: BaseException | None) -> ValueError | None:
    """What a dataclass's own ``__post_init__`` raised; tyro prints it in a box and exits, or lets it through."""
    while error is not None and not isinstance(error, ValueError):
        error = error.__context__
    return error


def options(config_class: type, prefix: str = "") -> dict[str, Any]:
    """List the command-line options of a dataclass with the type each one takes.

    :param config_class: dataclass, nested ones contribute dotted names.
    :param prefix: dotted name of the field that holds the dataclass.
    :return: ``{"--encoder.keypoints": int, ...}``; a bool field appears under both of its flags.
    """
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        name, kind = prefix + field.name.replace("_", "-"), hints[field.name]
        if dataclasses.is_dataclass(kind):
            found |= options(typing.cast(type, kind), name + ".")
        else:
            found["--" + name] = kind
            if kind is bool:
                head, _, last = name.rpartition(".")
                found[f"--{head}{'.' if head else ''}no-{last}"] = kind
    return found


def _check(argv: list[str], valid: dict[str, Any]) -> None:
    """Refuse the first unknown option, missing value or value of the wrong kind."""
    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        if token in ("-h", "--help"):
            return
        if not token.startswith("--"):
            raise UserError(f"unexpected argument '{token}': options start with --, see --help")
        name, equals, value = token.partition("=")
        name = name.replace("_", "-")
        if name not in valid:
            raise unknown("option", name, valid)
        kind = valid[name]
        if kind is bool:
            if equals:
                raise UserError(f"{name} takes no value (use {name} or its no- form)")
            continue
        if not equals:
            if position >= len(argv) or argv[position].startswith("--"):
                raise UserError(f"{name} needs a value ({describe(kind)})")
            value = argv[position]
            position += 1
        _check_value(name, kind, value)
        # Sequences take every following token up to the next option.
        while typing.get_origin(kind) is tuple and position < len(argv) and not argv[position].startswith("--"):
            position += 1


def _check_value(name: str, kind: Any, value: str) -> None:
    """Refuse a value that its option's type cannot hold; types not listed here are left to tyro."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if type(None) in kinds and value.lower() == "none":
        return
    kinds = tuple(k for k in kinds if k is not type(None))
    if len(kinds) != 1:
        return
    (kind,) = kinds
    if typing.get_origin(kind) is Literal:
        choices = [str(choice) for choice in typing.get_args(kind)]
        if value not in choices:
            raise unknown(f"value for {name}", value, choices)
    elif kind in _NUMBERS:
        try:
            kind(value)
        except ValueError:
            raise UserError(f"{name} needs {_NUMBERS[kind]}, got '{value}'") from None


def describe(kind: Any) -> str:
    """Say in a few words what values an option takes.

    :param kind: a type annotation such as ``int``, ``Literal["a", "b"]`` or ``Path | None``.
    """
    if typing.get_origin(kind) is Literal:
        return " or ".join(str(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return ", ".join(describe(k) for k in typing.get_args(kind) if k is not type(None))
    if kind is Path:
        return "a path"
    return _NUMBERS.get(kind, "text")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Options of a dataclass by their dotted names.

    :param config: frozen dataclass with nested ones.
    :param prefix: of the names.
    """
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        own = flat(value, f"{prefix}{entry.name}.") if dataclasses.is_dataclass(value) else {prefix + entry.name: value}
        found |= own
    return found


def typed(given: Mapping[str, Any]) -> list[str]:
    """Options as a person types them.

    :param given: values by names without dashes; a truth sets or unsets a flag.
    """
    arguments: list[str] = []
    for name, value in given.items():
        group, dot, last = name.replace("_", "-").rpartition(".")
        if value is True or value is False:
            arguments.append(f"--{group}{dot}{'' if value else 'no-'}{last}")
        else:
            arguments += [f"--{group}{dot}{last}", str(value)]
    return arguments
