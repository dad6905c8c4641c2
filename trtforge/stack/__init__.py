"""The embedded stack: S3 (SeaweedFS), PostgreSQL, a Prefect server and workers, on 127.0.0.1.

`up` starts what does not run, `down` stops all, `status` tells. Everything lies under one home:
`s3/`, `postgres/`, `prefect/` (data), `logs/`, `run/` (pid files, lock), and `credentials.json`.
"""

import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtforge.errors import InputError
from trtforge.stack import state as state_file
from trtforge.stack.ports import (
    LOOPBACK,
    PortInvalidError,
    PortsOverlapError,
    PortTakenError,
    StackPorts,
)
from trtforge.stack.service import (
    Announce,
    Service,
    ServiceStartError,
    ServiceStatus,
    clear_the_way,
    ensure_running,
    loopback_url,
    status_of,
    stop,
)
from trtforge.stack.state import PostgresState, S3State, StackState

if TYPE_CHECKING:
    from trtforge.stack.postgres import Postgres
    from trtforge.stack.prefect_server import PrefectServer
    from trtforge.stack.seaweedfs import SeaweedFS
    from trtforge.stack.worker import WorkerLogin

__all__ = [
    "LOOPBACK",
    "PortInvalidError",
    "PortTakenError",
    "PortsOverlapError",
    "ServiceStartError",
    "ServiceStatus",
    "StackInfo",
    "StackMovedError",
    "StackPorts",
    "down",
    "services",
    "status",
    "up",
]

BUCKET = "trtforge"
PREFECT_USER = "trtforge"


class StackMovedError(InputError):
    """Other ports were asked for than those the running services listen on."""


@dataclass(frozen=True)
class StackInfo:
    """Where a running stack is found. `started` names the services this `up` had to start."""

    home: Path
    s3_endpoint_url: str
    s3_bucket: str
    s3_region: str
    prefect_api_url: str
    prefect_ui_url: str
    credentials_path: Path
    started: tuple[str, ...]


@dataclass(frozen=True)
class _Services:
    s3: "SeaweedFS"
    postgres: "Postgres"
    prefect: "PrefectServer"

    def in_order(self) -> "tuple[SeaweedFS, Postgres, PrefectServer]":
        return self.s3, self.postgres, self.prefect


def up(
    home: Path,
    ports: StackPorts | None = None,
    announce: Announce = lambda _: None,
    workers: bool = True,
) -> StackInfo:
    """Start whatever of the stack does not run, wait until all is healthy, make the bucket.

    Args:
        home: Directory of the stack; made if missing.
        ports: Where to listen. None: as the environment says (`TRTFORGE_S3_PORT`, …), else as
            the last time, else the defaults.
        announce: Gets one line per event; may be called from any thread, one call at a time.
        workers: Also deploy the flows and start the workers. False leaves those that run alone.

    Raises:
        PortInvalidError: A variable of the environment is no port; nothing was started.
        PortsOverlapError: Two services are to have the same port; nothing was started.
        PortTakenError: Something else listens on a port; nothing was started.
        ServiceStartError: A service did not become healthy. What did start keeps running.
        StackMovedError: It runs already, on other ports.
        StackDeployError: The flows could not be deployed. The services keep running.
    """
    home = _make_home(home)
    announce = _one_at_a_time(announce)
    with _lock(home, announce):
        previous = state_file.read(home)
        if ports is None:
            ports = StackPorts.for_home(previous.ports if previous else {})
        _refuse_to_move(home, previous, ports)
        state = _state(previous, ports)
        if previous is not None and previous.prefect_auth is None:
            # A server of an older trtforge, which lets everybody in.
            stop(_services(home, state).prefect)
        state_file.write(home, state)
        base = _services(home, state)
        started = _start(base, announce)
        base.s3.ensure_bucket(state.s3.bucket)
        if workers:
            from trtforge.stack.workforce import start_workers

            started += start_workers(home, _login(state), announce)
    return StackInfo(
        home=home,
        s3_endpoint_url=state.s3.endpoint_url,
        s3_bucket=state.s3.bucket,
        s3_region=state.s3.region,
        prefect_api_url=state.prefect_api_url,
        prefect_ui_url=base.prefect.address,
        credentials_path=home / state_file.FILE_NAME,
        started=started,
    )


def down(home: Path, announce: Announce = lambda _: None) -> None:
    """Stop the stack of this home, in the reverse order of its start. Its data stays.

    Runs that its workers have in progress are ended, and are "Cancelled" when the server is back.
    """
    home = home.resolve()
    if not home.exists():
        return
    with _lock(home, announce):
        state = state_file.read(home)
        if state is None:
            return
        from trtforge.stack.workforce import end_workers

        end_workers(home, _login(state), announce)
        for service in reversed(_services(home, state).in_order()):
            if service.find() is not None:
                announce(f"stopping {service.name}")
            # Also without a leader: what a killed one left behind goes too.
            stop(service)


