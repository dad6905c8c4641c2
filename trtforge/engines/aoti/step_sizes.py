"""For how many sequences the graphs of a decode step are compiled, and what they share."""

from dataclasses import asdict
from typing import Any

from trtforge.engines.aoti.graphs import LayerShape, Limits

STEP_INTERFACE = 2
"""Version of what the graphs of a step are given and leave; engines of another cannot be run."""
TICKETS = 1 << 13
"""How many tickets every tensor of them has: more than any kernel has tiles that are shared."""
TICKETS_PER_LAYER = 5

_FIRST_SIZE = 8


def step_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The numbers of sequences that graphs are compiled for: 1, 8, 32, 128 … and the largest."""
    sizes = [1]
    size = _FIRST_SIZE
    while size < max_batch_size:
        sizes.append(size)
        size *= 4
    return tuple(sizes if max_batch_size == 1 else (*sizes, max_batch_size))


def step_names(max_batch_size: int) -> tuple[str, ...]:
    """Of the graphs that take the place of `decode` and `head`."""
    sizes = step_sizes(max_batch_size)
    return tuple(f"{part}_{size}" for part in ("step_begin", "step", "step_head") for size in sizes)


def step_identity(name: str, shape: LayerShape, limits: Limits) -> dict[str, Any]:
    """What, of all parameters, decides the code of graph `name`: part of its cache key."""
    described = asdict(shape)
    facts: dict[str, Any] = {"graph": name, "shape": described}
    if name.startswith("step_head"):
        facts["tickets"] = TICKETS
    elif not name.startswith("step_begin"):
        del described["vocab"]
        facts["max_seq_len"] = limits.max_seq_len
    return facts
