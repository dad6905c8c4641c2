"""Pictures of a benchmark's report page, by a real browser: light, dark, and at a phone's width.

    python benchmarks/report_screenshots.py report.html docs [--height 1600]

writes docs/report-light.png, report-dark.png and report-phone.png with headless Chromium, and
fails where the page is wider than its window: nothing but a table may scroll sideways. The page
comes from `trtforge bench report ENGINE --html report.html`.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TIMEOUT_S = 120
# Chromium's own names: 0 is dark, 1 is light.
_DARK, _LIGHT = 0, 1


@dataclass(frozen=True)
class View:
    """One picture. Phones are framed: a browser window cannot be as narrow as they are."""

    name: str
    width: int
    scheme: int


VIEWS = (View("light", 1080, _LIGHT), View("dark", 1080, _DARK), View("phone", 390, _LIGHT))
_MEASURE = """
<!doctype html><body style="margin:0"><iframe id="page"
style="border:0;width:{width}px;height:800px" srcdoc="{page}"></iframe><pre id="told"></pre><script>
page.onload = () => {{
  const root = page.contentDocument.documentElement;
  told.textContent = JSON.stringify({{height: root.scrollHeight, width: root.scrollWidth}});
}};
</script>
"""
_SHOW = """
<!doctype html><body style="margin:0"><iframe style="border:0;width:{width}px;height:{height}px"
scrolling="no" srcdoc="{page}"></iframe>
"""


def browser() -> str | None:
    """Chromium on PATH; None where there is none."""
    return next((found for name in _BROWSERS if (found := shutil.which(name))), None)


def measure(page: str, view: View) -> dict[str, int]:
    """How high the page is in this view, and how wide: wider than the view is a mistake."""
    text = _MEASURE.format(width=view.width, page=_quoted(page))
    dom = _run(text, view, 800, ["--dump-dom", "--virtual-time-budget=4000"])
    found = re.search(r'<pre id="told">(\{.*?\})</pre>', dom.replace("&quot;", '"'))
    if found is None:
        raise SystemExit(f"the browser did not show the page ({view.name})")
    told: dict[str, int] = json.loads(found[1])
    return told


def shoot(page: str, view: View, target: Path, height: int | None = None) -> None:
    """Write one picture of the page: the topmost `height` pixels, or all of it."""
    told = measure(page, view)
    if told["width"] > view.width:
        raise SystemExit(f"{view.name}: the page is {told['width']} px wide, not {view.width}")
    shown = min(told["height"], height or told["height"])
    text = _SHOW.format(width=view.width, height=told["height"], page=_quoted(page))
    scale = 2 if view.width < 500 else 1
    _run(
        text,
        view,
        shown,
        [f"--screenshot={target}", f"--force-device-scale-factor={scale}", "--hide-scrollbars"],
    )
    if not target.is_file():
        raise SystemExit(f"the browser made no picture ({view.name})")


def _quoted(page: str) -> str:
    return page.replace("&", "&amp;").replace('"', "&quot;")


def _run(text: str, view: View, height: int, arguments: list[str]) -> str:
    found = browser()
    if found is None:
        raise SystemExit("there is no Chromium on PATH (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(prefix="trtforge-browser-") as scratch:
        frame = Path(scratch) / "frame.html"
        frame.write_text(text, encoding="utf-8")
        command = [
            found,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={scratch}/profile",
            f"--window-size={view.width},{height}",
            f"--blink-settings=preferredColorScheme={view.scheme}",
            *arguments,
            frame.as_uri(),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--height", type=int, help="pixels from the top [default: the whole page]")
    asked = parser.parse_args()
    page = asked.page.read_text(encoding="utf-8")
    for view in VIEWS:
        target = (asked.directory / f"report-{view.name}.png").resolve()
        shoot(page, view, target, asked.height)
        print(target)


if __name__ == "__main__":
    main()
