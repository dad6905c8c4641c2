"""What the server should have, in the API's own terms, checked as far as files can be."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from prefect.client.schemas.schedules import (
    CronSchedule,
    IntervalSchedule,
    RRuleSchedule,
)
from pydantic import ValidationError

from deployments import entrypoints, files, templates
from deployments.errors import FileInvalidError, NameTakenError, UnknownNameError
from trtforge.spec import did_you_mean

TAG = "trtforge"
"""Deployments that carry it are the files'; those no longer in the files are deleted."""
AUTOMATION_PREFIX = "trtforge: "
"""Automations whose names begin with it are the files', likewise."""


@dataclass(frozen=True)
class WantedPool:
    """A work pool. `body` is what the API is asked to make it."""

    name: str
    type: str
    body: dict[str, Any]


@dataclass(frozen=True)
class WantedSchedule:
    """A schedule. `anchored`: whether the file says where its intervals begin."""

    slug: str
    schedule: dict[str, Any]
    parameters: dict[str, Any]
    active: bool
    anchored: bool


@dataclass(frozen=True)
class WantedDeployment:
    """A deployment. `body` is what the API is asked to make it, without its schedules."""

    flow_name: str
    name: str
    body: dict[str, Any]
    schedules: tuple[WantedSchedule, ...]

    @property
    def full_name(self) -> str:
        return f"{self.flow_name}/{self.name}"


@dataclass(frozen=True)
class Desired:
    """Everything. `pools_elsewhere`: pools of the files that this sync leaves alone."""

    pools: tuple[WantedPool, ...]
    deployments: tuple[WantedDeployment, ...]
    limits: tuple[files.Limit, ...]
    variables: tuple[files.Variable, ...]
    blocks: tuple[files.Block, ...]
    automations: tuple[files.Automation, ...]
    pools_elsewhere: frozenset[str]


def desired(read: files.Files, only_pools: Collection[str] | None = None) -> Desired:
    """What `read` asks for; with `only_pools`, of these pools and their deployments alone.

    Raises:
        InputError: One of `deployments.errors`, for the first thing that is wrong.
    """
    known = [pool.name for pool in read.pools]
    for name in only_pools or ():
        if name not in known:
            raise _unknown("only_pools", name, "no such pool in pools.yaml", known)
    chosen = set(known if only_pools is None else only_pools)
    job_templates = {
        pool.name: templates.job_template(pool, read.templates[pool.template])
        for pool in read.pools
    }
    deployments = []
    signatures: dict[str, entrypoints.FlowSignature] = {}
    for deployment in read.deployments:
        where = f"prefect.yaml: deployment {deployment.name}"
        pool = deployment.work_pool
        if pool.name not in known:
            field = f"{where}.work_pool.name"
            raise _unknown(field, pool.name, "no such pool in pools.yaml", known)
        templates.check_job_variables(
            f"{where}.work_pool.job_variables", pool.job_variables, job_templates[pool.name]
        )
        if pool.name in chosen:
            wanted, signature = _deployment(where, deployment)
            if wanted.full_name in signatures:
                raise NameTakenError(
                    f"the flow {wanted.flow_name} has two deployments of that name",
                    field="prefect.yaml: deployments",
                    value=wanted.name,
                    remedy="Rename one of them",
                )
            signatures[wanted.full_name] = signature
            deployments.append(wanted)
    for automation in read.automations:
        _check_automation(automation, read.blocks, signatures, partial=only_pools is not None)
    for variable in read.variables:
        templates.refuse_secrets("platform.yaml: variables", {variable.name: variable.value})
    return Desired(
        pools=tuple(
            WantedPool(
                pool.name,
                pool.type,
                {
                    "description": pool.description,
                    "concurrency_limit": pool.concurrency_limit,
                    "base_job_template": job_templates[pool.name],
                },
            )
            for pool in read.pools
            if pool.name in chosen
        ),
        deployments=tuple(deployments),
        limits=read.limits,
        variables=read.variables,
        blocks=read.blocks,
        automations=read.automations,
        pools_elsewhere=frozenset(known) - chosen,
    )


