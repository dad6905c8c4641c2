"""What `catalog.yaml` may say: models × GPU types × profiles, and when and how much is built."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from trtforge.errors import InputError
from trtforge.spec import BuildSpec, ModelName, did_you_mean
from trtforge.spec.part import FoundError, Part, require_known

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
# https://docs.prefect.io/v3/api-ref: names of work pools cannot hold any of / % & > <
PoolName = Annotated[str, StringConstraints(pattern=r"^[^/%&><\s]+$")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
PARTS = tuple(name for name in BuildSpec.model_fields if name != "model")
"""The parts of a BuildSpec that a catalogue may fill in."""

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_EVERY = re.compile(r"([1-9]\d{0,3})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class CatalogError(InputError):
    """The catalogue is wrong; the message names the place, the value and what to type instead."""


class CatalogFileError(InputError):
    """The file of the catalogue cannot be read, or is not YAML with a mapping at the top."""


class Strict(Part):
    """Base of the parts of a catalogue."""

    # A default is what validation makes of a text, and no text itself.
    model_config = ConfigDict(populate_by_name=True, validate_default=False)


def _partial_spec(value: Any) -> Any:
    if value is None:  # a key without anything after it
        return {}
    if isinstance(value, Mapping):
        _require_keys_of(BuildSpec, value, allowed=list(PARTS))
    return value


def _require_keys_of(
    model: type[BaseModel], data: Mapping[Any, Any], allowed: list[str], within: str = ""
) -> None:
    """Keys are checked where they stand; values only in the whole spec of a cell."""
    require_known(data, allowed, within)
    for key, value in data.items():
        part = model.model_fields[key].annotation
        if not (isinstance(part, type) and issubclass(part, BaseModel)):
            continue
        if not isinstance(value, Mapping):
            raise FoundError(
                f"{within}{key}",
                value,
                "this must be a mapping",
                f"It may have: {', '.join(part.model_fields)}",
            )
        _require_keys_of(part, value, list(part.model_fields), f"{within}{key}.")


PartialSpec = Annotated[dict[str, Any], BeforeValidator(_partial_spec)]


def _minutes_of_day(value: Any) -> Any:
    # YAML 1.1 takes an unquoted 20:00 for the base-60 number 1200, which is minutes already.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
        return value
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise FoundError("", value, "this is not a time of day", 'Write it as "22:00"')
    return int(match[1]) * 60 + int(match[2])


def _duration(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value
    match = _EVERY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise FoundError(
            "", value, "this is not a length of time", "Write hours, days or weeks: 12h, 7d or 2w"
        )
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


TimeOfDay = Annotated[int, BeforeValidator(_minutes_of_day)]
"""Minutes after midnight; written as "22:00"."""


class GpuType(Strict):
    """One type of GPU, and where builds for it run.

    Attributes:
        pool: Work pool with workers that have it, and the name of its `gpu-stage` deployment.
        gpu_name: What the driver calls it; a pool that shows another one is refused.
        memory_gb: Of one GPU, in 10^9 bytes; what is too large for it is refused before a GPU is
            asked for.
        at_once: Builds at a time on this pool.
        overrides: What specs for this GPU differ in.
    """

    pool: PoolName
    gpu_name: str | None = Field(default=None, min_length=1)
    memory_gb: float | None = Field(default=None, gt=0)
    at_once: int = Field(default=1, ge=1)
    overrides: PartialSpec = Field(default_factory=dict)


class CatalogModel(Strict):
    """One model, and the matrix of its engines.

    Attributes:
        gpus, profiles: Every pair of one of each is a cell: one engine that is kept.
        every: At least this long between two builds of a cell.
        days: Days on which it is built; by default all.
        priority: Cells with a higher one are built first.
        overrides: What its specs differ in.
    """

    name: ModelName
    source: str = Field(min_length=1)
    gpus: tuple[Name, ...] = Field(min_length=1)
    profiles: tuple[Name, ...] = Field(min_length=1)
    every: Annotated[timedelta | None, BeforeValidator(_duration)] = None
    days: tuple[Day, ...] = Field(default=DAYS, min_length=1)
    priority: int = 0
    overrides: PartialSpec = Field(default_factory=dict)


class BuildWindow(Strict):
    """When builds may start; what has started may end later.

    Attributes:
        opens, closes: Minutes after midnight. A window that closes before it opens lasts over
            midnight; one that closes when it opens lasts a whole day.
        days: Those on which it opens.
        timezone: Of the IANA database.
    """

    opens: TimeOfDay = Field(alias="from")
    closes: TimeOfDay = Field(alias="to")
    days: tuple[Day, ...] = Field(default=DAYS, min_length=1)
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _timezone_is_known(self) -> Self:
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise FoundError(
                "timezone",
                self.timezone,
                "there is no such time zone",
                _near_timezone(self.timezone),
            ) from error
        return self


def _near_timezone(name: str) -> str:
    found = did_you_mean(name, sorted(available_timezones()))
    return found if found.startswith("Did") else "Write it as in Europe/Vienna, or UTC"


class Budget(Strict):
    """How many GPU minutes the catalogue may take.

    Attributes:
        gpu_minutes_per_run, gpu_minutes_per_day: None: no limit. A day is one of the build
            window's time zone, and every `gpu-stage` run on the pools of the catalogue counts.
        default_gpu_minutes: What a build is taken to need that was never measured.
    """

    gpu_minutes_per_run: float | None = Field(default=None, gt=0)
    gpu_minutes_per_day: float | None = Field(default=None, gt=0)
    default_gpu_minutes: float = Field(default=30.0, gt=0)


class Catalog(Strict):
    """The whole file; `trtforge.catalog.cells` makes the cells of it.

    Attributes:
        defaults: What all specs begin with; a profile, a GPU type and a model add to that, in
            this order.
        attempts: Builds of one unchanged cell that may fail before it is only reported.
        look_again_after: Age at which what a pool last showed is looked at anew.
        follow_for: How long a run of `rebuild-catalog` follows the builds that it started.
    """

    gpus: dict[Name, GpuType] = Field(min_length=1)
    profiles: dict[Name, PartialSpec] = Field(min_length=1)
    models: tuple[CatalogModel, ...] = ()
    defaults: PartialSpec = Field(default_factory=dict)
    build_window: BuildWindow | None = None
    budget: Budget = Budget()
    attempts: int = Field(default=3, ge=1)
    look_again_after: Annotated[timedelta, BeforeValidator(_duration)] = timedelta(days=1)
    follow_for: Annotated[timedelta, BeforeValidator(_duration)] = timedelta(hours=12)

    @property
    def timezone(self) -> ZoneInfo:
        """Of the build window; it decides where a day begins."""
        return ZoneInfo(self.build_window.timezone if self.build_window else "UTC")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for index, model in enumerate(self.models):
            for kind, names, known in (
                ("gpus", model.gpus, list(self.gpus)),
                ("profiles", model.profiles, list(self.profiles)),
            ):
                for name in names:
                    if name not in known:
                        raise FoundError(
                            f"models.{index}.{kind}",
                            name,
                            f"model {model.name!r} names something that is not under {kind}",
                            did_you_mean(name, known),
                        )
        return self
