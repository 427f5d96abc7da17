"""Whether a forward is being run again by activation checkpointing."""

from __future__ import annotations

import torch


def recomputing() -> bool:
    """True inside a backward pass, where only torch.utils.checkpoint runs a module's forward.

    A compiled graph has no such moment: its recomputation reads the values that the first pass read.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
