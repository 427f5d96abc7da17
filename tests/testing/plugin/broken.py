"""Gains with one fault each; the docstring of a class says what is wrong with it."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from gain import Gain, GainLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pliant.core import keyed
from pliant.core.context import Context
from pliant.core.edits import Edit, Edits
from pliant.core.method import Meta, Rule
from pliant.core.sites import attached, detach


def meta(**changes: Any) -> Meta:
    return dataclasses.replace(Gain.meta, **changes)


class PlanMutates(Gain):
    """Its plan freezes a weight of the user's model."""

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        next(model.parameters()).requires_grad_(False)
        return super().plan(model, ctx)


class PlanDraws(Gain):
    """Its plan draws from the global generator."""

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        torch.rand(())
        return super().plan(model, ctx)


class Silent(Gain):
    """It says nothing when it changes nothing."""

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        try:
            return super().plan(model, ctx)
        except ValueError:
            return Edits()


class Undeclared(Gain):
    """It sets a bias that no edit declares."""

    def calibrate(self, model: nn.Module, ctx: Context, when: Literal["start", "end"]) -> None:
        super().calibrate(model, ctx, when)
        if when == "start":
            list(model.parameters())[-1].data.zero_()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinitialise(Edit):
    """Exchanges the parameter of the output layer."""

    def apply(self, model: nn.Module) -> None:
        model.out.weight = nn.Parameter(model.out.weight.detach().clone())


class LosesParameter(Gain):
    """It exchanges a parameter under the same name, at a place that its report does not tell."""

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        edits = super().plan(model, ctx)
        edits.changes.append(Reinitialise(path="fc1", detail="nothing much"))
        return edits


class GlobalNoise(Gain):
    """Its noise comes from the global generator."""

    class Layer(GainLayer):
        def draw(self, x: Tensor) -> Tensor:
            return torch.rand_like(x)

    layer = Layer


class IgnoresSeed(Gain):
    """Its noise has a key, but the run's seed is no part of it."""

    class Layer(GainLayer):
        def draw(self, x: Tensor) -> Tensor:
            return keyed.uniform(x.shape, keyed.derive(0, "gain"), self.step, dtype=x.dtype)

    layer = Layer


class ForgetsClock(Gain):
    """Its noise follows a count of its own, which no checkpoint holds."""

    class Layer(GainLayer):
        count = 0

        def draw(self, x: Tensor) -> Tensor:
            self.count += 1
            return keyed.uniform(x.shape, self.key, self.count, dtype=x.dtype)

    layer = Layer


