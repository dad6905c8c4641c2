"""The kernels of a decode step, against the same layer written in PyTorch.

Where there is a GPU they run on it, in bfloat16. Elsewhere Triton interprets them: in fp32, one
program after the other, which shows what they compute but not how programs meet.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
GPU = torch.cuda.is_available()
if not GPU:  # read when Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from trtforge.engines.aoti import step_ops  # noqa: E402
from trtforge.engines.aoti.graphs import DecodeLayer, Head, LayerShape  # noqa: E402
from trtforge.engines.aoti.step_graphs import StepBegin, StepHead, StepLayer  # noqa: E402
from trtforge.engines.aoti.step_sizes import TICKETS, TICKETS_PER_LAYER  # noqa: E402
from trtforge.engines.aoti.step_state import begun, new_keys  # noqa: E402

DEVICE, DTYPE = ("cuda", "bfloat16") if GPU else ("cpu", "float32")
# Of the largest number: rounding of bf16, of which ours does less, and of fp32.
TOLERANCE = 3e-2 if GPU else 2e-5
SHAPES = {
    "grouped": LayerShape(64, 4, 2, 16, 96, 259, 1e-5, DTYPE, qkv_bias=True, dense_bias=True),
    "one head each": LayerShape(64, 2, 2, 32, 160, 259, 1e-5, DTYPE, False, False),
    "smollm2": LayerShape(576, 9, 3, 64, 1536, 512, 1e-5, DTYPE, False, False),
    "qwen2": LayerShape(128, 14, 2, 64, 200, 300, 1e-6, DTYPE, qkv_bias=True, dense_bias=False),
    "head of 80": LayerShape(160, 2, 2, 80, 100, 77, 1e-5, DTYPE, False, False),
}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not GPU:
        monkeypatch.setattr(step_ops, "wrap_triton", lambda kernel: kernel)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Case:
    """A layer of random weights, a batch with a cache, and what PyTorch makes of it."""

    def __init__(self, shape: LayerShape, positions: list[int], length: int) -> None:
        torch.manual_seed(length)
        self.shape, self.length = shape, length
        self.weights = [
            self.random(*size) * (size[-1] ** -0.5 if len(size) == 2 else 1)
            for size in shape.layer_weights().values()
        ]
        batch = len(positions)
        self.positions = torch.tensor(positions, device=DEVICE)
        self.h = self.random(batch, shape.hidden)
        self.next_norm = self.random(shape.hidden)
        self.left: list[Any] = []
        angles = torch.outer(
            torch.arange(length).float(),
            10000.0 ** (-torch.arange(0, shape.head_size, 2) / shape.head_size),
        )
        angles = torch.cat((angles, angles), -1).to(DEVICE)
        self.cos, self.sin = (t.to(shape.torch_dtype) for t in (angles.cos(), angles.sin()))
        self.caches = [
            self.random(batch, shape.kv_heads, length + 1, shape.head_size) for _ in "kv"
        ]
        self.tickets = [
            torch.zeros(TICKETS, dtype=torch.int32, device=DEVICE) for _ in range(TICKETS_PER_LAYER)
        ]

    def random(self, *size: int) -> Any:
        return torch.randn(size).to(DEVICE, self.shape.torch_dtype)

    def by_kernels(self, caches: list[Any]) -> Any:
        names = list(self.shape.layer_weights())
        state = begun(self.h, self.weights[names.index("input_layernorm.weight")], self.shape)
        tables = (self.positions, self.cos, self.sin)
        h, *self.left = StepLayer(self.shape)(
            *(*state, *tables, *caches, self.next_norm, *self.tickets, *self.weights)
        )
        return h

    def by_pytorch(self, caches: list[Any]) -> Any:
        slots = torch.arange(self.length, device=DEVICE)
        mask = torch.where(slots[None] <= self.positions[:, None], 0.0, -torch.inf)
        column = self.positions[:, None]
        rope = (self.cos[column][:, None], self.sin[column][:, None])
        return DecodeLayer(self.shape)(
            *(self.h[:, None], column, *rope, mask[:, None, None], *caches), *self.weights
        )[:, 0]


def ends(case: Case) -> list[Any]:
    """Tickets, keys, tokens, sent, positions: what a step's end chooses with."""
    batch = len(case.positions)
    zeros = torch.zeros(3, batch, dtype=torch.int64, device=DEVICE)
    keys = new_keys(batch, DEVICE)
    return [case.tickets[0], keys, zeros[0].clone(), zeros[1:].clone(), case.positions.clone()]


def close(mine: Any, theirs: Any) -> None:
    assert torch.isfinite(mine.float()).all()
    difference = (mine.float() - theirs.float()).abs().max()
    assert difference <= TOLERANCE * theirs.float().abs().max()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("positions", [[0], [39], [0, 39, 7], [20] * 17])
