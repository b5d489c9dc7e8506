"""Reading YAML without trust: what is refused and how, and that nothing gets through a storm of damaged files."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from envs.errors import UserError
from envs.yaml_files import LIMIT, MAX_DEPTH, read_yaml, shortened, shown
from experiments.soak.mutators import CANARY, HOSTILE, MUTATORS, NUMBERS, mutate

GOOD = """\
# a comment
name: reach
empty: ''
"in quotes": "007"
numbers: {whole: -12, other: 1.5e-3, big: 9223372036854775807}
flags: [true, no, ~, null]
nested:
  list:
  - {a: 1}
  - b
"""
STORM = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refusal(path: Path, content: str | bytes) -> str:
    """The one line with which a file is refused."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_yaml(path)
    message = str(error.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < len(str(path)) + 300
    return message.removeprefix(str(path))


def test_a_file_becomes_values_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(GOOD)
    tree = read_yaml(path)
    assert repr(tree.data) == repr(yaml.safe_load(GOOD))
    keys = (
        (),
        ("name",),
        ("in quotes",),
        ("numbers", "other"),
        ("flags", 1),
        ("nested", "list"),
        ("nested", "list", 1),
    )
    assert [tree.line(key) for key in keys] == [2, 2, 4, 5, 6, 8, 10]
    assert tree.line(("nested", "list", 0, "a")) == 9
    assert tree.line(("nested", "lost", "x")) == 7  # of what it would stand in
    assert str(tree.refusal(("nested", "list", 0, "a"), "is odd")) == f"{path} line 9, key 'nested.list[0].a': is odd"
    assert str(tree.refusal((), "is odd")) == f"{path} line 2: is odd"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": is empty"),
        ("# nothing\n", ": is empty"),
        ("a: 1\nb: [1, 2\n", " line 3: not valid YAML (expected ',' or ']', but got '<stream end>')"),
        ("a: 1\nb: \x07", " line 2: not valid YAML (character #x0007)"),
        (b"a: 1\nb: \xff", " line 2: not valid YAML (byte 0xff is not UTF-8 text)"),
        ("a: 1\n".encode("utf-16"), " line 1: not valid YAML (byte 0xff is not UTF-8 text)"),
        ("a: 1\n---\na: 2\n", " line 2: not valid YAML (but found another document)"),
        ('a: "\\UFFFFFFFF"', " line 1: not valid YAML (an escape that is no character)"),
        ("a: &x 1\nb: *x\n", " line 1: anchors and aliases (& and *) are not read: write the value out"),
        ("a: !!str 1", " line 1: tags are not read: leave out 'tag:yaml.org,2002:str'"),
        ("a: !!python/object/apply:os.system [ls]", "tags are not read"),
        ("a: !!binary aGVsbG8=", "tags are not read"),
        ("! a", "tags are not read"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", " line 4, key 'a.b': stands there twice, first in line 2"),
        ("1: a", " line 1: keys must be text, got '1': put it in quotes"),
        ("a:\n  on: 1", " line 2, key 'a': keys must be text, got 'on': put it in quotes"),
        ("? [a]\n: 1", " line 1: keys must be text, not a sequence"),
        ("<<: {a: 1}", "keys must be text"),
        ("a: 2020-01-01", " line 1, key 'a': 2020-01-01 means a date in YAML: put it in quotes"),
        ("a: [1, =]", " line 1, key 'a[1]': = means"),
        ("a: 1\nb:\n", " line 2, key 'b': has no value: write one, or null"),
        ("a: 010", "plain decimal digits, of at most 64 bits, not 010"),
        ("a: 1_000", "plain decimal digits"),
        ("a: 1:30", "plain decimal digits"),
        ("a: 0x1f", "plain decimal digits"),
        ("a: 9223372036854775808", "at most 64 bits"),
        ("a: " + "9" * 5000, "at most 64 bits"),
        ("a: .nan", " line 1, key 'a': write numbers as 12.5 or 1.0e-3, and finite ones, not .nan"),
        ("a: -.inf", "finite ones"),
        ("a: 1.0e+999", "finite ones"),
        ("a: 1_0.5", "write numbers as 12.5"),
        ('a: "\\ud800"', "must be printable text on one line, got '\\ud800'"),
        ('a: "b\\nc"', "must be printable text on one line, got 'b\\nc'"),
        ('"a\\eb": 1', "must be printable text on one line"),
        ("a: \u202eb", "must be printable text on one line"),
        ("[" * 100_000, f" line 1: nested more than {MAX_DEPTH} levels deep"),
        ("- " * 100_000, "levels deep"),
        ("- a\n" * 30_000, "holds more than 20,000 keys and values"),
        ("#" * (LIMIT + 1), ": is larger than 1,000,000 bytes"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert message in refusal(tmp_path / "a.yaml", content)


def test_only_regular_files_of_a_sensible_size_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "link", tmp_path / "socket", tmp_path, Path("/dev/zero")):
            with pytest.raises(UserError, match="is not a regular file"):
                read_yaml(path)
    for name in ("lost", "a\0b", "x" * 5000):
        with pytest.raises(UserError, match="cannot be read") as error:
            read_yaml(tmp_path / name)
        assert str(error.value).isprintable()
    (tmp_path / "a.yaml").write_text("a: 1")
    (tmp_path / "good").symlink_to("a.yaml")
    assert read_yaml(tmp_path / "good", limit=4).data == {"a": 1}
    with pytest.raises(UserError, match="larger than 3 bytes"):
        read_yaml(tmp_path / "good", limit=3)


def test_values_are_short_and_printable_in_messages() -> None:
    for value in ("a\nb", "\x1b[2J", "x" * 10_000, 10**5000, [10**5000], {"a": ["b" * 1000] * 1000}, b"\xff" * 999):
        assert shown(value).isprintable() and len(shown(value)) <= 60
    assert shown("a") == "'a'" and shown(1.5) == "1.5" and shown(None) == "None"
    assert shortened("x" * 60) == "x" * 60 and shortened("x" * 61) == "x" * 57 + "..."


def accept_or_refuse(path: Path, content: bytes) -> None:
    """A file is one line of refusal, or exactly what YAML says that it is; and nothing was executed."""
    path.write_bytes(content)
    try:
        found = read_yaml(path)
    except UserError as error:
        assert str(error).startswith(str(path)) and str(error).isprintable()
    else:
        assert repr(found.data) == repr(yaml.safe_load(content))
        assert set(found.lines.values()) <= set(range(1, len(content.decode().splitlines()) + 2))
    assert not os.path.exists(CANARY)


@STORM
@given(seed=st.integers(0, 2**32))
def test_damaged_files_are_refused_or_read_as_yaml_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    accept_or_refuse(tmp_path / "a.yaml", mutate(GOOD.encode(), Random(seed)))


PIECES = [*"abc019:-,[]{}#&*!|>'\"%@`?~=.+_ \n\t\\", "\n  ", "\n- ", ": ", "a: ", *map(bytes.decode, NUMBERS)]


@STORM
@given(content=st.one_of(st.lists(st.sampled_from(PIECES)).map("".join), st.text()).map(lambda t: t.encode()))
@example(content=b'"\\x')
@example(content=b"\xef\xbb\xbfa: 1")
def test_anything_is_refused_or_read_as_yaml_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    accept_or_refuse(tmp_path / "a.yaml", content)


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_pieces_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (piece, b"a: " + piece, b"a:\n- " + piece + b"\n", piece + b": a\n"):
        accept_or_refuse(tmp_path / "a.yaml", content)


@pytest.mark.parametrize("mutator", MUTATORS)
def test_every_kind_of_damage_changes_files_and_depends_on_nothing_but_chance(mutator) -> None:
    for content in (GOOD.encode(), bytes(range(256)) * 4 + b"\n1\n: 2\n 3"):
        results = [mutator(content, Random(seed)) for seed in range(20)]
        assert results == [mutator(content, Random(seed)) for seed in range(20)]
        assert sum(result != content for result in results) >= 5
    assert isinstance(mutator(b"", Random(0)), bytes)
