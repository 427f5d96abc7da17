"""The papers' formulae as functions, under public names."""

from pliant.ops.batch_norm import batch_norm
from pliant.ops.batchless_norm import (
    Moments,
    batchless_norm,
    combine_moments,
    floor_std,
    gaussian_nll,
    moments,
    natural_gradient,
)
from pliant.ops.bn_init import SIGMA_ACT
from pliant.ops.stochastic_depth import expected_active, survival
from pliant.ops.weight_norm import norm_except, weight_norm

__all__ = [
    "SIGMA_ACT",
    "Moments",
    "batch_norm",
    "batchless_norm",
    "combine_moments",
    "expected_active",
    "floor_std",
    "gaussian_nll",
    "moments",
    "natural_gradient",
    "norm_except",
    "survival",
    "weight_norm",
]
