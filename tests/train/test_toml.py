from __future__ import annotations

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.train.toml import dumps

TEXTS = st.text(st.characters(blacklist_categories=("Cs",)))
SCALARS = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEXTS)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8)


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_what_is_written_is_read_back(table: dict[str, object]) -> None:
    assert tomllib.loads(dumps(table)) == table


def test_none_is_left_out_and_nan_stays() -> None:
    read = tomllib.loads(dumps({"a": None, "b": math.nan, "c": {"d": None, "e": 1}}))
    assert set(read) == {"b", "c"} and math.isnan(read["b"]) and read["c"] == {"e": 1}


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="no form for a set"):
        dumps({"a": {1}})
