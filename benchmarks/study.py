"""Wall time of the default study (`pliant compare`) on two worker processes beside one, in one run.

Both run every row of the embedded recipe, the pool's start-up and the writing of rows included, and must give the same
rows. With more repeats the two take turns; the ratio is the median over the repeats.

    python benchmarks/study.py [--json] [--repeats 1] [--seeds 8]

Exit code 1 when two workers are less than 1.7 times as fast as one, or the rows differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pliant.study import compare
from pliant.train import Recipe

FLOOR = 1.7


def timed_study(recipe: Recipe, workers: int, seeds: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds and rows, the measured times in them aside."""
    # A pool left over from an earlier study would hide the start-up.
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)
    settings = {**recipe.study.arguments(), "seeds": seeds}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        study = compare(recipe.task, recipe.arms, store=Path(folder) / "study.db", workers=workers, **settings)
        elapsed = time.perf_counter() - start
        rows = [{**row, "seconds": 0.0} for row in study.rows]
        study.store.close()
    return elapsed, rows


def measure(repeats: int, seeds: int) -> dict[str, Any]:
    recipe = Recipe.default()
    pairs, same, runs = [], True, 0
    for repeat in range(repeats):
        order = (1, 2) if repeat % 2 == 0 else (2, 1)
        found = {workers: timed_study(recipe, workers, seeds) for workers in order}
        pairs.append((found[1][0], found[2][0]))
        same = same and found[1][1] == found[2][1]
        runs = len(found[1][1])
    return {
        "runs": runs,
        "seconds_1_worker": statistics.median(one for one, _ in pairs),
        "seconds_2_workers": statistics.median(two for _, two in pairs),
        "ratio": statistics.median(one / two for one, two in pairs),
        "floor": FLOOR,
        "same_rows": same,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.repeats, options.seeds)
    if options.json:
        print(json.dumps(result))
    else:
        one, two = result["seconds_1_worker"], result["seconds_2_workers"]
        print(f"{result['runs']} runs: {one:.1f} s on 1 worker, {two:.1f} s on 2")
        print(f"{result['ratio']:.2f} times as fast (floor {FLOOR}); same rows: {result['same_rows']}")
    return 0 if result["ratio"] >= FLOOR and result["same_rows"] else 1


if __name__ == "__main__":
    sys.exit(main())