def _deployment(
    where: str, deployment: files.Deployment
) -> tuple[WantedDeployment, entrypoints.FlowSignature]:
    signature = entrypoints.load(f"{where}.entrypoint", deployment.entrypoint)
    signature.check(f"{where}.parameters", deployment.parameters)
    limit = deployment.limit
    options = limit.model_dump(exclude={"limit"}) if limit else None
    schedules = []
    for schedule in deployment.schedules:
        at = f"{where}.schedules.{schedule.slug}"
        signature.check(f"{at}.parameters", schedule.parameters)
        # A run by schedule has nobody who fills in the form.
        given = deployment.parameters.keys() | schedule.parameters.keys()
        missing = [name for name in signature.schema.get("required", ()) if name not in given]
        if missing:
            raise FileInvalidError(
                f"a run by this schedule lacks the parameter {missing[0]}",
                field=f"{at}.parameters",
                value=schedule.parameters,
                remedy="Give it there, or in the deployment's parameters",
            )
        schedules.append(_schedule(at, schedule))
    body = {
        "description": deployment.description or signature.description,
        "tags": sorted({TAG, *deployment.tags}),
        "entrypoint": deployment.entrypoint,
        "path": None,
        # None would mean Prefect's default, which is a directory of the machine that deploys.
        "pull_steps": [],
        "work_pool_name": deployment.work_pool.name,
        "work_queue_name": deployment.work_pool.work_queue_name,
        "job_variables": deployment.work_pool.job_variables,
        "parameters": deployment.parameters,
        "parameter_openapi_schema": signature.schema,
        "enforce_parameter_schema": deployment.enforce_parameter_schema,
        "concurrency_limit": limit.limit if limit else None,
        "concurrency_options": options,
    }
    wanted = WantedDeployment(signature.name, deployment.name, body, tuple(schedules))
    return wanted, signature


def _schedule(where: str, schedule: files.Schedule) -> WantedSchedule:
    timing: dict[str, Any] = {"timezone": schedule.timezone}
    kind: type[CronSchedule] | type[IntervalSchedule] | type[RRuleSchedule]
    if schedule.cron is not None:
        kind, timing["cron"], timing["day_or"] = CronSchedule, schedule.cron, schedule.day_or
    elif schedule.rrule is not None:
        kind, timing["rrule"] = RRuleSchedule, schedule.rrule
    else:
        kind, timing["interval"] = IntervalSchedule, schedule.interval
        if schedule.anchor_date is not None:
            timing["anchor_date"] = schedule.anchor_date
    try:
        made = kind.model_validate(timing).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else "schedule"
        raise FileInvalidError(
            first["msg"].removeprefix("Value error, "),
            field=f"{where}.{key}",
            value=timing.get(key),
            remedy="A cron line has five parts; a time zone is one such as Europe/Berlin",
        ) from error
    return WantedSchedule(
        slug=schedule.slug,
        schedule=made,
        parameters=schedule.parameters,
        active=schedule.active,
        anchored=schedule.anchor_date is not None or schedule.interval is None,
    )


def _check_automation(
    automation: files.Automation,
    blocks: Iterable[files.Block],
    signatures: Mapping[str, entrypoints.FlowSignature],
    *,
    partial: bool,
) -> None:
    where = f"automations.yaml: {automation.name}"
    if automation.trigger.posture == "Proactive" and automation.trigger.within < 10:
        raise FileInvalidError(
            "Prefect waits for what does not come for ten seconds or more",
            field=f"{where}.trigger.within",
            value=automation.trigger.within,
            remedy="Use at least 10",
        )
    for action in automation.actions:
        if isinstance(action, files.RunDeployment):
            signature = signatures.get(action.deployment)
            if signature is not None:
                for name in action.parameters:
                    if name not in signature.annotations:
                        problem = f"the flow {signature.name} has no such parameter"
                        known = sorted(signature.annotations)
                        raise _unknown(f"{where}.parameters", name, problem, known)
            elif not partial:
                problem = "no such deployment in prefect.yaml"
                raise _unknown(f"{where}.deployment", action.deployment, problem, signatures)
        elif isinstance(action, files.CallWebhook):
            known = [block.name for block in blocks if block.type == "webhook"]
            if action.block not in known:
                problem = "no such webhook block in platform.yaml"
                raise _unknown(f"{where}.block", action.block, problem, known)
            try:
                jinja2.Environment(autoescape=True).parse(action.payload)
            except jinja2.TemplateSyntaxError as error:
                raise FileInvalidError(
                    f"this is not a Jinja template ({error})",
                    field=f"{where}.payload",
                    value=" ".join(action.payload.split())[:80],
                    remedy="Correct it; put values in with |tojson",
                ) from error


def _unknown(where: str, name: str, problem: str, known: Iterable[str]) -> UnknownNameError:
    remedy = did_you_mean(name, sorted(known))
    return UnknownNameError(problem, field=where, value=name, remedy=remedy)
