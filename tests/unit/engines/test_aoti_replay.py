"""Recorded steps answer as called graphs do: the same layers, run from fixed places.

The layers are run by PyTorch here, uncompiled; `test_aoti_kernels` is about the kernels.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from trtforge.engines.aoti import loaded as loading  # noqa: E402
from trtforge.engines.aoti import runtime  # noqa: E402
from trtforge.engines.aoti.graphs import (  # noqa: E402
    DecodeLayer,
    Head,
    LayerShape,
    Limits,
    PrefillLayer,
)
from trtforge.engines.aoti.loaded import Loaded  # noqa: E402
from trtforge.engines.aoti.rotary import rotary_table  # noqa: E402
from trtforge.engines.aoti.runtime import Engine, Generation, Sampling  # noqa: E402
from trtforge.engines.aoti.step_sizes import (  # noqa: E402
    TICKETS_PER_LAYER,
    step_identity,
    step_names,
    step_sizes,
)
from trtforge.engines.aoti.step_state import begun  # noqa: E402
from trtforge.engines.driver_main import DriverError  # noqa: E402

SHAPE = LayerShape(64, 4, 2, 16, 96, 259, 1e-5, "float32", qkv_bias=True, dense_bias=True)
LIMITS = Limits(max_batch_size=11, max_input_len=20, max_seq_len=36)
LAYERS = 3
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring to a model this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Made:
    """An engine of random weights whose layers PyTorch runs; counts the steps it has made."""

    def __init__(self, decode: str) -> None:
        make = torch.Generator().manual_seed(7)

        def weight(*size: int) -> Any:
            # As large as makes attention and the layers matter.
            scale = 2 * size[-1] ** -0.5 if len(size) == 2 else 0.5
            return torch.randn(size, generator=make) * scale

        self.steps = 0
        model = {"vocab_size": SHAPE.vocab, "rotary_base": 10000.0}
        cos, sin = rotary_table(model, SHAPE, LIMITS, CPU)
        graphs: dict[str, Callable[[list[Any]], list[Any]]] = {
            "prefill": lambda inputs: [PrefillLayer(SHAPE)(*inputs)],
            "decode": self._decode,
            "head": lambda inputs: [Head(SHAPE, None)(*inputs)],
        }
        for name in step_names(LIMITS.max_batch_size):
            part = name.rpartition("_")[0]
            graphs[name] = {"step_begin": begin, "step": self._step, "step_head": end}[part]
        self.loaded = Loaded(
            device=CPU,
            shape=SHAPE,
            limits=LIMITS,
            model=model,
            build={"decode": decode, "max_num_tokens": 64},
            graphs=graphs,
            embedding=weight(SHAPE.vocab, SHAPE.hidden),
            head=[weight(SHAPE.hidden), weight(SHAPE.vocab, SHAPE.hidden)],
            layers=[
                [weight(*size) for size in SHAPE.layer_weights().values()] for _ in range(LAYERS)
            ],
            cos=cos,
            sin=sin,
        )

    def _decode(self, inputs: list[Any]) -> list[Any]:
        self.steps += 1
        return [DecodeLayer(SHAPE)(*inputs)]

    def _step(self, inputs: list[Any]) -> list[Any]:
        """What `step_graphs.StepLayer` computes, without its kernels."""
        self.steps += 1
        h, _, _, positions, cos, sin, k, v, next_norm, *rest = inputs
        slots = torch.arange(LIMITS.max_seq_len)
        allowed = slots[None] <= positions[:, None]
        mask = torch.where(allowed, 0.0, -math.inf)[:, None, None]
        column = positions[:, None]
        rope = (cos[column][:, None], sin[column][:, None])
        weights = rest[TICKETS_PER_LAYER:]
        h = DecodeLayer(SHAPE)(h[:, None], column, *rope, mask, k, v, *weights)[:, 0]
        return begun(h, next_norm, SHAPE)


def begin(inputs: list[Any]) -> list[Any]:
    """What `step_graphs.StepBegin` computes."""
    tokens, embedding, norm = inputs
    return begun(embedding[tokens], norm, SHAPE)


def end(inputs: list[Any]) -> list[Any]:
    """What `step_graphs.StepHead` computes."""
    _, x, squares, output, _, keys, tokens, sent, positions = inputs
    mean = squares.sum(0)[:, None] / SHAPE.hidden
    logits = x @ output.T * torch.rsqrt(mean + SHAPE.norm_epsilon)
    tokens.copy_(logits.argmax(-1))
    sent[keys[-1] % 2] = tokens
    keys[-1] += 1
    positions += 1
    return [logits]


@pytest.fixture
def engine_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Made], Engine]:
    def make(made: Made) -> Engine:
        monkeypatch.setattr(runtime, "load", lambda _: made.loaded)
        return Engine(Path())

    return make


@pytest.fixture
def replayed(engine_of: Callable[[Made], Engine]) -> Engine:
    return engine_of(Made("kernels"))


@pytest.fixture
def called(engine_of: Callable[[Made], Engine]) -> Engine:
    return engine_of(Made("graphs"))


def prompts_of(*lengths: int) -> list[list[int]]:
    make = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, SHAPE.vocab, (n,), generator=make).tolist() for n in lengths]


def same(mine: Generation, theirs: Generation) -> None:
    assert mine.tokens == theirs.tokens
    assert len(mine.step_s) == len(theirs.step_s)
    for a, b in zip(mine.logits, theirs.logits, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-4)


class TestAnswers:
    @pytest.mark.parametrize(
        "lengths", [(9,), (20,), (1, 20), (5, 5), (3, 1, 20, 7), (2,) * 8, (9, 4, 1) * 3, (6,) * 11]
    )
    def test_are_those_of_the_called_graphs(
        self, replayed: Engine, called: Engine, lengths: Sequence[int]
    ) -> None:
        mine, theirs = (
            e.generate(prompts_of(*lengths), 12, keep_logits=True) for e in (replayed, called)
        )
        assert [len(tokens) for tokens in mine.tokens] == [12] * len(lengths)
        same(mine, theirs)

    @pytest.mark.parametrize("lengths", [(20,), (1,), (1, 20), (20, 3, 11, 8, 2, 9)])
    def test_up_to_the_last_place_of_a_sequence(
        self, replayed: Engine, called: Engine, lengths: Sequence[int]
    ) -> None:
        new_tokens = LIMITS.max_seq_len - max(lengths)
        same(*(e.generate(prompts_of(*lengths), new_tokens) for e in (replayed, called)))

    def test_a_batch_leaves_nothing_behind_for_the_next(
        self, replayed: Engine, called: Engine
    ) -> None:
        first = replayed.generate(prompts_of(9), 12)
        for lengths in ((20,) * 11, (3, 14), (20,)):
            replayed.generate(prompts_of(*lengths), 16)
        assert replayed.generate(prompts_of(9), 12).tokens == first.tokens
        same(*(e.generate(prompts_of(2, 7), 12) for e in (replayed, called)))

    def test_prompts_that_do_not_fit_into_one_forward_pass(
        self, replayed: Engine, called: Engine
    ) -> None:
        same(*(e.generate(prompts_of(*[19] * 7), 8) for e in (replayed, called)))

    @pytest.mark.parametrize(
        "how",
        [
            {"temperature": 1.0, "seed": 3},
            {"temperature": 2.0, "top_k": 5},
            {"temperature": 0.7, "top_p": 0.8, "seed": 9},
        ],
    )
    def test_sampled_ones_too(self, replayed: Engine, called: Engine, how: dict[str, Any]) -> None:
        sampling = Sampling(**how)
        mine, theirs = (
            e.generate(prompts_of(4, 9), 12, sampling=sampling, keep_logits=True)
            for e in (replayed, called)
        )
        same(mine, theirs)
        greedy = replayed.generate(prompts_of(4, 9), 12)
        assert mine.tokens != greedy.tokens

    def test_and_those_to_tokens_that_are_given(self, replayed: Engine, called: Engine) -> None:
        forced = prompts_of(12, 12)
        mine, theirs = (
            e.generate(prompts_of(9, 5), 12, forced=forced, keep_logits=True)
            for e in (replayed, called)
        )
        same(mine, theirs)
        assert mine.tokens == forced

    def test_a_stop_id_ends_its_sequence_only(self, replayed: Engine, called: Engine) -> None:
        whole = replayed.generate(prompts_of(9, 5), 12).tokens
        stop = next(token for token in whole[0] if token not in whole[1])
        mine, theirs = (
            e.generate(prompts_of(9, 5), 12, stop_ids=[stop]) for e in (replayed, called)
        )
        same(mine, theirs)
        assert mine.tokens == [whole[0][: whole[0].index(stop) + 1], whole[1]]


class TestSteps:
    def test_none_is_made_after_the_last_token(self, engine_of: Callable[[Made], Engine]) -> None:
        made = Made("kernels")
        engine = engine_of(made)
        for new_tokens in (1, 2, 6):
            made.steps = 0
            engine.generate(prompts_of(9), new_tokens)
            assert made.steps == (new_tokens - 1) * LAYERS

    def test_at_most_one_is_made_that_a_stop_id_makes_useless(
        self, engine_of: Callable[[Made], Engine]
    ) -> None:
        made = Made("kernels")
        engine = engine_of(made)
        (tokens,) = engine.generate(prompts_of(9), 12).tokens
        made.steps = 0
        (stopped,) = engine.generate(prompts_of(9), 12, stop_ids=[tokens[3]]).tokens
        assert made.steps <= len(stopped) * LAYERS


class TestSizes:
    @given(st.integers(1, 4096))
    def test_there_is_one_for_every_batch_and_none_beyond_the_largest(self, largest: int) -> None:
        sizes = step_sizes(largest)
        assert sizes[0] == 1
        assert sizes[-1] == largest
        assert list(sizes) == sorted(set(sizes))
        # Filling up costs little: the rows that do it read no cache.
        assert all(b <= max(8, 4 * a) for a, b in pairwise(sizes))

    @given(st.integers(1, 300))
    def test_graphs_of_different_code_have_different_identities(self, largest: int) -> None:
        limits = Limits(largest, 20, 36)
        names = step_names(largest)
        identities = [str(step_identity(name, SHAPE, limits)) for name in names]
        assert len(set(identities)) == len(names) == 3 * len(step_sizes(largest))

    def test_the_head_depends_on_the_vocabulary_and_a_layer_on_the_length(self) -> None:
        def identity(name: str, vocab: int, length: int) -> dict[str, Any]:
            shape = LayerShape(64, 4, 2, 16, 96, vocab, 1e-5, "float32", True, True)
            return step_identity(name, shape, Limits(8, 20, length))

        assert identity("step_8", 259, 36) == identity("step_8", 300, 36)
        assert identity("step_8", 259, 36) != identity("step_8", 259, 40)
        assert identity("step_head_8", 259, 36) != identity("step_head_8", 300, 36)
        assert identity("step_head_8", 259, 36) == identity("step_head_8", 259, 40)
        assert identity("step_begin_8", 259, 36) == identity("step_begin_8", 259, 40)


BUILD = {"max_batch_size": 32, "kv_cache_bytes_per_sequence": 1 << 30}


class TestMemory:
    def test_what_fits_is_loaded(self) -> None:
        loading._check_memory(13 << 30, BUILD, 80 << 30)

    def test_what_does_not_fit_is_refused_with_both_parts_and_a_remedy(self) -> None:
        with pytest.raises(
            DriverError,
            match=r"50\.5 GB .*14\.0 for weights, 34\.4 for the caches of 32 .*47\.2 GB",
        ) as caught:
            loading._check_memory(13 << 30, BUILD, 44 << 30)
        assert caught.value.cause == "gpu-memory"
        assert "max_batch_size" in caught.value.remedy


class TestInterface:
    def test_an_engine_whose_steps_are_given_other_things_is_refused(self, tmp_path: Path) -> None:
        for built in ({}, {"step_interface": 3}):  # before it was counted; by a later trtforge
            config = {
                "version": torch.__version__,
                "pretrained_config": {},
                "build_config": {"decode": "kernels", **built},
            }
            (tmp_path / "config.json").write_text(json.dumps(config))
            with pytest.raises(
                DriverError, match=r"interface [13], this trtforge runs 2"
            ) as caught:
                loading.load(tmp_path)
            assert caught.value.cause == "toolchain-mismatch"
            assert "build it again" in caught.value.remedy
