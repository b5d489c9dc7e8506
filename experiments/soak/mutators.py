"""Damage for files of any kind, as accidents and strangers make it: pure functions of bytes and a source of chance.

Accidents change bytes; most of what they leave is refused by the first who reads it. Whoever means harm writes files
that can be read, and changes what they say: a value, a name, a shape.
"""

from __future__ import annotations

import copy
import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import yaml

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


# -- what files say ----------------------------------------------------------------------------------------------------

_DEEP, _TWICE = "stands-for-a-deep-nesting", "stands-for-a-name-that-is-there-already"
_NESTED = "[" * 2000 + "]" * 2000

VALUES: tuple[Any, ...] = (
    0, -1, 1, 2, 10**8, 2**31, 2**63, 10**18, 10**400, -(10**400), 0.0, -1.0, 0.5, 1e308, 5e-324, math.nan, math.inf,
    -math.inf, None, True, False, "", "a\nb\x1b[2J", "\u202e", "\ud800", "a" * 100_000, "../../../etc/passwd", "cuda:7",
    [], {}, [0], [[]], [None] * 10_000, {"": None}, {"array": "random.torch"}, _DEEP,
)  # fmt: skip
"""What may stand in a file that can be read where something sensible stood."""


def mutate_json(data: bytes, random: Random) -> bytes:
    """Change one to three places of a JSON file, which stays one; anything else stays as it is.

    :param data: its content.
    :param random: decides.
    """
    try:
        tree = json.loads(data)
    except ValueError:
        return data
    twice = change_tree(tree, random)
    return _spelled_out(json.dumps(tree, indent=1), json.dumps(twice)[1:-1])


def mutate_yaml(data: bytes, random: Random) -> bytes:
    """Change one to three places of a YAML file, which stays one; anything else stays as it is.

    :param data: its content.
    :param random: decides.
    """
    try:
        tree = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError):
        return data
    twice = change_tree(tree, random)
    return _spelled_out(yaml.safe_dump(tree, sort_keys=False), twice)


def _spelled_out(text: str, twice: str) -> bytes:
    """Put in what no writer would write."""
    text = text.replace(_TWICE, twice)
    return text.replace(f'"{_DEEP}"', _NESTED).replace(_DEEP, _NESTED).encode()


def change_tree(tree: Any, random: Random) -> str:
    """Change one to three places of a tree of dicts and lists in place.

    :param tree: as JSON gives it.
    :param random: decides.
    :return: the name that is to stand there twice, the second time under another one for now; mostly none.
    """
    twice = ""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        place = _place(tree, random)
        if place is not None:
            twice = random.choice(_CHANGES)(*place, random) or twice
    return twice


def _place(tree: Any, random: Random) -> tuple[Any, Any] | None:
    """A dict or list and a key of it: mostly of a leaf, large branches being a little more likely than small ones."""
    places = []
    while isinstance(tree, (dict, list)) and tree:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        (key,) = random.choices(keys, [1.0 + math.log2(_leaves(tree[key])) for key in keys])
        places.append((tree, key))
        tree = tree[key]
    if not places:
        return None
    return places[-1] if random.random() < 0.7 else random.choice(places)


def _leaves(tree: Any) -> int:
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return max(1, sum(map(_leaves, parts)))


def _put_value(holder: Any, key: Any, random: Random) -> None:
    holder[key] = copy.deepcopy(random.choice(VALUES))


def _change_slightly(holder: Any, key: Any, random: Random) -> None:
    """A number becomes one that is as sensible, a text a longer one, a list a shorter one."""
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, (int, float)):
        holder[key] = random.choice((value + 1, value - 1, -value, value * 2, float(value), int(value)
                                     if math.isfinite(value) else 0))  # fmt: skip
    elif isinstance(value, str):
        holder[key] = random.choice((value + "0", value[:-1], value.upper()))
    elif isinstance(value, list):
        holder[key] = value[:-1]
    else:
        holder[key] = {}


def _delete(holder: Any, key: Any, random: Random) -> None:
    del holder[key]


def _repeat(holder: Any, key: Any, random: Random) -> str:
    """A name that stands there twice, or an entry that does so twice or thousands of times."""
    if isinstance(holder, dict):
        holder[_TWICE] = copy.deepcopy(holder[key])
        return str(key)
    times = random.choice((1, 10, 10_000)) if len(str(holder[key])) < 1000 else 10
    holder[key:key] = [holder[key]] * times
    return ""


def _add(holder: Any, key: Any, random: Random) -> None:
    """Something that nobody knows, or what stands there under another name."""
    value = copy.deepcopy(random.choice((holder[key], *VALUES)))
    if isinstance(holder, dict):
        holder[random.choice(("extra", "", "a\nb", "__class__", f"{key}0", "array"))] = value
    else:
        holder.append(value)


def _swap(holder: Any, key: Any, random: Random) -> None:
    """Two values beside each other change places."""
    other = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key], holder[other] = holder[other], holder[key]


