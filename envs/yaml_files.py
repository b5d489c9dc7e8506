"""YAML files read without trust: plain trees of values, and every refusal one line that names file, line and key.

Such files are passed between people. YAML itself can do more than hold values (construct objects, repeat a value by
reference until memory is full, change a word into a number, a date or a truth), so what goes beyond a tree of mappings
with text keys, lists, text, plain numbers, true, false and null is refused instead of interpreted.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
import reprlib
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from envs.errors import UserError

LIMIT = 1_000_000
"""Bytes of the largest file that is read."""
MAX_DEPTH = 12
"""Levels of mappings and lists; this project's own files have four."""
MAX_VALUES = 20_000
"""Values and keys in one file: bounds the seconds that reading a hostile one takes."""
_TAG = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?")
_IN_QUOTES = {"timestamp": "a date", "merge": "a merge key", "value": "a sign with a meaning of its own"}

Key = tuple[str | int, ...]
"""Where a value stands: keys of mappings and positions in lists, from the top."""


@dataclass(frozen=True)
class YamlTree:
    """What a file holds, and where.

    :param path: the file.
    :param data: dicts with text keys, lists, str, int, float, bool and None; at the top whatever the file has there.
    :param lines: line of every key and list entry, counted from 1.
    """

    path: Path
    data: Any
    lines: dict[Key, int]

    def line(self, key: Sequence[str | int] = ()) -> int:
        """Line of a key, or of what it would stand in where the file lacks it.

        :param key: for example ``("ppo", "gamma")``.
        """
        key = tuple(key)
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def refusal(self, key: Sequence[str | int], problem: str) -> UserError:
        """The error for a value that is not what it should be.

        :param key: where it stands, or should.
        :param problem: what is wrong and what would be right.
        """
        return refusal(self.path, self.line(key), key, problem)


