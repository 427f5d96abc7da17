"""Hand-made study summaries in the format that the report reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

VERDICTS = ("helps", "no difference", "hurts", "not enough evidence")


def build(
    arms: tuple[str, ...] = ("bn", "elu", "sd", "wn"),
    seeds: int = 8,
    metric: str = "steps_to_target",
    budget: int = 600,
) -> dict[str, Any]:
    """A finished study; arm i gets verdict i of VERDICTS; a run of the third diverged."""
    rng = np.random.default_rng(7)
    steps_metric = metric == "steps_to_target"
    unit = "steps" if steps_metric else "accuracy"
    gains = (-150.0, 5.0, 120.0, -40.0)
    steps = list(range(50, budget + 1, 50))
    names = ["base", *arms]
    facts: dict[str, Any] = {}
    verdicts: list[dict[str, Any]] = []
    for index, arm in enumerate(names):
        gain = 0.0 if arm == "base" else gains[(index - 1) % 4]
        speed = 1 - gain / 400
        mean = [round(0.97 - 0.7 * math.exp(-s * speed / 110), 5) for s in steps]
        loss = [round(2.2 * math.exp(-s * speed / 90) + 0.02, 5) for s in steps]
        values: list[float | None] = (
            [float(50 * round((330 + gain + 45 * z) / 50)) for z in rng.standard_normal(seeds)]
            if steps_metric
            else [round(0.93 - gain / 9000 + 0.006 * z, 4) for z in rng.standard_normal(seeds)]
        )
        diverged = index == 3
        if diverged and steps_metric:
            values[2] = None
        facts[arm] = {
            "rate": 0.1,
            "rate_on_edge": index == 2,
            "tuning": [
                {
                    "rate": rate,
                    "seed": seed,
                    "best_valid": round(
                        0.95 - 0.05 * abs(math.log10(rate / 0.1)) ** 2 + 0.004 * rng.standard_normal(), 4
                    ),
                    "steps_to_target": 300,
                    "status": "diverged" if diverged and rate > 0.5 else "ok",
                }
                for rate in (0.01, 0.03, 0.1, 0.3, 1.0)
                for seed in (1000, 1001)
            ],
            "curves": {
                "step": steps,
                "valid_score": {"mean": mean, "lo": [m - 0.02 for m in mean], "hi": [min(1.0, m + 0.02) for m in mean]},
                "train_loss": {"mean": loss, "lo": [v * 0.85 for v in loss], "hi": [v * 1.15 for v in loss]},
            },
            "values": values,
            "test_scores": [0.94 + 0.004 * z for z in rng.standard_normal(seeds)],
            "changes": ""
            if arm == "base"
            else f"{arm}: 2 places\n  + layers.0.norm   BatchNorm1d(64)\n  + layers.2.norm   BatchNorm1d(64)",
            "parameters": 4810 + 128 * index,
            "cost": {"tuning_steps": 6000, "run_steps": budget * seeds, "tuning_seconds": 12.5, "run_seconds": 31.0},
            "timing": {
                "step_ms": 0.81 + 0.1 * index,
                "step_ms_ratio": 1.0 + 0.12 * index,
                "peak_mb": 212.0 + index,
                "seconds_to_target": 0.27,
            },
        }
        if arm == "base":
            continue
        scale = 1.0 if steps_metric else -1 / 9000
        half = 35.0 * abs(scale) * (3 if index == 4 else 1)
        difference = gain * scale
        verdicts.append(
            {
                "arm": arm,
                "base": "base",
                "verdict": VERDICTS[(index - 1) % 4],
                "sentence": f"{arm}: {VERDICTS[(index - 1) % 4]}. A mean paired difference of {difference:.4g} {unit} "
                f"(95 % interval {difference - half:.4g} to {difference + half:.4g}). {seeds} pairs, sign-flip "
                f"p = 0.0078, 0.031 after Holm's rule over {len(arms)} arms, tested at 0.05.",
                "base_mean": 330.0,
                "arm_mean": 330.0 + difference,
                "difference": difference,
                "ci95": [difference - half, difference + half],
                "ci90": [difference - 0.8 * half, difference + 0.8 * half],
                "p": 0.0078125,
                "p_holm": 0.03125,
                "level": 0.05,
                "unit": unit,
                "higher_is_better": not steps_metric,
                "pairs": seeds,
                "more_seeds": 6 if index == 4 else None,
                "ratio": 1.8 if steps_metric and index == 1 else None,
                "ratio_ci95": [1.6, 2.1] if steps_metric and index == 1 else None,
                "test": "sign-flip",
                "reached": {"base": seeds, "arm": seeds - diverged} if steps_metric else None,
                "diverged": {"base": 0, "arm": int(diverged)},
            }
        )
    return {
        "schema": 1,
        "title": "digits, a small net",
        "created": "2026-01-05T10:20:30+00:00",
        "complete": True,
        "plan": {
            "hash": "3f" * 32,
            "task": {"name": "digits"},
            "arms": {"base": [], **{arm: [{"method": arm}] for arm in arms}},
            "base": "base",
            "seeds": list(range(seeds)),
            "tune_seeds": [1000, 1001],
            "rates": [0.01, 0.03, 0.1, 0.3, 1.0],
            "metric": metric,
            "unit": unit,
            "higher_is_better": not steps_metric,
            "margin": 50.0 if steps_metric else 0.005,
            "alpha": 0.05,
            "look": 1,
            "steps": budget,
            "batch_size": 64,
        },
        "target": {"value": 0.93, "source": "the median best validation score of base in its tuning runs."}
        if steps_metric
        else {"value": None, "source": ""},
        "verdicts": verdicts,
        "arms": facts,
        "descriptive": [
            {
                "what": "test accuracy",
                "arm": arm,
                "mean": 0.941,
                "sd": 0.004,
                "difference": None if arm == "base" else 0.002,
                "ci95": None,
            }
            for arm in names
        ],
        "environment": {
            "pliant": "0.1.0",
            "python": "3.11",
            "torch": "2.13.0",
            "cpu": "some",
            "cores": 2,
            "threads": 1,
            "platform": "Linux",
            "commit": None,
        },
        "recipe": '[task]\ndata = "digits"\nsteps = 600\n\n[arms.bn]\nmethods = [{ method = "batch_norm" }]\n',
        "notes": ["Times come from a shared machine."],
    }


@pytest.fixture
def summary() -> Callable[..., dict[str, Any]]:
    """Builds a fresh summary."""
    return build
