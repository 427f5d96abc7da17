"""Runs the studies under recipes/ and keeps their summaries here.

    python docs/evidence/reproduce.py [NAME ...]        # default: all; each resumes when interrupted

Every summary holds the plan with its hash, the rows' values, the verdicts and the environment (commit, machine, torch).
Wall times in it come from runs that share the machine, except under "timing".
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STORES = Path(tempfile.gettempdir()) / "pliant-evidence"


EXTENDED = {"fashion-mlp": 4}
"""Studies whose first look left a verdict open that few seeds could decide: planned second looks, at alpha / 4."""


def compare(name: str, *more: str) -> dict[str, Any] | None:
    command = [sys.executable, "-c", "import sys; from pliant.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += ["compare", str(HERE / "recipes" / f"{name}.toml"), "--json", *more]
    command += ["--store", str(STORES / f"{name}.db"), "-o", str(STORES / f"{name}.html")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return None
    summary: dict[str, Any] = json.loads(done.stdout)
    del summary["report"]  # a path of this machine
    return summary


def main() -> int:
    STORES.mkdir(exist_ok=True)
    chosen = sys.argv[1:] or sorted(path.stem for path in (HERE / "recipes").glob("*.toml"))
    failed = 0
    for name in chosen:
        summary = compare(name)
        if summary and name in EXTENDED and len(summary["plan"]["seeds"]) == 8:
            (HERE / f"{name}-first-look.json").write_text(json.dumps(summary, indent=1) + "\n")
            summary = compare(name, "--extend", str(EXTENDED[name]))
        if summary is None:
            failed = 1
            continue
        (HERE / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
