from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pliant.core.errors import CheckpointError
from pliant.train import file

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(3, dtype=torch.int64)}


def test_tensors_and_json_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "net.safetensors"
    file.write(path, TENSORS, {"note": "ünïcode", "number": 0.1})
    tensors, meta = file.read(path)
    assert torch.equal(tensors["a"], TENSORS["a"]) and torch.equal(tensors["b"], TENSORS["b"])
    assert (meta["note"], meta["number"], meta["torch"]) == ("ünïcode", 0.1, torch.__version__)
    assert [item.name for item in path.parent.iterdir()] == ["net.safetensors"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    file.write(path, {"a": torch.ones(4)}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"net\.safetensors was not written .*It needs 0\.4 MB, .* make room"):
            file.write(path, {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [item.name for item in tmp_path.iterdir()] == ["net.safetensors"]
    assert torch.equal(file.read(path)[0]["a"], torch.ones(4))


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "make room"), (errno.EROFS, "change its permissions"), (errno.EIO, "Check the")]
)
def test_errors_of_the_disk_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "net.safetensors"
    file.write(path, TENSORS, {"kept": True})
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=remedy):
        file.write(path, TENSORS, {})
    assert [item.name for item in tmp_path.iterdir()] == ["net.safetensors"]
    assert file.read(path)[1]["kept"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".net.safetensors.part").write_bytes(b"half a file")
    file.write(tmp_path / "net.safetensors", TENSORS, {})
    assert [item.name for item in tmp_path.iterdir()] == ["net.safetensors"]


def test_values_without_a_form_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no form in the file"):
        file.write(tmp_path / "net.safetensors", TENSORS, {"object": object()})
    assert not list(tmp_path.iterdir())


def test_unreadable_files_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(CheckpointError, match=r"net\.safetensors: there is no such checkpoint; check the folder"):
        file.read(path)
    file.write(path, TENSORS, {})
    with pytest.raises(CheckpointError, match=r"in that folder: net\.safetensors"):
        file.read(tmp_path / "nte.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"is damaged or no checkpoint .*name a .safetensors file"):
        file.read(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"none of pliant's records; load plain weights"):
        file.read(path)
    save_file({"a": torch.ones(1)}, path, {"pliant": json.dumps({"format": 99, "pliant": "9.0"})})
    with pytest.raises(CheckpointError, match=r"format 99 \(written by pliant 9\.0\).*reads format 1"):
        file.read(path)
