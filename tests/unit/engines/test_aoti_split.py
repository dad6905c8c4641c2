"""A model cut by the converter and run rank by rank answers as the whole one does.

The graphs are run by PyTorch here, uncompiled, and the ranks are threads, which add with Python;
`tests/functional/test_aoti_split.py` has compiled graphs, processes and gloo.
"""

import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from trtforge.checkpoint import Target, convert  # noqa: E402
from trtforge.engines.aoti import runtime  # noqa: E402
from trtforge.engines.aoti.graphs import (  # noqa: E402
    DecodeLayer,
    Head,
    LayerShape,
    Limits,
    PrefillLayer,
    graph_names,
)
from trtforge.engines.aoti.loaded import Loaded  # noqa: E402
from trtforge.engines.aoti.rotary import rotary_table  # noqa: E402
from trtforge.engines.aoti.runtime import Engine, Generation, Sampling  # noqa: E402
from trtforge.engines.aoti.split_graphs import (  # noqa: E402
    DecodeAttention,
    Mlp,
    PrefillAttention,
    shape_of_rank,
    split_identity,
    split_names,
)

HIDDEN, HEAD, LAYERS = 32, 8, 2
LIMITS = Limits(max_batch_size=6, max_input_len=12, max_seq_len=18)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cut:
    """A tiny model, and the number of ranks it is cut for."""

    ranks: int
    heads: int
    kv_heads: int
    vocab: int
    architecture: str = "LlamaForCausalLM"
    bias: bool = False
    tied: bool = True

    @property
    def intermediate(self) -> int:
        return 12 * self.ranks


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    ranks = draw(st.integers(2, 4))
    heads = ranks * draw(st.integers(1, 3))
    kv_heads = draw(
        st.sampled_from(
            [
                n
                for n in range(1, heads + 1)
                if heads % n == 0 and max(n, ranks) % min(n, ranks) == 0
            ]
        )
    )
    architecture = draw(
        st.sampled_from(["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"])
    )
    return Cut(
        ranks,
        heads,
        kv_heads,
        vocab=draw(st.integers(30, 50)),
        architecture=architecture,
        bias=architecture == "LlamaForCausalLM" and draw(st.booleans()),
        tied=draw(st.booleans()),
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_model(directory: Path, cut: Cut) -> Path:
    """Random weights, as large as makes attention and the layers matter."""
    make = torch.Generator().manual_seed(11)
    q, kv = cut.heads * HEAD, cut.kv_heads * HEAD
    qkv_bias = cut.bias or cut.architecture == "Qwen2ForCausalLM"
    weights = {"model.embed_tokens.weight": (cut.vocab, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for n in range(LAYERS):
        layer = {
            "input_layernorm.weight": (HIDDEN,),
            "post_attention_layernorm.weight": (HIDDEN,),
            "self_attn.q_proj.weight": (q, HIDDEN),
            "self_attn.k_proj.weight": (kv, HIDDEN),
            "self_attn.v_proj.weight": (kv, HIDDEN),
            "self_attn.o_proj.weight": (HIDDEN, q),
            "mlp.gate_proj.weight": (cut.intermediate, HIDDEN),
            "mlp.up_proj.weight": (cut.intermediate, HIDDEN),
            "mlp.down_proj.weight": (HIDDEN, cut.intermediate),
        }
        if qkv_bias:
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                layer[f"self_attn.{name}_proj.bias"] = (rows,)
        if cut.bias:
            layer["self_attn.o_proj.bias"] = (HIDDEN,)
        weights |= {f"model.layers.{n}.{name}": size for name, size in layer.items()}
    if not cut.tied:
        weights["lm_head.weight"] = (cut.vocab, HIDDEN)
    directory.mkdir()
    tensors = {
        name: (torch.randn(size, generator=make) * (2 * HIDDEN**-0.5 if len(size) == 2 else 1))
        for name, size in weights.items()
    }
    save_file({name: t.bfloat16() for name, t in tensors.items()}, directory / "model.safetensors")
    config = {
        "architectures": [cut.architecture],
        "model_type": cut.architecture.removesuffix("ForCausalLM").lower(),
        "hidden_size": HIDDEN,
        "head_dim": HEAD,
        "num_attention_heads": cut.heads,
        "num_key_value_heads": cut.kv_heads,
        "num_hidden_layers": LAYERS,
        "intermediate_size": cut.intermediate,
        "vocab_size": cut.vocab,
        "attention_bias": cut.bias,
        "tie_word_embeddings": cut.tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 64,
        "sliding_window": None,
        "dtype": "bfloat16",
    }
    if cut.architecture == "Qwen2ForCausalLM":
        config |= {"use_sliding_window": False}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def rows_of(name: str) -> int | None:
    return {"one": 1, "few": LIMITS.few}.get(name.rpartition("_")[2])


def loaded(checkpoint: Path, rank: int, ranks: int) -> Loaded:
    """A rank's file in fp32, and the graphs it needs as PyTorch runs them."""
    model = json.loads((checkpoint / "config.json").read_text()) | {"dtype": "float32"}
    shape = shape_of_rank(LayerShape.from_checkpoint(model), ranks)
    weights = {n: w.float() for n, w in load_file(checkpoint / f"rank{rank}.safetensors").items()}
    modules: dict[str, Callable[..., Any]] = {
        "prefill": lambda _: PrefillLayer(shape),
        "decode": lambda rows: DecodeLayer(shape, rows),
        "prefill_attention": lambda _: PrefillAttention(shape),
        "decode_attention": lambda rows: DecodeAttention(shape, rows),
        "mlp": lambda rows: Mlp(shape, rows),
        "head": lambda rows: Head(shape, rows),
    }
    graphs: dict[str, Callable[[list[Any]], list[Any]]] = {}
    for name in split_names(LIMITS, "cpu") if ranks > 1 else graph_names(LIMITS, "cpu"):
        graph = modules[name.removesuffix("_one").removesuffix("_few")](rows_of(name))
        graphs[name] = (  # as compiled ones: a list out of a list
            lambda inputs, graph=graph: (
                list(out) if isinstance(out := graph(*inputs), tuple) else [out]
            )
        )
    cos, sin = rotary_table(model, shape, LIMITS, CPU)
    return Loaded(
        device=CPU,
        shape=shape,
        limits=LIMITS,
        model=model,
        build={"max_num_tokens": 24, "decode": "graphs"},
        graphs=graphs,
        embedding=weights["transformer.vocab_embedding.weight"],
        head=[weights["transformer.ln_f.weight"], weights["lm_head.weight"]],
        layers=[
            [weights[f"transformer.layers.{n}.{name}"] for name in shape.layer_weights()]
            for n in range(LAYERS)
        ],
        cos=cos,
        sin=sin,
    )


class Together:
    """What `RankGroup` is to processes, for threads."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=30)
        self._said: list[Any] = [None] * ranks

    def exchange(self, rank: int, tensor: Any) -> list[Any]:
        self._said[rank] = tensor.clone()
        self._barrier.wait()
        heard = list(self._said)
        self._barrier.wait()
        return heard


@dataclass(frozen=True)
class Member:
    rank: int
    ranks: int
    together: Together

    def add(self, part: Any) -> Any:
        assert part.dtype == torch.float32
        return sum(self.together.exchange(self.rank, part))

    def joined(self, logits: Any) -> Any:
        return torch.cat(self.together.exchange(self.rank, logits), -1)

    def agreed(self, choose: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda logits: self.together.exchange(self.rank, choose(logits))[0]


class Models:
    """One model whole and cut, each as engines that can be asked."""

    def __init__(self, directory: Path, cut: Cut) -> None:
        model = write_model(directory / "model", cut)
        self.cut = cut
        self._directory = directory
        for ranks in (1, cut.ranks):
            convert(model, directory / f"tp{ranks}", target=Target(tp=ranks))

    def engines(self, ranks: int) -> list[Engine]:
        """One for each rank; each must be asked the same, at the same time."""
        together, made = Together(ranks), []
        for rank in range(ranks):
            group: Any = Member(rank, ranks, together) if ranks > 1 else None
            here = loaded(self._directory / f"tp{ranks}", rank, ranks)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(runtime, "load", lambda *_, here=here: here)
                made.append(Engine(self._directory, 0, group))
        return made

    def ask(self, ranks: int, *arguments: Any, **how: Any) -> list[Generation]:
        """The answer of each rank."""
        engines = self.engines(ranks)
        with ThreadPoolExecutor(ranks) as pool:
            return list(pool.map(lambda engine: engine.generate(*arguments, **how), engines))


def prompts_of(lengths: Sequence[int], vocab: int) -> list[list[int]]:
    make = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(vocab, (n,), generator=make).tolist() for n in lengths]


# One sequence, up to four, and more: other graphs each. Not all fit into one pass of prompts.
BATCHES = [(9,), (3, 12), (5, 1, 12, 7, 2, 12)]


@settings(max_examples=12, deadline=None)
@given(cuts(), st.sampled_from(BATCHES))
@example(Cut(2, 4, 2, 37), BATCHES[0])
@example(Cut(4, 4, 1, 37), BATCHES[1])
@example(Cut(4, 8, 2, 40, tied=False), BATCHES[2])
@example(Cut(2, 4, 2, 37, bias=True), BATCHES[1])
@example(Cut(2, 4, 2, 37, architecture="Qwen2ForCausalLM"), BATCHES[2])
def test_ranks_together_answer_as_one_does(cut: Cut, lengths: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        models = Models(Path(directory), cut)
        prompts = prompts_of(lengths, cut.vocab)
        forced = prompts_of([6] * len(prompts), cut.vocab)
        how: dict[str, Any] = {"forced": forced, "keep_logits": True}
        (whole,) = models.ask(1, prompts, 6, **how)
        for answer in models.ask(cut.ranks, prompts, 6, **how):
            assert answer.tokens == forced
            for mine, theirs in zip(answer.logits, whole.logits, strict=True):
                assert mine.shape == (len(prompts), cut.vocab)
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
                # Else it would say little that they agree.
                assert theirs.std() > 0.1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"), Cut(2, 4, 2, 37))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=9, seed=3)])
def test_every_rank_goes_on_with_the_same_tokens(models: Models, sampling: Sampling) -> None:
    prompts = prompts_of((9, 4), models.cut.vocab)
    one, other = models.ask(2, prompts, 8, sampling=sampling)
    assert one.tokens == other.tokens == models.ask(1, prompts, 8, sampling=sampling)[0].tokens


def test_all_ranks_end_at_a_stop_id(models: Models) -> None:
    prompts = prompts_of((9,), models.cut.vocab)
    (whole,) = models.ask(1, prompts, 9)[0].tokens
    stop = whole[4]
    for answer in models.ask(2, prompts, 9, stop_ids=[stop]):
        assert answer.tokens == [whole[: whole.index(stop) + 1]]


class TestGraphs:
    SHAPE = shape_of_rank(LayerShape(64, 8, 2, 8, 96, 259, 1e-5, "bfloat16", True, True), 4)

    def test_a_rank_has_its_share_and_at_least_one_key_value_head(self) -> None:
        shape = self.SHAPE
        assert (shape.heads, shape.kv_heads, shape.intermediate, shape.vocab) == (2, 1, 24, 65)
        assert (shape.hidden, shape.head_size) == (64, 8)

    @pytest.mark.parametrize("largest", [1, 3, 4, 5])
    def test_each_way_to_run_a_layer_has_both_its_halves(self, largest: int) -> None:
        names = split_names(replace(LIMITS, max_batch_size=largest), "cpu")
        endings = [""] * (largest > 4) + ["_few"] * (largest > 1) + ["_one"]
        assert set(names) == {
            "prefill_attention",
            "mlp",
            *(f"{part}{end}" for part in ("decode_attention", "mlp", "head") for end in endings),
        }
        assert len(names) == len(set(names))
        assert set(split_names(LIMITS, "cuda")) == {
            *("prefill_attention", "decode_attention", "mlp", "head")
        }

    def test_graphs_of_different_code_have_different_identities(self) -> None:
        names = split_names(LIMITS, "cpu")
        assert len({str(split_identity(name, self.SHAPE, LIMITS)) for name in names}) == len(names)

    @pytest.mark.parametrize(
        ("change", "changed"),
        [
            ({"vocab": 70}, {"head"}),
            ({"kv_heads": 2}, {"attention"}),
            ({"intermediate": 48}, {"mlp"}),
            ({"hidden": 128}, {"attention", "mlp", "head"}),
        ],
    )
    def test_what_decides_a_graph_is_in_its_identity(
        self, change: dict[str, int], changed: set[str]
    ) -> None:
        other = replace(self.SHAPE, **change)
        differ = {
            name
            for name in split_names(LIMITS, "cpu")
            if split_identity(name, self.SHAPE, LIMITS) != split_identity(name, other, LIMITS)
        }
        kinds = {kind for kind in ("attention", "mlp", "head") if any(kind in n for n in differ)}
        assert changed <= kinds
        # A head is named by more than it must.
        assert kinds - changed <= {"head"}

    def test_only_what_a_length_decides_is_compiled_anew_for_another(self) -> None:
        longer = replace(LIMITS, max_seq_len=LIMITS.max_seq_len + 1)
        differ = {
            name
            for name in split_names(LIMITS, "cpu")
            if split_identity(name, self.SHAPE, LIMITS) != split_identity(name, self.SHAPE, longer)
        }
        assert differ == {n for n in split_names(LIMITS, "cpu") if "attention" in n}
