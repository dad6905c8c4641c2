"""How tests use the stand-in toolchain of this directory: see README.md."""

import importlib.util
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STANDIN_PYTHON = HERE / "bin" / "python"
STANDIN_REFERENCE_PYTHON = HERE / "bin" / "reference-python"
SITE = HERE / "site"


def standin_environment(**more: str) -> dict[str, str]:
    """Variables that make trtforge use it; `more`: its own, such as TRTFORGE_STANDIN_FAULT."""
    return {
        "TRTFORGE_TRTLLM_PYTHON": str(STANDIN_PYTHON),
        "TRTFORGE_STANDIN_PYTHON": sys.executable,
        **more,
    }


def table_parser(version: str) -> ArgumentParser:
    """The parser of that release's `trtllm-build`, made from its option table alone."""
    parser: ArgumentParser = _module(SITE / "trtllm_table_parser.py").make_parser(version)
    return parser


def timing_cache_entries(path: Path) -> list[str] | None:
    """What a timing cache of the stand-in holds; None when it is none."""
    entries: list[str] | None = _module(SITE / "tensorrt" / "__init__.py").entries_of(
        path.read_bytes()
    )
    return entries


def _module(path: Path) -> Any:
    # Not by name: what the stand-in is called must not be found by anything else in this process.
    spec = importlib.util.spec_from_file_location(f"standin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
