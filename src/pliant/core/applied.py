"""An edited model and what its training loop and its deployment need from the stack."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from .agreement import disagreement
from .clock import STEP, Clock
from .context import Context, Sample, run
from .errors import ContractError, FinalizeError, InputError
from .gate import gates
from .method import overrides
from .migrate import check, groups, rules
from .objective import Criterion
from .report import Report
from .trace import isolated

if TYPE_CHECKING:
    from .stack import Stack

Opt = TypeVar("Opt", bound=torch.optim.Optimizer)
STAGES = ("bake", "fold", "pack")


@dataclasses.dataclass
class Binding:
    """What an edited model remembers of its stack; copied with the model."""

    stack: Stack
    report: Report
    seed: int
    clock: Clock
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def bind(model: nn.Module, sample: Any = None) -> Applied:
    """The `Applied` of a model that a stack was applied to, for instance after loading a checkpoint.

    sample: as for `Stack.apply`; only finalize without data needs it.
    """
    if not isinstance(getattr(model, "_pliant", None), Binding):
        raise ContractError(
            "this model has no stack: build it, apply the stack that the checkpoint was made with, then load the state "
            "(pliant.load(path, model) applies the file's stack and loads in one call)"
        )
    return Applied(model, sample=sample)


class Applied:
    """Handles of one edited model. model: the user's own instance; report: what was changed; stack; seed."""

    def __init__(self, model: nn.Module, *, sample: Any = None) -> None:
        self._binding = binding = typing.cast(Binding, model._pliant)
        self.model = model
        self.sample = sample
        self.stack, self.report = binding.stack, binding.report
        self.has_terms = any(overrides(method, "terms") for method in self.stack.methods)
        self.may_skip_parameters = any(method.meta.may_skip_parameters for method in self.stack.methods)
        self._context = Context(sample=sample, seed=self.seed)
        self._clock = binding.clock
        self._log = binding.log
        self._parts = {
            part: [getattr(method, part) for method in self.stack.methods if overrides(method, part)]
            for part in ("before_step", "after_step")
        }
        self._advancing = [method for method in self.stack.methods if overrides(method, "advance")]

    @property
    def seed(self) -> int:
        """Of the methods' noise."""
        return self._binding.seed

    # -- training --------------------------------------------------------------------------------------------------

    def criterion(self, base: Callable[..., Tensor]) -> Criterion:
        """loss = base(output, target) + the stack's terms (in train mode)."""
        return Criterion(self, base)

    def terms(self) -> dict[str, Tensor]:
        """The stack's scalar terms of the last training forward, by "method.term"."""
        self.mark_terms()
        return {
            f"{method.name}.{name}": term
            for method in self.stack.methods
            for name, term in method.terms(self.model).items()
        }

    def mark_terms(self) -> None:
        """Tells the clock that the loss has been taken through the stack."""
        self._clock.without_terms = 0

    def groups(self, lr: float, weight_decay: float | None = None, **defaults: Any) -> list[dict[str, Any]]:
        """Parameter groups for any torch optimizer: lr * the rules' scales, no decay where a rule says so.

        lr: base learning rate; weight_decay: of the parameters that may decay, the optimizer's own when not given;
        defaults: copied into every group.
        """
        return groups(self.model, rules(self.model, self.stack.methods), lr, weight_decay, defaults)

    def attach(self, optimizer: Opt, total_steps: int | None = None) -> Opt:
        """Runs the stack's step parts around `optimizer.step()`; returns the same optimizer.

        total_steps: length of the training, for schedules inside methods. ContractError when the optimizer was built
        for the unedited model or ignores the stack's rules.
        """
        check(optimizer, self.model, rules(self.model, self.stack.methods), stepped=bool(self._clock.stepped))
        self._context.optimizer = optimizer
        self._context.total_steps = total_steps
        if self._clock.stepped:
            self._detach(optimizer)
            self._clock.attached = id(self.model)
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)
        return optimizer

    def _detach(self, optimizer: torch.optim.Optimizer) -> None:
        """Attaching again, by `bind` perhaps, replaces the hooks: a step part must not run twice."""
        for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__self__", None)
                if isinstance(owner, Applied) and owner.model is self.model:
                    del hooks[key]

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if len(args) > 1 or kwargs:
            _refuse_closure(args[1] if len(args) > 1 else kwargs.get("closure"))
        if self._parts["before_step"] and not _overflowed(optimizer):
            self._run_step("before_step")

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._clock.without_step = 0
        if self._parts["after_step"] and not _overflowed(optimizer):
            self._run_step("after_step")

    def _run_step(self, part: str) -> None:
        ctx, before = self._now(), torch.is_grad_enabled()
        # What torch.no_grad() does, without its objects: this runs twice a step.
        torch._C._set_grad_enabled(False)
        try:
            for run_part in self._parts[part]:
                run_part(self.model, ctx)
        finally:
            torch._C._set_grad_enabled(before)

    def _now(self) -> Context:
        self._context.step = self._clock.step(self.model._buffers[STEP])  # type: ignore[arg-type]
        self._context.seed = self.seed
        return self._context

    def advance(self, batch: Any) -> None:
        """Lets methods that change the structure while training do so; call it between steps with a training batch."""
        for method in self._advancing:
            ctx = self._now()
            entry = method.advance(self.model, ctx, batch)
            if entry is not None:
                self._log.append({"method": method.name, "step": ctx.step, "entry": entry})

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the states of model and optimizer: seed and changes of `advance`, as JSON."""
        return {"seed": self.seed, "log": list(self._log)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over the seed and makes the logged changes again on a fresh model, before its values are loaded."""
        self._binding.seed = self._clock.seed = state.get("seed", self.seed)
        by_name = {method.name: method for method in self.stack.methods}
        for change in state["log"][len(self._log) :]:
            by_name[change["method"]].replay(self.model, self._context, change["entry"])
            self._log.append(change)

    def compile(self, **options: Any) -> None:
        """torch.compile in place, in the form the stack allows: the whole net, or its parts with gates in Python."""
        kinds = {method.meta.compile for method in self.stack.methods}
        if "before" in kinds:
            names = [method.name for method in self.stack.methods if method.meta.compile == "before"]
            raise ContractError(f"{', '.join(names)} cannot train compiled; finalize first, then compile the result")
        if "parts" in kinds:
            for _, forward in gates(self.model):
                forward.compile(**options)
        else:
            model = self.model

            def call(*args: Any, **kwargs: Any) -> Any:
                return model._call_impl(*args, **kwargs)

            # torch's Module.compile starts at a frame of torch.nn, which dynamo skips: of an nn.Sequential it then
            # compiles nothing, or our hooks alone. From this frame on everything is one graph.
            model._compiled_call_impl = torch.compile(call, fullgraph=True, **options)

    # -- the end ---------------------------------------------------------------------------------------------------

    def calibrate_end(self, batches: Iterable[Any]) -> None:
        """Sets statistics for evaluation from training batches, in place (population statistics of batch norms)."""
        ctx = dataclasses.replace(self._context, batches=batches)
        # Calibration runs the model in modes of its own, for which a compiled one would compile anew, or cannot.
        # Where dynamo was never loaded nothing is compiled, and asking would load it.
        loaded = "torch._dynamo" in sys.modules
        with torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext():
            for method in self.stack.methods:
                method.calibrate(self.model, ctx, "end")

    def finalize(self, data: Iterable[Any] | None = None, sample: Any = None) -> nn.Module:
        """A copy for deployment: statistics recalibrated on `data`, then baked, folded and packed, in eval mode.

        data: training batches (re-iterable), or None to keep the running statistics; sample: for the check, by default
        the one given to apply, else the first batch of data. FinalizeError when the copy does not compute what the
        model computes in eval mode.
        """
        lean = isolated(self.model)
        uncompile(lean)
        ctx = Context(sample=self.sample if sample is None else sample, batches=data, seed=self.seed)
        call = Sample(ctx.sample) if ctx.sample is not None else next(iter(data), None) if data is not None else None
        if call is None:
            raise InputError("finalize checks the result on real input: pass data=loader or sample=x")
        if data is not None:
            for method in self.stack.methods:
                method.calibrate(lean, ctx, "end")
        lean.eval()
        with torch.no_grad():
            expected = run(lean, call)
            for stage in STAGES:
                for method in self.stack.methods:
                    getattr(method, stage)(lean, ctx)
            strip(lean)
            problem = disagreement(expected, run(lean, call), _tolerance)
        if problem is not None:
            raise FinalizeError(
                f"the finished model is not the trained one in eval mode: it {problem}. If the trained one is sound, "
                "this is a fault in a method's finalize; please report it with your stack"
            )
        return lean


def strip(model: nn.Module) -> None:
    """Removes what only training needs: the clock, its buffer and the binding."""
    model.__dict__.pop("_pliant", None)
    model._buffers.pop(STEP, None)
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, Clock):
            del model._forward_pre_hooks[key]


def uncompile(model: nn.Module) -> None:
    """Takes back in-place compilation, on a copy that will be edited."""
    for module in model.modules():
        module._compiled_call_impl = None
    for _, forward in gates(model):
        forward.uncompile()


def _refuse_closure(closure: Any) -> None:
    if callable(closure):
        raise ContractError(
            "optimizer.step(closure) evaluates the loss inside the step, after the stack's step part; call step() "
            "without a closure"
        )


def _overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler found infinities: fused optimizers then step without changing anything."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _tolerance(dtype: torch.dtype) -> float:
    """1000 units of rounding, and at most a tenth: half precision would pass anything otherwise."""
    return min(1000 * torch.finfo(dtype).eps, 0.1)
