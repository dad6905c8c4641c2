"""One life cycle for all services: prepare, start, wait until healthy, stop.

A `Service` says what is particular to it; `ensure_running`, `stop` and `status_of` do the rest.
"""

import re
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from trtforge.errors import ServiceError
from trtforge.stack import process
from trtforge.stack.ports import LOOPBACK, require_free

Announce = Callable[[str], None]

_POLL_S = 0.1
_QUOTED_LINES = 12
_QUOTED_BYTES = 16_384


class ServiceStartError(ServiceError):
    """A service of the stack ended, or did not become healthy, after it was started."""


@dataclass(frozen=True)
class ServiceStatus:
    """How one service is doing.

    Attributes:
        name: For people.
        slug: For `trtforge logs`.
        running: Its process is there.
        healthy: It can be used; implies `running`.
        dead: It was started and not stopped, and yet its process is gone.
        problem: Why a running one is not healthy.
        pid: Of the process.
        address: Where clients find it.
        log_path: Its log.
    """

    name: str
    slug: str
    running: bool
    healthy: bool
    dead: bool
    problem: str
    pid: int | None
    address: str
    log_path: Path

    @property
    def state(self) -> str:
        """In one word: healthy, running (and no more), dead or stopped."""
        if self.healthy:
            return "healthy"
        return "running" if self.running else "dead" if self.dead else "stopped"


class Service(ABC):
    """One service under a home directory: its data in `home/<directory>`, log and pid file beside.

    Attributes:
        name: For people.
        slug: Name of its log and pid file.
        start_timeout_s: How long it may take to become healthy.
        stop_signal: What asks it to end cleanly.
        stop_grace_s: How long it may take to do so before SIGKILL.
        ends_children: Whether what it started ends with it.
        secrets: Strings never to quote from its log.
    """

    name: ClassVar[str]
    slug: ClassVar[str]
    start_timeout_s: ClassVar[float] = 60.0
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_grace_s: ClassVar[float] = 15.0
    ends_children: ClassVar[bool] = True
    secrets: tuple[str, ...] = ()

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def log_path(self) -> Path:
        return self.home / "logs" / f"{self.slug}.log"

    @property
    def pid_file(self) -> Path:
        return self.home / "run" / f"{self.slug}.json"

    @property
    def mark(self) -> str:
        return f"{self.slug}@{self.home}"

    @property
    @abstractmethod
    def address(self) -> str:
        """Where clients find it."""

    @property
    @abstractmethod
    def ports(self) -> dict[int, str]:
        """Every port it listens on, with the environment variable that moves it."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the data directory ready; harmless when it is."""

    @abstractmethod
    def command(self) -> process.Command:
        """What to run."""

    @abstractmethod
    def unhealthy(self) -> str:
        """Why it cannot be used at this moment; empty when it can. Must answer in a few seconds."""

    def tidy(self) -> None:  # noqa: B027 - most leave nothing behind
        """Remove what a dead process left outside the home."""

    def find(self) -> psutil.Process | None:
        return process.find(self.pid_file, self.mark)


def ensure_running(
    service: Service, announce: Announce, cancelled: threading.Event | None = None
) -> bool:
    """Start the service unless it runs and is healthy. Returns whether it had to be started.

    Args:
        service: What to start.
        announce: Told what happens.
        cancelled: Set from another thread to give up waiting.

    Raises:
        PortTakenError: Something else listens on one of its ports.
        ServiceStartError: It ended, or was not healthy in time; quotes the end of its log.
    """
    _give_up_if(cancelled, service)
    running = service.find()
    if running is not None:
        reason = _wait_until_healthy(service, running, cancelled)
        if not reason:
            announce(f"{service.name} is running: {service.address}")
            return False
        announce(f"{service.name} does not answer ({reason}); starting it again")
    clear_the_way(service)
    for directory in ("logs", "run"):
        (service.home / directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    announce(f"starting {service.name}")
    service.prepare()
    started_s = time.monotonic()
    leader = process.spawn(
        service.command(), mark=service.mark, log=service.log_path, pid_file=service.pid_file
    )
    reason = _wait_until_healthy(service, leader, cancelled)
    if reason:
        stop(service)
        raise ServiceStartError(
            f"{service.name} {reason}; its log {service.log_path} ends with:\n"
            f"{_end_of_log(service)}\n(end of that log)",
            remedy="Read that log for the cause, then run `trtforge up` again",
        )
    announce(f"{service.name} is up after {time.monotonic() - started_s:.0f} s: {service.address}")
    return True


def clear_the_way(service: Service) -> None:
    """End what a killed or sick service left behind, and make sure that its ports are free.

    Raises:
        PortTakenError: Something else listens on one of them.
    """
    stop(service)
    for port, variable in service.ports.items():
        require_free(service.name, port, variable)


def stop(service: Service) -> None:
    """End the service; does nothing if it does not run."""
    process.stop(
        service.pid_file,
        service.mark,
        first_signal=service.stop_signal,
        grace_s=service.stop_grace_s,
        children=service.ends_children,
    )
    service.tidy()


def status_of(service: Service) -> ServiceStatus:
    """How the service is doing now; changes nothing."""
    leader = service.find()
    problem = service.unhealthy() if leader is not None else ""
    return ServiceStatus(
        name=service.name,
        slug=service.slug,
        running=leader is not None,
        healthy=leader is not None and not problem,
        dead=leader is None and service.pid_file.exists(),
        problem=problem,
        pid=leader.pid if leader is not None else None,
        address=service.address,
        log_path=service.log_path,
    )


def loopback_url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def _wait_until_healthy(
    service: Service, leader: psutil.Process, cancelled: threading.Event | None
) -> str:
    deadline = time.monotonic() + service.start_timeout_s
    while True:
        if not process.alive(leader):
            return "ended right after its start"
        reason = service.unhealthy()
        if not reason:
            return ""
        _give_up_if(cancelled, service)
        if time.monotonic() > deadline:
            return f"was not ready within {service.start_timeout_s:.0f} s: {reason}"
        time.sleep(_POLL_S)


def _give_up_if(cancelled: threading.Event | None, service: Service) -> None:
    if cancelled is not None and cancelled.is_set():
        raise ServiceStartError(
            f"{service.name} was not waited for, as the start was interrupted",
            remedy="Run `trtforge up` again",
        )


def _end_of_log(service: Service) -> str:
    try:
        with service.log_path.open("rb") as log:
            log.seek(max(0, service.log_path.stat().st_size - _QUOTED_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return "(no log was written)"
    for secret in service.secrets:
        text = text.replace(secret, "***")
    # Colours belong to a terminal that is not there.
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "\n".join(f"    {line}" for line in text.splitlines()[-_QUOTED_LINES:])
