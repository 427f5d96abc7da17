from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.core.errors import InputError
from pliant.data import ArrayData, split


def dataset(counts: list[int], **parts: object) -> ArrayData:
    y = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    return ArrayData(torch.arange(float(len(y)))[:, None], y, **parts)


@settings(deadline=None)
@given(
    st.lists(st.integers(3, 40), min_size=2, max_size=5),
    st.integers(0, 2**32),
    st.floats(0.01, 0.33),
    st.floats(0.01, 0.33),
)
def test_a_stratified_partition(counts: list[int], seed: int, valid: float, test: float) -> None:
    data = dataset(counts)
    parts = split(data, seed, valid, test)
    everything = torch.cat([parts.train, parts.valid, parts.test])
    assert torch.equal(everything.sort().values, torch.arange(len(data.y)))
    for number, count in enumerate(counts):
        assert (data.y[parts.valid] == number).sum() == max(1, round(count * valid))
        assert (data.y[parts.test] == number).sum() == max(1, round(count * test))
        assert (data.y[parts.train] == number).any()
    again = split(data, seed, valid, test)
    for name in ("train", "valid", "test"):
        rows = getattr(parts, name)
        assert torch.equal(rows, rows.sort().values)
        assert torch.equal(rows, getattr(again, name))


def test_seeds_differ_and_the_global_generator_is_left_alone() -> None:
    data = dataset([50, 50])
    state = torch.get_rng_state()
    first, second = split(data, 0), split(data, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first.test, second.test)
    assert not torch.equal(first.valid, second.valid)


def test_rows_within_a_class_are_drawn_at_random() -> None:
    # Each row of a class should land in the test part about as often as any other.
    data = dataset([20, 20])
    hits = torch.zeros(40)
    for seed in range(400):
        hits[split(data, seed, 0.2, 0.3).test] += 1
    # Binomial(400, 0.3): mean 120, sd 9.2; six sd for 40 rows.
    assert (hits - 120).abs().max() < 6 * 9.2


def test_official_parts_are_kept_whole() -> None:
    x, y = torch.zeros(4, 1), torch.tensor([0, 1, 0, 1])
    data = dataset([20, 20], x_test=x, y_test=y)
    parts = split(data, 0, 0.25, 0.9)  # the test fraction is not used
    assert parts.test.tolist() == [0, 1, 2, 3]
    assert (len(parts.train), len(parts.valid)) == (30, 10)
    assert data.part("test", parts).x is data.x_test
    assert data.part("valid", parts).x is data.x
    both = dataset([20, 20], x_test=x, y_test=y, x_valid=x + 1, y_valid=y)
    parts = split(both, 0)
    assert torch.equal(parts.train, torch.arange(40))
    assert parts.valid.tolist() == [0, 1, 2, 3]
    assert both.part("valid", parts).x is both.x_valid
    assert both.part("train", parts).y is both.y


def test_a_class_too_small_is_named_with_its_count() -> None:
    with pytest.raises(InputError, match="class '1' has 2 rows, too few for one in each of 3 parts"):
        split(dataset([9, 2]), 0)
    parts = split(dataset([9, 2], x_test=torch.zeros(2, 1), y_test=[0, 1]), 0)
    assert (len(parts.train), len(parts.valid)) == (9, 2)
    with pytest.raises(InputError, match="class 'c' has 0 rows"):
        split(dataset([9, 9], classes=("a", "b", "c")), 0)
    with pytest.raises(InputError, match="class '1' has 0 rows in the official test part"):
        split(dataset([9, 9], x_test=torch.zeros(2, 1), y_test=[0, 0]), 0)
    with pytest.raises(InputError, match="class '0' has 0 rows in the official valid part"):
        split(dataset([9, 9], x_valid=torch.zeros(2, 1), y_valid=[1, 1]), 0)


@pytest.mark.parametrize(
    ("valid", "test", "message"),
    [
        (0.0, 0.2, "valid_fraction=0.0; expected a share between 0 and 1"),
        (0.1, 1.0, "test_fraction=1.0"),
        (float("nan"), 0.2, "valid_fraction=nan"),
        (0.5, 0.5, "leaves nothing to train on"),
    ],
)
def test_impossible_fractions(valid: float, test: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(dataset([9, 9]), 0, valid, test)