_CHANGES = (_put_value, _put_value, _put_value, _change_slightly, _change_slightly, _delete, _repeat, _add, _swap)

# -- tensors -----------------------------------------------------------------------------------------------------------

_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NUMBERS = {
    "F64": ("<d", (math.nan, math.inf, -math.inf, 1e308, -1.0, 0.0, 1e-310)),
    "F32": ("<f", (math.nan, math.inf, -math.inf, 3e38, -1.0, 0.0, 1e-40)),
    "I64": ("<q", (-1, 0, 1, 2**31, 2**32, 2**63 - 1, -(2**63))),
    "I32": ("<i", (-1, 0, 1, 2**31 - 1, -(2**31))),
    "U8": ("<B", (0, 1, 127, 255)),
    "BOOL": ("<B", (0, 1, 2, 255)),
}


@dataclass
class _Tensor:
    dtype: str
    shape: list[int]
    data: bytes


def mutate_tensors(data: bytes, random: Random) -> bytes:
    """Change one to three tensors of a safetensors file, which stays one; anything else stays as it is.

    :param data: its content.
    :param random: decides.
    """
    try:
        tensors = _tensors_of(data)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        return data
    for _ in range(random.choice((1, 1, 1, 2, 3)) if tensors else 0):
        random.choice(_TENSOR_CHANGES)(tensors, random.choice(sorted(tensors)), random)
        if not tensors:
            break
    return _file_of(tensors)


def _tensors_of(data: bytes) -> dict[str, _Tensor]:
    (size,) = struct.unpack("<Q", data[:8])
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    head.pop("__metadata__", None)
    return {
        name: _Tensor(entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in head.items()
    }


def _file_of(tensors: dict[str, _Tensor]) -> bytes:
    """As the library would write it; its reader wants the bytes to follow each other without gaps."""
    head, parts, reached = {}, [], 0
    for name, tensor in tensors.items():
        offsets = [reached, reached + len(tensor.data)]
        head[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        parts.append(tensor.data)
        reached = offsets[1]
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def _set_numbers(tensors: dict[str, _Tensor], name: str, random: Random) -> None:
    """One number, or all of them, becomes one that is hard to bear."""
    tensor = tensors[name]
    if tensor.dtype not in _NUMBERS or not tensor.data:
        return
    pattern, values = _NUMBERS[tensor.dtype]
    piece, size = struct.pack(pattern, random.choice(values)), _SIZES[tensor.dtype]
    count = len(tensor.data) // size
    if random.random() < 0.5:
        tensor.data = piece * count
    else:
        place = size * random.randrange(count)
        tensor.data = tensor.data[:place] + piece + tensor.data[place + size :]


def _set_shape(tensors: dict[str, _Tensor], name: str, random: Random) -> None:
    """Another shape, with as many bytes as it needs."""
    tensor = tensors[name]
    first, *others = tensor.shape or [1]
    shapes = ([], [0], [1, *tensor.shape], [0, *others], [first + 1, *others], [2 * first, *others], [first * 100,
              *others], tensor.shape[::-1], [math.prod(tensor.shape)], [0, 2**40])  # fmt: skip
    _resize(tensor, tensor.dtype, list(random.choice(shapes)))


def _set_dtype(tensors: dict[str, _Tensor], name: str, random: Random) -> None:
    """Another type, with as many bytes as it needs."""
    _resize(tensors[name], random.choice(sorted(_SIZES)), tensors[name].shape)


def _resize(tensor: _Tensor, dtype: str, shape: list[int]) -> None:
    length = math.prod(shape) * _SIZES.get(dtype, 1)
    times = -(-length // max(1, len(tensor.data)))
    tensor.data, tensor.dtype, tensor.shape = ((tensor.data or b"\0") * times)[:length], dtype, shape


def _rename(tensors: dict[str, _Tensor], name: str, random: Random) -> None:
    new = (f"{name}0", f"{name}.0", "", "a\nb\x1b[2J", "policy.0.exp_avg", "policy.99999999.step", "a" * 5000)
    tensors[random.choice(new)] = tensors.pop(name)


def _copy_tensor(tensors: dict[str, _Tensor], name: str, random: Random) -> None:
    """What another one holds, or the same once more under a name that nobody knows."""
    other = random.choice((*sorted(tensors), f"{name}0"))
    tensors[other] = copy.copy(tensors[name])


def _delete_tensor(tensors: dict[str, _Tensor], name: str, random: Random) -> None:
    del tensors[name]


_TENSOR_CHANGES = (_set_numbers, _set_numbers, _set_numbers, _set_shape, _set_dtype, _rename, _copy_tensor,
                   _delete_tensor)  # fmt: skip

STRUCTURED: dict[str, Mutator] = {".json": mutate_json, ".yaml": mutate_yaml, ".safetensors": mutate_tensors}
"""How what a file says is changed, by the end of its name."""


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
