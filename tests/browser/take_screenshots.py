"""The pictures in docs/ui: `make screenshots`, or this script and a directory.

Builds SmolLM2-135M-Instruct from the run form on a stack of its own, in some minutes, and takes a
picture of each page that a person comes to on the way. Needs Chromium.
"""

import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import expect
from prefect_ui import PrefectUi, RunForm, prefect_ui
from ui_platform import GPU_POOL, UiPlatform, platform_with_workers

from trtforge.sources.demo_model import make_demo_model

MODEL = "SmolLM2-135M-Instruct"
MOST_BYTES = 200_000
_BUILD_S = 3600.0


def order(ui: PrefectUi, source: str, out: Path) -> RunForm:
    """Fill in the form, with a mistake, then without."""
    ui.open_deployment("build-engine", "cpu")
    form = ui.open_run_form()
    form.fill("spec", "Model", "Source", value=source)
    form.fill("spec", "Engine", "Max num tokens", value="1536")
    form.fill_json("spec", "Engine", "Options", value='{"device": "cpu"}')
    for requests in (1, 4):
        form.add("spec", "Benchmark", "Concurrency", value=str(requests))
    form.fill("gpu_pool", value=GPU_POOL)
    form.field("spec").scroll_into_view_if_needed()
    form.field("spec", "Model").scroll_into_view_if_needed()
    ui.picture(out / "run-form.png")
    form.fill("spec", "Publish", "Aliases", value="Latest!")
    form.submit()
    wrong = form.field("spec", "Publish", "Aliases")
    expect(wrong).to_contain_text("does not match")
    wrong.scroll_into_view_if_needed()
    ui.picture(out / "wrong-value.png")
    form.fill("spec", "Publish", "Aliases", value="latest")
    # The first Submit after a mistake only takes the mark away, in Prefect 3.8.8.
    form.submit()
    expect(wrong).not_to_contain_text("does not match")
    return form


def show(ui: PrefectUi, platform: UiPlatform, run_id: str, out: Path) -> None:
    """The run with its GPU half, and its artifacts."""
    [gpu_run] = platform.runs(parent_flow_run_id={"any_": [run_id]})
    ui.open_run(run_id)
    ui.page.get_by_role("tab", name="Subflow Runs").click()
    ui.picture(out / "run.png")
    found = platform.artifacts(run_id) | platform.artifacts(gpu_run["id"])
    for key in ("plan", "benchmark-table", "engine-card"):
        ui.open_artifact(found[key]["id"])
        ui.picture(out / f"{key}.png")
    # Still the card, further down.
    expect(ui.page.locator("img[src^='data:image/svg']")).to_have_count(2)
    heading = ui.page.get_by_role("heading", name="Benchmark", exact=True)
    heading.evaluate("heading => heading.scrollIntoView()")
    ui.picture(out / "engine-card-benchmark.png")


def main(out: Path) -> None:
    # Killed, it stops its stack as it does on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, platform_with_workers() as platform:
        make_demo_model(Path(scratch) / MODEL)
        source = platform.upload(Path(scratch) / MODEL)
        with prefect_ui(platform.stack.prefect_ui_url) as ui:
            ui.log_in(platform.auth)
            order(ui, source, out).submit()
            run_id = ui.open_submitted_run()
            ui.wait_until_completed(_BUILD_S)
            show(ui, platform, run_id, out)
    for picture in sorted(out.glob("*.png")):
        size_bytes = picture.stat().st_size
        print(f"{picture}  {size_bytes / 1e3:.0f} kB{'  TOO LARGE' * (size_bytes > MOST_BYTES)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/ui"))
