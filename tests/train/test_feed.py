from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pliant.core.errors import InputError
from pliant.data import ArrayData, Augment, Batches, split, statistics
from pliant.train import Task
from pliant.train.feed import Source, source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> ArrayData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (90, 3, 6, 6), generator=generator, dtype=torch.uint8)
    return ArrayData(pixels, torch.arange(90) % 3, name="images")


def take(stream: Iterator[tuple[Tensor, Tensor]], count: int) -> list[tuple[Tensor, Tensor]]:
    return [next(stream) for _ in range(count)]


def same(one: list[tuple[Tensor, Tensor]], two: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(one, two, strict=True)
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)


@pytest.mark.parametrize("scaling", ["standardise", "unit", "none"])
@pytest.mark.parametrize("augment", [None, Augment(crop=2)])
def test_batches_are_those_of_pliant_data(images: ArrayData, scaling: str, augment: Augment | None) -> None:
    task = Task(data=images, model="mlp", steps=10, batch_size=8, input=scaling, augment=augment)
    parts = split(images, 5, 0.2, 0.2)
    moments = {
        "standardise": statistics(images.x, parts.train),
        "unit": None,
        "none": (torch.zeros(1), torch.ones(1)),
    }[scaling]
    batches = Batches(images.x, images.y, 8, 7, rows=parts.train, augment=augment, normalise=moments)
    assert same(take(source(task, 5).stream(task, 7, 0), 15), take(batches.stream(), 15))


@pytest.mark.parametrize("limit", [0, 2**30])
def test_scaling_once_or_batch_by_batch_is_the_same(
    images: ArrayData, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(data=images, model="mlp", steps=10, batch_size=8, input="unit")
    expected = take(source(task, 1).stream(task, 7, 0), 9)
    monkeypatch.setattr("pliant.train.feed.SCALED_LIMIT", limit)
    fresh: Source = source.__globals__["_source"].__wrapped__(
        source.__globals__["_Keyed"]("other", images), 1, 0.2, 0.2, "unit"
    )
    assert (fresh.train.x.dtype == torch.uint8) == (limit == 0)
    assert same(take(fresh.stream(task, 7, 0), 9), expected)
    for part in ("valid", "test"):
        rows = fresh.evaluation(part, 0, 1, CPU)
        assert same(list(rows), list(source(task, 1).evaluation(part, 0, 1, CPU)))


def test_a_stream_can_start_at_any_step(make_task: Callable[..., Task]) -> None:
    task = make_task()
    data = source(task, 3)
    whole = take(data.stream(task, 9, 0), 20)
    for start in (0, 1, 4, 5, 13):
        assert same(take(data.stream(task, 9, start), 20 - start), whole[start:])
    assert not same(take(data.stream(task, 10, 0), 4), whole[:4])


def test_parts_are_disjoint_and_shared_by_seed(make_task: Callable[..., Task], blobs: ArrayData) -> None:
    parts = {
        part: torch.cat([x for x, _ in source(make_task(input="none"), 2).evaluation(part, 0, 1, CPU)])
        for part in ("valid", "test")
    }
    parts["train"] = source(make_task(input="none"), 2).train.x  # type: ignore[assignment]
    rows = torch.cat(list(parts.values()))
    assert torch.equal(rows.unique(dim=0), blobs.x.unique(dim=0))  # type: ignore[union-attr]
    assert len(rows) == len(blobs.x)


def test_shares_of_an_evaluation_cover_it_once(make_task: Callable[..., Task]) -> None:
    data = source(make_task(), 2)
    whole = torch.cat([x for x, _ in data.evaluation("valid", 0, 1, CPU)])
    shares = torch.cat([x for rank in range(4) for x, _ in data.evaluation("valid", rank, 4, CPU)])
    assert len(shares) == len(whole) and torch.equal(shares.unique(dim=0), whole.unique(dim=0))


def test_equal_datasets_share_one_source(make_task: Callable[..., Task], blobs: ArrayData) -> None:
    copy = ArrayData(blobs.x.clone(), blobs.y.clone(), name="copy")  # type: ignore[union-attr]
    assert source(make_task(), 4) is source(make_task(data=copy), 4)
    assert source(make_task(), 4) is not source(make_task(), 5)


def test_calibration_is_drawn_from_training_rows_and_can_be_read_twice(make_task: Callable[..., Task]) -> None:
    data = source(make_task(), 4)
    rows = data.sample(30, 8, 1, CPU)
    first, again = list(rows), list(rows)
    assert [len(x) for x, _ in first] == [8, 8, 8, 6] and same(first, again)
    known = {tuple(row.tolist()) for row in data.train.x}  # type: ignore[union-attr]
    assert all(tuple(row.tolist()) in known for x, _ in first for row in x)


def test_a_batch_larger_than_the_training_part_is_refused(make_task: Callable[..., Task]) -> None:
    task = make_task(batch_size=1000)
    with pytest.raises(InputError, match="lower batch_size to at most 90"):
        source(task, 0).stream(task, 0, 0)
