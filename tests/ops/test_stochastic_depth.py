"""Survival schedules against the paper's figures and timm's rule."""

from __future__ import annotations

import numpy as np
import pytest

from pliant.core.errors import InputError
from pliant.ops.stochastic_depth import expected_active, survival


def test_paper_schedule_of_resnet_110():
    chances = survival(54)
    np.testing.assert_allclose(chances, 1 - np.arange(1, 55) / 54 * 0.5, rtol=1e-15)
    assert chances[-1] == 0.5 and chances[0] < 1
    assert expected_active(chances) == 40.25


@pytest.mark.parametrize("blocks", [1, 2, 15, 54])
@pytest.mark.parametrize("p_last", [0.2, 0.5, 1.0])
def test_expected_number_of_active_blocks(blocks, p_last):
    expected = blocks - (blocks + 1) * (1 - p_last) / 2
    assert expected_active(survival(blocks, p_last)) == pytest.approx(expected, rel=1e-14)
    assert expected_active(survival(blocks, p_last, "uniform")) == pytest.approx(blocks * p_last)


@pytest.mark.parametrize("blocks", [2, 9])
def test_timm_schedule_is_a_linspace_of_drop_rates(blocks):
    chances = survival(blocks, 0.7, "timm")
    np.testing.assert_allclose(chances, 1 - np.linspace(0, 0.3, blocks), rtol=1e-14)
    assert chances[0] == 1
    assert chances[:-1] != survival(blocks, 0.7)[:-1]


def test_timm_schedule_never_drops_an_only_block():
    assert survival(1, 0.5, "timm") == (1.0,)


def test_a_list_is_taken_as_it_is():
    assert survival(2, schedule=[1, 0.25]) == (1.0, 0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), r"at least one residual block"),
        ((3, 1.2), r"outside \[0, 1\].*1 - drop rate"),
        ((2, 0.5, [0.5, -0.1]), r"block 2 of 2 has survival probability -0.1"),
        ((2, 0.5, [0.5, float("nan")]), r"probability nan"),
        ((3, 0.5, [0.5]), r"lists 1 survival probabilities for 3"),
        ((3, 0.5, "papper"), r"did you mean 'paper'"),
    ],
)
def test_errors_name_cause_and_remedy(arguments, message):
    with pytest.raises(InputError, match=message):
        survival(*arguments)


def test_a_block_that_never_trains_is_told_of():
    with pytest.warns(UserWarning, match="block 2 of 2 .* never trained"):
        assert survival(2, 0.0) == (0.5, 0.0)
