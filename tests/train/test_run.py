from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pliant.core.errors import InputError
from pliant.core.registry import get
from pliant.core.stack import Stack
from pliant.data import Augment
from pliant.train import Optimizer, RunRecord, Schedule, Task, fit, reopen, run, time_step
from pliant.train.feed import source
from pliant.train.file import read, write
from pliant.train.session import Session, process


def test_a_record_tells_the_run(make_task: Callable[..., Task]) -> None:
    task = make_task(optimizer=Optimizer(lr=0.3, momentum=0.9))
    record = run(task, [get("batch_norm")()], seed=4, lr=0.1, arm="bn", phase="compare", test=True)
    assert isinstance(record, RunRecord)
    assert (record.arm, record.phase, record.seed, record.lr, record.salt) == ("bn", "compare", 4, 0.1, "")
    assert (record.steps, record.status, record.threads) == (40, "ok", 1)
    assert record.curve["step"] == [10, 20, 30, 40]
    assert (
        record.best_valid == max(record.curve["valid_score"]) and record.final_valid == record.curve["valid_score"][-1]
    )
    assert record.final_valid > 0.6 and record.test_score is not None and record.test_score > 0.6
    assert "batch_norm" in record.changes and record.stack[0]["method"] == "batch_norm"
    assert record.parameters == 5 * 12 + 2 * 12 + 12 * 3 + 3
    assert record.seconds > 0
    assert RunRecord.from_json(record.to_json()) == record


def test_base_runs_have_no_changes_and_leave_the_test_set_alone(make_task: Callable[..., Task]) -> None:
    record = run(make_task())
    assert (record.changes, record.stack, record.test_score) == ("", [], None)


@pytest.mark.parametrize("methods", [[], ["batch_norm"], ["weight_norm"]])
def test_the_same_keys_give_the_same_run(make_task: Callable[..., Task], methods: list[str]) -> None:
    stack = Stack.from_json(methods)
    first, again = (run(make_task(), stack, seed=3, test=True) for _ in range(2))
    assert first.same(again)
    assert not first.same(run(make_task(), stack, seed=5, test=True))


def test_arms_share_weights_order_and_split_and_salts_share_only_the_split(make_task: Callable[..., Task]) -> None:
    task = make_task()
    with process(task):
        base = Session(task, Stack(), 3, None, "")
        arm = Session(task, Stack(get("batch_norm")()), 3, None, "")
        salted = Session(task, Stack(), 3, None, "again")
        assert torch.equal(base.model.fc1.weight, arm.model.fc1.weight)  # type: ignore[union-attr, arg-type]
        assert torch.equal(next(base.loop(0).feed)[0], next(arm.loop(0).feed)[0])
        assert not torch.equal(base.model.fc1.weight, salted.model.fc1.weight)  # type: ignore[union-attr, arg-type]
        assert not torch.equal(next(base.loop(0).feed)[0], next(salted.loop(0).feed)[0])
        assert base.applied.seed == arm.applied.seed != salted.applied.seed
        assert base.source is salted.source is source(task, 3)


def test_a_run_disturbs_neither_generator_nor_threads(make_task: Callable[..., Task]) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    run(make_task(threads=threads + 1))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    torch.manual_seed(12)
    assert run(make_task()).same(run(make_task()))


def test_rates_follow_schedule_and_scales(make_task: Callable[..., Task]) -> None:
    task = make_task(schedule=Schedule(name="cosine", warmup=0.25), optimizer=Optimizer(lr=0.5))
    with process(task):
        session = Session(task, Stack(), 0, 0.2, "")
        session.optimizer.param_groups[0]["lr_scale"] = 3.0
        loop = session.loop(0)
        for step in (0, 5, 10, 25, 39):
            loop.run(step, step + 1)
            assert session.optimizer.param_groups[0]["lr"] == pytest.approx(0.6 * task.schedule.factor(step, 40))


def test_divergence_scores_the_worst(make_task: Callable[..., Task]) -> None:
    deep = {"name": "mlp", "hidden": [12, 12], "activation": "relu"}
    task = make_task(model=deep, steps=200, eval_every=200, optimizer=Optimizer(lr=1e30), worst_score=0.125)
    record = run(task, test=True)
    assert (record.status, record.steps) == ("diverged", 50)
    assert (record.best_valid, record.final_valid, record.test_score) == (0.125, 0.125, 0.125)
    assert record.curve["valid_loss"][-1] is None


def test_accumulation_of_a_whole_run_is_the_big_batch(make_task: Callable[..., Task]) -> None:
    whole, split = (run(make_task(accumulate=parts)) for parts in (1, 3))
    assert split.curve["train_loss"] == pytest.approx(whole.curve["train_loss"], rel=1e-4)


def test_augmented_images_train() -> None:
    small = {"name": "mlp", "hidden": [20]}
    task = Task(data="digits", model=small, steps=20, batch_size=32, augment=Augment(crop=1, flip=False))
    record = run(task)
    assert record.status == "ok" and record.same(run(task))
    assert not record.same(run(dataclasses.replace(task, augment=None)))


def test_reopen_gives_the_trained_model_back(make_task: Callable[..., Task], tmp_path: Path, blobs: Any) -> None:
    path = tmp_path / "run.safetensors"
    trained = fit(make_task(), [get("batch_norm")()], seed=2, lr=0.2, checkpoint=path)
    again = reopen(path, data=blobs)
    assert again.record == dataclasses.replace(trained.record)
    assert again.task == trained.task
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_reopen_needs_objects_that_were_in_memory(make_task: Callable[..., Task], tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(make_task(steps=2), checkpoint=path)
    with pytest.raises(InputError, match=r"Task\.data was an object in memory"):
        reopen(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_from_a_gpu_opens_where_there_is_none(make_task: Callable[..., Task], tmp_path: Path, blobs: Any) -> None:
    path = tmp_path / "run.safetensors"
    trained = fit(make_task(steps=4), checkpoint=path)
    tensors, meta = read(path)
    meta["run"]["task"] |= {"device": "cuda", "precision": "16"}
    write(path, tensors, meta)
    again = reopen(path, data=blobs)
    assert again.record.curve == trained.record.curve and again.task.device == "cpu"
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_a_remainder_of_one_does_not_spoil_recalibration(make_task: Callable[..., Task]) -> None:
    task = make_task(batch_size=89)
    assert len(source(task, 0).train.rows) == 90
    assert run(task, [get("batch_norm")()]).status == "ok"


def test_checkpoint_every_is_checked(make_task: Callable[..., Task]) -> None:
    with pytest.raises(InputError, match="checkpoint_every is 0; expected a number of steps"):
        run(make_task(), checkpoint_every=0)


def test_time_step_measures(make_task: Callable[..., Task]) -> None:
    found = time_step(make_task(), [get("batch_norm")()], lr=0.1, steps=30)
    assert set(found) == {"step_ms", "peak_mb"}
    assert 0 < found["step_ms"] < 1e4 and found["peak_mb"] > 50
