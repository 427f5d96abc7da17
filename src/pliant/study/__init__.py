"""The honest comparison: plan first, fair pairs, exact tests, one of four verdicts. Start at `compare`."""

from __future__ import annotations

from .plan import StudyPlan, make_plan
from .study import Study, compare
from .verdict import Verdict

__all__ = ["Study", "StudyPlan", "Verdict", "compare", "make_plan"]
