from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.core import keyed
from pliant.core.errors import InputError
from pliant.data import Augment, Batches, ImageFiles, in_order, standardise, statistics
from pliant.data.batches import Batch

X = torch.randint(0, 256, (23, 3, 6, 5), dtype=torch.uint8, generator=keyed.generator(0, "x"))
Y = torch.arange(23)
AUGMENT = Augment(crop=2, flip=True)


def equal(ours: list[Batch], expected: list[Batch]) -> bool:
    return len(ours) == len(expected) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(ours, expected, strict=True)
    )


def full(seed: int = 3, **options: object) -> Batches:
    return Batches(X, Y, 4, seed, augment=AUGMENT, normalise=statistics(X), **options)


def test_a_batch_is_what_its_keys_say() -> None:
    batches = full()
    for epoch, index in itertools.product(range(3), range(5)):
        order = torch.randperm(23, generator=keyed.generator(3, "order", epoch))
        rows = order[4 * index : 4 * index + 4]
        cropped = AUGMENT(X[rows], keyed.generator(3, "augment", epoch, index))
        x, y = batches.batch(epoch, index)
        assert torch.equal(x, standardise(cropped, statistics(X)))
        assert torch.equal(y, rows)


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 4))
def test_resumes_anywhere_to_the_same_bits(epoch: int, index: int) -> None:
    uninterrupted = [batch for k in range(5) for batch in full().epoch(k)]
    step = 5 * epoch + index
    assert equal(list(full().epoch(epoch, start=index)), uninterrupted[step : 5 * epoch + 5])
    assert equal(list(itertools.islice(full().stream(step), 5)), uninterrupted[step : step + 5])
    assert equal([full().step(step)], uninterrupted[step : step + 1])


def test_order_of_asking_and_other_readers_do_not_matter() -> None:
    batches = full()
    forward = [batches.step(k) for k in range(10)]
    backward = [batches.step(k) for k in reversed(range(10))]
    assert equal(forward, backward[::-1])
    first, second = batches.epoch(0), batches.epoch(1)
    interleaved = [next(iterator) for _ in range(5) for iterator in (first, second)]
    assert equal(interleaved[0::2] + interleaved[1::2], forward)


def test_seeds_and_epochs_differ_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    orders = {tuple(y.tolist()) for seed in range(3) for k in range(3) for _, y in [full(seed).batch(k, 0)]}
    assert torch.equal(state, torch.get_rng_state())
    assert len(orders) == 9


@settings(deadline=None)
@given(st.integers(1, 23), st.integers(1, 23), st.booleans())
def test_every_row_once_an_epoch(count: int, size: int, drop_last: bool) -> None:
    rows = torch.arange(23)[:count].flip(0)
    if drop_last and count < size:
        with pytest.raises(InputError, match=f"{count} rows do not fill one batch of {size}"):
            Batches(X, Y, size, 0, rows=rows, drop_last=drop_last)
        return
    batches = Batches(X, Y, size, 0, rows=rows, drop_last=drop_last)
    seen = [y for _, y in batches.epoch(0)]
    sizes = [len(y) for y in seen]
    assert len(batches) == len(seen)
    assert len(set(torch.cat(seen).tolist())) == sum(sizes)
    assert set(torch.cat(seen).tolist()) <= set(rows.tolist())
    if drop_last:
        assert sizes == [size] * (count // size)
    else:
        assert sum(sizes) == count
        assert set(sizes[:-1]) <= {size}
        # No batch of one row, unless one row a batch is what was asked for or all there is.
        assert sizes[-1] > 1 or size == 1 or count == 1
        assert sizes[-1] <= size + 1


def test_dropped_rows_change_from_epoch_to_epoch() -> None:
    batches = full()
    dropped = {
        tuple(sorted(set(range(23)) - set(torch.cat([y for _, y in batches.epoch(k)]).tolist()))) for k in range(9)
    }
    assert len(dropped) > 1


def test_batches_never_write_into_the_data() -> None:
    vectors = torch.rand(10, 4, generator=keyed.generator(1))
    before = vectors.clone()
    for x, _ in Batches(vectors, torch.arange(10), 5, 0, normalise=statistics(vectors)).epoch(0):
        x.zero_()
    for x, _ in in_order(vectors, torch.arange(10), 10):
        x.zero_()
    assert torch.equal(vectors, before)


def test_in_order() -> None:
    moments = statistics(X)
    rows = torch.tensor([7, 2, 9, 4, 0])
    parts = list(in_order(X, Y, 2, rows=rows, normalise=moments))
    assert [y.tolist() for _, y in parts] == [[7, 2], [9, 4], [0]]
    assert torch.equal(torch.cat([x for x, _ in parts]), standardise(X[rows], moments))
    assert torch.equal(torch.cat([y for _, y in in_order(X, Y, 100)]), Y)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y[:-1], 4), {}, "x has 23 rows but y has 22"),
        ((X, Y, 0), {}, "batch_size=0; expected at least 1"),
        ((X, Y, 4), {"rows": Y[:0], "drop_last": False}, "0 rows do not fill one batch"),
        ((X.flatten(1), Y, 4), {"augment": AUGMENT}, "augment needs images"),
        ((X, Y, 4), {"augment": Augment(crop=5)}, "could move a 6x5 image out of sight; use a crop below 5"),
    ],
)
def test_bad_settings(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batches(*arguments, 0, **options)


def test_no_such_batch() -> None:
    with pytest.raises(IndexError, match="batch 5 of an epoch of 5"):
        full().batch(0, 5)


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    image_module = pytest.importorskip("PIL.Image")
    for k, pixels in enumerate(X.permute(0, 2, 3, 1).numpy()):
        image_module.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{k}.png")
    return ImageFiles(tuple(tmp_path / f"{k}.png" for k in range(23)), 3, 6, 5)


def test_images_on_disk_give_the_same_bits_as_in_memory(files: ImageFiles) -> None:
    moments = statistics(files)
    assert all(torch.equal(a, b) for a, b in zip(moments, statistics(X), strict=True))
    options = {"rows": Y[2:], "augment": AUGMENT, "normalise": moments, "drop_last": False}
    lazy, held = Batches(files, Y, 4, 3, **options), Batches(X, Y, 4, 3, **options)
    state = torch.get_rng_state()
    assert equal(list(lazy.epoch(1, start=2)), list(held.epoch(1, start=2)))
    assert equal(list(itertools.islice(lazy.stream(4), 4)), list(itertools.islice(held.stream(4), 4)))
    assert equal([lazy.step(7)], [held.step(7)])
    assert equal(list(in_order(files, Y, 9, normalise=moments)), list(in_order(X, Y, 9, normalise=moments)))
    assert torch.equal(state, torch.get_rng_state())


def test_a_damaged_image_is_named_by_the_loaders_worker(files: ImageFiles) -> None:
    files.paths[11].write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"^[^\n]*11\.png cannot be read as an image[^\n]*$"):
        list(Batches(files, Y, 4, 3, drop_last=False).epoch(0))
