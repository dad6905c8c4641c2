"""Which cells a run of the catalogue is about."""

from collections.abc import Sequence
from dataclasses import dataclass

from trtforge.catalog.cells import Cell
from trtforge.catalog.model import CatalogError
from trtforge.errors import InputError
from trtforge.sources import HubSource, parse_source
from trtforge.spec import did_you_mean


@dataclass(frozen=True)
class Selection:
    """What to look at; empty is everything.

    Attributes:
        only: Names of models.
        source: Weights that have changed; a source without a revision means every revision.
        gpu_types: Names under `gpus`.
    """

    only: tuple[str, ...] = ()
    source: str = ""
    gpu_types: tuple[str, ...] = ()


def select(cells: Sequence[Cell], selection: Selection) -> list[Cell]:
    """The cells chosen. None at all is right for a source that the catalogue does not have.

    Raises:
        CatalogError: A model or GPU type is named that the catalogue does not have.
    """
    for field, names, known in (
        ("only", selection.only, {cell.model.name for cell in cells}),
        ("gpu_types", selection.gpu_types, {cell.gpu_type for cell in cells}),
    ):
        for name in names:
            if name not in known:
                raise CatalogError(
                    "the catalogue has no such entry",
                    field=field,
                    value=name,
                    remedy=did_you_mean(name, sorted(known)),
                )
    return [
        cell
        for cell in cells
        if (not selection.only or cell.model.name in selection.only)
        and (not selection.gpu_types or cell.gpu_type in selection.gpu_types)
        and (not selection.source or same_source(cell.model.source, selection.source))
    ]


def same_source(mine: str, changed: str) -> bool:
    """Whether a change of the source `changed` concerns a model from `mine`.

    `hf://org/name` means every branch of it, and `hf://org/name@branch` those models that follow
    this branch. Names of the Hub do not differ in capitals alone.
    """
    try:
        one, other = parse_source(mine), parse_source(changed)
    except InputError:
        return mine == changed
    if isinstance(one, HubSource) and isinstance(other, HubSource):
        any_branch = "@" not in changed
        return one.repo_id.lower() == other.repo_id.lower() and (
            any_branch or one.revision == other.revision
        )
    return one == other
