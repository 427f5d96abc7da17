"""Weight normalisation (Salimans & Kingma 2016, arXiv 1602.07868) on the weights of any model."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pliant.core import keyed
from pliant.core.context import Context, joined, modes_kept, run
from pliant.core.edits import Edits, Skip
from pliant.core.errors import InputError, SettingError
from pliant.core.method import Meta, Method, Phase, Rule
from pliant.core.reparam import Parametrise, bake, chains
from pliant.core.selectors import matches, select
from pliant.core.sites import LINEAR, normalised
from pliant.nn.fold import tied
from pliant.nn.weight_norm import WeightScale
from pliant.ops.weight_norm import norm_except

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightNorm(Method):
    """w = g * v / ||v|| per output unit: the length and the direction of every weight vector are trained apart.

    where: patterns of the layers (default: all linear, convolution and recurrent layers).
    data_init: set g and the biases so that every pre-activation has mean 0 and std `init_scale` on calibration data
    (feed-forward layers only; recurrent ones keep g = ||v||). Without it the model's function is unchanged.
    direction_std: redraw the directions v from N(0, direction_std^2), 0.05 in the paper; None keeps the weights.
    """

    where: tuple[str, ...] | None = None
    data_init: bool = True
    init_scale: float = 1.0
    direction_std: float | None = None

    meta: ClassVar[Meta] = Meta(
        title="Weight normalisation",
        paper="Salimans & Kingma 2016, arXiv 1602.07868",
        summary="train the length and the direction of each weight vector apart, with data-dependent initial values",
        phase=Phase.CHAIN,
        tags=frozenset({"weight_norm", "scale_slot"}),
        layer="pliant.nn.WeightScale",
        function="changes",
        preserving={"data_init": False},
        example="mlp",
    )

    def validate(self) -> None:
        if not self.init_scale > 0:
            raise SettingError(f"WeightNorm.init_scale={self.init_scale}; expected a number above 0 (the paper: 1)")
        if self.direction_std is not None and not self.direction_std > 0:
            raise SettingError(f"WeightNorm.direction_std={self.direction_std}; expected a number above 0 or None")

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        modules = dict(model.named_modules())
        candidates = [path for path, module in modules.items() if isinstance(module, (*LINEAR, *_RECURRENT))]
        chosen = candidates if self.where is None else select(self.where, candidates, "weighted layers of this model")
        edits = Edits(skipped=[Skip(path, "not selected by where=") for path in candidates if path not in chosen])
        for path in chosen:
            for tensor in _weights(modules[path]):
                lengths = norm_except(getattr(modules[path], tensor).detach(), *_axis(modules[path]))
                zero = int((lengths == 0).sum())
                if zero == lengths.numel():
                    edits.skipped.append(Skip(path, f"{tensor} is all zero: a zero vector has no direction"))
                    continue
                if zero:
                    edits.notes.append(
                        f"{zero} of {lengths.numel()} units of {path}'s {tensor} are zero vectors, which have no "
                        "direction; they stay zero"
                    )
                edits.changes.append(self._edit(path, modules[path], tensor))
        return edits.require("linear, convolution or recurrent layer", "name the layers with where=[...]")

    def _edit(self, path: str, module: nn.Module, tensor: str) -> Parametrise:
        dim, groups = _axis(module)
        prefix = f"{path}." if path else ""
        slot = f"{prefix}parametrizations.{tensor}"
        redrawn = () if self.direction_std is None else (f"{slot}.original",)
        set_from_data = (f"{slot}.0.scale.g", f"{prefix}bias") if self.data_init else ()
        return Parametrise(
            path=path,
            tensor=tensor,
            into="scale",
            make=lambda weight: WeightScale(weight, dim=dim, groups=groups),
            detail=f"{tensor} = g * v / ||v||, one g per output unit",
            tensors=(*redrawn, *set_from_data),
        )

    def calibrate(self, model: nn.Module, ctx: Context, when: Literal["start", "end"]) -> None:
        if when != "start":
            return
        parts = [
            part
            for part in chains(model, WeightScale)
            if self.where is None or any(matches(pattern, part[0]) for pattern in self.where)
        ]
        if self.direction_std is not None:
            for path, module, tensor, _ in parts:
                original = module.parametrizations[tensor].original  # type: ignore[index,union-attr]
                draw = torch.randn(
                    original.shape,
                    generator=keyed.generator(ctx.seed, "weight_norm", path, tensor),
                    dtype=torch.float64,
                )
                with torch.no_grad():
                    original.copy_(draw * self.direction_std)
        if self.data_init:
            with torch.no_grad():
                self._initialise(model, ctx, {id(m): part for _, m, t, part in parts if t == "weight"})

    def _initialise(self, model: nn.Module, ctx: Context, parts: dict[int, nn.Module]) -> None:
        """One pass in which every layer is fixed as data reaches it; each layer's first call counts (card 09)."""
        batch = joined(ctx.calibration())
        if batch is None:
            raise SettingError(
                "WeightNorm's data_init needs data: give apply a sample or batches, or set data_init=False"
            )
        done: set[int] = set()

        def fix(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            if id(module) in done:
                return output
            done.add(id(module))
            return _standardise(module, parts[id(module)], output, self.init_scale)

        def follow(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if id(module) not in done:
                done.add(id(module))
                module.start_from(args[0])  # type: ignore[operator]

        layers = [m for m in model.modules() if id(m) in parts and isinstance(m, LINEAR)]
        # Before the hooks of sites: a normalisation on this layer must see the fixed output.
        handles = [layer.register_forward_hook(fix, prepend=True) for layer in layers]
        # Layers whose statistics came from data meet other data now; those behind them are to see the new ones.
        followers = [module for module in model.modules() if getattr(module, "from_data", False)]
        handles += [module.register_forward_pre_hook(follow) for module in followers]
        before = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            with torch.random.fork_rng(devices=[]), modes_kept(model):
                run(model.train(), batch)
        finally:
            # This pass is not training: running statistics stay as they were.
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
            for handle in handles:
                handle.remove()

    def groups(self, model: nn.Module) -> dict[nn.Parameter, Rule]:
        # On v decay only changes the effective rate: w does not depend on its length.
        return {
            module.parametrizations[tensor].original: Rule(decay=False)  # type: ignore[index,union-attr]
            for _, module, tensor, _ in chains(model, WeightScale)
        }

    def bake(self, model: nn.Module, ctx: Context) -> None:
        shared = tied(model)
        for module in dict.fromkeys(module for _, module, _, _ in list(chains(model, WeightScale))):
            bake(module, shared)


def _weights(module: nn.Module) -> list[str]:
    if not isinstance(module, _RECURRENT):
        return ["weight"]
    originals = module.parametrizations if parametrize.is_parametrized(module) else ()
    names = [name for name, _ in module.named_parameters(recurse=False)] + list(originals)  # type: ignore[arg-type]
    return sorted(name for name in names if name.startswith("weight"))


def _axis(module: nn.Module) -> tuple[int, int]:
    """The output axis of a weight and, for grouped transposed convolutions, the number of groups sharing it."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return 1, module.groups
    return 0, 1


def _standardise(module: nn.Module, part: nn.Module, output: Tensor, init_scale: float) -> Tensor:
    """g *= init_scale / sigma, b = -mu * init_scale / sigma for t = w.x without bias (card 09, general form)."""
    channel = output.dim() - 1 if isinstance(module, nn.Linear) else 1
    shape = [-1 if axis == channel else 1 for axis in range(output.dim())]
    bias = module.bias
    raw = output if bias is None else output - bias.view(shape)  # type: ignore[operator]
    axes = [axis for axis in range(output.dim()) if axis != channel]
    std, mean = torch.std_mean(raw, dim=axes, correction=0)
    if not bool(torch.isfinite(std).all()):
        raise InputError(
            "WeightNorm's data_init met NaN or inf: clean the sample or batches given to apply, or set data_init=False"
        )
    # A unit that is constant on this data has no scale to set.
    alive = std > 1e-6
    factor = torch.where(alive, init_scale / std.clamp_min(1e-6), torch.ones_like(std))
    part.multiply(factor)  # type: ignore[operator]
    if bias is None or normalised(module):
        return raw * factor.view(shape) + (0 if bias is None else bias.view(shape))  # type: ignore[operator]
    bias.copy_(-mean * factor)  # type: ignore[operator]
    return (raw - mean.view(shape)) * factor.view(shape)