def test_a_layer_and_the_cache_it_leaves(shape: LayerShape, positions: list[int]) -> None:
    case = Case(shape, positions, 40)
    mine, theirs = ([c.clone() for c in case.caches] for _ in "ab")
    close(case.by_kernels(mine), case.by_pytorch(theirs))
    for a, b, before in zip(mine, theirs, case.caches, strict=True):
        close(a, b)
        for row, position in enumerate(positions):
            untouched = torch.arange(41, device=DEVICE) != position
            assert torch.equal(a[row][:, untouched], before[row][:, untouched])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("batch", [1, 3, 17, 70])
def test_a_layer_leaves_what_the_next_one_begins_with(shape: LayerShape, batch: int) -> None:
    case = Case(shape, [n % 40 for n in range(batch)], 40)
    h = case.by_kernels([c.clone() for c in case.caches])
    _, x, *squares = begun(h, case.next_norm, shape)
    close(case.left[0], x)
    for mine, theirs in zip(case.left[1:], squares, strict=True):
        assert mine.shape == theirs.shape
        close(mine.sum(0), theirs.sum(0))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("batch", [1, 3, 17, 70])
def test_a_step_begins_with_the_embeddings_of_its_tokens(shape: LayerShape, batch: int) -> None:
    case = Case(shape, [0] * batch, 4)
    embedding = case.random(shape.vocab, shape.hidden)
    tokens = torch.randint(0, shape.vocab, (batch,)).to(DEVICE)
    mine = StepBegin(shape)(tokens, embedding, case.next_norm)
    theirs = begun(embedding[tokens], case.next_norm, shape)
    assert torch.equal(mine[0], theirs[0])
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        close(a, b)


@pytest.mark.parametrize("name", ["grouped", "one head each"])
@pytest.mark.parametrize("position", [127, 128, 129, 500, 1599])
def test_a_sequence_shared_out_among_programs(name: str, position: int) -> None:
    case = Case(SHAPES[name], [position, 3], 1600)
    mine, theirs = ([c.clone() for c in case.caches] for _ in "ab")
    close(case.by_kernels(mine), case.by_pytorch(theirs))


def test_what_lies_beyond_the_positions_in_use_is_not_read() -> None:
    case = Case(SHAPES["grouped"], [5, 300], 400)
    clean = case.by_kernels([c.clone() for c in case.caches])
    poisoned = [c.clone() for c in case.caches]
    for cache in poisoned:
        cache[0, :, 5:] = torch.nan
        cache[1, :, 300:] = torch.nan
    assert torch.equal(case.by_kernels(poisoned), clean)


def test_tickets_are_zero_again_and_a_second_step_gives_the_same() -> None:
    case = Case(SHAPES["smollm2"], [900, 3], 1000)
    first, second = (case.by_kernels([c.clone() for c in case.caches]) for _ in "ab")
    assert all(not tickets.any() for tickets in case.tickets)
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_the_head_gives_fp32_logits(shape: LayerShape, batch: int) -> None:
    case = Case(shape, [0] * batch, 4)
    weights = (case.random(shape.hidden), case.random(shape.vocab, shape.hidden))
    mine = StepHead(shape)(*begun(case.h, weights[0], shape), weights[1], *ends(case))
    assert mine.dtype == torch.float32
    close(mine, Head(shape, None)(case.h, *weights))


@pytest.mark.parametrize("batch", [1, 3, 17, 70])
def test_the_head_chooses_the_first_of_the_likeliest_tokens(batch: int) -> None:
    case = Case(SHAPES["smollm2"], [*range(batch)], 4)
    norm, output = case.random(576), case.random(512, 576)
    output[300] = output[7] = 9 * output[7]  # the likeliest, or the least likely
    tickets, keys, tokens, sent, positions = end = ends(case)
    fresh = keys.clone()
    for step in range(3):
        h = case.random(batch, 576)
        logits = StepHead(case.shape)(*begun(h, norm, case.shape), output, *end)
        highest = logits == logits.max(-1, keepdim=True).values
        first = torch.where(highest, torch.arange(512, device=DEVICE), 512).min(-1).values
        assert torch.equal(tokens, first)
        assert torch.equal(sent[step % 2], tokens)
        assert positions.tolist() == [position + step + 1 for position in range(batch)]
    assert (tokens != 300).all()
    assert torch.equal(keys[:-1], fresh[:-1])
    assert not tickets.any()


def test_where_no_logit_is_a_number_the_token_is_still_one_of_the_vocabulary() -> None:
    case = Case(SHAPES["smollm2"], [0], 4)
    end = ends(case)
    norm, output = case.random(576), case.random(512, 576) * torch.nan
    StepHead(case.shape)(*begun(case.h, norm, case.shape), output, *end)
    assert 0 <= end[2].item() < 512


def test_a_batch_too_large_for_the_kernels_of_products_is_left_to_a_library() -> None:
    case = Case(SHAPES["grouped"], [n % 40 for n in range(70)], 40)
    mine, theirs = ([c.clone() for c in case.caches] for _ in "ab")
    close(case.by_kernels(mine), case.by_pytorch(theirs))
