"""The report page in a real browser: light, dark, and as wide as a phone."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from test_page import page, samples

_SCRIPT = Path(__file__).parents[3] / "benchmarks" / "report_screenshots.py"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("report_screenshots", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if module.browser() is None:
        pytest.skip("there is no Chromium on PATH")
    return module


@pytest.mark.parametrize("name", ["light", "dark", "phone"])
def test_it_is_as_wide_as_its_window_and_has_a_picture(
    script: Any, name: str, tmp_path: Path
) -> None:
    view = next(view for view in script.VIEWS if view.name == name)
    told = script.measure(page(samples()), view)
    assert told["width"] <= view.width
    assert told["height"] > 1000
    script.shoot(page(samples()), view, tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
