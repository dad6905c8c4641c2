"""The Prefect server of the stack: API, UI and background services in one process.

Setting names were checked with Prefect 3.8.8.
"""

import os
import sys
from pathlib import Path
from typing import ClassVar

from trtforge.stack.ports import LOOPBACK, StackPorts
from trtforge.stack.process import Command
from trtforge.stack.service import Service, loopback_url

_REQUEST_TIMEOUT_S = 5.0


class PrefectServer(Service):
    """Prefect on 127.0.0.1, on the stack's PostgreSQL; `PREFECT_HOME` is `home/prefect`.

    Args:
        home: Home directory of the stack.
        ports: Uses `prefect_port`.
        database_url: SQLAlchemy URL with password.
        auth: `user:password` that the API and the UI ask for.
        secrets: What else its log must not be quoted with.
    """

    name = "Prefect server"
    slug = "prefect"
    # Ten CPU seconds of imports, and the migrations of an empty database at the first start.
    start_timeout_s: ClassVar[float] = 240.0

    def __init__(
        self, home: Path, ports: StackPorts, database_url: str, auth: str, secrets: tuple[str, ...]
    ) -> None:
        super().__init__(home)
        self._port = ports.prefect_port
        self._database_url = database_url
        self._auth = auth
        self.secrets = (auth, auth.partition(":")[2], *secrets)

    @property
    def address(self) -> str:
        return loopback_url(self._port)

    @property
    def api_url(self) -> str:
        return f"{self.address}/api"

    @property
    def ports(self) -> dict[int, str]:
        return {self._port: "TRTFORGE_PREFECT_PORT"}

    def prepare(self) -> None:
        (self.home / "prefect").mkdir(mode=0o700, parents=True, exist_ok=True)

    def command(self) -> Command:
        directory = self.home / "prefect"
        # The caller's settings, and its secrets, are for its own work and not for this server.
        ours = ("PREFECT_", "TRTFORGE_", "AWS_", "HF_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        start = ("-m", "prefect", "--no-prompt", "server", "start")
        argv = (sys.executable, *start, "--host", LOOPBACK, "--port", str(self._port))
        settings = {
            "PREFECT_HOME": str(directory),
            "PREFECT_PROFILES_PATH": str(directory / "profiles.toml"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            # Not everybody who can reach loopback may run code here, nor may every page that
            # somebody's browser shows.
            "PREFECT_SERVER_API_AUTH_STRING": self._auth,
            "PREFECT_API_AUTH_STRING": self._auth,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.address,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self._database_url,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
            # In memory, the default, every held concurrency slot is lost with a restart.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            # How long the slot of a run that died with its worker stays taken; default 300 s.
            "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "60",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
        }
        # Prefect also reads a `.env` and `prefect.toml` from its working directory.
        return Command(argv, inherited | settings, directory)

    def unhealthy(self) -> str:
        import httpx

        try:
            # Unlike /health, /ready asks the database too.
            answer = httpx.get(f"{self.api_url}/ready", timeout=_REQUEST_TIMEOUT_S, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            return f"the API does not answer: {error}"
        return ""
