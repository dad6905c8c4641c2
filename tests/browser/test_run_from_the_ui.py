"""A person builds an engine from the Prefect UI: logs in, fills the form, watches, reads the card.

The stack is one that `trtforge up` starts, with its two workers: one for the build, and a stand-in
GPU pool for the half that wants a GPU. What the pages show is compared with what the API tells.
"""

import re
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright")
pytest.importorskip("torch")

from forge import PROMPT
from models import write_tiny_model
from playwright.sync_api import expect
from prefect_ui import CHROMIUM, FormField, PrefectUi, RunForm, prefect_ui
from ui_platform import GPU_POOL, UiPlatform, platform_with_workers

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        shutil.which(CHROMIUM) is None,
        reason=f"no Chromium at {CHROMIUM} (Debian: apt-get install chromium; or TEST_CHROMIUM)",
    ),
]

_BUILD_S = 900.0
# What the UI of Prefect 3.8.8 asks on every page, whatever the server's settings say.
_ANALYTICS = {"sr-client-cfg.amplitude.com"}
# In the form's words: the shapes of the tests' tiny engines (forge.PARTS).
ENGINE = {"Max batch size": "1", "Max input len": "48", "Max seq len": "96", "Max num tokens": "96"}


@pytest.fixture(scope="module")
def platform() -> Iterator[UiPlatform]:
    with platform_with_workers() as platform:
        yield platform


