"""The files of this directory, read and checked one by one; `desired` checks them together."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from deployments.errors import FileInvalidError, FileUnreadableError, NameTakenError
from trtforge.spec import did_you_mean

HERE = Path(__file__).parent
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,99}$")]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=100)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,255}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pool(_Part):
    """A work pool: a job template, and what this pool changes in it."""

    name: Name
    type: Literal["process", "docker", "kubernetes"]
    template: str
    description: str = ""
    concurrency_limit: int | None = Field(default=None, ge=0)
    variables: dict[str, dict[str, Any]] = Field(default_factory=dict)
    fixed: dict[str, Any] = Field(default_factory=dict)


class Schedule(_Part):
    """When a deployment runs by itself; `slug` is what it is known by. Intervals in seconds."""

    slug: Slug
    cron: str | None = None
    day_or: bool = True
    interval: float | None = Field(default=None, ge=60)
    anchor_date: str | None = None
    rrule: str | None = None
    timezone: str = "UTC"
    active: bool = True
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.cron, self.interval, self.rrule)) != 1:
            raise ValueError("give exactly one of cron, interval and rrule")
        return self


class ConcurrencyLimit(_Part):
    """Runs of one deployment at once."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"
    grace_period_seconds: int | None = Field(default=None, ge=60)


class WorkPool(_Part):
    """Where a deployment runs."""

    name: str
    work_queue_name: str = "default"
    job_variables: dict[str, Any] = Field(default_factory=dict)


class Deployment(_Part):
    """A deployment, in the words of Prefect's own prefect.yaml."""

    name: Name
    entrypoint: str
    description: str = ""
    tags: tuple[str, ...] = ()
    work_pool: WorkPool
    parameters: dict[str, Any] = Field(default_factory=dict)
    schedules: tuple[Schedule, ...] = ()
    concurrency_limit: ConcurrencyLimit | int | None = None
    enforce_parameter_schema: bool = True

    @property
    def limit(self) -> ConcurrencyLimit | None:
        if isinstance(self.concurrency_limit, int):
            return ConcurrencyLimit(limit=self.concurrency_limit)
        return self.concurrency_limit


class Limit(_Part):
    """A global concurrency limit."""

    name: str = Field(min_length=1)
    limit: int = Field(ge=0)
    slot_decay_per_second: float = Field(default=0.0, ge=0)


class Variable(_Part):
    """A Prefect variable; everybody may read it."""

    name: VariableName
    value: Any


class Block(_Part):
    """A block that somebody has to make: its value is a secret, its name is not."""

    name: Slug
    type: Slug
    needed_for: str
    how_to_make: str


class Trigger(_Part):
    """Prefect's event trigger; `within` in seconds."""

    posture: Literal["Reactive", "Proactive"]
    match: dict[str, str | list[str]] = Field(default_factory=dict)
    match_related: dict[str, str | list[str]] = Field(default_factory=dict)
    after: frozenset[str] = frozenset()
    expect: frozenset[str] = frozenset()
    for_each: frozenset[str] = frozenset()
    threshold: int = Field(default=1, ge=1)
    within: float = Field(default=0.0, ge=0)


class RunDeployment(_Part):
    """Start a run of `deployment` (flow/deployment)."""

    type: Literal["run-deployment"]
    deployment: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class ChangeFlowRunState(_Part):
    """Give the run that the event is about another state."""

    type: Literal["change-flow-run-state"]
    state: Literal["CRASHED", "FAILED", "CANCELLED"]
    message: str


class CallWebhook(_Part):
    """Send `payload` (Jinja) through the webhook block named `block`."""

    type: Literal["call-webhook"]
    block: str
    payload: str


Action = Annotated[RunDeployment | ChangeFlowRunState | CallWebhook, Field(discriminator="type")]


class Automation(_Part):
    """What happens when events come, or do not."""

    name: Name
    description: str = ""
    enabled: bool = True
    trigger: Trigger
    actions: tuple[Action, ...] = Field(min_length=1)


class _PrefectFile(_Part):
    name: str = ""
    prefect_version: str | None = Field(
        default=None, validation_alias=AliasChoices("prefect-version", "prefect_version")
    )
    # Nothing is pulled: the code is installed where the worker runs.
    pull: tuple[()] = ()
    definitions: Any = None
    deployments: tuple[Deployment, ...]


class _PoolsFile(_Part):
    definitions: Any = None
    pools: tuple[Pool, ...]


class _PlatformFile(_Part):
    definitions: Any = None
    limits: tuple[Limit, ...] = ()
    variables: tuple[Variable, ...] = ()
    blocks: tuple[Block, ...] = ()


class _AutomationsFile(_Part):
    definitions: Any = None
    automations: tuple[Automation, ...]


