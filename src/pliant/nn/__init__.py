"""Layers, under the names a PyTorch user expects."""

from pliant.nn.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from pliant.nn.batchless_norm import BatchlessNorm
from pliant.nn.recalibrate import recalibrate
from pliant.nn.stochastic_depth import StochasticDepth
from pliant.nn.weight_norm import WeightScale, from_torch_names, to_torch_names

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchlessNorm",
    "StochasticDepth",
    "WeightScale",
    "from_torch_names",
    "recalibrate",
    "to_torch_names",
]
