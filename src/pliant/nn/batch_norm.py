"""Batch norm layers: torch's own, with a guard against batches that would poison the running statistics."""

from __future__ import annotations

import math
import warnings
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core.errors import InputError
from pliant.ops._channels import require_channels
from pliant.ops.batch_norm import require_two_values


class _GuardedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What the public classes share; they only differ in the input ranks they take."""

    skipped_batches: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        frozen: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        device = None if self.running_mean is None else self.running_mean.device
        # Not persistent: the state dict stays torch's own.
        self.register_buffer("skipped_batches", torch.zeros((), dtype=torch.int64, device=device), persistent=False)
        self._told = False
        self._spare: tuple[Tensor, Tensor, Tensor] | None = None
        self.frozen = False
        if frozen:
            self.freeze()

    def freeze(self) -> Self:
        """Normalise with the running statistics from now on, in training too; `model.train()` does not undo it.

        weight and bias stay trainable. Raises InputError for a layer without running statistics.
        """
        if self.running_mean is None:
            raise InputError(
                f"{type(self).__name__}({self.num_features}) has no running statistics to be frozen with: "
                "build it with track_running_stats=True"
            )
        self.frozen = True
        return self

    def unfreeze(self) -> Self:
        """Go back to batch statistics in training."""
        self.frozen = False
        return self

    def train(self, mode: bool = True) -> Self:
        """As in torch.nn.Module; also the moment to tell of skipped batches where telling at once would cost a sync."""
        counted = self.skipped_batches
        if not self._told and type(counted) is Tensor and not counted.is_meta and int(counted):
            self._tell()
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if input.shape[1] != self.num_features or not input.is_floating_point():
            require_channels(input, self.num_features, owner=type(self).__name__)
        # Straight from the dictionary: this forward has a few microseconds to spare beside torch's.
        mean = self._buffers["running_mean"]
        if mean is not None and (self.frozen or not self.training):
            return F.batch_norm(input, mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if input.numel() == input.shape[1]:
            require_two_values(input, type(self).__name__)
        # An empty batch says nothing about the statistics.
        if mean is None or not self.track_running_stats or not input.numel():
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        if type(input) is Tensor and input.is_cpu and not torch.compiler.is_compiling():
            return self._track_on_host(input, mean)
        return self._track_on_device(input, mean)

    def _track_on_host(self, input: Tensor, mean: Tensor) -> Tensor:
        """Let torch write into the running statistics, look at them, and put the old ones back if need be."""
        var, tracked = self._buffers["running_var"], self._buffers["num_batches_tracked"]
        spare = self._spare
        if spare is None or spare[0].shape != mean.shape or spare[0].dtype != mean.dtype:
            # Kept between forwards: allocating anew costs ten times the copies.
            spare = self._spare = (mean.clone(), var.clone(), torch.zeros_like(mean))
        old_mean, old_var, zeros = spare
        old_mean.copy_(mean)
        old_var.copy_(var)
        momentum = 1.0 / (float(tracked) + 1.0) if self.momentum is None else self.momentum
        # What F.batch_norm comes to on the CPU, after checks that have been made.
        output, _, _ = torch.native_batch_norm(input, self.weight, self.bias, mean, var, True, momentum, self.eps)
        # 0 * x is 0 or NaN, and a variance is not finite whenever its mean is not: one cheap look at both.
        if var.dot(zeros).item() == 0.0:
            tracked.add_(1)
        else:
            # Through .data, or a backward still to come (gradient scaling runs one) would refuse the changed buffers.
            mean.data.copy_(old_mean)
            var.data.copy_(old_var)
            self.skipped_batches.add_(1)
            self._tell()
        return output

    def _track_on_device(self, input: Tensor, mean: Tensor) -> Tensor:
        """The same without waiting for the device, and as one graph for the compiler."""
        var, tracked = self.running_var, self.num_batches_tracked
        new_mean, new_var = mean.clone(), var.clone()
        momentum = 1.0 if self.momentum is None else self.momentum
        output = F.batch_norm(input, new_mean, new_var, self.weight, self.bias, True, momentum, self.eps)
        if self.momentum is None:
            share = 1.0 / (tracked + 1).to(mean.dtype)
            new_mean, new_var = torch.lerp(mean, new_mean, share), torch.lerp(var, new_var, share)
        finite = new_var.amax() < math.inf
        torch.where(finite, new_mean, mean, out=mean)
        torch.where(finite, new_var, var, out=var)
        tracked.add_(finite)
        self.skipped_batches.add_(~finite)
        return output

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            warnings.warn(
                f"{type(self).__name__}({self.num_features}) saw a batch whose statistics are not finite (NaN or inf "
                "in its input, or loaded into its running statistics) and left its running statistics as they were; "
                "`skipped_batches` counts such batches. Look for a diverging loss or bad input; under gradient "
                "scaling a few are normal",
                RuntimeWarning,
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        return super().extra_repr() + (", frozen=True" if self.frozen else "")


class BatchNorm1d(_GuardedBatchNorm, nn.BatchNorm1d):
    """y = weight * (x - mu) / sqrt(var + eps) + bias over (N, C) or (N, C, T), per channel (Ioffe & Szegedy 2015).

    torch.nn.BatchNorm1d with the same arguments, state dict and results (mu, var: the batch's in training, the running
    statistics in evaluation), and two additions:

    * a batch whose statistics are not finite, or which is empty, leaves the running statistics and
      `num_batches_tracked` as they were. Such a batch is counted in `skipped_batches` (not in the state dict), and
      the first one is told of: at once on the CPU, at the next `train()` or `eval()` elsewhere and under torch.compile,
      so that no forward waits for the device;
    * `frozen=True` or `freeze()`: evaluation statistics while training, until `unfreeze()`, whatever `train()` says.

    num_features: C. eps: added to the variance, 1e-5. momentum: weight of the NEW value in the running statistics,
    0.1 (1 - decay in TensorFlow's and Keras's terms); None for their plain mean. affine, track_running_stats, device,
    dtype, bias: as in torch.

    Raises InputError (a ValueError) for one value per channel in training, another number of channels, integer input.
    """


class BatchNorm2d(_GuardedBatchNorm, nn.BatchNorm2d):
    """Batch norm over (N, C, H, W), statistics over N, H and W; all else as in `BatchNorm1d`."""


class BatchNorm3d(_GuardedBatchNorm, nn.BatchNorm3d):
    """Batch norm over (N, C, D, H, W), statistics over N, D, H and W; all else as in `BatchNorm1d`."""


class BatchNorm(_GuardedBatchNorm):
    """Batch norm over (N, C, *positions) of any rank from 2 up; all else as in `BatchNorm1d`.

    >>> BatchNorm(3)(torch.zeros(2, 3)).shape, BatchNorm(3)(torch.zeros(2, 3, 4, 5)).shape
    (torch.Size([2, 3]), torch.Size([2, 3, 4, 5]))
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            require_channels(input, self.num_features, owner=type(self).__name__)
