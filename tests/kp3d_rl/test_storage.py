"""Files of tensors: what the safetensors library reads of them, their sums, and what a full disk leaves."""

import errno
import hashlib
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kp3d_rl.storage import files

TENSORS = {
    "transposed": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
    "part": torch.arange(100, dtype=torch.uint8)[10:20],
    "strided": torch.arange(10, dtype=torch.int64)[::3],
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "true": torch.tensor([True, False]),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "weight": torch.nn.Parameter(torch.ones(2)),
}


def test_the_library_reads_what_was_written_and_the_sum_is_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = files.write_tensors(path, TENSORS)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = safetensors.torch.load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor.detach())
    assert list(tmp_path.iterdir()) == [path]


def test_the_order_of_names_does_not_matter(tmp_path: Path) -> None:
    backwards = dict(reversed(TENSORS.items()))
    assert files.write_tensors(tmp_path / "a", TENSORS) == files.write_tensors(tmp_path / "b", backwards)


@pytest.mark.parametrize("content", ["bytes", "tensors"])
def test_a_file_too_large_says_so_and_the_old_one_stands(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as raised:
            if content == "bytes":
                files.write_whole(path, bytes(2000))
            else:
                files.write_tensors(path, {"a": torch.zeros(500)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file", ".file.partial"])
def test_links_are_replaced_and_not_followed(tmp_path: Path, name: str) -> None:
    """Whoever prepared the folder must not have a file elsewhere overwritten."""
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.write_text("precious")
    (tmp_path / name).symlink_to(elsewhere)
    files.write_tensors(path, {"a": torch.ones(1)})
    assert elsewhere.read_text() == "precious" and path.is_file() and not path.is_symlink()
