"""Where a study ran, as far as numbers may depend on it."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

from pliant import _version


def describe_machine(threads: int) -> dict[str, Any]:
    """Versions, processor, cores, platform, and the commit when pliant runs from a git checkout."""
    import joblib
    import torch

    return {
        "pliant": _version.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _processor(),
        "cores": joblib.cpu_count(),
        "threads": threads,
        "platform": platform.platform(terse=True),
        "commit": _commit(),
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "log", "-1", "--format=%H", "--", str(folder.parent)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
