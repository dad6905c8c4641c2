"""`sync` on a real Prefect server: it becomes what the files say, and keeps what people did."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from forge import prefect_client_environment, prefect_http
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    temporary_settings,
)

from deployments import errors
from deployments.files import HERE
from deployments.sync import SyncReport, sync
from trtforge.stack import StackInfo

Http = httpx.Client
CRON = {"slug": "nightly", "cron": "0 2 * * *", "timezone": "UTC"}
HOURLY = {"slug": "hourly", "interval": 3600, "parameters": {"count": 2}}
OWN: dict[str, Any] = {
    "name": "own",
    "entrypoint": "deployable.deployable",
    "work_pool": {"name": "own", "job_variables": {"env": {"A": "1"}}},
    "parameters": {"text": "hello"},
    "schedules": [CRON, HOURLY],
    "concurrency_limit": {"limit": 2, "collision_strategy": "ENQUEUE"},
}


@pytest.fixture(scope="module", autouse=True)
def _settings(stack: StackInfo) -> Iterator[None]:
    """This process's Prefect settings name the stack's server."""
    environment = prefect_client_environment(stack)
    named = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: environment["PREFECT_API_AUTH_STRING"],
    }
    with temporary_settings(named):
        yield


@pytest.fixture(scope="module")
def http(stack: StackInfo) -> Iterator[Http]:
    with prefect_http(stack) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def _leave_trtforges_own(_settings: None) -> Iterator[None]:
    """Other modules of the session use the deployments that trtforge comes with."""
    sync()
    yield
    sync()


class Site:
    """The files of a site: trtforge's own, and a pool and a deployment called own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(HERE, directory, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        pool = {"name": "own", "type": "process", "template": "process.json"}
        self.edit("pools/pools.yaml", lambda c: c["pools"].append(pool))
        self.edit("prefect.yaml", lambda c: c["deployments"].append(dict(OWN)))

    def edit(self, file: str, change: Callable[[Any], Any]) -> None:
        path = self.directory / file
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content))

    def own(self, **fields: Any) -> None:
        """Change the deployment own."""
        self.edit("prefect.yaml", lambda content: content["deployments"][-1].update(fields))

    def sync(self, *, dry_run: bool = False) -> SyncReport:
        return sync(self.directory, dry_run=dry_run)


@pytest.fixture
def site(tmp_path: Path, http: Http) -> Iterator[Site]:
    yield Site(tmp_path / "deployments")
    left = http.post("deployments/filter", json={"flows": {"name": {"any_": ["deployable"]}}})
    for found in left.json():
        http.delete(f"deployments/{found['id']}").raise_for_status()
    for path in ("work_pools/own", "v2/concurrency_limits/own-limit", "variables/name/own_value"):
        http.delete(path)


def deployment(http: Http, name: str = "deployable/own") -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"deployments/name/{name}").raise_for_status().json()
    return found


def schedules(http: Http) -> dict[str, dict[str, Any]]:
    return {schedule["slug"]: schedule for schedule in deployment(http)["schedules"]}


def done(report: SyncReport) -> set[tuple[str, str, str]]:
    return {(change.action, change.kind, change.name) for change in report.changes}


def everything(http: Http) -> str:
    """All that a sync may write, with the times of the last writes."""
    routes = (
        "work_pools/filter",
        "deployments/filter",
        "flows/filter",
        "v2/concurrency_limits/filter",
        "variables/filter",
        "automations/filter",
    )
    found = {route: http.post(route, json={}).raise_for_status().json() for route in routes}
    return json.dumps(found, indent=1, sort_keys=True)


def test_the_server_gets_what_trtforge_comes_with(http: Http) -> None:
    pools = {pool["name"] for pool in http.post("work_pools/filter", json={}).json()}
    assert {"cpu", "cpu-docker", "gpu-docker", "gpu-process", "gpu-standin", "gpu-k8s"} <= pools
    for name in ("build-engine/cpu", "gpu-stage/gpu-standin", "rebuild-catalog/nightly"):
        assert deployment(http, name)["pull_steps"] == []
    names = {automation["name"] for automation in http.post("automations/filter", json={}).json()}
    assert {"trtforge: crash zombie runs", "trtforge: crash runs that never start"} <= names


