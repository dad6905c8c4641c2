"""What one graph of a decode step leaves for the next: `State`; and what tokens are chosen by.

A state is a list of tensors: h (B, H), then what the next product multiplies, x (B, H): h scaled by
the norm that comes next, with its sums of squares in fp32 (tiles, B); or, in batches of more than
MATRIX_ROWS, where a matrix library multiplies, h normalised.
"""

import torch
from torch import Tensor

from trtforge.engines.aoti.graphs import LayerShape, rms_norm
from trtforge.engines.aoti.tiles import MATRIX_ROWS, linear_tile

State = list[Tensor]


def begun(h: Tensor, norm: Tensor, shape: LayerShape) -> State:
    """The state of rows that no graph of a step has made; `norm` is the one that comes next."""
    rows = len(h)
    if rows > MATRIX_ROWS:
        return [h, rms_norm(h, norm, shape.norm_epsilon)]
    squares = torch.zeros((begin_tiles(rows, shape), rows), dtype=torch.float32, device=h.device)
    squares[0] = h.float().square().sum(-1)
    return [h, (h.float() * norm.float()).to(h.dtype), squares]


def begin_tiles(rows: int, shape: LayerShape) -> int:
    """How many sums of squares of a row a layer, or the head, is given."""
    return residual_tiles(rows, shape.hidden, shape.intermediate, shape.torch_dtype.itemsize)


def residual_tiles(rows: int, n: int, k: int, item_bytes: int) -> int:
    """How many of them a product of `rows` with a weight (n, k) leaves."""
    return linear_tile(rows, n, k, gated=False, item_bytes=item_bytes).tiles(n)


def new_keys(rows: int, device: torch.device | str) -> Tensor:
    """int64 (rows + 2,), with which the programs of a step's end choose tokens together.

    The best key of each row so far (the smallest integer: none), which are none again after a
    step; how many programs have looked at theirs; and how many steps have been made.
    """
    keys = torch.zeros(rows + 2, dtype=torch.int64, device=device)
    keys[:rows] = torch.iinfo(torch.int64).min
    return keys
