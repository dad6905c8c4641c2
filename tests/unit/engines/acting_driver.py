"""A driver that does what its request's `act` says; standard library only, as drivers are."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError, Report, drive

_STUBBORN = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('ready', flush=True)\n"
    "time.sleep(600)\n"
)


def act(request: dict[str, Any], report: Report) -> dict[str, Any]:
    return _ACTS[request["act"]](request, report)


def _echo(request: dict[str, Any], report: Report) -> dict[str, Any]:
    report("echoing", 1, 2, "bytes")
    report("echoing", 2, None)
    print("a line for the log", file=sys.stderr)
    return {"request": request}


def _look_round(_request: dict[str, Any], _report: Report) -> dict[str, Any]:
    scratch = Path.cwd()
    return {
        "files": sorted(path.name for path in scratch.iterdir()),
        "first_path": sys.path[0],
        "scratch": str(scratch),
        "variable": os.environ.get("TRTFORGE_TEST"),
    }


def _known_error(_request: dict[str, Any], _report: Report) -> dict[str, Any]:
    raise DriverError("no-luck", "the dice fell badly", "Throw them again")


def _unexpected_error(_request: dict[str, Any], _report: Report) -> dict[str, Any]:
    raise ZeroDivisionError("seven by zero")


def _print(_request: dict[str, Any], _report: Report) -> dict[str, Any]:
    print(json.dumps({"error": {"cause": "x", "problem": "printed", "remedy": ""}}), flush=True)
    os.write(1, b'{"progress": {"what": "written", "done": 1, "total": 1, "unit": "steps"}}\n')
    subprocess.run(["echo", "from a child"], check=True)
    return {}


def _print_much(request: dict[str, Any], report: Report) -> dict[str, Any]:
    for number in range(request["lines"]):
        print("x" * 80, file=sys.stderr)
        report("printing", number, None)
    return {"data": "y" * 1_000_000}


def _exit(request: dict[str, Any], _report: Report) -> dict[str, Any]:
    print("last words", file=sys.stderr, flush=True)
    os._exit(request["code"])


def _write_rubbish(_request: dict[str, Any], _report: Report) -> dict[str, Any]:
    Path(sys.argv[2]).write_text("{")
    os._exit(0)


def _die(request: dict[str, Any], _report: Report) -> dict[str, Any]:
    os.kill(os.getpid(), request["signal"])
    raise AssertionError("survived")


def _leave_children(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Start a child that ignores SIGTERM, tell its pid, then sleep or finish."""
    child = subprocess.Popen([sys.executable, "-c", _STUBBORN], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    if request.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report("driver", os.getpid(), None)
    report("child", child.pid, None)
    time.sleep(request["sleep_s"])
    return {}


_ACTS = {
    "echo": _echo,
    "look round": _look_round,
    "known error": _known_error,
    "unexpected error": _unexpected_error,
    "print": _print,
    "print much": _print_much,
    "exit": _exit,
    "write rubbish": _write_rubbish,
    "die": _die,
    "leave children": _leave_children,
}

if __name__ == "__main__":
    if os.environ.get("TRTFORGE_TEST") == "print at import":
        # What a library prints before the driver has taken stdout for itself.
        print("hello", "5", "[1]", '"progress"', '{"progress": 5}', "null", sep="\n", flush=True)
    drive(act)
