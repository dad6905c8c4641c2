"""Drivers run in the toolchain's own interpreter: they may import it and the standard library."""

import subprocess
import sys
from pathlib import Path

import pytest

import trtforge

_PACKAGE = Path(trtforge.__file__).parent
_DRIVERS = sorted(
    ".".join(("trtforge", *path.relative_to(_PACKAGE).with_suffix("").parts))
    for path in _PACKAGE.rglob("*_driver.py")
)
_ORCHESTRATOR_ONLY = ("pydantic", "yaml", "boto3", "prefect", "typer", "rich", "huggingface_hub")


@pytest.mark.parametrize("module", _DRIVERS)
def test_a_driver_starts_without_the_orchestrators_packages(module: str) -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in _ORCHESTRATOR_ONLY)
    code = f"import sys; {blocked} import {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Nor does merely starting one pay for the import of the toolchain.
    assert done.stdout.strip() == "False"


def test_there_are_drivers_to_check() -> None:
    assert len(_DRIVERS) >= 4
