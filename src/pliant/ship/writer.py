"""Writing a finished model for others to run, and proving that what was written computes the same.

pliant.export(applied.finalize(data=loader), "net.onnx", sample=x)
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pliant.core.agreement import disagreement
from pliant.core.context import Sample, arguments, modes_kept
from pliant.core.errors import FinalizeError, InputError, nearest

FORMATS = (".pt2", ".onnx")
_TOLERANCE = 1e-4
"""Allowed difference relative to the largest output: other runtimes order sums differently."""


def export(model: nn.Module, path: str | Path, sample: Any) -> Path:
    """Writes `model` in eval mode to `path`, loads it back, runs it on `sample`, and keeps it only if outputs agree.

    model: finished (`applied.finalize(...)`) or plain; a model that still holds a stack is refused.
    path: ends in .pt2 (torch.export; torch alone loads it, or, if it returns pliant.Outputs, after
    `import pliant.core.objective`) or .onnx (needs `pip install 'pliant[onnx]'`).
    sample: what the model is called with: a tensor, a tuple of arguments or a dict; its first dimension (the batch)
    stays free where the model allows it and the sample holds more than one example (of one, it is fixed to one).
    Returns the path. Raises InputError for an unknown ending, a missing package or a folder that cannot be written,
    FinalizeError when the outputs differ; nothing is left behind then.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise InputError(f"{target.name}: unknown format {target.suffix!r}; {nearest(target.suffix, FORMATS)}")
    if hasattr(model, "_pliant"):
        raise InputError("this model still holds its training stack; export what applied.finalize(...) returns")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is no folder; make it first")
    _writable(target)
    name = str(target.with_name(f".{target.stem}-{os.getpid()}{target.suffix}"))
    args, kwargs = arguments(Sample(sample))
    writer, reader = (_write_onnx, _run_onnx) if target.suffix == ".onnx" else (_write_pt2, _run_pt2)
    with modes_kept(model), torch.no_grad():
        expected = model.eval()(*args, **kwargs)
        try:
            writer(model, args, kwargs, name)
            problem = disagreement(expected, reader(name, args, kwargs), _tolerance)
            if problem is not None:
                raise FinalizeError(f"{target.name} is not the model: it {problem}; it was not kept")
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)
    return target


def _writable(target: Path) -> None:
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{target.parent} cannot be written; choose another folder")


def _program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    """The model as a graph, with a free batch dimension on every tensor input."""
    free = {0: torch.export.Dim.AUTO}

    def spec(value: Any) -> Any:
        return free if isinstance(value, Tensor) and value.dim() and value.shape[0] > 1 else None

    # By name: torch pairs a plain sequence with the arguments in the order of the forward's signature.
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return torch.export.export(model, args, kwargs or None, dynamic_shapes=tree_map(spec, dict(given)))


def _write_pt2(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
    torch.export.save(_program(model, args, kwargs), name)


def _run_pt2(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return torch.export.load(name).module()(*args, **kwargs)


def _write_onnx(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
    _need("onnx", "onnxscript", "onnxruntime")
    with warnings.catch_warnings():
        # The exporter warns of its own internals and of packages that no model here uses.
        warnings.simplefilter("ignore")
        logger = logging.getLogger("torch.onnx")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            torch.onnx.export(_program(model, args, kwargs), f=name, dynamo=True, external_data=False, verbose=False)
        finally:
            logger.setLevel(level)


def _run_onnx(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    runtime = importlib.import_module("onnxruntime")
    try:
        session = runtime.InferenceSession(name, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise FinalizeError(
            f"ONNX Runtime cannot run this model ({error}); models in float32 are safest: export model.float() with a "
            "float32 sample, or write a .pt2"
        ) from error
    tensors = [value.detach().cpu() for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    feed = {given.name: tensor.numpy() for given, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feed)]


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"writing ONNX needs {', '.join(missing)}: pip install 'pliant[onnx]'")


def _tolerance(dtype: torch.dtype) -> float:
    """Other runtimes order sums differently, and in half precision every unit of rounding is seen."""
    return max(1e-4, 10 * torch.finfo(dtype).eps)
