"""Against a loop over images written from the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.core import keyed
from pliant.core.errors import SettingError
from pliant.data import Augment


def one_by_one(x: torch.Tensor, augment: Augment, generator: torch.Generator) -> torch.Tensor:
    edge = augment.crop
    _, channels, height, width = x.shape
    out = torch.empty_like(x)
    for n, (top, left, mirrored) in enumerate(zip(*augment.draw(len(x), generator), strict=True)):
        padded = torch.zeros(channels, height + 2 * edge, width + 2 * edge, dtype=x.dtype)
        padded[:, edge : edge + height, edge : edge + width] = x[n]
        image = padded[:, int(top) : int(top) + height, int(left) : int(left) + width]
        out[n] = image.flip(2) if mirrored else image
    return out


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.sampled_from([1, 3]),
    st.integers(5, 9),
    st.integers(5, 9),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from([torch.uint8, torch.float32]),
    st.integers(0, 1000),
)
def test_equals_the_loop(
    count: int, channels: int, height: int, width: int, crop: int, flip: bool, dtype: torch.dtype, seed: int
) -> None:
    x = torch.randint(0, 256, (count, channels, height, width), generator=keyed.generator(seed, "x")).to(dtype)
    before = x.clone()
    augment = Augment(crop=crop, flip=flip)
    out = augment(x, keyed.generator(seed, "a"))
    assert out.dtype == dtype
    assert torch.equal(out, one_by_one(x, augment, keyed.generator(seed, "a")))
    assert torch.equal(x, before)


def test_a_batch_that_is_a_view() -> None:
    x = torch.arange(2 * 3 * 6 * 7, dtype=torch.uint8).reshape(2, 6, 7, 3).permute(0, 3, 1, 2)
    assert torch.equal(Augment(2)(x, keyed.generator(0)), Augment(2)(x.contiguous(), keyed.generator(0)))


def test_nothing_to_do_changes_nothing() -> None:
    x = torch.rand(5, 3, 6, 6)
    assert torch.equal(Augment(crop=0, flip=False)(x, keyed.generator(0)), x)


def test_draws_cover_their_range_evenly() -> None:
    top, left, mirrored = Augment(crop=2).draw(20000, keyed.generator(0))
    for shift in (top, left):
        # Binomial(20000, 1/5): mean 4000, sd 57; five sd.
        assert (shift.bincount(minlength=5) - 4000).abs().max() < 5 * 57
    assert abs(int(mirrored.sum()) - 10000) < 5 * 71
    assert not Augment(flip=False).draw(100, keyed.generator(0))[2].any()


def test_negative_crop() -> None:
    with pytest.raises(SettingError, match=r"Augment\(crop=-1\)"):
        Augment(crop=-1)
