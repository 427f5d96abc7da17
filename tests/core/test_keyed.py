"""Keyed randomness against the published Philox vectors, a Python-integer Philox, and the distributions promised."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.core import keyed

ONES = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10 of Salmon et al. 2011 in unbounded integers."""
    c, k = counter, key
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = ((p1 >> 32) ^ c[1] ^ k[0], p1 & ONES, (p0 >> 32) ^ c[3] ^ k[1], p0 & ONES)
        k = ((k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES)
    return c


def tensors(counter: tuple[int, int, int, int]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([word]) for word in counter)


# Known answers of the Random123 distribution, philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES, ONES, ONES, ONES), (ONES << 32) | ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_known_answers(counter: tuple[int, int, int, int], key: int, expected: str):
    words = keyed._philox(tensors(counter), key)
    assert " ".join(f"{int(word):08x}" for word in words) == expected
    assert " ".join(f"{word:08x}" for word in philox(counter, (key & ONES, key >> 32))) == expected


words = st.integers(0, ONES)


@given(counter=st.tuples(words, words, words, words), key=st.integers(0, 2**63 - 1))
def test_any_counter_and_key_equals_unbounded_integers(counter: tuple[int, int, int, int], key: int):
    got = tuple(int(word) for word in keyed._philox(tensors(counter), key))
    assert got == philox(counter, (key & ONES, key >> 32))


@settings(max_examples=25)
@given(count=st.integers(0, 23), key=st.integers(0, 2**63 - 1), step=st.integers(0, 2**62), rank=st.integers(0, 9))
def test_uniform_is_the_documented_formula(count: int, key: int, step: int, rank: int):
    expected = []
    for i in range(count):
        block = philox((i // 4, rank, step & ONES, step >> 32), (key & ONES, key >> 32))
        expected.append((block[i % 4] >> 8) / 2**24)
    assert keyed.uniform((count,), key, step, rank=rank).tolist() == expected
    assert keyed.uniform((count,), key, torch.tensor(step), rank=rank, dtype=torch.float64).tolist() == expected


def test_shape_only_arranges_the_numbers():
    flat = keyed.uniform((24,), 5, 1)
    assert torch.equal(keyed.uniform((2, 3, 4), 5, 1), flat.view(2, 3, 4))
    assert keyed.uniform((), 5, 1).shape == ()


def test_uniform_is_uniform():
    # 2^16 numbers: the largest gap between empirical and true distribution has a 1e-6 quantile of 2.69 / sqrt(n).
    drawn = keyed.uniform((2**16,), keyed.derive(0, "test"), 0).double().sort().values
    grid = torch.arange(1, 2**16 + 1, dtype=torch.float64) / 2**16
    assert float((drawn - grid).abs().max()) < 2.69 / 256
    assert float(drawn.min()) >= 0 and float(drawn.max()) < 1


def test_steps_ranks_and_keys_do_not_correlate():
    base = keyed.uniform((4096,), 11, 0) - 0.5
    for other in (keyed.uniform((4096,), 11, 1), keyed.uniform((4096,), 11, 0, rank=1), keyed.uniform((4096,), 12, 0)):
        # Under independence the mean of the products has standard deviation (1/12) / sqrt(n).
        assert abs(float((base * (other - 0.5)).mean())) < 5 / 12 / 64


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, "a"), (0, "b")), ((0, "a", "b"), (0, "ab")), ((0, "1"), (0, 1)), ((1, 2), (12,)), ((0, "a"), (0, "a", "a"))],
)
def test_different_names_give_different_keys(one: tuple, other: tuple):
    assert keyed.derive(*one) != keyed.derive(*other)


def test_keys_are_stable_63_bit_numbers():
    # By coreutils: printf "int:0\\x1fstr:order\\x1fint:3" | b2sum -l 64, read little-endian, halved. Stored studies
    # depend on it.
    assert keyed.derive(0, "order", 3) == 1855528780364446383
    assert all(0 <= keyed.derive(seed, "x") < 2**63 for seed in range(100))


def test_host_uniforms_are_blake2b_of_step_and_block():
    """The definition written out with hashlib, across a page's end and past one block."""
    key = keyed.derive(5, "gates").to_bytes(8, "little")
    for step in (0, 63, 64, 1000):
        words = []
        for block in (0, 1):
            message = step.to_bytes(8, "little") + block.to_bytes(8, "little")
            digest = hashlib.blake2b(message, key=key).digest()
            words += [int.from_bytes(digest[at : at + 8], "little") for at in range(0, 64, 8)]
        expected = [word // 2**11 / 2**53 for word in words[:11]]
        assert list(keyed.host_uniforms(11, 5, "gates", step)) == expected


def test_host_draws_are_uniform_and_move_with_everything():
    drawn = [u for name in "abcd" for step in range(500) for u in keyed.host_uniforms(3, 0, name, step)]
    drawn += [keyed.host_uniform(0, "gate", block, step) for block in range(4) for step in range(500)]
    assert len(set(drawn)) == 8000
    assert abs(sum(drawn) / 8000 - 0.5) < 5 / math.sqrt(12 * 8000)
    assert all(0 <= u < 1 for u in drawn)


def test_generators_repeat_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first = torch.rand(5, generator=keyed.generator(7, "init", "fc"))
    assert torch.equal(first, torch.rand(5, generator=keyed.generator(7, "init", "fc")))
    assert not torch.equal(first, torch.rand(5, generator=keyed.generator(8, "init", "fc")))
    assert torch.equal(before, torch.get_rng_state())


def test_uniform_compiles_as_one_graph():
    key = keyed.derive(0, "compiled")
    compiled = torch.compile(lambda step: keyed.uniform((7,), key, step), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.tensor(9)), keyed.uniform((7,), key, 9))