def status(home: Path) -> list[ServiceStatus]:
    """How each service of this home is doing; empty if `up` never ran there."""
    return [status_of(service) for service in services(home)]


def services(home: Path) -> tuple[Service, ...]:
    """Every service of this home, running or not; empty if `up` never ran there."""
    home = home.resolve()
    state = state_file.read(home)
    return () if state is None else _everything(home, state)


def _start(services: _Services, announce: Announce) -> tuple[str, ...]:
    # All ports first: either everything can start, or nothing does.
    for service in services.in_order():
        if service.find() is None:
            clear_the_way(service)
    cancelled = threading.Event()

    def start(*chain: "SeaweedFS | Postgres | PrefectServer") -> list[str]:
        return [s.name for s in chain if ensure_running(s, announce, cancelled)]

    with ThreadPoolExecutor(max_workers=2) as pool:
        futures = [
            pool.submit(start, services.s3),
            pool.submit(start, services.postgres, services.prefect),
        ]
        try:
            return tuple(name for future in futures for name in future.result())
        except BaseException:
            # Also on Ctrl-C: do not sit out the other one's time limit.
            cancelled.set()
            raise


def _everything(home: Path, state: StackState) -> tuple[Service, ...]:
    from trtforge.stack.workforce import workers_of

    return *_services(home, state).in_order(), *workers_of(home, _login(state))


def _login(state: StackState) -> "WorkerLogin":
    from trtforge.stack.worker import WorkerLogin

    return WorkerLogin(state.prefect_api_url, state.prefect_auth or ":")


def _services(home: Path, state: StackState) -> _Services:
    # Here, as boto3 and its like are slow to import and readers of the state do not need them.
    from trtforge.stack.postgres import Postgres
    from trtforge.stack.prefect_server import PrefectServer
    from trtforge.stack.seaweedfs import S3Credentials, SeaweedFS

    ports = StackPorts(**state.ports)
    postgres = Postgres(home, ports, state.postgres)
    credentials = S3Credentials(state.s3.access_key_id, state.s3.secret_access_key)
    return _Services(
        s3=SeaweedFS(home, ports, credentials),
        postgres=postgres,
        prefect=PrefectServer(
            home,
            ports,
            postgres.sqlalchemy_url,
            # Before the first `up` of this version there is none, and nothing is started either.
            auth=state.prefect_auth or "",
            secrets=(state.postgres.password,),
        ),
    )


def _state(previous: StackState | None, ports: StackPorts) -> StackState:
    from trtforge.stack.seaweedfs import REGION, S3Credentials

    if previous is not None:
        key_id, key = previous.s3.access_key_id, previous.s3.secret_access_key
        postgres = previous.postgres
        auth = previous.prefect_auth or _fresh_prefect_auth()
    else:
        fresh = S3Credentials.random()
        key_id, key = fresh.access_key_id, fresh.secret_access_key
        postgres = PostgresState(
            user="trtforge", database="postgres", password=secrets.token_urlsafe(30)
        )
        auth = _fresh_prefect_auth()
    return StackState(
        ports=ports.model_dump(),
        s3=S3State(
            endpoint_url=loopback_url(ports.s3_port),
            bucket=BUCKET,
            region=REGION,
            access_key_id=key_id,
            secret_access_key=key,
        ),
        postgres=postgres,
        prefect_api_url=f"{loopback_url(ports.prefect_port)}/api",
        prefect_auth=auth,
    )


def _fresh_prefect_auth() -> str:
    return f"{PREFECT_USER}:{secrets.token_urlsafe(30)}"


def _refuse_to_move(home: Path, previous: StackState | None, ports: StackPorts) -> None:
    if previous is None or previous.ports == ports.model_dump():
        return
    running = [s.name for s in _everything(home, previous) if s.find() is not None]
    if running:
        raise StackMovedError(
            f"{', '.join(running)} already run on other ports: {previous.ports}",
            field="ports",
            value=ports.model_dump(),
            remedy="Run `trtforge down` first",
        )


def _make_home(home: Path) -> Path:
    # As root, PostgreSQL runs as somebody else, who must get through.
    home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    home = home.resolve()
    for name in ("run", "logs"):
        (home / name).mkdir(mode=0o700, exist_ok=True)
    return home


@contextmanager
def _lock(home: Path, announce: Announce) -> Iterator[None]:
    (home / "run").mkdir(mode=0o700, exist_ok=True)
    with (home / "run" / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce("waiting for another `trtforge up` or `down` of this home")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _one_at_a_time(announce: Announce) -> Callable[[str], None]:
    lock = threading.Lock()

    def locked(line: str) -> None:
        with lock:
            announce(line)

    return locked
