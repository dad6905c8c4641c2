"""What the stack asks of its Prefect server, over plain HTTP: importing Prefect takes seconds."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

_TIMEOUT_S = 10.0
_ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
_IN_PROGRESS = ["PENDING", "RUNNING", "CANCELLING"]
_ALL = 200


@dataclass(frozen=True)
class Run:
    """A flow run. `pool` and `worker` (a name) are None if no worker started it.

    `pid` is that of the process that a process worker started for it, on its own machine.
    """

    id: str
    name: str
    pool: str | None
    state_type: str
    worker: str | None = None
    pid: str | None = None

    @property
    def ended(self) -> bool:
        """Whether its state says how it went. Crashed does not: nobody saw the end of it."""
        return self.state_type in _ENDED


class PrefectApi:
    """A client of one server.

    Every method raises httpx.HTTPError if the server does not answer, or not as it should.

    Args:
        url: Ends in `/api`.
        auth: `user:password`.
    """

    def __init__(self, url: str, auth: str) -> None:
        user, _, password = auth.partition(":")
        self._http = httpx.Client(
            base_url=f"{url}/", auth=(user, password), timeout=_TIMEOUT_S, trust_env=False
        )
        self._client_name = uuid.uuid4().hex

    def online_since(self, pool: str, worker: str) -> datetime | None:
        """The last heartbeat of a worker that counts as online; None if it does not."""
        for found in self._post(f"work_pools/{pool}/workers/filter", {}):
            if found["name"] == worker and found["status"] == "ONLINE":
                return datetime.fromisoformat(found["last_heartbeat_time"])
        return None

    def runs(self, ids: Collection[str]) -> list[Run]:
        """Those runs, as far as the server knows them."""
        return self._runs({"id": {"any_": sorted(ids)}}) if ids else []

    def runs_in_progress(self) -> list[Run]:
        """Every run that somebody works on, whoever that is."""
        return self._runs({"state": {"type": {"any_": _IN_PROGRESS}}})

    def cancel(self, run: Run, message: str) -> None:
        """Put down a run whose process is gone as cancelled."""
        state = {"type": "CANCELLED", "name": "Cancelled", "message": message}
        self._post(f"flow_runs/{run.id}/set_state", {"state": state, "force": True})

    def crash(self, run: Run, message: str) -> bool:
        """Put down a run whose process is gone as crashed; False if the server refuses."""
        state = {"type": "CRASHED", "name": "Crashed", "message": message}
        answer = self._post(f"flow_runs/{run.id}/set_state", {"state": state})
        return bool(answer["status"] == "ACCEPT")

    def _runs(self, condition: dict[str, Any]) -> list[Run]:
        found: list[dict[str, Any]] = []
        while True:
            window = {"limit": _ALL, "offset": len(found), "sort": "ID_DESC"}
            page = self._post("flow_runs/filter", {"flow_runs": condition, **window})
            found += page
            if len(page) < _ALL:
                break
        return [
            Run(
                run["id"],
                run["name"],
                run.get("work_pool_name"),
                run["state_type"],
                (run.get("labels") or {}).get("prefect.worker.name"),
                run.get("infrastructure_pid"),
            )
            for run in found
        ]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.post(path, json=body, headers=self._csrf())
        return answer.raise_for_status().json()

    def _csrf(self) -> dict[str, str]:
        # One for each request: it is cheap, and outlives neither its hour nor the server.
        answer = self._http.get("csrf-token", params={"client": self._client_name})
        token = answer.raise_for_status().json()["token"]
        return {"Prefect-Csrf-Client": self._client_name, "Prefect-Csrf-Token": token}
