"""One .safetensors file with JSON in its metadata, replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pliant._version import __version__
from pliant.core.errors import CheckpointError

FORMAT = 1
"""Version of the file's layout."""
_KEY = "pliant"


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Writes tensors and JSON to a hidden file beside `path`, forces it to disk, then renames it.

    Whatever interrupts this, `path` holds the old checkpoint or the new one. CheckpointError when the disk is full, the
    folder cannot be written to, or a value is none that the file can hold.
    """
    path = Path(path)
    head = {"format": FORMAT, "pliant": __version__, "torch": torch.__version__, **meta}
    # safetensors refuses shared and strided memory; copies are independent of the running model too.
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        data = save(whole, {_KEY: json.dumps(head)})
    except (TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} was not written: a value has no form in the file ({error})") from error
    # One fixed name: what a killed process left is overwritten by the next save.
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(_explain(error, path, len(data))) from error


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON of a checkpoint. CheckpointError when it is missing, damaged, foreign or newer."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; {_beside(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise CheckpointError(
                    f"{path} holds tensors but none of pliant's records; load plain weights with "
                    "model.load_state_dict(safetensors.torch.load_file(path))"
                )
            meta = json.loads(text)
            if meta.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} has checkpoint format {meta.get('format')} (written by pliant {meta.get('pliant')}); this "
                    f"is pliant {__version__}, which reads format {FORMAT}: install the version that wrote it"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is damaged or no checkpoint of pliant's ({error}); name a .safetensors file that pliant wrote, "
            "or restore a copy"
        ) from error


def _sync_folder(folder: Path) -> None:
    """The rename itself is on disk only when the folder is; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(path: Path) -> str:
    others = sorted(item.name for item in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
    return f"in that folder: {', '.join(others[:5])}" if others else "check the folder and the name"


def _explain(error: OSError, path: Path, size: int) -> str:
    start = f"{path} was not written ({error.strerror or error}); what was there before is untouched. "
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            return (
                f"{start}It needs {size / 1e6:.1f} MB, {free / 1e6:.1f} MB are free: make room or choose another disk"
            )
        return f"{start}It needs {size / 1e6:.1f} MB: make room or choose another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{start}The folder {path.parent} cannot be written to: change its permissions or choose another folder"
    return f"{start}Check the folder {path.parent} or choose another one"
