"""The Prefect UI (version 2, the default one) in headless Chromium, used as a person uses it.

Fields are found by what is written beside them. Nothing outside of the stack is reached: requests
to other hosts are aborted, and their addresses kept.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import (
    Locator,
    Page,
    Request,
    Route,
    ViewportSize,
    expect,
    sync_playwright,
)

CHROMIUM = os.environ.get("TEST_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PATIENCE_MS = 60_000.0
_SIZE: ViewportSize = {"width": 1280, "height": 900}
_OPTIONAL = " (Optional)"
# What a field says of itself: label and description.
_FIELD = "div.group > div > div:has(> label)"
_RUN = r"/runs/flow-run/([0-9a-f-]{36})"
# What reaches out of a markdown artifact to the right, where a panel is.
_OVERLAPPING = """() => {
    const inside = document.querySelector(".prose").getBoundingClientRect();
    return [...document.querySelectorAll(".prose *")]
        .filter(e => !e.closest("pre") && e.getBoundingClientRect().right > inside.right + 2)
        .map(e => e.innerText || e.tagName);
}"""
# How deep each field lies, its label, and its description.
_HEADS = """heads => heads.map(head => {
    let depth = 0;
    for (let e = head; e; e = e.parentElement) depth += e.matches("div.group") ? 1 : 0;
    const about = head.querySelector("p");
    return [depth, head.querySelector("label").innerText, about ? about.innerText : ""];
})"""


@dataclass(frozen=True)
class FormField:
    """One field of the run form, without those inside of it."""

    label: str
    description: str


@dataclass
class PrefectUi:
    """One browser window. Every method leaves it on a page that has been drawn."""

    page: Page
    url: str
    elsewhere: set[str] = field(default_factory=set)

    def log_in(self, auth: str) -> None:
        """From any page, which asks for it; `auth` is `user:password`."""
        self.page.goto(self.url)
        self.page.locator("input").fill(auth)
        self.page.get_by_role("button", name="Login").click()
        expect(self.page).to_have_url(re.compile("/dashboard"))
        expect(self.page.get_by_text("Flow Runs").first).to_be_visible()

    def open_deployment(self, flow: str, name: str) -> None:
        """From the list of deployments."""
        self.page.goto(f"{self.url}/v2/deployments?flowOrDeploymentName={name}")
        row = self.page.get_by_role("row").filter(has=self.page.get_by_text(flow, exact=True))
        row.get_by_role("link", name=name, exact=True).click()
        expect(self.page.get_by_role("button", name="Run", exact=True)).to_be_visible()

    def open_run_form(self) -> "RunForm":
        """Of the deployment that is open: Run, then Custom Run."""
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        # After the frame, the fields.
        expect(self.page.locator(_FIELD).first).to_be_visible()
        return RunForm(self.page)

    def open_submitted_run(self) -> str:
        """The run of the form that was just submitted; its id."""
        self.page.get_by_role("button", name="View run").click()
        expect(self.page).to_have_url(re.compile(_RUN))
        expect(self.page.get_by_role("tab", name="Logs")).to_be_visible()
        found = re.search(_RUN, self.page.url)
        assert found
        return found[1]

    def wait_until_completed(self, patience_s: float) -> None:
        """Watch the run that is open, on its page, which changes by itself."""
        done = self.page.locator("main").get_by_text("Completed", exact=True).first
        expect(done).to_be_visible(timeout=patience_s * 1e3)

    def open_run(self, run_id: str, tab: str = "") -> None:
        self.page.goto(f"{self.url}/v2/runs/flow-run/{run_id}" + (f"?tab={tab}" if tab else ""))
        expect(self.page.get_by_role("tab", name="Logs")).to_be_visible()

    def open_artifact(self, artifact_id: str) -> None:
        self.page.goto(f"{self.url}/v2/artifacts/artifact/{artifact_id}")
        expect(self.page.get_by_role("tab", name="Raw")).to_be_visible()
        expect(self.page.locator("table, article, .prose").first).to_be_visible()

    def overlapping_texts(self) -> list[str]:
        """What of an artifact is wider than its place, and lies over what stands beside it."""
        found: list[str] = self.page.evaluate(_OVERLAPPING)
        return found

    def settle(self) -> None:
        """Wait until nothing is asked for any more, and fonts and pictures are there."""
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_timeout(1000)

    def picture(self, file: Path) -> None:
        """A PNG of the window."""
        self.settle()
        self.page.screenshot(path=file, animations="disabled")

    def _only_the_stack(self, route: Route, request: Request) -> None:
        if request.url.startswith((self.url, "data:", "blob:")):
            route.continue_()
        else:
            self.elsewhere.add(request.url)
            route.abort()


@dataclass(frozen=True)
class RunForm:
    """The form of a custom run; `field` finds what is in it, by labels from the outside in."""

    page: Page

    def field(self, *labels: str) -> Locator:
        """A field with its label and description, and all inside of it."""
        found: Locator | None = None
        for label in labels:
            own = ", ".join(
                f'div.group:has(> div > div > label:text-is("{text}"))'
                for text in (label, label + _OPTIONAL)
            )
            found = (found or self.page).locator(own)
        assert found is not None
        return found

    def fill(self, *labels: str, value: str) -> None:
        """A line of text, or a number."""
        self.field(*labels).locator("input, textarea").fill(value)

    def fill_json(self, *labels: str, value: str) -> None:
        """A field for JSON, which is an editor of its own."""
        self.field(*labels).locator(".cm-content").fill(value)

    def add(self, *labels: str, value: str) -> None:
        """Another item of a list."""
        within = self.field(*labels)
        within.get_by_role("button", name="Add item").click()
        within.locator("input, textarea").last.fill(value)

    def fields(self, *labels: str) -> list[FormField]:
        """What is directly inside of a field, or of the form, from top to bottom."""
        within = self.field(*labels) if labels else self.page.locator("body")
        rows = within.locator(_FIELD).evaluate_all(_HEADS)
        return [
            FormField(label.removesuffix(_OPTIONAL), about)
            for depth, label, about in rows
            if depth == len(labels) + 1
        ]

    def value(self, *labels: str) -> str:
        """What a field has now."""
        return self.field(*labels).locator("input, textarea").first.input_value()

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()


@contextmanager
def prefect_ui(url: str) -> Iterator[PrefectUi]:
    """A new browser, logged in nowhere."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        context = browser.new_context(viewport=_SIZE, reduced_motion="reduce")
        context.set_default_timeout(_PATIENCE_MS)
        expect.set_options(timeout=_PATIENCE_MS)
        ui = PrefectUi(context.new_page(), url)
        context.route("**/*", ui._only_the_stack)
        try:
            yield ui
        finally:
            browser.close()