def read_yaml(path: str | Path, limit: int = LIMIT) -> YamlTree:
    """Read a YAML file.

    :param path: a regular file, or a link to one.
    :param limit: largest size, bytes.
    :raises UserError: for everything that is not a plain tree of values in one regular file of UTF-8 text.
    """
    path = Path(path)
    text = _read_text(path, limit)
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise _Refusal(None, (), "is empty")
        lines: dict[Key, int] = {}
        return YamlTree(path, _value(node, (), lines), lines)
    except _Refusal as error:
        raise refusal(path, error.line, error.key, error.problem) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise refusal(path, line, (), f"not valid YAML (character #x{error.character:04x})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"not valid YAML ({shortened(error.problem or error.context or 'damaged')})"
        raise refusal(path, mark and mark.line + 1, (), problem) from None
    except (ValueError, OverflowError):  # an escape in double quotes that is no character
        raise refusal(path, loader.line + 1, (), "not valid YAML (an escape that is no character)") from None


def refusal(path: Path, line: int | None, key: Sequence[str | int], problem: str) -> UserError:
    """One line that names a file, the line and the key where they are known, and what is wrong.

    :param line: counted from 1.
    :param key: see :data:`Key`.
    """
    where = f"{printable(path)}{f' line {line}' if line else ''}"
    return UserError(f"{where}{f', key {chr(39)}{key_name(key)}{chr(39)}' if key else ''}: {problem}")


def key_name(key: Sequence[str | int]) -> str:
    """A key as people write it: ``ppo.gamma``, ``cameras[0].position``."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" for part in key)
    return name.removeprefix(".")


def unknown_key(tree: YamlTree, key: Sequence[str | int], valid: Iterable[str]) -> UserError:
    """The error for a key that nothing reads.

    :param key: its last part is what is unknown.
    :param valid: what could stand in its place.
    """
    names = list(valid)
    close = difflib.get_close_matches(shortened(str(key[-1])).lower(), names, n=1, cutoff=0.4)
    question = f" did you mean '{key_name((*key[:-1], close[0]))}'?" if close else ""
    return tree.refusal(key, f"unknown key:{question} valid: {', '.join(names)}")


def printable(value: object) -> str:
    """A value as text on one line, without characters that could move a terminal's cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def shortened(text: str, length: int = 60) -> str:
    """Printable text, cut to a length; a file's own words are never longer in a message.

    :param length: characters.
    """
    kept = printable(text[: length + 1])
    return kept if len(kept) <= length else kept[: length - 3] + "..."


def shown(value: object) -> str:
    """A value as Python writes it, on one line and short enough for a message."""
    if isinstance(value, int) and abs(value) >= 2**64:  # Python refuses to print thousands of digits
        return "a number beyond 64 bits"
    try:
        return shortened(_REPR.repr(value))
    except ValueError:  # such a number, inside a list
        return f"a {type(value).__name__}"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


class _Refusal(Exception):
    """Something that is not allowed; becomes a UserError where the file's name is known."""

    def __init__(self, line: int | None, key: Key, problem: str) -> None:
        super().__init__(problem)
        self.line, self.key, self.problem = line, key, problem


class _StrictLoader(yaml.SafeLoader):
    """Composes the tree of nodes and refuses, while it grows, what would make it more than a tree, or too large."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if event.anchor is not None:  # of an alias, too
            raise _Refusal(line, (), "anchors and aliases (& and *) are not read: write the value out")
        if getattr(event, "tag", None) is not None:
            raise _Refusal(line, (), f"tags are not read: leave out {shown(event.tag)}")
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH:
            raise _Refusal(line, (), f"nested more than {MAX_DEPTH} levels deep")
        if self.count > MAX_VALUES:
            raise _Refusal(line, (), f"holds more than {MAX_VALUES:,} keys and values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _read_text(path: Path, limit: int) -> str:
    try:
        # A pipe would block at open, and opening a device may already do something: look first, and look again at
        # what was opened.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise refusal(path, None, (), "is not a regular file")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise refusal(path, None, (), "is not a regular file")
            content = _read_at_most(descriptor, limit + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        raise refusal(path, None, (), f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > limit:
        raise refusal(path, None, (), f"is larger than {limit:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refusal(path, line, (), f"not valid YAML (byte {content[error.start]:#04x} is not UTF-8 text)") from None


def _read_at_most(descriptor: int, limit: int) -> bytes:
    parts, left = [], limit
    while left > 0 and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _value(node: yaml.Node, key: Key, lines: dict[Key, int]) -> Any:
    """Value of a node; notes the lines of all that stands below it."""
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(entry, (*key, number), lines) for number, entry in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            name = _name(name_node, key)
            if name in found:
                raise _Refusal(line, (*key, name), f"stands there twice, first in line {lines[(*key, name)]}")
            lines[(*key, name)] = line
            found[name] = _value(value_node, (*key, name), lines)
        return found
    return _scalar(node, key)


def _name(node: yaml.Node, key: Key) -> str:
    """A key of a mapping."""
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode):
        raise _Refusal(line, key, f"keys must be text, not a {node.id}")
    if node.tag != _TAG + "str":
        raise _Refusal(line, key, f"keys must be text, got {shown(node.value)}: put it in quotes")
    return _text(node, (*key, node.value))


def _scalar(node: yaml.Node, key: Key) -> str | int | float | bool | None:
    line, kind = node.start_mark.line + 1, node.tag.removeprefix(_TAG)
    if kind == "str":
        return _text(node, key)
    if kind == "bool":
        return yaml.SafeLoader.bool_values[node.value.lower()]
    if kind == "null":
        if not node.value:
            raise _Refusal(line, key, "has no value: write one, or null")
        return None
    if kind == "int":
        if not _WHOLE.fullmatch(node.value) or not -(2**63) <= int(node.value) < 2**63:
            raise _Refusal(line, key, f"write numbers in plain decimal digits, of at most 64 bits, not {_cut(node)}")
        return int(node.value)
    if kind == "float":
        if not _DECIMAL.fullmatch(node.value) or not math.isfinite(float(node.value)):
            raise _Refusal(line, key, f"write numbers as 12.5 or 1.0e-3, and finite ones, not {_cut(node)}")
        return float(node.value)
    raise _Refusal(line, key, f"{_cut(node)} means {_IN_QUOTES.get(kind, kind)} in YAML: put it in quotes")


def _text(node: yaml.Node, key: Key) -> str:
    with contextlib.suppress(UnicodeEncodeError):  # half of a surrogate pair
        node.value.encode()
        if node.value.isprintable():
            return node.value
    raise _Refusal(node.start_mark.line + 1, key, f"must be printable text on one line, got {shown(node.value)}")


def _cut(node: yaml.Node) -> str:
    return shortened(node.value)
