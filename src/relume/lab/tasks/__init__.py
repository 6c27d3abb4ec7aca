"""Tasks by name: data honestly split, a model builder, a loss and a metric.

    task = tasks.get("digits")
    model = task.model("drelu", width=32, depth=3, seed=1)
    task.data(seed=0).train.x

The next task is a class in a file beside, and its file's name in the list below.
"""

from __future__ import annotations

import difflib
import functools

from relume.lab.tasks import complaints, control, curves, dictionary, digits, real, speech, text
from relume.lab.tasks.initialize import INITS as INITS
from relume.lab.tasks.networks import NORMS as NORMS
from relume.lab.tasks.networks import Choice as Choice
from relume.lab.tasks.task import Part as Part
from relume.lab.tasks.task import Split as Split
from relume.lab.tasks.task import Task as Task

_FILES = (digits, curves, text, complaints, speech, dictionary, control, real)


@functools.cache
def _by_name() -> dict[str, Task]:
    return {task.name: task for file in _FILES for task in file.TASKS}


def names() -> tuple[str, ...]:
    """The names of all tasks."""
    return tuple(_by_name())


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.

    >>> get("sine").metric
    'rmse'
    """
    found = _by_name().get(name)
    if found is None:
        close = difflib.get_close_matches(name, names(), 1)
        hint = f"; close to it: {close[0]}" if close else ""
        raise ValueError(f"no task is called {name!r}{hint}; there are: {', '.join(names())}")
    return found
