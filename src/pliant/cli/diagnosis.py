"""What `pliant doctor` finds out about a model, as data."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import shutil
from typing import TYPE_CHECKING, Any

from pliant.core.errors import InputError, NoMatchError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pliant.core.method import Method
    from pliant.core.report import Report

BATCH = 8
"""Examples in the batch the model is tried on."""
PLACES = 4
"""So many places are named in a line; more are counted."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One method on this model. state: "applies", "no match", "refused" or "broken"; lines: the whole story."""

    name: str
    state: str
    brief: str
    lines: list[str]
    report: dict[str, Any] | None = None


@dataclasses.dataclass
class Diagnosis:
    """facts: checks of the model itself; faults: what is broken, in words; pairs: declared for methods that apply."""

    model: str
    input_shape: tuple[int, ...]
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)
    methods: list[Finding] = dataclasses.field(default_factory=list)
    pairs: list[dict[str, str]] = dataclasses.field(default_factory=list)
    backend: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether the model or a method fails."""
        return bool(self.faults)

    def kind(self, one: str, other: str) -> str:
        """What is declared about two methods: "refused", "note" or "" for nothing."""
        kinds = {p["kind"] for p in self.pairs if {p["first"], p["second"]} == {one, other}}
        return "refused" if "refused" in kinds else "note" if kinds else ""

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "broken": self.broken}


def diagnose(model: str, input_shape: tuple[int, ...], classes: int) -> Diagnosis:
    """Builds the model, tries it on a random batch, plans every registered method on it, and pairs those that fit."""
    import torch

    from pliant.core import keyed, registry
    from pliant.models import build

    found = Diagnosis(model, input_shape, backend=_backend())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed.derive(0, "init"))
        net = build(model, input_shape=input_shape, classes=classes)
        batch = torch.randn(BATCH, *input_shape, generator=keyed.generator(0, "doctor"))
        try:
            _try(net, batch, found)
        except Exception as error:
            shape = "×".join(map(str, batch.shape))
            found.faults.append(
                f"the model fails on a float batch of shape {shape} ({type(error).__name__}: {error}); "
                "give the shape of one example with --input-shape, or fix its forward"
            )
            return found
        made: dict[str, Method] = {}
        for name in registry.names():
            finding, method = _plan(name, net, batch)
            found.methods.append(finding)
            if finding.state == "applies" and method is not None:
                made[name] = method
            if finding.state == "broken":
                found.faults.append(f"{name}: {finding.brief}")
    found.pairs = _pairs(made)
    return found


def _try(net: nn.Module, batch: Tensor, found: Diagnosis) -> None:
    """Forward, backward, and how far training and evaluation are apart."""
    import torch

    from pliant.core.trace import isolated

    twin = isolated(net).train()
    output = twin(batch)
    main = output if torch.is_tensor(output) else getattr(output, "main", None)
    if not torch.is_tensor(main):
        raise TypeError(f"its forward returned a {type(output).__name__}, expected a tensor (or pliant.Outputs)")
    parameters = [(name, p) for name, p in twin.named_parameters() if p.requires_grad]
    found.facts["trainable parameters"] = f"{sum(p.numel() for _, p in parameters):,}"
    found.facts["output"] = "×".join(map(str, main.shape))
    main.float().square().mean().backward()
    idle = [name for name, p in parameters if p.grad is None]
    found.facts["gradients"] = f"none reaches {', '.join(idle[:5])}" if idle else "reach every parameter"
    values = [main, *(p.grad for _, p in parameters if p.grad is not None)]
    if not all(bool(torch.isfinite(value).all()) for value in values):
        found.faults.append("outputs or gradients on standard normal inputs are not finite: check the initial weights")
    with torch.no_grad():
        evaluated = isolated(net).eval()(batch)
    evaluated = evaluated if torch.is_tensor(evaluated) else evaluated.main
    same = bool(torch.equal(evaluated, main))
    found.facts["train against eval"] = "same outputs" if same else "other outputs, as with batch norm or dropout"


def _plan(name: str, net: nn.Module, batch: Tensor) -> tuple[Finding, Method | None]:
    from pliant.core import registry
    from pliant.core.stack import Stack

    method = None
    try:
        method = registry.get(name)()
        report = Stack(method).plan(net, sample=batch)
    except NoMatchError as error:
        return Finding(name, "no match", _first_clause(error), [str(error)]), method
    except InputError as error:
        return Finding(name, "refused", _first_clause(error), [str(error)]), method
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Finding(name, "broken", text, [text]), method
    changed = report.changed()
    skipped = sum(entry.kind == "skip" for entry in report.entries)
    brief = f"{len(changed)} change{'' if len(changed) == 1 else 's'}"
    if skipped:
        brief += f", {skipped} place{'' if skipped == 1 else 's'} left alone"
    return Finding(name, "applies", brief, _grouped(report), report.to_json()), method


def _first_clause(error: Exception) -> str:
    return str(error).partition(" (")[0].partition(";")[0]


def _grouped(report: Report) -> list[str]:
    """A report with one line for all places that have the same done to them."""
    places: dict[tuple[str, str], list[str]] = {}
    for entry in report.entries:
        places.setdefault((entry.kind, entry.detail), []).append(entry.path or "(the model)")
    lines = []
    for (kind, detail), paths in places.items():
        few = len(paths) <= PLACES
        where = ", ".join(paths if few else [*paths[: PLACES - 1], f"... {len(paths)} places"])
        lines.append(f"{where}: {'left alone: ' if kind == 'skip' else ''}{detail}")
    before, after = report.parameters
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"trainable parameters: {before:,}" + (f" → {after:,}" if after != before else " (unchanged)"))
    return lines


def _pairs(methods: dict[str, Method]) -> list[dict[str, str]]:
    from pliant.core.stack import conflicts

    declared = (pair for a, b in itertools.combinations(methods.values(), 2) for pair in conflicts(a, b))
    return [dataclasses.asdict(pair) for pair in declared]


def _backend() -> dict[str, str]:
    import torch

    compiler = next(
        (path for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (path := shutil.which(name))),
        None,
    )
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "GPU": gpu,
        "C++ compiler": compiler or "not found: compiled kernels are off, torch's own operations run",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    }
