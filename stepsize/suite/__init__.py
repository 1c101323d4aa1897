"""A suite of small training tasks on which rules for the learning rate are compared, each with the best tuned rate.

problem = task("digits-mlp", seed=0)
for step in range(problem.steps):
    batch = problem.batches().at(step)
"""

from __future__ import annotations

from stepsize.suite.rows import Examples, SuiteError
from stepsize.suite.task import Batches, Problem, Task
from stepsize.suite.tasks import TASKS, task

__all__ = ["TASKS", "Batches", "Examples", "Problem", "SuiteError", "Task", "task"]