def test_a_second_sync_writes_nothing(site: Site, http: Http) -> None:
    assert done(site.sync()) == {
        ("create", "pool", "own"),
        ("create", "deployment", "deployable/own"),
    }
    before = everything(http)
    report = site.sync()
    assert report.changes == ()
    assert report.unchanged > 20
    assert everything(http) == before


def test_a_dry_run_finds_what_a_sync_does_and_writes_nothing(site: Site, http: Http) -> None:
    before = everything(http)
    foretold = site.sync(dry_run=True)
    assert everything(http) == before
    assert foretold.dry_run
    assert done(foretold) == done(site.sync())


def test_a_change_in_the_files_is_made_and_told_field_by_field(site: Site, http: Http) -> None:
    site.sync()
    site.own(
        work_pool={"name": "cpu", "job_variables": {"env": {"A": "2"}}},
        parameters={"text": "bye"},
        concurrency_limit=None,
        description="Changed",
    )
    report = site.sync()
    [change] = report.changes
    assert {line.partition(":")[0] for line in change.details} == {
        "concurrency_limit",
        "concurrency_options",
        "description",
        "job_variables.env.A",
        "parameters.text",
        "work_pool_name",
    }
    assert "parameters.text: 'hello' → 'bye'" in change.details
    found = deployment(http)
    assert found["work_pool_name"] == "cpu"
    assert found["parameters"] == {"text": "bye"}
    assert found["global_concurrency_limit"] is None
    assert site.sync().changes == ()


def test_schedules_are_added_changed_and_pruned_by_their_slugs(site: Site, http: Http) -> None:
    site.sync()
    before = schedules(http)
    assert before.keys() == {"nightly", "hourly"}
    weekly = {"slug": "weekly", "cron": "0 4 * * 6", "timezone": "Europe/Berlin"}
    site.own(schedules=[{**CRON, "cron": "0 3 * * *"}, weekly])
    assert done(site.sync()) == {
        ("update", "schedule", "deployable/own: nightly"),
        ("create", "schedule", "deployable/own: weekly"),
        ("delete", "schedule", "deployable/own: hourly"),
    }
    after = schedules(http)
    assert after["nightly"]["schedule"]["cron"] == "0 3 * * *"
    assert after["nightly"]["id"] == before["nightly"]["id"]
    assert after["weekly"]["schedule"]["timezone"] == "Europe/Berlin"
    assert after.keys() == {"nightly", "weekly"}
    site.own(schedules=[])
    site.sync()
    assert schedules(http) == {}


def test_a_pause_made_in_the_ui_is_kept_even_when_the_schedule_changes(
    site: Site, http: Http
) -> None:
    site.sync()
    found = deployment(http)
    nightly = schedules(http)["nightly"]
    route = f"deployments/{found['id']}/schedules/{nightly['id']}"
    http.patch(route, json={"active": False}).raise_for_status()
    http.patch(f"deployments/{found['id']}", json={"paused": True}).raise_for_status()
    http.patch("work_pools/own", json={"is_paused": True}).raise_for_status()
    site.own(schedules=[{**CRON, "cron": "0 3 * * *"}, HOURLY], description="Changed")
    report = site.sync()
    assert schedules(http)["nightly"]["active"] is False
    assert schedules(http)["nightly"]["schedule"]["cron"] == "0 3 * * *"
    assert schedules(http)["hourly"]["active"] is True
    assert deployment(http)["paused"] is True
    kept = {(notice.kind, notice.name) for notice in report.notices if notice.status == "kept"}
    assert kept == {
        ("schedule", "deployable/own: nightly"),
        ("deployment", "deployable/own"),
        ("pool", "own"),
    }


def test_a_schedule_that_the_file_pauses_is_paused(site: Site, http: Http) -> None:
    site.sync()
    site.own(schedules=[{**CRON, "active": False}, HOURLY])
    assert done(site.sync()) == {("update", "schedule", "deployable/own: nightly")}
    assert schedules(http)["nightly"]["active"] is False
    assert schedules(http)["nightly"]["schedule"]["cron"] == CRON["cron"]