class LosesState(Gain):
    """A running level steers training and is kept in a buffer that is not saved."""

    class Layer(GainLayer):
        def __init__(self, features: int, noise: float, key: int) -> None:
            super().__init__(features, noise, key)
            self.register_buffer("level", torch.ones(features), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.level.lerp_(x.detach().abs().mean(0), 0.1)
            return super().forward(x) / self.level

    layer = Layer


class ClosedOver(Gain):
    """Its layer calls a function that keeps the first layer, so copies run the original's gain."""

    class Layer(GainLayer):
        def __init__(self, features: int, noise: float, key: int) -> None:
            super().__init__(features, noise, key)
            self.run = lambda x: x * self.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.run(x)

    layer = Layer


class NotOff(Gain):
    """Its off-setting leaves the noise on."""

    meta = meta(off={"penalty": 0.0})


class NotPreserving(Gain):
    """It doubles what the net computes and says that it preserves it."""

    meta = meta(function="preserves", settings={"start": 2.0, "noise": 0.0}, preserving=None)


class ChangesNothing(Gain):
    """It says that it changes the function, and does not."""

    meta = meta(settings={"noise": 0.0})


class Narrow(Gain):
    """It keeps a level in float32 whatever it is given."""

    class Layer(GainLayer):
        def __init__(self, features: int, noise: float, key: int) -> None:
            super().__init__(features, noise, key)
            self.register_buffer("level", torch.ones(features))

        def forward(self, x: Tensor) -> Tensor:
            self.level = torch.ones(x.shape[-1])
            return super().forward(x)

    layer = Layer


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum(0) / 2


class WrongGradient(Gain):
    """Its backward returns half the gradient of the gain."""

    class Layer(GainLayer):
        def forward(self, x: Tensor) -> Tensor:
            return _Half.apply(x, self.weight)

    layer = Layer


class NoisyEvaluation(Gain):
    """It adds its noise in evaluation too."""

    class Layer(GainLayer):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight * (1 + self.noise * (self.draw(x) - 0.5))

    layer = Layer


class MixesInEvaluation(Gain):
    """In evaluation an example's output depends on the others in its batch."""

    class Layer(GainLayer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - x.mean(0)

    layer = Layer


class NotExact(Gain):
    """Micro-batches and processes draw their own noise, and it says that they equal the whole batch."""

    meta = meta(accumulation="exact", processes="exact")


class HalfStatistics(Gain):
    """Under autocast its running level becomes a half-precision tensor."""

    class Layer(GainLayer):
        def __init__(self, features: int, noise: float, key: int) -> None:
            super().__init__(features, noise, key)
            self.register_buffer("level", torch.ones(features))

        def forward(self, x: Tensor) -> Tensor:
            self.level = x.detach().mean(0)
            return super().forward(x)

    layer = Layer


class StrayRule(Gain):
    """It gives a rule for a tensor that is no parameter of the model."""

    def groups(self, model: nn.Module) -> dict[nn.Parameter, Rule]:
        return {**super().groups(model), nn.Parameter(torch.zeros(1)): Rule(decay=False)}


class Unwatched(Gain):
    """It takes the missing criterion back from the watch, so that its term is never asked for."""

    def on_forward(self, model: nn.Module, ctx: Context) -> None:
        super().on_forward(model, ctx)
        model._pliant.clock.without_terms = 0


class WrongFold(Gain):
    """It drops the gain instead of folding it."""

    def fold(self, model: nn.Module, ctx: Context) -> None:
        for _, layer, name, _ in attached(model, GainLayer):
            detach(layer, name)


class LeavesHook(Gain):
    """The finished net still runs a hook of its own."""

    def fold(self, model: nn.Module, ctx: Context) -> None:
        super().fold(model, ctx)
        model.register_forward_hook(lambda module, args, output: output)


class SpoilsOriginal(Gain):
    """Folding calls a function that keeps the trained model's layer."""

    class Layer(GainLayer):
        def __init__(self, features: int, noise: float, key: int) -> None:
            super().__init__(features, noise, key)
            self.finish = lambda: self.weight.mul_(0.5)

    layer = Layer

    def fold(self, model: nn.Module, ctx: Context) -> None:
        for layer in self.layers(model):
            layer.finish()
        super().fold(model, ctx)


@torch.library.custom_op("gain_test::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


twice.register_autograd(lambda ctx, gradient: gradient * 2)


class ForeignOp(Gain):
    """The finished net calls an operator that only this package has."""

    class Layer(GainLayer):
        def forward(self, x: Tensor) -> Tensor:
            return twice(super().forward(x)) / 2

    layer = Layer

    def fold(self, model: nn.Module, ctx: Context) -> None:
        """Leaves everything where it is."""


class HostNoise(Gain):
    """It draws on the host, once per forward, which a whole graph cannot hold."""

    def on_forward(self, model: nn.Module, ctx: Context) -> None:
        for layer in self.layers(model):
            layer.noise = keyed.host_uniform(ctx.seed, "gain", ctx.step) / 2


class Callable(Gain):
    """It lets itself be called like a layer."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        return None


class UnknownExample(Gain):
    """It names an example net that does not exist."""

    meta = meta(example="mpl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Untyped(Gain):
    """It takes anything for a setting."""

    strength: Any = 1.0
    meta: ClassVar[Meta] = meta()


class Unsociable(Gain):
    """It cannot live with parametrised weights and does not declare it."""

    def on_forward(self, model: nn.Module, ctx: Context) -> None:
        if any(parametrize.is_parametrized(module) for module in model.modules()):
            raise RuntimeError("what is this chain doing here")
        super().on_forward(model, ctx)