@pytest.fixture(scope="module")
def source(platform: UiPlatform, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models")
    return platform.upload(write_tiny_model(directory / "tiny-from-the-ui", seed=81))


@pytest.fixture(scope="module")
def ui(platform: UiPlatform) -> Iterator[PrefectUi]:
    with prefect_ui(platform.stack.prefect_ui_url) as ui:
        ui.log_in(platform.auth)
        yield ui


@pytest.fixture
def form(ui: PrefectUi) -> RunForm:
    """An untouched run form of build-engine."""
    ui.open_deployment("build-engine", "cpu")
    return ui.open_run_form()


@pytest.fixture(scope="module")
def build(platform: UiPlatform, ui: PrefectUi, source: str) -> dict[str, Any]:
    """The run of a form that was filled in and submitted, watched to its end on its page."""
    ui.open_deployment("build-engine", "cpu")
    form = ui.open_run_form()
    form.fill("spec", "Model", "Source", value=source)
    for label, value in ENGINE.items():
        form.fill("spec", "Engine", label, value=value)
    form.fill_json("spec", "Engine", "Options", value='{"device": "cpu"}')
    form.fill("spec", "Benchmark", "Workload", "Input tokens", value="16")
    form.fill("spec", "Benchmark", "Workload", "Output tokens", value="8")
    form.fill("spec", "Benchmark", "Repeats", value="1")
    form.add("spec", "Gates", "Prompts", value=PROMPT)
    form.fill("spec", "Gates", "New tokens", value="8")
    form.fill("spec", "Publish", "Prompt", value=PROMPT)
    form.fill("spec", "Publish", "Max output len", value="12")
    form.fill("gpu_pool", value=GPU_POOL)
    form.submit()
    run_id = ui.open_submitted_run()
    ui.wait_until_completed(_BUILD_S)
    return platform.run(run_id)


def test_without_the_password_there_is_only_the_login_page(platform: UiPlatform) -> None:
    with prefect_ui(platform.stack.prefect_ui_url) as ui:
        ui.page.goto(f"{ui.url}/v2/deployments")
        expect(ui.page).to_have_url(re.compile("/login"))
        ui.page.locator("input").fill("trtforge:wrong")
        ui.page.get_by_role("button", name="Login").click()
        expect(ui.page.get_by_text("Invalid credentials")).to_be_visible()
        expect(ui.page).to_have_url(re.compile("/login"))


def test_the_form_has_its_fields_in_order_with_descriptions_and_defaults(form: RunForm) -> None:
    assert [f.label for f in form.fields()] == ["spec", "gpu_pool", "force", "override"]
    parts = ["Model", "Checkpoint", "Engine", "Benchmark", "Gates", "Publish"]
    assert [f.label for f in form.fields("spec")] == parts
    engine = form.fields("spec", "Engine")
    assert [f.label for f in engine][:3] == ["Backend", "Version", "Max batch size"]
    assert FormField("Max batch size", "Sequences at once") in engine
    for part in parts:
        assert all(f.description for f in form.fields("spec", part)), part
    assert form.value("spec", "Engine", "Max batch size") == "4"
    assert form.value("spec", "Publish", "Prompt") == "How do I count to nine in French?"
    expect(form.field("spec", "Engine", "Backend")).to_contain_text("aoti")


def test_a_wrong_value_is_refused_with_its_field_and_starts_nothing(
    platform: UiPlatform, form: RunForm
) -> None:
    before = len(platform.runs(state={"type": {"not_any_": ["SCHEDULED"]}}))
    form.submit()
    expect(form.field("spec", "Model", "Source")).to_contain_text("'source' is a required property")
    form.fill("spec", "Model", "Source", value="s3://models/any")
    form.fill("spec", "Publish", "Aliases", value="Not An Alias")
    form.submit()
    expect(form.field("spec", "Publish", "Aliases")).to_contain_text(
        "'Not An Alias' does not match"
    )
    form.fill("spec", "Publish", "Aliases", value="latest")
    # This one Chromium refuses to send at all.
    form.fill("spec", "Engine", "Max batch size", value="0")
    form.submit()
    number = form.field("spec", "Engine", "Max batch size").locator("input")
    expect(number).to_be_focused()
    assert "greater than or equal to 1" in number.evaluate("field => field.validationMessage")
    assert "/run" in form.page.url
    assert len(platform.runs(state={"type": {"not_any_": ["SCHEDULED"]}})) == before


def test_the_run_gets_what_was_typed_and_ends_well(
    platform: UiPlatform, build: dict[str, Any], source: str
) -> None:
    assert build["state_type"] == "COMPLETED", platform.messages(build["id"])
    assert build["work_pool_name"] == "cpu"
    asked = build["parameters"]
    assert asked["gpu_pool"] == GPU_POOL
    assert asked["spec"]["model"] == {"source": source, "name": None}
    assert asked["spec"]["engine"]["max_seq_len"] == 96
    assert asked["spec"]["engine"]["options"] == {"device": "cpu"}
    assert asked["spec"]["gates"]["prompts"] == [PROMPT]


def test_the_gpu_half_is_a_subflow_on_the_gpu_pool(ui: PrefectUi, build: dict[str, Any]) -> None:
    ui.open_run(build["id"])
    ui.page.get_by_role("tab", name="Subflow Runs").click()
    expect(ui.page.get_by_text("1 Subflow run")).to_be_visible()
    expect(ui.page.get_by_text(f"gpu {build['name']}", exact=True)).to_be_visible()
    shown = ui.page.get_by_role("tabpanel")
    expect(shown).to_contain_text("Completed")
    expect(shown).to_contain_text(GPU_POOL)


def test_the_engine_card_is_opened_from_the_run_and_its_plots_are_drawn(
    ui: PrefectUi, build: dict[str, Any]
) -> None:
    ui.open_run(build["id"])
    ui.page.get_by_role("tab", name="Artifacts").click()
    ui.page.get_by_text("engine-card", exact=True).click()
    # All versions of that key; this run's is the newest.
    ui.page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.click()
    expect(ui.page.get_by_role("heading", name=re.compile("^Engine [0-9a-f]{12}$"))).to_be_visible()
    for heading in ("Asked for, and in effect", "Benchmark", "How it was made"):
        expect(ui.page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    expect(ui.page.locator(".prose")).to_contain_text(PROMPT)
    plots = ui.page.locator("img[src^='data:image/svg']")
    expect(plots).to_have_count(2)
    sizes = plots.evaluate_all("all => all.map(i => [i.complete, i.naturalWidth])")
    assert sizes == [[True, 640]] * 2
    assert ui.overlapping_texts() == []


@pytest.mark.parametrize(
    ("key", "columns"),
    [
        ("plan", ["Stage", "Status", "Bytes", "Minutes (estimate)", "Detail"]),
        ("benchmark-table", ["Concurrency", "Output tokens/s", "eager tokens/s", "Ratio"]),
    ],
)
def test_tables_show_what_counts_without_scrolling(
    platform: UiPlatform, ui: PrefectUi, build: dict[str, Any], key: str, columns: list[str]
) -> None:
    [gpu_run] = platform.runs(parent_flow_run_id={"any_": [build["id"]]})
    found = platform.artifacts(build["id"]) | platform.artifacts(gpu_run["id"])
    ui.open_artifact(found[key]["id"])
    for column in columns:
        expect(ui.page.get_by_role("columnheader", name=column, exact=True)).to_be_in_viewport()


def test_progress_ends_at_100_percent(platform: UiPlatform, build: dict[str, Any]) -> None:
    [gpu_run] = platform.runs(parent_flow_run_id={"any_": [build["id"]]})
    found = platform.artifacts(build["id"]) | platform.artifacts(gpu_run["id"])
    progress = {key: a["data"] for key, a in found.items() if a["type"] == "progress"}
    assert progress
    assert set(progress.values()) == {100.0}, progress


def test_no_page_asks_anybody_but_the_server(ui: PrefectUi, build: dict[str, Any]) -> None:
    """But for one host; see docs/run-on-prefect.md."""
    assert build
    assert {urlsplit(url).hostname for url in ui.elsewhere} <= _ANALYTICS
