"""Cells: one model on one GPU type by one profile, each with the whole spec of its engine."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtforge.catalog.model import Catalog, CatalogError, CatalogModel, GpuType
from trtforge.engines.registry import open_backend
from trtforge.errors import InputError
from trtforge.spec import BuildSpec, parse_spec


@dataclass(frozen=True)
class Cell:
    """One engine that is kept."""

    model: CatalogModel
    gpu_type: str
    gpu: GpuType
    profile: str
    spec: BuildSpec

    @property
    def name(self) -> str:
        return f"{self.model.name}/{self.gpu_type}/{self.profile}"


def make_cells(catalog: Catalog) -> tuple[Cell, ...]:
    """All cells, in the order of the file.

    Raises:
        CatalogError: A cell's spec is wrong, or two cells would move the same alias.
    """
    cells: list[Cell] = []
    wrong: list[CatalogError] = []
    for model in catalog.models:
        for gpu_type in model.gpus:
            for profile in model.profiles:
                try:
                    cells.append(_cell(catalog, model, gpu_type, profile))
                except CatalogError as error:
                    wrong.append(error)
    if wrong:
        first, others = wrong[0], len(wrong) - 1
        also = f" ({others} more cells are wrong)" if others else ""
        raise CatalogError(
            f"{first.problem}{also}", field=first.field, value=first.value, remedy=first.remedy
        )
    _require_aliases_of_their_own(cells)
    return tuple(cells)


def _cell(catalog: Catalog, model: CatalogModel, gpu_type: str, profile: str) -> Cell:
    gpu = catalog.gpus[gpu_type]
    parts: dict[str, Any] = {}
    for more in (catalog.defaults, catalog.profiles[profile], gpu.overrides, model.overrides):
        parts = _merged(parts, more)
    data = {**parts, "model": {"source": model.source, "name": model.name}}
    try:
        spec = parse_spec(data)
        open_backend(spec.engine.backend).check(spec.engine)
    except InputError as error:
        # It is one of several places that the value may come from; the cell is what is wrong.
        raise CatalogError(
            f"{error.problem}, in {model.name}/{gpu_type}/{profile}",
            field=error.field,
            value=error.value,
            remedy=error.remedy,
        ) from error
    return Cell(model, gpu_type, gpu, profile, spec)


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `more` over it; mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in more.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(before, value) if both and before is not None else value
    return merged


def _require_aliases_of_their_own(cells: list[Cell]) -> None:
    """Two cells that move one alias would take it from each other, night after night."""
    owners: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        # What the aliases lie under is known when the pool was seen; until then its name tells.
        gpu = cell.gpu.gpu_name or f"pool {cell.gpu.pool}"
        for alias in cell.spec.publish.aliases:
            owners[cell.model.name, gpu, cell.spec.engine.backend, alias].append(cell)
    for (_, gpu, _, alias), owned in owners.items():
        if len(owned) > 1:
            first, second = owned[0].name, owned[1].name
            raise CatalogError(
                f"{first} and {second} would both move it, on {gpu}"
                if first != second
                else f"{first} is there twice",
                field="publish.aliases",
                value=alias,
                remedy="Give one of the profiles other publish.aliases, or take one cell out",
            )
