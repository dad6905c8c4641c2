"""The parent's side of the driver protocol: start, listen, time out, and leave nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from trtforge.engines.process_mark import MARK_VARIABLE, kill_marked, signal_marked
from trtforge.errors import BuildError
from trtforge.progress import OnProgress, Progress, ignore

_TERM_GRACE_S = 5.0
_LOG_TAIL_LINES = 8
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]

OnLog = Callable[[str], None]

RUN_ENVIRONMENT = {
    # How long (in turns of a loop) an OpenMP thread spins before it sleeps. By default it spins so
    # long that, where another process takes a core, tokens come many times slower; sleeping at
    # once (OMP_WAIT_POLICY=PASSIVE) makes them twice as slow on a quiet machine.
    "GOMP_SPINCOUNT": "1000",
}
"""Variables for drivers that run models: the same for the engine and for the reference."""
_News = TypeVar("_News")


class DriverFailedError(BuildError):
    """The driver ended with an error of its own; `cause` is its slug."""

    cause = "unexpected"


class DriverKilledError(BuildError):
    """The driver was ended by a signal nobody here sent: most often the out-of-memory killer."""


class DriverTimeoutError(BuildError):
    """The driver did not finish in the time it was given."""


class DriverIncompleteError(BuildError):
    """The driver ended with exit code 0 but without a readable result."""


class ToolchainMissingError(BuildError):
    """The toolchain's interpreter cannot be started."""


def run_driver(
    module: str,
    request: Mapping[str, Any],
    *,
    work_dir: Path,
    timeout_s: float,
    python: Path = Path(sys.executable),
    environment: Mapping[str, str] | None = None,
    on_progress: OnProgress = ignore,
    on_log: OnLog = lambda _line: None,
) -> dict[str, Any]:
    """Run one driver to its end and return its result.

    The driver runs in a process group of its own; whatever happens, nothing of that group, or of
    what else it started, is left when this returns or raises.

    Args:
        module: Dotted name of the driver module, e.g. `trtforge.engines.aoti.build_driver`.
        request: What the driver reads; JSON data.
        work_dir: An existing directory; request, result and the log `<driver>.log` lie there.
        timeout_s: Seconds before the driver is ended.
        python: The toolchain's interpreter.
        environment: Variables set for the driver, over this process's own.
        on_progress: Called from another thread. An exception it raises ends the driver and is
            raised here; the same holds for `on_log`.
        on_log: Called from another thread with each line of the log.

    Raises:
        DriverFailedError: with the driver's own words.
        DriverKilledError: ended by a signal, with a hint at memory for signal 9.
        DriverTimeoutError: not done after `timeout_s`.
        DriverIncompleteError: exit code 0 without a result.
        ToolchainMissingError: `python` cannot be started.
    """
    name = module.rsplit(".", 1)[-1]
    # The driver has a working directory of its own.
    work_dir = work_dir.absolute()
    interpreter = python.absolute() if len(python.parts) > 1 else python
    log_path = work_dir / f"{name}.log"
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=work_dir) as scratch_name:
        scratch = Path(scratch_name)
        # Only our package, not the site-packages it may lie in, becomes visible to the toolchain.
        (scratch / _PACKAGE_ROOT.name).symlink_to(_PACKAGE_ROOT)
        request_path, result_path = scratch / "request.json", scratch / "result.json"
        request_path.write_text(json.dumps(request))
        try:
            process = subprocess.Popen(
                [str(interpreter), "-m", module, str(request_path), str(result_path)],
                cwd=scratch,
                env={
                    **os.environ,
                    **(environment or {}),
                    "PYTHONPATH": str(scratch),
                    MARK_VARIABLE: mark,
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise ToolchainMissingError(
                f"the toolchain's interpreter cannot be started ({error.strerror})",
                field="TRTFORGE_TOOLCHAIN_PYTHON",
                value=str(python),
                remedy="Point it at the python of the environment the toolchain is installed in",
            ) from error
        heard = _Heard()
        readers = _start_readers(process, log_path, on_progress, on_log, heard)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DriverTimeoutError(
                f"{name} was not done after {timeout_s:.0f} s and was ended",
                remedy=f"See {log_path}; raise the time limit if it was still making progress",
            ) from error
        finally:
            _end_all(process, mark)
            for reader in readers:
                reader.join(_TERM_GRACE_S)
        if heard.callback_errors:
            raise heard.callback_errors[0]
        return _read_result(process.returncode, result_path, name, log_path, heard)


@dataclass
class _Heard:
    """What the reading threads learned."""

    failure: dict[str, str] = field(default_factory=dict)
    tail: list[str] = field(default_factory=list)
    callback_errors: list[Exception] = field(default_factory=list)


def _start_readers(
    process: "subprocess.Popen[str]",
    log_path: Path,
    on_progress: OnProgress,
    on_log: OnLog,
    heard: _Heard,
) -> list[threading.Thread]:
    def tell(listen: Callable[[_News], None], news: _News) -> None:
        # Whatever happens, go on reading: a driver whose output nobody reads stands still.
        if heard.callback_errors:
            return
        try:
            listen(news)
        except Exception as error:
            heard.callback_errors.append(error)
            _signal_group(process.pid, signal.SIGTERM)

    def read_protocol(stream: IO[str]) -> None:
        for line in stream:
            # Anything else was printed by a library before the driver took stdout for itself.
            match _json_or_none(line):
                case {"progress": dict(progress)}:
                    tell(lambda facts: on_progress(Progress(**facts)), progress)
                case {"error": dict(failure)}:
                    heard.failure.update(failure)

    def read_log(stream: IO[str]) -> None:
        with log_path.open("a", encoding="utf-8") as log:
            for line in stream:
                log.write(line)
                log.flush()
                if line.strip():
                    heard.tail.append(line.rstrip())
                    del heard.tail[:-_LOG_TAIL_LINES]
                    tell(on_log, line.rstrip())

    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        threading.Thread(target=read_protocol, args=(process.stdout,), daemon=True),
        threading.Thread(target=read_log, args=(process.stderr,), daemon=True),
    ]
    for reader in readers:
        reader.start()
    return readers


def _json_or_none(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _end_all(process: "subprocess.Popen[str]", mark: str) -> None:
    """End whatever the driver left: politely first, while the driver still runs."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        signal_marked(mark, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TERM_GRACE_S)
    _signal_group(process.pid, signal.SIGKILL)
    kill_marked(mark)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _read_result(
    exit_code: int,
    result_path: Path,
    name: str,
    log_path: Path,
    heard: _Heard,
) -> dict[str, Any]:
    if heard.failure:
        failure = heard.failure
        error = DriverFailedError(
            f"{name}: {failure['problem']}",
            remedy=failure["remedy"] or f"The whole log is in {log_path}",
        )
        error.cause = failure["cause"]
        raise error
    if exit_code < 0:
        number = signal.Signals(-exit_code).name
        hint = (
            "Most likely the machine ran out of memory: free some, or ask for less"
            if exit_code == -signal.SIGKILL
            else f"The whole log is in {log_path}"
        )
        raise DriverKilledError(f"{name} was ended by {number}", remedy=hint)
    if exit_code != 0:
        raise DriverFailedError(
            f"{name} ended with exit code {exit_code}: {' | '.join(heard.tail) or 'no output'}",
            remedy=f"The whole log is in {log_path}",
        )
    try:
        result: dict[str, Any] = json.loads(result_path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DriverIncompleteError(
            f"{name} ended with exit code 0 but left no readable result",
            remedy=f"The whole log is in {log_path}",
        ) from error
    return result
