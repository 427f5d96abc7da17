"""Kill a study with SIGKILL at random times, start it again until it is done, and compare its rows with one left alone.

    python -m pliant.study.killtest --kills 20 --out kill-resume-study.json

Every row must be there once and equal the row of the study left alone, measured seconds aside. POSIX only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pliant.core import keyed

from .environment import describe_machine

WORKERS = 2
MOST = 4
SCRIPT = """
import sys
import pliant
task = pliant.Task(data="digits", model={"name": "mlp", "hidden": [16]}, steps=60, batch_size=60, eval_every=20)
arms = {"base": [], "batch_norm": [pliant.BatchNorm()]}
study = pliant.compare(task, arms, seeds=8, rates=[0.1, 1.0], metric="test_score", margin=0.01,
                       store=sys.argv[1], workers=int(sys.argv[2]))
"""


def start(store: Path) -> subprocess.Popen[bytes]:
    """The study as a process group of its own, so that a kill takes its workers along, as a power cut would."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store), str(WORKERS)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def rows(store: Path) -> dict[str, str]:
    """Every stored row without its measured seconds, by its key. Duplicates raise."""
    from .study import Study

    found: dict[str, str] = {}
    for row in Study.load(store).rows:
        key = "/".join(str(row[name]) for name in ("phase", "arm", "lr", "seed", "salt"))
        if key in found:
            raise SystemExit(f"the row {key} is there twice")
        found[key] = json.dumps({name: value for name, value in row.items() if name != "seconds"}, sort_keys=True)
    return found


def kill_studies(kills: int, seed: int) -> dict[str, Any]:
    """Kills studies `kills` times in all, each at a random time of its life, and starts them again."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        began = time.perf_counter()
        if start(root / "whole.db").wait() != 0:
            raise SystemExit("the study left alone failed")
        life = time.perf_counter() - began
        expected = rows(root / "whole.db")
        done = trial = 0
        trials: list[dict[str, Any]] = []
        while done < kills:
            store, killed = root / f"{trial}.db", 0
            while True:
                process = start(store)
                try:
                    # At any time of a whole life, start-up included, up to MOST times; then it may finish.
                    more = done < kills and killed < MOST
                    pause = life * keyed.host_uniform(seed, "kill", trial, killed)
                    code = process.wait(timeout=pause if more else None)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    done, killed = done + 1, killed + 1
                    continue
                if code != 0:
                    raise SystemExit(f"study {trial} failed after {killed} kills")
                break
            found = rows(store)
            trials.append(
                {
                    "killed": killed,
                    "rows": len(found),
                    "lost": len(expected.keys() - found.keys()),
                    "added": len(found.keys() - expected.keys()),
                    "different": sum(found[key] != expected[key] for key in expected.keys() & found.keys()),
                }
            )
            trial += 1
    return {
        "what": "studies killed with SIGKILL at random times and started again, against one left alone",
        "command": f"python -m pliant.study.killtest --kills {kills} --seed {seed}",
        "workers": WORKERS,
        "kills": done,
        "rows_of_a_study": len(expected),
        "trials": trials,
        "environment": describe_machine(threads=1),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pliant.study.killtest", description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    options = parser.parse_args(arguments)
    report = kill_studies(options.kills, options.seed)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    wrong = sum(trial["lost"] + trial["added"] + trial["different"] for trial in report["trials"])
    studies, size = len(report["trials"]), report["rows_of_a_study"]
    print(f"{report['kills']} kills over {studies} studies of {size} rows: {wrong} rows lost, doubled or different")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
