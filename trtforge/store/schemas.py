"""JSON Schemas of everything that the store persists, generated from the records.

`python -m trtforge.store.schemas docs/schemas` writes them, one file per kind of record. The tests
say when they are out of date, and which kind lacks a golden file in tests/fixtures/store-v1.
"""

import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trtforge
from trtforge.store.records import Record

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Commands, and what is run by a toolchain's own interpreter: no records there, and torch.
_PASSED_OVER = re.compile(r"trtforge\.(cli|engines\.\w+)\..*|.*\.__main__")


def record_kinds() -> dict[str, type[Record]]:
    """Every kind of record by its name, that of its schema and its golden file: `timing-head`.

    Imports all of trtforge but commands and drivers.
    """
    for module in pkgutil.walk_packages(trtforge.__path__, "trtforge."):
        if not _PASSED_OVER.fullmatch(module.name):
            importlib.import_module(module.name)
    kinds: dict[str, type[Record]] = {}
    for kind in sorted(_below(Record), key=lambda kind: kind.__name__):
        name = _name(kind)
        if kinds.setdefault(name, kind) is not kind:
            raise TypeError(f"two kinds of record are called {name}: {kinds[name]} and {kind}")
    return kinds


def schema(kind: type[Record]) -> dict[str, Any]:
    """The JSON Schema of what `parse_record` accepts."""
    made = kind.model_json_schema(mode="validation")
    # It has a default for whoever makes a record, but a stored one must say it.
    made["required"] = sorted({*made.get("required", ()), "format"})
    return {"$schema": _DIALECT, **made}


def write_schemas(directory: Path) -> list[Path]:
    """Make the JSON files of `directory` the schemas of all records."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, kind in record_kinds().items():
        path = directory / f"{name}.json"
        path.write_text(schema_text(kind), encoding="utf-8")
        written.append(path)
    for path in set(directory.glob("*.json")) - set(written):
        path.unlink()
    return written


def schema_text(kind: type[Record]) -> str:
    """The schema as its file holds it."""
    return json.dumps(schema(kind), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _below(kind: type[Record]) -> Iterator[type[Record]]:
    for child in kind.__subclasses__():
        # Tests make records of their own.
        if child.__module__.startswith("trtforge."):
            yield child
        yield from _below(child)


def _name(kind: type[Record]) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower()
    return re.sub(r"-(record|result)$", "", words)


if __name__ == "__main__":
    for _path in write_schemas(Path(sys.argv[1])):
        print(_path)
