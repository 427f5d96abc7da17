"""Two outputs agree up to rounding, whatever structure they come in."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import pliant
from pliant.core.agreement import disagreement

ONE = torch.ones(2, 3)


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    name: str = "answer"


def told(expected: Any, actual: Any, tolerance: float = 1e-3) -> str | None:
    return disagreement(expected, actual, lambda dtype: tolerance)


@pytest.mark.parametrize(
    "output",
    [
        ONE,
        (ONE, [ONE, None]),
        {"a": ONE, "b": "name"},
        Answer(ONE),
        pliant.Outputs(ONE, (2 * ONE,)),
        torch.distributions.Normal(ONE, ONE),
        torch.tensor([float("inf"), float("-inf"), 1.0]),
        torch.tensor([True, False]),
        torch.arange(3),
        torch.tensor([1 + 2j]),
        torch.empty(0, 3),
    ],
    ids=lambda output: type(output).__name__,
)
def test_an_output_agrees_with_itself(output: Any):
    assert told(output, output) is None


@pytest.mark.parametrize(
    ("expected", "actual", "problem"),
    [
        (ONE, ONE + 0.01, r"differs by 0.01 (allowed 0.001)"),
        (100 * ONE, 100 * ONE + 0.2, r"differs by 0.2 (allowed 0.1)"),
        (Answer(ONE), Answer(ONE + 1), "differs by 1 (allowed 0.001)"),
        (pliant.Outputs(ONE, (ONE,)), pliant.Outputs(ONE, (-ONE,)), "differs by 2 (allowed 0.001)"),
        (torch.tensor([float("inf"), 1.0]), torch.tensor([2.0, 1.0]), "differs by inf (allowed 0.001)"),
        (torch.tensor([float("inf"), 1.0]), torch.tensor([float("nan"), 1.0]), "differs by nan (allowed 0.001)"),
        (torch.tensor([True, True]), torch.tensor([True, False]), "differs in 50% of a bool output (allowed 10%)"),
        (torch.arange(3), torch.arange(3) + 1, "differs in 100% of a int64 output (allowed 10%)"),
        (ONE, ONE[:1], "returns (1, 3) instead of (2, 3)"),
        ((ONE, ONE), (ONE,), "returns nothing instead of (2, 3)"),
        ((ONE,), (ONE, ONE), "returns (2, 3) instead of nothing"),
    ],
)
def test_differences_are_told(expected: Any, actual: Any, problem: str):
    assert told(expected, actual) == problem


def test_nan_agrees_with_nothing():
    nan = torch.full((2,), float("nan"))
    assert "compared with NaN" in str(told(nan, nan))


def test_ties_of_whole_numbers_are_forgiven():
    actual = torch.zeros(20, dtype=torch.int64)
    actual[0] = 1
    assert told(torch.zeros(20, dtype=torch.int64), actual) is None
