from __future__ import annotations

import numpy as np
import pytest
import torch

from pliant.core import keyed
from pliant.data import standardise, statistics


@pytest.mark.parametrize("shape", [(2500, 3, 4, 5), (2500, 7), (3, 1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_against_numpy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, shape, generator=keyed.generator(0, *shape)).to(dtype)
    mean, std = statistics(x)
    axes = (0, 2, 3) if len(shape) == 4 else (0,)
    values = x.numpy().astype(np.float64)
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean, values.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(std, values.std(axes), rtol=1e-6)


def test_only_the_given_rows_count() -> None:
    x = torch.rand(20, 3, generator=keyed.generator(1))
    rows = torch.tensor([3, 5, 11])
    changed = x.clone()
    changed[[k for k in range(20) if k not in rows.tolist()]] = 1e9
    for ours, expected in zip(statistics(changed, rows), statistics(x[rows]), strict=True):
        assert torch.equal(ours, expected)


def test_a_large_mean_does_not_swallow_the_spread() -> None:
    # In float32, E[x^2] - E[x]^2 would lose all digits, though float32 resolves 1/16 at 2^14 well.
    x = 2.0**14 + torch.randint(0, 2, (5000, 1), generator=keyed.generator(4)).float() / 16
    np.testing.assert_allclose(statistics(x)[1], x.double().std(0, correction=0), rtol=1e-5)


def test_constant_features_become_zero() -> None:
    x = torch.tensor([[0.1, 0.0, 1.0], [0.1, 0.0, 2.0], [0.1, 0.0, 3.0]])
    moments = statistics(x)
    assert moments[1][:2].tolist() == [1.0, 1.0]
    out = standardise(x, moments)
    assert out[:, :2].abs().max() < 1e-7
    assert out.isfinite().all()
    # Another unit is not another amount: small values with a real spread keep it.
    np.testing.assert_allclose(statistics(x * 1e-9)[1][2], statistics(x)[1][2] * 1e-9, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_standardise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, shape, generator=keyed.generator(2)).to(dtype)
    before = x.clone()
    mean, std = 100 * torch.rand(2, shape[1], generator=keyed.generator(5)) + 1
    wide = (-1,) + (1,) * (len(shape) - 2)
    out = standardise(x, (mean, std))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, (x.float() - mean.reshape(wide)) / std.reshape(wide), rtol=1e-5, atol=1e-4)
    plain = standardise(x, None)
    assert torch.equal(plain, x / 255 if dtype == torch.uint8 else x)
    plain.zero_()
    assert torch.equal(x, before)


def test_own_constants_give_mean_zero_and_std_one() -> None:
    x = torch.randint(0, 256, (500, 3, 4, 4), dtype=torch.uint8, generator=keyed.generator(3))
    mean, std = statistics(standardise(x, statistics(x)))
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones(3), rtol=0, atol=1e-5)
