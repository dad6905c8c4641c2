"""The TCP ports of the stack: which they are, whether they are free, and who holds them if not."""

import random
import socket
import time
from typing import Self

import psutil
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from trtforge.errors import InputError

LOOPBACK = "127.0.0.1"
_SEAWEEDFS_INTERNAL = 7
_NOBODYS_PORT_S = 5.0
_POLL_S = 0.05


class PortTakenError(InputError):
    """A port the stack needs is in use by something else."""


class PortsOverlapError(InputError):
    """Two services were given the same port."""


class PortInvalidError(InputError):
    """A variable of the environment is no port."""


class _Ports(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TRTFORGE_", frozen=True, extra="ignore")

    s3_port: int = Field(default=8333, ge=1, le=65535)
    seaweedfs_port: int = Field(default=18330, ge=1, le=65535 - _SEAWEEDFS_INTERNAL + 1)
    postgres_port: int = Field(default=15432, ge=1, le=65535)
    prefect_port: int = Field(default=4200, ge=1, le=65535)


class StackPorts(_Ports):
    """Ports on 127.0.0.1. Each field can be set as `TRTFORGE_<FIELD>` in the environment.

    Raises:
        PortsOverlapError: Two services have the same port.

    Attributes:
        s3_port: The S3 API.
        seaweedfs_port: First of the seven consecutive ports that SeaweedFS's own parts (master,
            volume, filer, and their gRPC) talk over. SeaweedFS would otherwise use port + 10000.
        postgres_port: PostgreSQL.
        prefect_port: The Prefect API and UI.
    """

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        internal = self.seaweedfs_internal()
        taken = dict.fromkeys(internal, "seaweedfs_port")
        for name in ("s3_port", "postgres_port", "prefect_port"):
            port = getattr(self, name)
            if port in taken:
                raise self._overlap(name, taken[port])
            taken[port] = name
        return self

    @classmethod
    def for_home(cls, recorded: dict[str, int]) -> Self:
        """The environment's ports; where it says nothing, those that this home used last.

        Raises:
            PortInvalidError: A variable of the environment is no port.
            PortsOverlapError: Two services have the same port.
        """
        try:
            # Not compared with the defaults of those that it leaves open.
            asked = _Ports().model_dump(exclude_unset=True)
            return cls(**(recorded | asked))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = f"TRTFORGE_{first['loc'][0]}".upper()
            raise PortInvalidError(
                first["msg"][0].lower() + first["msg"][1:],
                field=name,
                value=first["input"],
                remedy=f"Set {name} to a free port, or unset it for the default",
            ) from error

    @classmethod
    def free(cls) -> Self:
        """Ports that nothing uses at this moment; for tests and for a second stack beside one."""
        while True:
            # Below the range the kernel hands out to clients, so none is lost before it is used.
            first = random.randrange(20_000, 32_000)
            count = _SEAWEEDFS_INTERNAL + 3
            if all(port_is_free(port) for port in range(first, first + count)):
                s3, postgres, prefect = range(first + _SEAWEEDFS_INTERNAL, first + count)
                return cls(
                    seaweedfs_port=first, s3_port=s3, postgres_port=postgres, prefect_port=prefect
                )

    def seaweedfs_internal(self) -> range:
        """All seven ports that begin at `seaweedfs_port`."""
        return range(self.seaweedfs_port, self.seaweedfs_port + _SEAWEEDFS_INTERNAL)

    def _overlap(self, name: str, other: str) -> PortsOverlapError:
        variable, others = f"TRTFORGE_{name.upper()}", f"TRTFORGE_{other.upper()}"
        internal = self.seaweedfs_internal()
        takes = f" = {internal[0]} takes up to {internal[-1]}" if other == "seaweedfs_port" else ""
        return PortsOverlapError(
            f"this port is taken by another service of the stack ({others}{takes})",
            field=variable,
            value=getattr(self, name),
            remedy=f"Set {variable} or {others} to another port",
        )


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections still in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_free(service: str, port: int, variable: str) -> None:
    """Raise PortTakenError unless `port` can be listened on.

    Args:
        service: Name for the reader of the error.
        port: The port wanted.
        variable: Environment variable that chooses another one.
    """
    holder = None
    deadline = time.monotonic() + _NOBODYS_PORT_S
    while not port_is_free(port):
        holder = _holder(port)
        # A killed process keeps its ports, though not its name, until its last thread is gone.
        if holder is not None or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    else:
        return
    who = holder or "a process that cannot be seen (of another user, perhaps)"
    raise PortTakenError(
        f"{service} needs port {port} of {LOOPBACK}, which is in use by {who}",
        field=variable,
        value=port,
        remedy=f"Stop that process, or set {variable} to a free port",
    )


def _holder(port: int) -> str | None:
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return None
