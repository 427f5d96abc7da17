"""Whether two models gave the same answer, up to rounding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def disagreement(expected: Any, actual: Any, tolerance: Callable[[torch.dtype], float]) -> str | None:
    """How `actual` differs from `expected`, in words that follow "it ..."; None when it does not.

    tolerance: allowed difference by dtype, relative to 1 and to the largest finite value. Infinities must stand at the
    same places; NaN agrees with nothing; of whole numbers and truth values a tenth may differ, since rounding decides
    ties.

    >>> disagreement((torch.ones(2), "name"), (torch.ones(2), "name"), lambda dtype: 1e-6)
    >>> disagreement(torch.ones(2), torch.zeros(2), lambda dtype: 0.5)
    'differs by 1 (allowed 0.5)'
    """
    for want, got in itertools.zip_longest(_tensors(expected), _tensors(actual)):
        if want is None or got is None or want.shape != got.shape:
            told = ["nothing" if one is None else str(tuple(one.shape)) for one in (got, want)]
            return f"returns {told[0]} instead of {told[1]}"
        if not (want.is_floating_point() or want.is_complex()):
            share = float((want != got).double().mean()) if want.numel() else 0.0
            if share > 0.1:
                return f"differs in {share:.0%} of a {str(want.dtype).removeprefix('torch.')} output (allowed 10%)"
            continue
        finite = want[want.isfinite()].abs()
        allowed = tolerance(want.dtype) * max(1.0, float(finite.max()) if finite.numel() else 1.0)
        if bool(want.isnan().any()):
            return "was to be compared with NaN: the model has diverged, or the sample is bad"
        apart = (want - got)[want != got].abs()
        worst = float(apart.max()) if apart.numel() else 0.0
        if not worst <= allowed:
            return f"differs by {worst:.3g} (allowed {allowed:.3g})"
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of an output, in dataclasses and plain objects too."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not callable(leaf):
            yield from _tensors(list(vars(leaf).values()))
