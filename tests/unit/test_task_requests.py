"""What a task costs the Prefect server."""

import importlib
import pkgutil

from prefect import Task

import tasks


def test_no_task_asks_the_server_for_a_place() -> None:
    """A tag would make every run of a task ask whether it has a limit, whatever the answer."""
    names = [found.name for found in pkgutil.walk_packages(tasks.__path__, "tasks.")]
    modules = [importlib.import_module(name) for name in names]
    every = {
        thing for module in modules for thing in vars(module).values() if isinstance(thing, Task)
    }
    assert {"plan", "pull", "convert", "compile", "benchmark", "gate", "publish", "alias"} <= {
        task.name for task in every
    }
    assert [task.name for task in every if task.tags] == []