def test_a_schedule_makes_runs(site: Site, http: Http) -> None:
    """With SQLAlchemy 2.1 the scheduler of Prefect 3.8.8 fails each time, in its log only."""
    site.sync()
    of_own = {"deployments": {"id": {"any_": [deployment(http)["id"]]}}}
    deadline = time.monotonic() + 60
    runs: list[dict[str, Any]] = []
    while not runs and time.monotonic() < deadline:
        time.sleep(0.3)
        runs = http.post("flow_runs/filter", json=of_own).raise_for_status().json()
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
    assert {2, 1} >= {run["parameters"].get("count", 1) for run in runs}
    assert all(run["parameters"]["text"] == "hello" for run in runs)


def test_a_schedule_made_in_the_ui_is_kept(site: Site, http: Http) -> None:
    site.sync()
    made = [{"schedule": {"cron": "1 1 * * *"}, "active": True}]
    route = f"deployments/{deployment(http)['id']}/schedules"
    http.post(route, json=made).raise_for_status()
    report = site.sync()
    assert report.changes == ()
    assert any("made in the UI" in notice.detail for notice in report.notices)
    assert len(deployment(http)["schedules"]) == 3


def test_a_deployment_that_left_the_files_is_deleted_and_others_stay(
    site: Site, http: Http
) -> None:
    site.sync()
    ours = deployment(http)
    # Of the same flow, by somebody else.
    body = {"name": "theirs", "flow_id": ours["flow_id"], "tags": ["mine"]}
    theirs = http.post("deployments/", json=body).raise_for_status().json()
    site.edit("prefect.yaml", lambda content: content["deployments"].pop())
    assert done(site.sync()) == {("delete", "deployment", "deployable/own")}
    assert http.get("deployments/name/deployable/own").status_code == 404
    assert deployment(http, "deployable/theirs")["id"] == theirs["id"]
    http.delete(f"deployments/{theirs['id']}").raise_for_status()


def test_a_deployment_made_by_hand_under_a_name_of_the_files_becomes_theirs(
    site: Site, http: Http
) -> None:
    flow_id = http.post("flows/", json={"name": "deployable"}).json()["id"]
    http.post("deployments/", json={"name": "own", "flow_id": flow_id}).raise_for_status()
    assert ("update", "deployment", "deployable/own") in done(site.sync())
    assert "trtforge" in deployment(http)["tags"]
    assert site.sync().changes == ()


def test_only_one_pool_leaves_the_others_as_they_are(site: Site, http: Http) -> None:
    site.sync()
    site.own(description="Changed")
    site.edit("prefect.yaml", lambda c: c["deployments"][0].update(description="Changed too"))
    report = sync(site.directory, only_pools=["own"])
    assert done(report) == {("update", "deployment", "deployable/own")}
    assert deployment(http, "build-engine/cpu")["description"] != "Changed too"


def test_pools_limits_and_variables_follow_the_files(site: Site, http: Http) -> None:
    def add(content: Any) -> None:
        content["limits"].append({"name": "own-limit", "limit": 4})
        content["variables"].append({"name": "own_value", "value": ["a", 1]})

    site.edit("platform.yaml", add)
    assert {("create", "limit", "own-limit"), ("create", "variable", "own_value")} <= (
        done(site.sync())
    )
    # Held slots are the runs' business.
    held = {"names": ["own-limit"], "slots": 1}
    http.post("v2/concurrency_limits/increment", json=held).raise_for_status()
    site.edit("platform.yaml", lambda c: c["limits"][0].update(limit=5))
    site.edit("platform.yaml", lambda c: c["variables"][0].update(value="b"))
    site.edit("pools/pools.yaml", lambda c: c["pools"][-1].update(concurrency_limit=3))
    assert done(site.sync()) == {
        ("update", "limit", "own-limit"),
        ("update", "variable", "own_value"),
        ("update", "pool", "own"),
    }
    limit = http.get("v2/concurrency_limits/own-limit").json()
    assert (limit["limit"], limit["active_slots"]) == (5, 1)
    assert http.get("variables/name/own_value").json()["value"] == "b"
    assert http.get("work_pools/own").json()["concurrency_limit"] == 3
    site.edit("pools/pools.yaml", lambda c: c["pools"][-1].update(concurrency_limit=None))
    site.sync()
    assert http.get("work_pools/own").json()["concurrency_limit"] is None


