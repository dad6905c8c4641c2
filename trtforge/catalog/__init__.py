"""The catalogue: which models are kept as engines on which GPU types, and what has to be built.

`load_catalog` reads `catalog.yaml` and refuses it whole when a cell of its matrix is wrong;
`plan_catalog` compares every cell with its source and with the store, and writes nothing;
`choose` says which of the changed cells fit into the budget. The flow `rebuild-catalog` starts
those.
"""

from trtforge.catalog.budget import Allowance, Budgeted, choose
from trtforge.catalog.cells import Cell
from trtforge.catalog.model import Catalog, CatalogError, CatalogFileError
from trtforge.catalog.planning import CellPlan, plan_catalog
from trtforge.catalog.reading import load_catalog, parse_catalog
from trtforge.catalog.selection import Selection, select

__all__ = [
    "Allowance",
    "Budgeted",
    "Catalog",
    "CatalogError",
    "CatalogFileError",
    "Cell",
    "CellPlan",
    "Selection",
    "choose",
    "load_catalog",
    "parse_catalog",
    "plan_catalog",
    "select",
]
