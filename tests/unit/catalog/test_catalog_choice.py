"""When builds start, for how many GPU minutes, and for which models."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import engine as manifest_of

from trtforge.catalog import (
    Allowance,
    CatalogError,
    CellPlan,
    Selection,
    choose,
    parse_catalog,
    select,
)
from trtforge.catalog.budget import estimated_minutes
from trtforge.catalog.matrix import Matrix
from trtforge.catalog.model import DAYS, Budget, BuildWindow
from trtforge.catalog.selection import same_source
from trtforge.catalog.window import is_open, next_opening, start_of_day
from trtforge.stages.plan import PlannedStage

Data = dict[str, Any]
VIENNA = ZoneInfo("Europe/Vienna")


def window(opens: str, closes: str, *days: str, timezone: str = "Europe/Vienna") -> BuildWindow:
    asked = {"from": opens, "to": closes, "timezone": timezone, "days": days or DAYS}
    return BuildWindow.model_validate(asked)


def vienna(day: int, clock: str) -> datetime:
    """A time in November 2026; the 23rd is a Monday."""
    hour, minute = clock.split(":")
    return datetime(2026, 11, day, int(hour), int(minute), tzinfo=VIENNA)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (vienna(23, "19:59"), False),
        (vienna(23, "20:00"), True),
        (vienna(24, "05:59"), True),
        (vienna(24, "06:00"), False),
        (vienna(23, "20:00").astimezone(UTC), True),
    ],
)
def test_a_window_over_midnight(at: datetime, expected: bool) -> None:
    assert is_open(window("20:00", "06:00"), at) is expected


def test_a_window_belongs_to_the_day_on_which_it_opens() -> None:
    weekend = window("20:00", "06:00", "sat")
    assert is_open(weekend, vienna(29, "05:00"))  # Sunday morning
    assert not is_open(weekend, vienna(28, "05:00"))  # Saturday morning
    assert next_opening(weekend, vienna(23, "12:00")) == vienna(28, "20:00")


def test_a_window_that_closes_when_it_opens_lasts_the_whole_day() -> None:
    assert is_open(window("00:00", "00:00", "mon"), vienna(23, "23:59"))
    assert not is_open(window("00:00", "00:00", "mon"), vienna(24, "00:00"))


def test_without_a_window_builds_start_at_any_time() -> None:
    assert is_open(None, vienna(23, "12:00"))
    assert next_opening(None, vienna(23, "12:00")) == vienna(23, "12:00")


@given(
    opens=st.integers(0, 1439),
    closes=st.integers(0, 1439),
    days=st.sets(st.sampled_from(DAYS), min_size=1),
    minutes=st.integers(0, 525_600),
)
def test_the_next_opening_is_the_first_moment_at_which_the_window_is_open(
    opens: int, closes: int, days: set[Any], minutes: int
) -> None:
    asked = BuildWindow.model_validate(
        {"from": opens, "to": closes, "days": sorted(days), "timezone": "Europe/Vienna"}
    )
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    opening = next_opening(asked, at)
    assert opening >= at
    # A clock that is put forward leaves out times of the night; the window opens after them.
    assert is_open(asked, opening) or is_open(asked, opening + timedelta(hours=1))


def test_a_day_begins_at_midnight_of_the_catalogue_s_zone() -> None:
    assert start_of_day(vienna(24, "00:30").astimezone(UTC), VIENNA) == vienna(24, "00:00")


# Budget


@pytest.fixture
def plans(data: Data) -> list[CellPlan]:
    """All three cells are changed; nothing is known of what they take."""
    return [CellPlan(cell, "changed", ("never built",)) for cell in parse_catalog(data)[1]]


def names(chosen: Any, *, fits: bool = True) -> list[str]:
    return [item.plan.cell.name for item in chosen if item.fits is fits]


def measured(plan: CellPlan, *, compile_s: float, benchmark_s: float) -> CellPlan:
    timings = {"compile": compile_s, "benchmark": benchmark_s, "convert": 9999.0}
    engine = manifest_of().model_copy(update={"timings": timings})
    return CellPlan(plan.cell, plan.status, plan.why, engine=engine)


def test_without_limits_everything_fits(plans: list[CellPlan]) -> None:
    assert Allowance.of(Budget(), 500.0).minutes is None
    assert len(names(choose(plans, Budget(), Allowance(None)))) == 3


def test_the_day_s_budget_is_what_was_not_used_yet() -> None:
    budget = Budget(gpu_minutes_per_run=100, gpu_minutes_per_day=300)
    assert Allowance.of(budget, 50.0).minutes == 100
    assert Allowance.of(budget, 280.0).minutes == 20
    assert Allowance.of(budget, 999.0).minutes == 0


def test_a_build_is_estimated_by_the_last_one_of_the_cell(plans: list[CellPlan]) -> None:
    own = measured(plans[0], compile_s=600, benchmark_s=300)
    assert estimated_minutes(own, plans, Budget()) == 15 + 1


def test_a_new_cell_is_estimated_by_the_others_on_its_gpu(plans: list[CellPlan]) -> None:
    others = [measured(plans[0], compile_s=60, benchmark_s=60)]
    on_h100, beta_on_standin = plans[1], plans[2]
    assert estimated_minutes(beta_on_standin, others, Budget()) == 2 + 1
    assert estimated_minutes(on_h100, others, Budget(default_gpu_minutes=45)) == 45


def test_what_the_store_has_costs_nothing(plans: list[CellPlan]) -> None:
    done = tuple(
        PlannedStage(stage, "in store", "0" * 64, "") for stage in ("compile", "benchmark")
    )
    plan = CellPlan(plans[0].cell, "changed", stages=done)
    assert estimated_minutes(plan, [], Budget()) == 1


def test_priority_decides_who_gets_the_budget(data: Data) -> None:
    data["models"][1]["priority"] = 5
    plans = [CellPlan(cell, "changed") for cell in parse_catalog(data)[1]]
    chosen = choose(plans, Budget(default_gpu_minutes=30), Allowance(65))
    assert names(chosen) == ["beta/standin/chat", "alpha/standin/chat"]
    assert names(chosen, fits=False) == ["alpha/h100/chat"]


def test_a_build_that_is_too_large_does_not_keep_smaller_ones_waiting(
    plans: list[CellPlan],
) -> None:
    large = measured(plans[1], compile_s=36_000, benchmark_s=0)
    chosen = choose([plans[0], large, plans[2]], Budget(default_gpu_minutes=30), Allowance(60))
    assert names(chosen, fits=False) == ["alpha/h100/chat"]
    assert names(chosen) == ["alpha/standin/chat", "beta/standin/chat"]


@given(st.lists(st.floats(1, 1e5), max_size=6), st.floats(0, 1e4))
def test_the_budget_is_never_exceeded(seconds: list[float], minutes: float) -> None:
    data = {
        "gpus": {"a": {"pool": "a"}},
        "profiles": {"p": {}},
        "models": [
            {"name": f"m{i}", "source": f"hf://acme/m{i}", "gpus": ["a"], "profiles": ["p"]}
            for i in range(len(seconds))
        ],
    }
    cells = parse_catalog(data)[1]
    plans = [
        measured(CellPlan(cell, "changed"), compile_s=s, benchmark_s=0)
        for cell, s in zip(cells, seconds, strict=True)
    ]
    chosen = choose(plans, Budget(), Allowance(minutes))
    assert sum(item.minutes for item in chosen if item.fits) <= minutes + 1e-6
    assert len(chosen) == len(plans)


# Selection


def test_everything_is_chosen_unless_something_is_named(data: Data) -> None:
    cells = parse_catalog(data)[1]
    assert len(select(cells, Selection())) == 3
    assert [c.name for c in select(cells, Selection(gpu_types=("h100",)))] == ["alpha/h100/chat"]
    assert [c.name for c in select(cells, Selection(only=("beta",)))] == ["beta/standin/chat"]


def test_a_name_that_is_not_there_is_told_what_it_may_have_been(data: Data) -> None:
    with pytest.raises(CatalogError, match="'alpha'"):
        select(parse_catalog(data)[1], Selection(only=("alfa",)))
    with pytest.raises(CatalogError, match="gpu_types = 'h10'"):
        select(parse_catalog(data)[1], Selection(gpu_types=("h10",)))


def test_a_changed_source_chooses_its_models_and_a_foreign_one_none(data: Data) -> None:
    cells = parse_catalog(data)[1]
    assert {c.model.name for c in select(cells, Selection(source="hf://Acme/Alpha"))} == {"alpha"}
    assert select(cells, Selection(source="hf://acme/other")) == []


@pytest.mark.parametrize(
    ("mine", "changed", "expected"),
    [
        ("hf://acme/alpha", "hf://acme/alpha@main", True),
        ("hf://acme/alpha@v2", "hf://acme/alpha@main", False),
        ("hf://acme/alpha@v2", "hf://acme/alpha", True),
        ("s3://bucket/models/a", "s3://bucket/models/a/", True),
        ("s3://bucket/models/a", "s3://bucket/models/b", False),
        ("hf://acme/alpha", "not a source at all://", False),
    ],
)
def test_which_changes_concern_a_model(mine: str, changed: str, expected: bool) -> None:
    assert same_source(mine, changed) is expected


# Matrix


def test_the_table_has_trouble_first_and_what_nothing_happened_to_last(
    plans: list[CellPlan],
) -> None:
    matrix = Matrix([CellPlan(plans[0].cell, "up to date"), *plans[1:]])
    matrix.set("alpha/h100/chat", "built", engine="ab" * 32, gpu_minutes=12.4)
    matrix.set("beta/standin/chat", "failed", "out of memory", run="http://ui/run/1")
    rows = matrix.rows()
    assert [row["State"] for row in rows] == ["failed", "built", "up to date"]
    assert rows[0] == {
        "Model": "beta",
        "GPU": "standin",
        "Profile": "chat",
        "State": "failed",
        "Why": "out of memory",
        "Engine": "",
        "GPU minutes": "",
        "Run": "http://ui/run/1",
    }
    assert rows[1]["Why"] == "never built"
    assert rows[1]["Engine"] == "abababababab"
    assert matrix.summary() == "1 failed, 1 built, 1 up to date"
    assert matrix.troubles() == ["beta/standin/chat: failed (out of memory)"]