def test_a_pool_of_another_type_is_refused_before_anything_is_changed(
    site: Site, http: Http
) -> None:
    http.post("work_pools/", json={"name": "own", "type": "docker"}).raise_for_status()
    before = everything(http)
    with pytest.raises(errors.PoolTypeError, match=r"pools\.yaml: own\.type = 'process'"):
        site.sync()
    assert everything(http) == before


def test_automations_that_notify_are_made_when_their_webhook_is(site: Site, http: Http) -> None:
    report = site.sync()
    skipped = {notice.name for notice in report.notices if notice.status == "skipped"}
    assert "notify of failed runs" in skipped
    missing = {n.name: n.detail for n in report.notices if n.status == "missing"}
    assert "Blocks" in missing["hf-token"]
    block_type = http.get("block_types/slug/webhook").raise_for_status().json()
    body = {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}}
    schema = http.post("block_schemas/filter", json=body).json()[0]
    block = {
        "name": "trtforge-notifications",
        "block_type_id": block_type["id"],
        "block_schema_id": schema["id"],
        "data": {"url": "http://127.0.0.1:9/never-called", "method": "POST"},
    }
    block_id = http.post("block_documents/", json=block).raise_for_status().json()["id"]
    try:
        made = done(site.sync())
        assert made == {("create", "automation", name) for name in skipped}
        assert site.sync().changes == ()
        # Switched off in the UI; it stays so, whatever changes.
        found = {a["name"]: a for a in http.post("automations/filter", json={}).json()}
        off = found["trtforge: notify of regressions"]
        http.patch(f"automations/{off['id']}", json={"enabled": False}).raise_for_status()
        site.edit("automations.yaml", lambda c: c["automations"][-1].update(description="New"))
        report = site.sync()
        assert done(report) == {("update", "automation", "notify of regressions")}
        assert ("notify of regressions", "kept") in {(n.name, n.status) for n in report.notices}
        assert http.get(f"automations/{off['id']}").json()["enabled"] is False
    finally:
        http.delete(f"block_documents/{block_id}").raise_for_status()
    assert done(site.sync()) == {("delete", "automation", name) for name in skipped}


def test_an_automation_that_left_the_files_is_deleted_and_others_stay(
    site: Site, http: Http
) -> None:
    found = http.post("automations/filter", json={}).json()
    [zombies] = [a for a in found if a["name"] == "trtforge: crash zombie runs"]
    keys = ("trigger", "actions", "description")
    body = {"name": "somebody's own", **{key: zombies[key] for key in keys}}
    other = http.post("automations/", json=body).raise_for_status().json()
    site.edit("automations.yaml", lambda content: content["automations"].pop(0))
    assert ("delete", "automation", "crash zombie runs") in done(site.sync())
    assert http.get(f"automations/{other['id']}").status_code == 200
    http.delete(f"automations/{other['id']}").raise_for_status()
    assert done(sync()) >= {("create", "automation", "crash zombie runs")}


def _run(http: Http, name: str, parameters: dict[str, Any]) -> httpx.Response:
    route = f"deployments/{deployment(http, name)['id']}/create_flow_run"
    return http.post(route, json={"parameters": parameters})


def test_the_run_form_has_every_part_of_the_spec_described_and_in_order(http: Http) -> None:
    schema = deployment(http, "build-engine/cpu")["parameter_openapi_schema"]
    fields = schema["properties"]
    in_order = sorted(fields, key=lambda name: fields[name]["position"])
    assert in_order[:3] == ["spec", "gpu_pool", "force"]
    assert all(field["description"] for field in fields.values())
    parts = schema["definitions"]["BuildSpec"]["properties"]
    ordered = sorted(parts, key=lambda name: parts[name]["position"])
    assert ordered == ["model", "checkpoint", "engine", "benchmark", "gates", "publish"]
    engine = schema["definitions"]["EngineSpec"]["properties"]
    assert all(field["description"] for field in engine.values())
    assert engine["backend"]["enum"] == ["aoti", "trtllm"]
    assert engine["max_batch_size"]["default"] == 4


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"spec": {"model": {"source": "/x"}, "engine": {"backend": "tensorrt"}}}, "backend"),
        ({"spec": {"model": {"source": "/x"}, "engine": {"max_batch_size": 0}}}, "max_batch_size"),
        ({"spec": {"model": {"source": "/x"}, "engine": {"max_batchsize": 2}}}, "max_batchsize"),
        ({"spec": {"model": {"source": "/x"}, "enginee": {}}}, "enginee"),
        ({"spec": {"model": {"source": "/x"}}, "forse": True}, "forse"),
        ({"force": True}, "spec"),
    ],
)
def test_the_api_refuses_a_wrong_or_unknown_parameter_and_names_it(
    http: Http, parameters: dict[str, Any], named: str
) -> None:
    refused = _run(http, "build-engine/cpu", parameters)
    assert refused.status_code == 409
    assert named in refused.text


