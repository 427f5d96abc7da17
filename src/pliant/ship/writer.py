"""Writing a finished model for others to run, and proving that what was written computes the same.

pliant.export(applied.finalize(data=loader), "net.onnx", sample=x)
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pliant.core.context import Sample, arguments
from pliant.core.errors import FinalizeError, InputError, nearest

FORMATS = (".pt2", ".onnx")
_TOLERANCE = 1e-4
"""Allowed difference relative to the largest output: other runtimes order sums differently."""


def export(model: nn.Module, path: str | Path, sample: Any) -> Path:
    """Writes `model` in eval mode to `path`, loads it back, runs it on `sample`, and keeps it only if outputs agree.

    model: finished (`applied.finalize(...)`) or plain; a model that still holds a stack is refused.
    path: ends in .pt2 (torch.export; torch alone loads it) or .onnx (needs `pip install 'pliant[onnx]'`).
    sample: what the model is called with: a tensor, a tuple of arguments or a dict; its first dimension (the batch)
    stays free where the model allows it.
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
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = model(*args, **kwargs)
        try:
            writer, reader = (_write_onnx, _run_onnx) if target.suffix == ".onnx" else (_write_pt2, _run_pt2)
            writer(model, args, kwargs, name)
            _compare(expected, reader(name, args, kwargs), target)
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)
    finally:
        model.train(was_training)
    return target


def _writable(target: Path) -> None:
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{target.parent} cannot be written; choose another folder")


def _dynamic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A free batch dimension on every tensor input."""
    free = {0: torch.export.Dim.AUTO}

    def spec(value: Any) -> Any:
        return free if isinstance(value, Tensor) and value.dim() and value.shape[0] > 1 else None

    return tuple(map(spec, args)), {key: spec(value) for key, value in kwargs.items()}


def _program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    positional, named = _dynamic(args, kwargs)
    shapes = (*positional, *named.values())
    return torch.export.export(model, args, kwargs or None, dynamic_shapes=shapes)


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
        torch.onnx.export(_program(model, args, kwargs), f=name, dynamo=True, external_data=False, verbose=False)
        logger.setLevel(level)


def _run_onnx(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(name, providers=["CPUExecutionProvider"])
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    feed = {given.name: tensor.numpy() for given, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feed)]


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"writing ONNX needs {', '.join(missing)}: pip install 'pliant[onnx]'")


def _compare(expected: Any, actual: Any, target: Path) -> None:
    for want, got in itertools.zip_longest(tree_leaves(expected), tree_leaves(actual)):
        if not isinstance(want, Tensor) or not isinstance(got, Tensor) or want.shape != got.shape:
            raise FinalizeError(f"{target.name} returns other outputs than the model; it was not kept")
        scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        worst = float((want - got).abs().max()) if want.numel() else 0.0
        if not worst <= _TOLERANCE * scale:
            raise FinalizeError(
                f"{target.name} differs from the model by {worst:.3g} (allowed {_TOLERANCE * scale:.3g}); "
                "it was not kept"
            )
