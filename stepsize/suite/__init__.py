"""A suite of small training tasks on which rules for the learning rate are compared, each with the best tuned rate.

python -m stepsize.suite --out DIR --data FOLDER  # alphastream study rates

problem = task("digits-mlp", seed=0)
batches = problem.batches()
for step in range(problem.steps):
    batch = batches.at(step)
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("numpy") is None:
    raise ImportError("stepsize.suite needs NumPy and more; pip install 'alphastream[suite]' or 'stepsize[suite]'")

from stepsize.suite.command import suite_command
from stepsize.suite.problems import TASKS, Batches, Examples, Problem, SuiteError, Task, task

__all__ = ["TASKS", "Batches", "Examples", "Problem", "SuiteError", "Task", "suite_command", "task"]