def test_a_preset_runs_as_it_is(http: Http) -> None:
    made = _run(http, "build-engine/llama-2-7b-chat-h100-bf16", {})
    assert made.status_code == 201, made.text
    assert made.json()["parameters"]["gpu_pool"] == "gpu-docker"
    http.delete(f"flow_runs/{made.json()['id']}").raise_for_status()


@pytest.mark.parametrize(
    "job_variables",
    [{"image": "elsewhere.example/miner:latest"}, {"gpu_ids": ["all; reboot"]}],
)
def test_the_api_refuses_another_image_and_what_is_no_gpu(
    http: Http, job_variables: dict[str, Any]
) -> None:
    route = f"deployments/{deployment(http, 'gpu-stage/gpu-docker')['id']}/create_flow_run"
    refused = http.post(route, json={"job_variables": job_variables})
    assert refused.status_code in (409, 422)
    assert next(iter(job_variables)) in refused.text or "does not match" in refused.text


def test_the_command_shows_the_difference_and_then_makes_it(
    site: Site, http: Http, stack: StackInfo
) -> None:
    def deploy(*arguments: str) -> "subprocess.CompletedProcess[str]":
        path = str(Path(__file__).parents[1])
        environment = {**prefect_client_environment(stack), "PYTHONPATH": path, "COLUMNS": "200"}
        command = [sys.executable, "-m", "trtforge.cli", "deploy", "--files", str(site.directory)]
        return subprocess.run(
            [*command, *arguments],
            env=environment,
            cwd=site.directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    shown = deploy("--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "deployable/own" in shown.stdout
    assert "nothing was changed" in shown.stdout
    assert http.get("deployments/name/deployable/own").status_code == 404
    made = deploy("--json", "--pool", "own")
    assert made.returncode == 0, made.stderr
    told = {(c["action"], c["kind"], c["name"]) for c in json.loads(made.stdout)["changes"]}
    assert told == {("create", "pool", "own"), ("create", "deployment", "deployable/own")}


@pytest.mark.slow
def test_prefects_own_deploy_accepts_the_file_and_the_next_sync_sets_it_right(
    http: Http, stack: StackInfo
) -> None:
    sync()
    deploy = ["deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    run = subprocess.run(
        [Path(sys.executable).parent / "prefect", "--no-prompt", *deploy],
        cwd=Path(__file__).parents[2],
        env=prefect_client_environment(stack),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # Prefect leaves unknown parameters to the run.
    updated = {change.name for change in sync().changes if change.action == "update"}
    assert "build-engine/cpu" in updated
    assert sync().changes == ()
    refused = _run(http, "build-engine/cpu", {"spec": {"model": {"source": "/x"}}, "forse": 1})
    assert refused.status_code == 409


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({PREFECT_API_URL: "http://127.0.0.1:9/api"}, errors.ServerUnreachableError),
        ({PREFECT_API_AUTH_STRING: "trtforge:wrong"}, errors.ServerLoginError),
        ({PREFECT_API_URL: None}, errors.ServerNotConfiguredError),
    ],
)
def test_a_server_that_does_not_answer_to_us_is_one_line(
    settings: dict[Any, Any], error: type[Exception]
) -> None:
    with temporary_settings(settings), pytest.raises(error, match=r"^PREFECT_API_\w+ = ") as caught:
        sync()
    assert "\n" not in str(caught.value)
    assert "wrong" not in str(caught.value)
