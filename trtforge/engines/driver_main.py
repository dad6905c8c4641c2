"""The driver's side of the driver protocol: standard library only.

A driver is started as `python -m <module> request.json result.json` by the toolchain's own
interpreter (Python 3.10 or newer) and answers on three channels:

* stdout: JSON lines, `{"progress": {...}}` while it works, `{"error": {...}}` when it fails;
* stderr: logs, whatever the toolchain prints (its own stdout is sent there too);
* `result.json`: written last, by rename, only when every file it names is complete.

The parent holds the other end of the driver's stdin. When that closes, for whatever reason
(`kill -9` included), the driver ends its whole process group, compilers and all, and whatever else
it started.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trtforge.engines.process_mark import MARK_VARIABLE, kill_marked


class DriverError(Exception):
    """A failure whose cause the driver knows.

    Args:
        cause: A short slug the parent maps to an exception class (`limit-exceeded`, ...).
        problem: What is wrong.
        remedy: What the reader should do about it.
    """

    def __init__(self, cause: str, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.cause = cause
        self.problem = problem
        self.remedy = remedy


Report = Callable[..., None]
Work = Callable[[dict[str, Any], Report], dict[str, Any]]


def drive(work: Work) -> None:
    """Run `work(request, report)` under the protocol and exit.

    `report(what, done, total, unit)` sends one progress line. Exit code 0 only when the result
    file is in place.
    """
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m {__name__} request.json result.json")
    protocol = _take_stdout()
    _end_with_parent()
    request_path, result_path = Path(sys.argv[1]), Path(sys.argv[2])

    def send(message: dict[str, Any]) -> None:
        protocol.write(json.dumps(message) + "\n")
        protocol.flush()

    def report(what: str, done: int, total: "int | None", unit: str = "steps") -> None:
        send({"progress": {"what": what, "done": done, "total": total, "unit": unit}})

    started = time.monotonic()
    try:
        result = work(json.loads(request_path.read_text()), report)
        result["seconds"] = time.monotonic() - started
        result["peak_rss_bytes"] = _peak_rss_bytes()
        partial = result_path.with_suffix(".partial")
        partial.write_text(json.dumps(result))
        partial.rename(result_path)
    except DriverError as error:
        send({"error": {"cause": error.cause, "problem": error.problem, "remedy": error.remedy}})
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        problem = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        send({"error": {"cause": "unexpected", "problem": problem, "remedy": ""}})
        sys.exit(1)


def _take_stdout() -> Any:
    """Keep stdout for the protocol; whatever else prints goes to stderr."""
    channel = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(channel, "w")


def _end_with_parent() -> None:
    def watch() -> None:
        while os.read(0, 4096):
            pass
        if MARK_VARIABLE in os.environ:
            kill_marked(os.environ[MARK_VARIABLE])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _peak_rss_bytes() -> int:
    """The largest resident set of this process or of any child it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage.ru_maxrss for usage in usages) * 1024
