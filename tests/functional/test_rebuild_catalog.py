"""The flow rebuild-catalog on a real Prefect server and a real store.

What is built is not: a thread takes the runs that the flow starts, as a worker would, and leaves
in the store what a build leaves there.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import prefect.settings as prefect_settings
import pytest
import yaml
from hub_server import HubServer
from prebuilt import prebuild, sight, tiny_weights, toolchain_of
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Completed, Failed, Running

from trtforge.settings import load_settings, prefect_environment
from trtforge.spec import BuildSpec
from trtforge.stack import StackInfo
from trtforge.stages.stage import Workshop
from trtforge.stages.workshop import open_workshop

CPU = toolchain_of()
POOL = "cat-gpu"


@dataclass
class Site:
    """A Prefect server with the deployments, a Hub, and somebody who does the work."""

    client: SyncPrefectClient
    hub: HubServer
    shop: Workshop
    scratch: Path
    data: dict[str, Any]
    done: list[str] = field(default_factory=list)
    fails: dict[str, str] = field(default_factory=dict)
    sees: bool = True

    def add(self, name: str, *, gated: bool = False, **entry: Any) -> None:
        """A model in the catalogue and on the Hub."""
        self.push(name, gated=gated)
        model = {"name": name, "source": f"hf://cat/{name}", "gpus": ["gpu"], "profiles": ["p"]}
        self.data["models"].append({**model, **entry})

    def push(self, name: str, *, gated: bool = False) -> None:
        """New weights."""
        count = len(list(self.scratch.iterdir()))
        weights = tiny_weights(self.scratch / f"{name}-{count}", f"{name} {count}")
        self.hub.add_commit(f"cat/{name}", weights, gated=gated)

    def rebuild(self, **parameters: Any) -> Any:
        """Run the flow here; its final state."""
        from flows.rebuild_catalog import rebuild_catalog

        path = load_settings().catalog
        assert path is not None
        path.write_text(yaml.safe_dump(self.data))
        return rebuild_catalog(**parameters, return_state=True)

    def matrix(self) -> dict[str, dict[str, str]]:
        """The newest table, by model."""
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["catalog-matrix"]))
        found = self.client.read_artifacts(artifact_filter=wanted)
        newest = max(found, key=lambda artifact: artifact.created or datetime.min)
        return {row["Model"]: row for row in json.loads(str(newest.data))}

    def states(self) -> dict[str, str]:
        return {name: row["State"] for name, row in self.matrix().items()}

    def runs(self, flow: str = "build-engine") -> list[FlowRun]:
        wanted = FlowFilter(name=FlowFilterName(any_=[flow]))
        return self.client.read_flow_runs(flow_filter=wanted)

    def online(self, pool: str) -> None:
        self.client.send_worker_heartbeat(pool, "hand", heartbeat_interval_seconds=3600)

    @contextmanager
    def hand(self, *, once_running: str = "") -> Iterator[None]:
        """Take what is scheduled, one after the other, until the block ends.

        Args:
            once_running: Begin when the matrix says of this model that it is being built.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self._work, args=(stop, once_running), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)

    def _work(self, stop: threading.Event, once_running: str) -> None:
        while once_running and self.states().get(once_running) != "running":
            if stop.wait(0.2):
                return
        while not stop.wait(0.2):
            for flow, do in (("gpu-stage", self._look), ("build-engine", self._build)):
                wanted = FlowFilter(name=FlowFilterName(any_=[flow]))
                for run in self.client.read_flow_runs(flow_filter=wanted):
                    if run.state and run.state.is_scheduled():
                        self.client.set_flow_run_state(run.id, Running(), force=True)
                        state = do(run)
                        self.client.set_flow_run_state(run.id, state, force=True)

    def _look(self, _: FlowRun) -> Any:
        if self.sees:
            sight(self.shop, POOL, CPU)
        return Completed() if self.sees else Failed(message="no PyTorch here")

    def _build(self, run: FlowRun) -> Any:
        spec = BuildSpec.model_validate(run.parameters["spec"])
        self.done.append(str(spec.model.name))
        assert run.parameters["gpu_pool"] == POOL
        if why := self.fails.get(str(spec.model.name)):
            return Failed(message=why)
        prebuild(self.shop, spec, CPU)
        return Completed()


