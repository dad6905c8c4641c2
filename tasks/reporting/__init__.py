"""What a run shows while it works, and what it leaves: log lines, artifacts, traces.

`observed_run` is for the body of a flow, `reported` for that of a task. Both keep secrets out of
the messages of failed states, name run and stage in log records, and trace the work where a
collector is configured. `tasks.reporting.artifacts` makes the artifacts.
"""

from tasks.reporting.runs import observed_run
from tasks.reporting.stages import reported

__all__ = ["observed_run", "reported"]
