"""A task whose effects are known: learning curves from a formula, in microseconds a run."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any

from pliant.core import keyed
from pliant.train.record import RunRecord

SD = 0.01
"""Standard deviation of a run's final score over the keys of one seed, and of the seeds among themselves."""
PAIR_SD = math.sqrt(2.0) * SD
"""Standard deviation of a paired difference between arms with different keys."""
DIVERGES_ABOVE = 5.0
"""Learning rate above which runs diverge."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedTask:
    """score(s) = (0.8 + noise + effect - 0.01 log10(lr / best_lr)^2) (1 - exp(-6 s speed / steps)).

    effects, speeds: arm -> what it adds to the final score, how much faster it learns (default 0 and 1).
    """

    steps: int = 600
    batch_size: int = 60
    eval_every: int = 30
    threads: int = 1
    worst_score: float = 0.0
    best_lr: float = 0.3
    effects: Mapping[str, float] = dataclasses.field(default_factory=dict)
    speeds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def unit(self) -> str:
        return "accuracy"

    @property
    def higher_is_better(self) -> bool:
        return True

    def to_json(self) -> dict[str, Any]:
        """All fields, and names where a real task has its data and model."""
        return {**dataclasses.asdict(self), "data": "simulated", "model": "curve", "optimizer": {"lr": self.best_lr}}


def simulated_run(
    task: SimulatedTask,
    methods: Any,
    *,
    seed: int,
    lr: float | None = None,
    arm: str = "",
    phase: str = "train",
    salt: str = "",
    test: bool = False,
) -> RunRecord:
    """A record with the signature and the shape of `pliant.train.run`; equal keys give equal runs."""
    rate = task.best_lr if lr is None else lr
    # What the arms of a pair share (the split) depends on the seed, what they need not share on the salt as well.
    luck = SD * (_normal(seed, "split") + _normal(seed, "keys", salt))
    final = 0.8 + luck + task.effects.get(arm, 0.0) - 0.01 * math.log10(rate / task.best_lr) ** 2
    speed = 6 * task.speeds.get(arm, 1.0) * math.exp(0.2 * _normal(seed, "speed", salt)) / task.steps
    steps = list(range(task.eval_every, task.steps + 1, task.eval_every))
    scores = [final * (1 - math.exp(-speed * step)) for step in steps]
    diverged = rate > DIVERGES_ABOVE
    worst = task.worst_score
    return RunRecord(
        arm=arm,
        phase=phase,
        seed=seed,
        salt=salt,
        lr=rate,
        stack=[method.to_json() for method in methods],
        steps=task.steps,
        status="diverged" if diverged else "ok",
        curve={
            "step": steps,
            "train_loss": [2.3 * math.exp(-speed * step) for step in steps],
            "valid_loss": [2.4 * math.exp(-speed * step) for step in steps],
            "valid_score": scores,
        },
        best_valid=worst if diverged else max(scores),
        final_valid=worst if diverged else scores[-1],
        test_score=None if not test else worst if diverged else final,
        parameters=1,
        changes="",
        seconds=0.0,
        threads=task.threads,
    )


def _normal(seed: int, *names: str) -> float:
    # The quantile function is finite on the open interval only.
    return statistics.NormalDist().inv_cdf(min(max(keyed.host_uniform(seed, *names), 1e-15), 1 - 1e-15))
