"""Stochastic depth as a layer for networks written by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pliant.core import keyed
from pliant.core.errors import SettingError, nearest
from pliant.nn.recompute import recomputing
from pliant.ops.stochastic_depth import survival

MODES = ("batch", "row")
SCALES = ("test", "train", "none")


class StochasticDepth(nn.Module):
    """b * f in training, p * f in evaluation, for a residual branch's output f, b ~ Bernoulli(p) (Huang et al. 2016).

        return x + self.depth(self.branch(x))       # self.depth = StochasticDepth(0.8, block=3)

    The branch is computed all the same, so this saves no time; the method `pliant.StochasticDepth` also skips it.

    p: the chance to SURVIVE, in [0, 1] (torchvision's and timm's layers take the drop rate 1 - p); p = 1 returns the
    input. `pliant.functional.survival` gives the schedules. mode: "batch", one b for the batch (the paper), or
    "row", one for each entry of axis 0. scale:

    * "test" (the paper): b f in training, p f in evaluation;
    * "train" (inverted; torchvision, timm): b f / p in training, f in evaluation;
    * "none": b f in training, f in evaluation.

    block: this layer's own number or name, unlike that of every other layer in the network; seed: of the run.
    The gate is a function of (seed, block, step, row), drawn from no generator: equal on all ranks for mode="batch",
    of its own on every rank for "row", and the same after a resume. step, the number of training forwards so far, is
    an int64 buffer in the state dict. Recomputation by torch.utils.checkpoint takes the gate of the latest forward:
    run each backward before the next forward, or leave this layer outside what is checkpointed.
    """

    step: Tensor

    def __init__(self, p: float, mode: str = "batch", scale: str = "test", *, block: int | str, seed: int = 0) -> None:
        super().__init__()
        if mode not in MODES:
            raise SettingError(f"unknown mode {mode!r} of StochasticDepth: {nearest(mode, MODES)}")
        if scale not in SCALES:
            raise SettingError(f"unknown scale {scale!r} of StochasticDepth: {nearest(scale, SCALES)}")
        (self.p,) = survival(1, p, "uniform")
        self.mode, self.scale, self.block, self.seed = mode, scale, block, seed
        self._key = keyed.derive(seed, "stochastic_depth", block)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        """input: floating, any shape; for mode="row" its axis 0 holds the examples."""
        if self.p == 1.0:
            return input
        if not self.training:
            return input * self.p if self.scale == "test" else input
        output = input / self.p if self.scale == "train" and self.p > 0 else input
        # Selected, not multiplied: a closed gate also stops NaN and inf.
        return torch.where(self._draw(input), output, 0.0)

    def _draw(self, input: Tensor) -> Tensor:
        shape = (1,) * input.dim()
        rank = 0
        if self.mode == "row":
            shape = (input.shape[0], *shape[1:])
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                rank = torch.distributed.get_rank()
        if recomputing():
            return keyed.uniform(shape, self._key, self.step - 1, rank=rank) < self.p
        gate = keyed.uniform(shape, self._key, self.step, rank=rank) < self.p
        self.step.add_(1)
        return gate

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode!r}, scale={self.scale!r}, block={self.block!r}, seed={self.seed}"
