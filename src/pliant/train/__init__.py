"""Training: tasks and recipes as data, one loop, exact evaluation, checkpoints that resume bit for bit.

    from pliant.train import Task, run
    record = run(Task(data="digits", model="mlp", steps=600, batch_size=60), [pliant.BatchNorm()], seed=0)

`save` and `load` are checkpoints for loops of one's own.
"""

from pliant.data import Augment

from .checkpoint import load, save
from .evaluate import Scores, evaluate
from .progress import Progress
from .recipe import Recipe, StudySettings
from .record import RunRecord
from .run import Trained, fit, reopen, run, time_step
from .task import Optimizer, Schedule, Task
from .trackers import TensorBoard, Tracker

__all__ = [
    "Augment",
    "Optimizer",
    "Progress",
    "Recipe",
    "RunRecord",
    "Schedule",
    "Scores",
    "StudySettings",
    "Task",
    "TensorBoard",
    "Tracker",
    "Trained",
    "evaluate",
    "fit",
    "load",
    "reopen",
    "run",
    "save",
    "time_step",
]
