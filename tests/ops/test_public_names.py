"""The functions' public names, and the examples in their docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest

import pliant.functional

MODULES = [
    "pliant.ops.batch_norm",
    "pliant.ops.weight_norm",
    "pliant.ops.batchless_norm",
    "pliant.ops.stochastic_depth",
    "pliant.nn.batch_norm",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    examples = doctest.DocTestFinder().find(module, extraglobs={"torch": importlib.import_module("torch")})
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    assert runner.tries > 0 and runner.failures == 0


def test_public_functions_are_documented():
    for name in pliant.functional.__all__:
        value = getattr(pliant.functional, name)
        assert isinstance(value, float) or value.__doc__
