"""Every error names the cause and the remedy; bad input has exit code 2."""

from __future__ import annotations

import inspect

import pytest

from pliant.core import errors
from pliant.core.errors import ContractError, FinalizeError, InputError, PliantError, nearest


def test_nearest_offers_close_spellings_first():
    assert nearest("weight_nrom", ["batch_norm", "weight_norm"]).startswith("did you mean 'weight_norm'")


def test_nearest_lists_everything_when_nothing_is_close():
    assert nearest("xyz", ["b", "a", "a"]) == "choose from: a, b"


def test_nearest_has_an_answer_for_an_empty_list():
    assert nearest("x", []) == "there is nothing to choose from"


def test_bad_input_exits_with_2_and_is_a_value_error():
    kinds = [k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, PliantError)]
    assert len(kinds) >= 8
    for kind in kinds:
        assert kind.exit_code == (2 if issubclass(kind, InputError) else 1)
        assert issubclass(kind, ValueError) == issubclass(kind, InputError)


@pytest.mark.parametrize("kind", [ContractError, FinalizeError])
def test_a_faulty_loop_is_no_bad_input(kind: type[PliantError]):
    assert not issubclass(kind, InputError)