@pytest.fixture(scope="module")
def server(
    stack: StackInfo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SyncPrefectClient]:
    """This process as a client of the server, with the pools and deployments that the flow asks."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRTFORGE_HOME", str(stack.home))
    patch.setenv("TRTFORGE_CATALOG", str(tmp_path_factory.mktemp("catalog") / "catalog.yaml"))
    patch.setattr("tasks.catalog_builds._POLL_S", 0.3)
    patch.setattr("tasks.catalog._POLL_S", 0.3)
    environment = prefect_environment(load_settings())
    # Prefect makes no parents.
    Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    names = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_HOME")
    told: dict[Any, Any] = {
        getattr(prefect_settings, n): environment[n] for n in names if n in environment
    }
    told[prefect_settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None
    told[prefect_settings.PREFECT_LOGGING_TO_API_ENABLED] = False
    with prefect_settings.temporary_settings(told), get_client(sync_client=True) as client:
        for pool in ("cat-cpu", POOL):
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        for flow, deployment, pool in (
            ("build-engine", "cpu", "cat-cpu"),
            ("gpu-stage", POOL, POOL),
        ):
            flow_id = client.create_flow_from_name(flow)
            client.create_deployment(flow_id, name=deployment, work_pool_name=pool)
        yield client
    patch.undo()


@pytest.fixture
def site(
    server: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        (tmp_path / "weights").mkdir()
        data = {
            "gpus": {"gpu": {"pool": POOL, "at_once": 4}},
            "profiles": {"p": {}},
            "models": [],
        }
        shop = open_workshop()
        shop.work_root.mkdir(parents=True, exist_ok=True)
        sight(shop, POOL, CPU)
        found = Site(server, hub, shop, tmp_path / "weights", data)
        for pool in ("cat-cpu", POOL):
            found.online(pool)
        yield found


def test_exactly_what_changed_is_built_and_a_failure_is_one_line_of_the_table(site: Site) -> None:
    for name in ("one", "two", "three"):
        site.add(name)
    site.add("secret", gated=True)
    with site.hand():
        assert site.rebuild().is_completed()
    assert sorted(site.done) == ["one", "three", "two"]
    assert site.states() == {"one": "built", "two": "built", "three": "built", "secret": "gated"}

    site.done.clear()
    site.push("one")
    site.push("two")
    site.fails["two"] = "the engine does not fit"
    with site.hand():
        state = site.rebuild()
    assert state.is_completed()
    assert "1 failed" in state.message
    assert "two/gpu/p: failed (the engine does not fit" in state.message
    assert sorted(site.done) == ["one", "two"]
    rows = site.matrix()
    assert site.states() == {
        "one": "built",
        "two": "failed",
        "three": "up to date",
        "secret": "gated",
    }
    assert "weights: commit" in rows["one"]["Why"]
    assert len(rows["one"]["Engine"]) == 12
    assert rows["one"]["GPU minutes"] == "2"
    failed = next(run for run in site.runs() if str(run.id) in rows["two"]["Run"])
    assert failed.state is not None
    assert failed.state.is_failed()


def test_when_nothing_changed_nothing_starts(site: Site) -> None:
    site.add("same")
    with site.hand():
        site.rebuild()
    runs = len(site.runs())
    state = site.rebuild()
    assert state.is_completed()
    assert state.message == "1 up to date"
    assert len(site.runs()) == runs


def test_a_dry_run_tells_and_starts_nothing(site: Site) -> None:
    site.add("dry")
    state = site.rebuild(dry_run=True)
    assert state.message == "1 changed"
    assert site.matrix()["dry"]["Why"] == "never built"
    assert "dry/gpu/p" not in {run.name for run in site.runs()}


def test_a_build_that_keeps_failing_is_given_up_until_somebody_names_it(site: Site) -> None:
    site.data["attempts"] = 2
    site.add("flaky")
    site.fails["flaky"] = "no luck"
    with site.hand():
        for _ in range(3):
            site.rebuild()
        assert site.done == ["flaky"] * 2
        assert site.states() == {"flaky": "failing"}
        assert "2 builds failed; the last: no luck" in site.matrix()["flaky"]["Why"]
        del site.fails["flaky"]
        site.rebuild(only=["flaky"])
    assert site.states() == {"flaky": "built"}


def test_a_build_that_is_under_way_is_followed_and_not_begun_again(site: Site) -> None:
    from tasks.catalog_runs import start_build
    from trtforge.catalog import load_catalog, plan_catalog

    site.add("slow")
    site.rebuild(dry_run=True)
    catalog, cells = load_catalog(load_settings().catalog)
    plan = plan_catalog(site.shop, catalog, cells, datetime.now(UTC))[0]
    first = start_build(plan, 0)
    assert start_build(plan, 0).id == first.id
    with site.hand(once_running="slow"):
        site.rebuild()
    assert site.done == ["slow"]
    assert str(first.id) in site.matrix()["slow"]["Run"]


def test_a_pool_without_a_worker_is_told_and_not_waited_for(site: Site) -> None:
    site.add("lonely")
    site.data["gpus"]["gpu"]["pool"] = "cat-nobody"
    with suppress(ObjectAlreadyExists):
        site.client.create_work_pool(WorkPoolCreate(name="cat-nobody", type="process"))
    sight(site.shop, "cat-nobody", CPU)
    state = site.rebuild()
    assert state.is_completed()
    assert site.states() == {"lonely": "no worker"}
    assert "no worker of pool cat-nobody is online" in state.message


def test_outside_the_window_nothing_starts(site: Site) -> None:
    site.add("patient")
    at = datetime.now(UTC)
    site.data["build_window"] = {
        "from": f"{at + timedelta(hours=2):%H:%M}",
        "to": f"{at + timedelta(hours=3):%H:%M}",
    }
    site.rebuild()
    assert site.states() == {"patient": "outside the window"}
    assert "never built; builds start again at" in site.matrix()["patient"]["Why"]
    with site.hand():
        site.rebuild(ignore_window=True)
    assert site.states() == {"patient": "built"}


def test_the_budget_of_a_run_is_not_exceeded(site: Site) -> None:
    for name in ("cheap", "dear"):
        site.add(name, priority={"cheap": 1, "dear": 0}[name])
    site.data["budget"] = {
        "gpu_minutes_per_run": 40,
        "gpu_minutes_per_day": 1000,
        "default_gpu_minutes": 30,
    }
    with site.hand():
        site.rebuild()
    assert site.states() == {"cheap": "built", "dear": "over budget"}


def test_a_pool_that_nobody_looked_at_for_a_day_is_looked_at_first(site: Site) -> None:
    site.add("seen")
    sight(site.shop, POOL, CPU, seen_at=datetime.now(UTC) - timedelta(days=2))
    before = site.shop.store.sightings.get(POOL, BuildSpec(model={"source": "x"}).engine)
    with site.hand():
        site.rebuild()
    after = site.shop.store.sightings.get(POOL, BuildSpec(model={"source": "x"}).engine)
    assert before is not None
    assert after is not None
    assert after.seen_at > before.seen_at
    assert site.states() == {"seen": "built"}


def test_an_event_about_other_weights_is_no_failure(site: Site) -> None:
    site.add("mine")
    state = site.rebuild(source="hf://somebody/else")
    assert state.is_completed()
    assert "No model of the catalogue" in state.message
    with site.hand():
        site.rebuild(source="hf://cat/mine@main")
    assert site.states() == {"mine": "built"}


def test_whoever_hears_of_new_weights_tells_the_server(site: Site) -> None:
    from tasks.catalog_event import WEIGHTS_CHANGED, emit_weights_changed

    event_id = emit_weights_changed("hf://cat/mine")
    wanted = {"filter": {"id": {"id": [event_id]}}}
    for _ in range(100):  # the server stores events a moment later
        found = site.client.request("POST", "/events/filter", json=wanted).json()["events"]
        if found:
            break
        time.sleep(0.1)
    assert found[0]["event"] == WEIGHTS_CHANGED
    assert found[0]["payload"] == {"source": "hf://cat/mine"}
    assert found[0]["resource"]["prefect.resource.id"] == "trtforge.weights.cat/mine"


def test_a_run_that_could_plan_nothing_fails(site: Site) -> None:
    site.add("locked", gated=True)
    state = site.rebuild()
    assert state.is_failed()
    assert "none of the 1 cells could be planned; locked/gpu/p is gated" in state.message
    assert site.states() == {"locked": "gated"}


def test_a_name_that_the_catalogue_does_not_have_is_refused(site: Site) -> None:
    site.add("known")
    state = site.rebuild(only=["knwon"], dry_run=True)
    assert state.is_failed()
    assert "Did you mean 'known'?" in state.message
