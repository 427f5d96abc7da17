"""Where a run's numbers go while it trains. Any object with these three methods is a tracker."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

from pliant.core.errors import InputError


class Tracker(Protocol):
    """start, then log at every stop of the loop, then finish, also after an error or Ctrl-C.

    facts: task, stack, seed, lr and arm as JSON types; step: where the run takes up; steps: where it ends.
    values: at a validation "train_loss", "valid_loss" and "valid_score" (None: no finite number), else empty.
    """

    def start(self, facts: Mapping[str, Any], step: int, steps: int) -> None: ...

    def log(self, step: int, values: Mapping[str, float | None]) -> None: ...

    def finish(self) -> None: ...


class TensorBoard:
    """Writes scalars for TensorBoard to `folder`. InputError when tensorboard is not installed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                f"the TensorBoard tracker needs tensorboard ({error}): pip install 'pliant[trackers]', or leave it out"
            ) from error
        self._writer: Any = SummaryWriter(str(folder))

    def start(self, facts: Mapping[str, Any], step: int, steps: int) -> None:
        self._writer.add_text("run", f"```json\n{json.dumps(facts, indent=2)}\n```", step)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()
