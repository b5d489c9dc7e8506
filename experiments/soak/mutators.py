"""Damage for files of any kind, as accidents and strangers make it: pure functions of bytes and a source of chance."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

Mutator = Callable[[bytes, Random], bytes]

CANARY = "code-was-executed"
"""Folder that every hostile piece of YAML or pickle tries to make in the current one."""

HOSTILE = (
    # YAML
    f"!!python/object/apply:os.mkdir [{CANARY}]".encode(),
    f"!!python/object/new:os.mkdir\n  args: [{CANARY}]\n".encode(),
    b"!!python/name:os.system ",
    b"!!binary aGVsbG8= ",
    b"!local ",
    b"%TAG ! tag:yaml.org,2002:python/\n---\n",
    b"&a [*a, *a]",
    b"*a",
    b"<<: {seed: 1}\n",
    b"\n---\n",
    b"\n...\n",
    b"? [a, b]\n: c\n",
    b"[" * 3000,
    b"{a: " * 3000,
    b"- " * 3000,
    b"2020-01-01",
    b"1:30",
    b"yes",
    b"~",
    b"|\n",
    b'"\\UFFFFFFFF"',
    b'"\\ud800"',
    b'"\\e[2J"',
    # JSON, pickle, archives, safetensors
    b'{"a": 1, "a": 2}',
    b"NaN",
    b"-Infinity",
    b'"__class__"',
    b"null",
    f"cos\nmkdir\n(V{CANARY}\ntR.".encode(),
    b"\x80\x04\x95",
    b"PK\x03\x04",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    # text
    b"\x00",
    b"\x1b]0;title\x07",
    b"\r",
    b"\n",
    b"\t",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc0\x80",
    "\u202e\u2028\u200b".encode(),
    b"../../../../etc/passwd",
    b"/dev/zero",
    b"%s%n",
    b"a" * 5000,
    b"'",
    b'"',
    b": ",
    b" #",
)
"""What readers stumble over."""

NUMBERS = (
    b"-1", b"0", b"-0.0", b"1", b"0.5", b"2147483648", b"9007199254740993", b"9223372036854775808",
    b"-9" + b"9" * 30, b"9" * 5000, b"1e999", b"1.0e+400", b"-1.0e+308", b"1.0e-320", b".nan", b".inf", b"-.inf",
    b"NaN", b"Infinity", b"010", b"0x7fffffff", b"1_000", b"12:30:45", b"true", b"null", b'"3"', b"[1]", b"{}",
)  # fmt: skip
"""What may stand where a number stood."""


def mutate(data: bytes, random: Random) -> bytes:
    """Damage a file in one to three ways.

    :param data: its content.
    :param random: decides.
    :return: other content; now and then, by chance, the same.
    """
    for _ in range(random.choice((1, 1, 2, 3))):
        data = random.choice(MUTATORS)(data, random)
    return data


def flip_bits(data: bytes, random: Random) -> bytes:
    """One to eight bits anywhere, as a bad disk does."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 8) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(data: bytes, random: Random) -> bytes:
    """The end is missing, as after a full disk."""
    return data[: random.randint(0, len(data))]


def cut_out(data: bytes, random: Random) -> bytes:
    """A piece in the middle is missing."""
    start, stop = _slice(data, random)
    return data[:start] + data[stop:]


def repeat(data: bytes, random: Random) -> bytes:
    """A piece stands there twice, the second time anywhere."""
    start, stop = _slice(data, random)
    place = random.randint(0, len(data))
    return data[:place] + data[start:stop] + data[place:]


def blank(data: bytes, random: Random) -> bytes:
    """A piece is zeros, as after a power cut."""
    start, stop = _slice(data, random)
    return data[:start] + bytes(stop - start) + data[stop:]


def insert_hostile(data: bytes, random: Random) -> bytes:
    """One of :data:`HOSTILE` anywhere."""
    place = random.randint(0, len(data))
    return data[:place] + random.choice(HOSTILE) + data[place:]


def replace_value(data: bytes, random: Random) -> bytes:
    """What stands after a colon becomes one of :data:`HOSTILE`."""
    return _replace(data, rb"(?<=: )[^\n]+", random.choice(HOSTILE), random)


def replace_number(data: bytes, random: Random) -> bytes:
    """A number becomes one of :data:`NUMBERS`."""
    return _replace(data, rb"-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?", random.choice(NUMBERS), random)


def swap_lines(data: bytes, random: Random) -> bytes:
    """Two lines change places."""
    lines = data.splitlines(keepends=True)
    if lines:
        one, other = random.randrange(len(lines)), random.randrange(len(lines))
        lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def delete_lines(data: bytes, random: Random) -> bytes:
    """One to three lines are missing."""
    lines = data.splitlines(keepends=True)
    for _ in range(min(random.randint(1, 3), len(lines))):
        del lines[random.randrange(len(lines))]
    return b"".join(lines)


def indent_line(data: bytes, random: Random) -> bytes:
    """A line moves to the right or to the left."""
    lines = data.splitlines(keepends=True)
    if lines:
        number = random.randrange(len(lines))
        lines[number] = b"  " + lines[number] if random.random() < 0.5 else lines[number].lstrip(b" ")
    return b"".join(lines)


MUTATORS: tuple[Mutator, ...] = (
    flip_bits, cut, cut_out, repeat, blank, insert_hostile, replace_value, replace_number, swap_lines, delete_lines,
    indent_line,
)  # fmt: skip


def _slice(data: bytes, random: Random) -> tuple[int, int]:
    """Start and end of a piece; short ones are as likely as long ones."""
    start = random.randint(0, len(data))
    return start, min(len(data), start + int(2 ** random.uniform(0, 10)))


def _replace(data: bytes, pattern: bytes, replacement: bytes, random: Random) -> bytes:
    found = list(re.finditer(pattern, data))
    if not found:
        return data
    match = random.choice(found)
    return data[: match.start()] + replacement + data[match.end() :]
