"""From the file to a catalogue whose every cell is right."""

from collections.abc import Hashable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trtforge.catalog.cells import Cell, make_cells
from trtforge.catalog.model import Catalog, CatalogError, CatalogFileError
from trtforge.spec.part import FoundError

_REMEDY = "Give a readable YAML file, as in docs/catalogue.md"


def load_catalog(path: Path | None = None) -> tuple[Catalog, tuple[Cell, ...]]:
    """Read a catalogue; None is the one installed with the deployments.

    Raises:
        CatalogFileError: It cannot be read.
        CatalogError: It is wrong, or a cell of it.
    """
    path = path or _installed()
    shown = str(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise CatalogFileError(
            f"the catalogue cannot be read ({problem})",
            field="CATALOG",
            value=shown,
            remedy=_REMEDY,
        ) from error
    if not isinstance(data, dict):
        raise CatalogFileError(
            "the catalogue must be a YAML mapping", field="CATALOG", value=shown, remedy=_REMEDY
        )
    return parse_catalog(data)


def parse_catalog(data: object) -> tuple[Catalog, tuple[Cell, ...]]:
    """Validate plain data, and make the cells.

    Raises:
        CatalogError: for the first problem found.
    """
    try:
        catalog = Catalog.model_validate(data)
    except ValidationError as error:
        raise _first_problem(error, data) from error
    return catalog, make_cells(catalog)


def _installed() -> Path:
    """The file that came with the deployments, wherever they are installed."""
    spec = find_spec("deployments")
    places = (spec.submodule_search_locations if spec else None) or ["deployments"]
    found = [Path(place, "catalog.yaml") for place in places]
    return next((path for path in found if path.is_file()), found[0])


class _Loader(yaml.SafeLoader):
    """Refuses what YAML forbids and PyYAML passes over: a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _first_problem(error: ValidationError, data: object) -> CatalogError:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "[key]"]
    found = first.get("ctx", {}).get("error")
    if isinstance(found, FoundError):
        path = [*where, found.field] if found.field else where
        return CatalogError(
            found.problem, field=_path(path, data), value=found.value, remedy=found.remedy
        )
    problem = first["msg"][0].lower() + first["msg"][1:]
    remedy = "See docs/catalogue.md for what belongs here"
    if first["type"] == "missing":
        problem, remedy = "this is required", f"Add it; {remedy[0].lower()}{remedy[1:]}"
    value = None if first["type"] == "missing" else first["input"]
    return CatalogError(problem, field=_path(where, data), value=value, remedy=remedy)


def _path(where: list[str], data: object) -> str:
    """`models.3.gpus` as `models.llama.gpus`: people know their models by name."""
    where = ".".join(where).split(".")
    if len(where) > 1 and where[0] == "models" and isinstance(data, dict):
        models = data.get("models")
        index = where[1]
        if isinstance(models, list) and index.isdigit() and int(index) < len(models):
            entry = models[int(index)]
            name = entry.get("name") if isinstance(entry, dict) else None
            where = ["models", str(name or index), *where[2:]]
    return ".".join(where)