class Files(_Part):
    """Everything the directory says. `templates`: job templates by file name."""

    pools: tuple[Pool, ...]
    templates: dict[str, dict[str, Any]]
    deployments: tuple[Deployment, ...]
    limits: tuple[Limit, ...]
    variables: tuple[Variable, ...]
    blocks: tuple[Block, ...]
    automations: tuple[Automation, ...]


def read(directory: Path = HERE) -> Files:
    """Read the directory.

    Raises:
        FileUnreadableError: A file is missing, or is not YAML or JSON.
        FileInvalidError: A field is unknown, missing or wrong.
        NameTakenError: Two entries have the same name.
    """
    pools = _load(directory / "pools" / "pools.yaml", _PoolsFile).pools
    deployments = _load(directory / "prefect.yaml", _PrefectFile).deployments
    platform = _load(directory / "platform.yaml", _PlatformFile)
    automations = _load(directory / "automations.yaml", _AutomationsFile).automations
    _unique("pools.yaml", "pools", (pool.name for pool in pools))
    _unique("automations.yaml", "automations", (automation.name for automation in automations))
    _unique("platform.yaml", "limits", (limit.name for limit in platform.limits))
    _unique("platform.yaml", "variables", (variable.name for variable in platform.variables))
    _unique("platform.yaml", "blocks", (f"{b.type}/{b.name}" for b in platform.blocks))
    for deployment in deployments:
        slugs = (schedule.slug for schedule in deployment.schedules)
        _unique("prefect.yaml", f"{deployment.name}.schedules", slugs)
    templates = {
        name: _mapping(directory / "pools" / name)
        for name in sorted({pool.template for pool in pools})
    }
    return Files(
        pools=pools,
        templates=templates,
        deployments=deployments,
        limits=platform.limits,
        variables=platform.variables,
        blocks=platform.blocks,
        automations=automations,
    )


_File = TypeVar("_File", bound=_Part)


def _load(path: Path, model: type[_File]) -> _File:
    try:
        return model.model_validate(_mapping(path))
    except ValidationError as error:
        raise _first_problem(path, model, error) from error


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FileUnreadableError(
            f"it cannot be read ({' '.join(str(error).split())})",
            field="file",
            value=str(path),
            remedy="Give a directory with pools/pools.yaml and its templates, prefect.yaml, "
            "platform.yaml and automations.yaml, such as a copy of trtforge's own `deployments`",
        ) from error
    if not isinstance(data, dict):
        raise FileUnreadableError(
            "it does not hold a mapping",
            field="file",
            value=str(path),
            remedy="Begin with a key and a colon, as in trtforge's own `deployments`",
        )
    return data


def _unique(file: str, where: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise NameTakenError(
                "there are two of that name",
                field=f"{file}: {where}",
                value=name,
                remedy="Rename one of them",
            )
        seen.add(name)


def _first_problem(path: Path, model: type[BaseModel], error: ValidationError) -> FileInvalidError:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    problem = first["msg"][0].lower() + first["msg"][1:]
    remedy = "Correct it; docs/run-on-prefect.md describes the files"
    if first["type"] == "extra_forbidden":
        problem = "unknown key"
        remedy = did_you_mean(location[-1], _keys(model, location[:-1]))
    elif first["type"] == "missing":
        problem, remedy = "this key is required", "Add it"
    elif first["type"] == "value_error":
        problem = str(first["ctx"]["error"])
    elif first["type"] in ("literal_error", "union_tag_invalid"):
        context = first["ctx"]
        problem = "unknown value"
        remedy = f"Use one of {context.get('expected') or context.get('expected_tags')}"
    value = first["input"]
    return FileInvalidError(
        problem,
        field=f"{path.name}: {'.'.join(location)}",
        value=value if isinstance(value, str | int | float) else f"<{type(value).__name__}>",
        remedy=remedy,
    )


def _keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that the mapping at `location` may have."""
    known: list[type[BaseModel]] = [model]
    for part in location:
        if part.isdigit():
            continue
        inner: list[Any] = [
            m.model_fields[part].annotation for m in known if part in m.model_fields
        ]
        # A tag of a union of models is a part of the location, too, and names no field.
        known = _models(inner) if inner else [m for m in known if _tag(m) == part] or known
    return sorted({name for m in known for name in m.model_fields if name != "definitions"})


def _tag(model: type[BaseModel]) -> str:
    if "type" not in model.model_fields:
        return ""
    values: tuple[str, ...] = getattr(model.model_fields["type"].annotation, "__args__", ())
    return str(values[0]) if values else ""


def _models(annotations: Iterable[Any]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        else:
            found += _models(getattr(annotation, "__args__", ()))
    return found
