"""Processes that outlive the command that started them.

A service runs in a session of its own. Its pid file holds the pid together with the process's
start time, so that a pid the kernel has given to somebody else is neither believed nor killed.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

# A process is also marked in its environment: a starter killed between the start and the writing
# of the pid file leaves no orphan that nobody knows.
_MARK = "TRTFORGE_SERVICE"
# What it starts in its turn inherits the mark; this number tells the service itself from those.
_MARKED_PID = "TRTFORGE_SERVICE_PID"
_WITH_PID = f'{_MARKED_PID}=$$; export {_MARKED_PID}; exec "$@"'
_POLL_S = 0.05
_KILL_WAIT_S = 10.0

# Kept so that children that end while we live are reaped.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Command:
    """What to run: `argv`, the complete `environment`, `directory`, and the uid (None: ours)."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    directory: Path
    uid: int | None = None


@dataclass(frozen=True)
class _Record:
    pid: int
    created_s: float


def spawn(command: Command, *, mark: str, log: Path, pid_file: Path) -> psutil.Process:
    """Start `command` detached from the terminal, appending its output to `log`.

    Args:
        command: What to run.
        mark: Unique name of this service of this home, for `find`.
        log: Created with mode 0600.
        pid_file: Written as soon as the process exists.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as output:
        child = subprocess.Popen(
            ("/bin/sh", "-c", _WITH_PID, "sh", *command.argv),
            cwd=command.directory,
            env=command.environment | {_MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=command.uid,
            group=command.uid,
            extra_groups=None if command.uid is None else [],
        )
    _children[child.pid] = child
    process = psutil.Process(child.pid)
    _write_record(pid_file, process)
    return process


def find(pid_file: Path, mark: str) -> psutil.Process | None:
    """The running leader of the service, or None. A process without a pid file is adopted."""
    record = _read_record(pid_file)
    if record is not None:
        process = _process_of(record)
        if process is not None:
            return process
    for process, environment in marked(mark):
        if environment.get(_MARKED_PID) == str(process.pid):
            _write_record(pid_file, process)
            return process
    return None


def marked(mark: str) -> list[tuple[psutil.Process, dict[str, str]]]:
    """The service and all that came of it, in whatever session, each with its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(_MARK) == mark and alive(process):
                found.append((process, environment))
    return found


def alive(process: psutil.Process) -> bool:
    """Whether the process still runs; a zombie does not."""
    child = _children.get(process.pid)
    if child is not None and child.poll() is not None:
        del _children[process.pid]
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(
    pid_file: Path,
    mark: str,
    *,
    first_signal: signal.Signals,
    grace_s: float,
    children: bool = True,
) -> None:
    """End the service and everything in its session; does nothing if nothing runs.

    Args:
        pid_file: Removed when all is gone.
        mark: As given to `spawn`.
        first_signal: The polite request, sent to the leader alone.
        grace_s: How long to wait for the leader before SIGKILL.
        children: Its children go too, also those in sessions of their own.
    """
    leader = find(pid_file, mark)
    record = _read_record(pid_file)
    members = _session_of(record) if record is not None else []
    if leader is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            members.append(leader)
            if children:
                # PostgreSQL's have sessions of their own.
                members += leader.children(recursive=True)
            leader.send_signal(first_signal)
        wait_gone([leader], grace_s)
    if record is not None:
        members = list({*members, *_session_of(record)})
    kill(members)
    pid_file.unlink(missing_ok=True)


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL them, and wait until they are gone."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_gone(processes, _KILL_WAIT_S)


def wait_gone(processes: Sequence[psutil.Process], patience_s: float) -> bool:
    """Wait until none of them runs; False if some still do after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while any(alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _session_of(record: _Record) -> list[psutil.Process]:
    # The kernel does not hand out a pid while a session bears its number. If the number belongs
    # to a younger leader all the same, the recorded session is gone.
    with contextlib.suppress(psutil.NoSuchProcess):
        if psutil.Process(record.pid).create_time() != record.created_s:
            return []
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == record.pid and alive(process):
                members.append(process)
    return members


def _process_of(record: _Record) -> psutil.Process | None:
    try:
        process = psutil.Process(record.pid)
        if process.create_time() != record.created_s:
            return None
    except psutil.NoSuchProcess:
        return None
    return process if alive(process) else None


def _read_record(pid_file: Path) -> _Record | None:
    try:
        return _Record(**json.loads(pid_file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write_record(pid_file: Path, process: psutil.Process) -> None:
    temporary = pid_file.with_suffix(".tmp")
    try:
        record = _Record(process.pid, process.create_time())
    except psutil.NoSuchProcess:
        return
    temporary.write_text(json.dumps(asdict(record)))
    temporary.replace(pid_file)
