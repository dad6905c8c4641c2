"""Deployments and their schedules: made, changed, and deleted when the files have them no more."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from prefect.client.schemas.schedules import (
    CronSchedule,
    IntervalSchedule,
    RRuleSchedule,
)

from deployments.desired import TAG, WantedDeployment, WantedSchedule
from deployments.ledger import Ledger

Found = dict[str, dict[str, Any]]
"""Deployments on the server, by `flow/deployment`."""


def find(ledger: Ledger, wanted: Iterable[WantedDeployment]) -> Found:
    """Those of the flows that the files deploy, and all that are the files' by their tag."""
    flow_names = sorted({deployment.flow_name for deployment in wanted})
    route = "/deployments/filter"
    found = ledger.server.pages(route, {"flows": {"name": {"any_": flow_names}}})
    found += ledger.server.pages(route, {"deployments": {"tags": {"all_": [TAG]}}})
    flow_ids = sorted({deployment["flow_id"] for deployment in found})
    if not flow_ids:
        return {}
    flows = ledger.server.pages("/flows/filter", {"flows": {"id": {"any_": flow_ids}}})
    names = {flow["id"]: flow["name"] for flow in flows}
    return {f"{names[d['flow_id']]}/{d['name']}": d for d in found if d["flow_id"] in names}


def apply(ledger: Ledger, wanted: Iterable[WantedDeployment], found: Found) -> dict[str, str]:
    """Make `wanted`. The ids by name; a dry run leaves out those that it would make."""
    ids = {name: str(deployment["id"]) for name, deployment in found.items()}
    for deployment in wanted:
        name = deployment.full_name
        have = found.get(name)
        if have is None:
            made = _create(ledger, deployment)
            if made is not None:
                ids[name] = str(made["id"])
            continue
        path = f"/deployments/{have['id']}"
        ledger.match("deployment", name, _comparable(have), deployment.body, path)
        if have["paused"]:
            ledger.notice("deployment", name, "kept", "paused in the UI; resume it there")
        _match_schedules(ledger, deployment, have)
    return ids


def prune(
    ledger: Ledger,
    wanted: Iterable[WantedDeployment],
    found: Found,
    pools_elsewhere: Collection[str],
) -> None:
    """Delete deployments that carry the tag and are in the files no more.

    Those on `pools_elsewhere` are left alone: this sync is not about them.
    """
    names = {deployment.full_name for deployment in wanted}
    for name, deployment in sorted(found.items()):
        if name in names or TAG not in deployment["tags"]:
            continue
        if deployment["work_pool_name"] not in pools_elsewhere:
            ledger.delete("deployment", name, f"/deployments/{deployment['id']}")


def _create(ledger: Ledger, deployment: WantedDeployment) -> dict[str, Any] | None:
    name = deployment.full_name
    flow = ledger.server.write(f"flow of {name}", "POST", "/flows/", {"name": deployment.flow_name})
    made: dict[str, Any] | None = ledger.create(
        "deployment",
        name,
        "/deployments/",
        {
            **deployment.body,
            "name": deployment.name,
            "flow_id": flow["id"] if flow else None,
            "schedules": [_schedule_body(schedule) for schedule in deployment.schedules],
        },
    )
    return made


def _comparable(have: Mapping[str, Any]) -> dict[str, Any]:
    """What the server has, in the words in which it is asked."""
    limit = have["global_concurrency_limit"]
    return {
        "description": have["description"] or "",
        "tags": sorted(have["tags"]),
        "entrypoint": have["entrypoint"],
        "path": have["path"],
        "pull_steps": have["pull_steps"],
        "work_pool_name": have["work_pool_name"],
        "work_queue_name": have["work_queue_name"],
        "job_variables": have["job_variables"] or {},
        "parameters": have["parameters"] or {},
        "parameter_openapi_schema": have["parameter_openapi_schema"],
        "enforce_parameter_schema": have["enforce_parameter_schema"],
        "concurrency_limit": limit["limit"] if limit else None,
        "concurrency_options": have["concurrency_options"],
    }


def _match_schedules(ledger: Ledger, deployment: WantedDeployment, have: Mapping[str, Any]) -> None:
    """Schedules are known by their slugs; one without was made in the UI and is left alone."""
    by_slug = {schedule["slug"]: schedule for schedule in have["schedules"] if schedule["slug"]}
    route = f"/deployments/{have['id']}/schedules"
    for schedule in deployment.schedules:
        name = f"{deployment.full_name}: {schedule.slug}"
        found = by_slug.pop(schedule.slug, None)
        if found is None:
            ledger.create("schedule", name, route, [_schedule_body(schedule)])
            continue
        # It runs only when both the file and the UI want it to.
        active = schedule.active and found["active"]
        if schedule.active and not active:
            ledger.notice("schedule", name, "kept", "paused in the UI; resume it there")
        ledger.match(
            "schedule",
            name,
            {
                "schedule": _comparable_schedule(found["schedule"], schedule),
                "parameters": found["parameters"],
                "active": found["active"],
            },
            {
                "schedule": _comparable_schedule(schedule.schedule, schedule),
                "parameters": schedule.parameters,
                "active": active,
            },
            f"{route}/{found['id']}",
            body={**_schedule_body(schedule), "active": active},
        )
    for slug, schedule in by_slug.items():
        name = f"{deployment.full_name}: {slug}"
        ledger.delete("schedule", name, f"{route}/{schedule['id']}")
    for schedule in have["schedules"]:
        if not schedule["slug"]:
            what = f"{deployment.full_name}: {schedule['id']}"
            ledger.notice("schedule", what, "kept", "made in the UI, as it has no slug")


def _schedule_body(schedule: WantedSchedule) -> dict[str, Any]:
    return {
        "slug": schedule.slug,
        "schedule": schedule.schedule,
        "parameters": schedule.parameters,
        "active": schedule.active,
    }


def _comparable_schedule(schedule: Mapping[str, Any], wanted: WantedSchedule) -> dict[str, Any]:
    """Read by Prefect, so that a duration or a date is written in one way."""
    kind: type[CronSchedule] | type[IntervalSchedule] | type[RRuleSchedule] = CronSchedule
    if "interval" in schedule:
        kind = IntervalSchedule
    elif "rrule" in schedule:
        kind = RRuleSchedule
    read = kind.model_validate(dict(schedule)).model_dump(mode="json")
    if not wanted.anchored:
        # Where the file names no beginning, that is whenever the schedule was made.
        read.pop("anchor_date", None)
    return read
