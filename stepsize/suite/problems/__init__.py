"""What is trained: the suite's tasks, their rows and models, and a task drawn with a seed.

problem = task("digits-mlp", seed=0)
batches = problem.batches()
loss = problem.loss(problem.model(*batches.at(0).inputs), batches.at(0).targets)
"""

from __future__ import annotations

from stepsize.suite.problems.problem import Batches, OptimizerName, Problem, Task, draw
from stepsize.suite.problems.rows import EXTRA, Examples, SuiteError
from stepsize.suite.problems.tasks import TASKS, named_task, task

__all__ = [
    "EXTRA",
    "TASKS",
    "Batches",
    "Examples",
    "OptimizerName",
    "Problem",
    "SuiteError",
    "Task",
    "draw",
    "named_task",
    "task",
]
