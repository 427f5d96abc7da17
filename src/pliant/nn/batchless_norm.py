"""Batchless normalisation as a layer."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core.errors import ContractError, InputError
from pliant.nn.batch_norm import BatchNorm
from pliant.nn.recompute import recomputing
from pliant.ops._channels import require_channels
from pliant.ops.batchless_norm import Moments, batchless_norm, combine_moments, floor_std, gaussian_nll, moments


class BatchlessNorm(nn.Module):
    """y = weight * (x - sg(mean)) * sg(exp(-log_std)) + bias, with statistics learnt by likelihood.

    Berger & Uc Cetina 2022. Works at any batch size, the same in training and evaluation. `mean` and `log_std` are
    parameters that the task's loss does not reach (sg stops its gradient); add every layer's `nll()` to the loss, with
    weight 1:

        loss = F.cross_entropy(net(x), y) + sum(m.nll() for m in net.modules() if isinstance(m, BatchlessNorm))

    A training forward with gradients enabled leaves the detached moments of its input in buffers (not in the state
    dict), from which `nll()` is computed; `collected` says whether there are any. Several forwards before one `nll()`
    are counted together, so a layer used twice averages by element count; the first forward after `nll()` or
    `reset_moments()` starts afresh. Recomputation by torch.utils.checkpoint (use_reentrant=False) does not count.

    num_features: C. channel_dim: the channel axis, 1 for (N, C, *positions), -1 for sequences (N, T, C). affine: have
    weight (starts at 1) and bias (0). gauge: let a perfect fit read nll() = 0; changes no gradient.
    mean starts at 0, log_std at 0; better, start from data: `layer.set_statistics(moments(x))` with x the layer's
    input. Use Adam, or natural gradients (`pliant.functional.natural_gradient`) with SGD; keep mean and log_std out of
    weight decay. Parameters should stay float32 or wider; the input may be half precision.
    """

    mean: nn.Parameter
    log_std: nn.Parameter
    moment_n: Tensor
    moment_mean: Tensor
    moment_var: Tensor

    def __init__(
        self,
        num_features: int,
        channel_dim: int = 1,
        affine: bool = True,
        gauge: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.channel_dim, self.gauge = num_features, channel_dim, gauge
        self.mean = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.log_std = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if affine else None
        self.register_buffer("moment_n", torch.zeros((), device=device, dtype=torch.int64), persistent=False)
        self.register_buffer("moment_mean", torch.zeros_like(self.mean.detach()), persistent=False)
        self.register_buffer("moment_var", torch.zeros_like(self.mean.detach()), persistent=False)
        self.collected = False
        self._read = False
        # Whether its statistics came from data; a method that then changes what reaches it calls `start_from` again.
        self.from_data = False

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: floating, C in axis `channel_dim`. mask: bool, x's shape without that axis; False leaves a position out of
        the moments (it is normalised all the same)."""
        output = self._normalise(x)
        if self.training and torch.is_grad_enabled():
            if not recomputing():
                self._collect(moments(x, self.channel_dim, mask))
            elif not self.collected:
                raise ContractError(
                    f"BatchlessNorm({self.num_features}) is run again by torch.utils.checkpoint, which ran it without "
                    "gradients the first time, so the likelihood is missing from the loss: use use_reentrant=False"
                )
        return output

    def _normalise(self, x: Tensor) -> Tensor:
        promoted = x.dtype.itemsize > self.mean.dtype.itemsize
        if x.dim() < 2 or self.channel_dim % x.dim() != 1 or promoted:
            return batchless_norm(x, self.mean, self.log_std, self.weight, self.bias, self.channel_dim)
        # The same affine map as torch's fused evaluation of batch norm, which takes a quarter of the operators.
        require_channels(x, self.num_features, owner="batchless_norm")
        var = (2.0 * self.log_std.detach()).exp()
        return F.batch_norm(x, self.mean.detach(), var, self.weight, self.bias, False, 0.0, 0.0)

    def nll(self) -> Tensor:
        """The layer's term of the loss, a scalar: `pliant.functional.gaussian_nll` of the collected moments.

        0 when they held nothing (an empty batch, or everything masked). Raises ContractError when there were none.
        """
        if not self.collected:
            raise ContractError(
                f"BatchlessNorm({self.num_features}) has no moments to compute its likelihood from: call nll() after "
                "a forward in training mode with gradients enabled, not in eval mode, under no_grad or before any "
                "forward "
                "(with torch.utils.checkpoint use use_reentrant=False)"
            )
        self._read = True
        nll = gaussian_nll(self.moment_mean, self.moment_var, self.mean, self.log_std, self.gauge)
        return torch.where(self.moment_n > 0, nll, 0.0)

    def reset_moments(self) -> None:
        """Forget the moments; the next training forward starts afresh."""
        self.collected = self._read = False

    @torch.no_grad()
    def set_statistics(self, found: Moments) -> Self:
        """mean <- found.mean, log_std <- log(floor_std(sqrt(found.var))): start from data.

        found: `pliant.functional.moments` of the layer's input on calibration data; of several batches, joined by
        `pliant.functional.combine_moments`.
        After it that input has mean 0 and variance 1, constant channels apart, whose deviation is floored.
        """
        if not int(found.n):
            raise InputError(
                "the moments hold no values, so there is no mean to start from: give some calibration data"
            )
        if not bool(torch.isfinite(found.var).all()):
            raise InputError("the moments are not finite: the calibration data holds NaN or inf; clean it first")
        self.mean.copy_(found.mean)
        self.log_std.copy_(floor_std(found.var.sqrt()).log())
        return self

    def start_from(self, x: Tensor) -> Self:
        """`set_statistics` from the layer's input."""
        self.from_data = True
        return self.set_statistics(moments(x, self.channel_dim))

    @torch.no_grad()
    def reset_statistics(self, mean: Tensor, std: Tensor) -> Self:
        """(mu, sigma) -> (mean, std) with the function kept: weight *= std/sigma, bias += weight_old (mean - mu)/sigma.

        mean, std: (C,), std > 0. Raises InputError for affine=False, which has nothing to make up with.
        """
        if self.weight is None or self.bias is None:
            raise InputError(
                f"BatchlessNorm({self.num_features}, affine=False) cannot keep its function under other statistics: "
                "build it with affine=True, or set mean and log_std and accept the change"
            )
        if not bool((std > 0).all()):
            raise InputError(f"std must be positive, found {float(std.min())}: apply pliant.functional.floor_std first")
        inverse = (-self.log_std).exp()
        self.bias.add_(self.weight * (mean - self.mean) * inverse)
        self.weight.mul_(std * inverse)
        self.mean.copy_(mean)
        self.log_std.copy_(std.log())
        return self

    @classmethod
    def from_batch_norm(cls, norm: nn.modules.batchnorm._BatchNorm, gauge: bool = True) -> Self:
        """The layer that computes what `norm` computes in evaluation.

        mean = running_mean, exp(log_std) = sqrt(running_var + eps), weight and bias as they are.
        """
        if norm.running_mean is None or norm.running_var is None:
            raise InputError(
                f"{type(norm).__name__}({norm.num_features}) has no running statistics to take over: "
                "convert a batch norm built with track_running_stats=True"
            )
        affine = norm.weight is not None or norm.bias is not None
        layer = cls(norm.num_features, affine=affine, gauge=gauge).to(norm.running_mean)
        with torch.no_grad():
            layer.mean.copy_(norm.running_mean)
            layer.log_std.copy_((norm.running_var.double() + norm.eps).log() / 2)
            for target, source in ((layer.weight, norm.weight), (layer.bias, norm.bias)):
                if target is not None and source is not None:
                    target.copy_(source)
        return layer.train(norm.training)

    def to_batch_norm(self, eps: float = 1e-5) -> BatchNorm:
        """The batch norm that computes in evaluation what this layer computes: running_var = exp(2 log_std) - eps.

        eps: the batch norm's; lowered where a variance is not above it. Raises InputError unless channels are axis 1.
        """
        if self.channel_dim != 1:
            raise InputError(
                f"a batch norm's channels are axis 1, this layer's are axis {self.channel_dim}: "
                "fold the layer into the linear map before it instead"
            )
        with torch.no_grad():
            variance = (2.0 * self.log_std.double()).exp()
            smallest = float(variance.min())
            eps = eps if eps < smallest else smallest / 2
            norm = BatchNorm(self.num_features, eps, affine=self.weight is not None).to(self.mean)
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(variance - eps)
            for target, source in ((norm.weight, self.weight), (norm.bias, self.bias)):
                if target is not None and source is not None:
                    target.copy_(source)
        return norm.train(self.training)

    def _collect(self, found: Moments) -> None:
        if self.collected and not self._read:
            found = combine_moments(Moments(self.moment_n, self.moment_mean, self.moment_var), found)
        self.collected, self._read = True, False
        self.moment_n.copy_(found.n)
        self.moment_mean.copy_(found.mean)
        self.moment_var.copy_(found.var)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, channel_dim={self.channel_dim}, affine={self.weight is not None}, gauge={self.gauge}"
        )
