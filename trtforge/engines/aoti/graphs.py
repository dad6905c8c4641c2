"""The graphs of a LLaMA-shaped decoder that AOTInductor compiles, one layer at a time.

All layers of such a model run the same code on different weights, so one layer is compiled once
and called `num_hidden_layers` times, its weights being inputs. That divides compile time by the
number of layers and leaves the weights in the checkpoint's own rank file.

Weights carry the names and shapes of the TensorRT-LLM checkpoint (H hidden, Q heads, K kv heads,
D head size, F intermediate, V vocabulary): `attention.qkv.weight` ((Q+2K)·D, H), `mlp.fc` is the
gate projection and `mlp.gate` the up projection.

Graphs, by name:

* `prefill`: B prompts of S tokens each, right-padded; attention is causal among them.
* `decode`: one token for each of B sequences, against the cache.
* `head`: final norm and vocabulary projection of the last hidden state of B sequences.
* `decode_one`, `head_one`, `decode_few`, `head_few`: the same for exactly 1 and for exactly
  `FEW` sequences, with products written row by row, so that Inductor makes one pass over the
  weights of them. On a CPU that is twice as fast as the GEMM library at these sizes.
"""

from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

FEW = 4
"""Batch size of the `_few` graphs; smaller batches are padded to it."""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class LayerShape:
    """What decides the code of one layer and of the head; from a TRT-LLM checkpoint config."""

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    norm_epsilon: float
    dtype: str
    qkv_bias: bool
    dense_bias: bool

    @classmethod
    def from_checkpoint(cls, config: dict[str, Any]) -> "LayerShape":
        attn_bias = bool(config.get("attn_bias", False))
        return cls(
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_size=config["head_size"],
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            norm_epsilon=config["norm_epsilon"],
            dtype=config["dtype"],
            qkv_bias=attn_bias,
            # Qwen2 has biases on q, k and v; LLaMA's attention_bias adds one to the output.
            dense_bias=attn_bias and "qwen_type" not in config,
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    def layer_weights(self) -> dict[str, tuple[int, ...]]:
        """Names below `transformer.layers.<i>.` and shapes of a layer's weights, in call order."""
        rows = (self.heads + 2 * self.kv_heads) * self.head_size
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (self.hidden,),
            "attention.qkv.weight": (rows, self.hidden),
        }
        if self.qkv_bias:
            shapes["attention.qkv.bias"] = (rows,)
        shapes["attention.dense.weight"] = (self.hidden, self.heads * self.head_size)
        if self.dense_bias:
            shapes["attention.dense.bias"] = (self.hidden,)
        return shapes | {
            "post_layernorm.weight": (self.hidden,),
            "mlp.fc.weight": (self.intermediate, self.hidden),
            "mlp.gate.weight": (self.intermediate, self.hidden),
            "mlp.proj.weight": (self.hidden, self.intermediate),
        }


@dataclass(frozen=True)
class Limits:
    """The largest batch and lengths (tokens) the compiled code accepts."""

    max_batch_size: int
    max_input_len: int
    max_seq_len: int

    @property
    def cache_len(self) -> int:
        # One slot more than can be used: no slice of the cache is ever the whole of it, so that
        # export does not make "shorter than the cache" a condition of its own.
        return self.max_seq_len + 1

    @property
    def few(self) -> int:
        """Batch size of the `_few` graphs."""
        return min(FEW, self.max_batch_size)


def graph_names(limits: Limits, device: str) -> tuple[str, ...]:
    """The graphs an engine needs on `device` (`cpu` or `cuda`)."""
    if device == "cuda":
        return ("prefill", "decode", "head")
    names = ["prefill", "decode_one", "head_one"]
    if limits.max_batch_size > 1:
        names += ["decode_few", "head_few"]
    if limits.max_batch_size > FEW:
        names += ["decode", "head"]
    return tuple(names)


def variant(name: str, batch: int, available: Container[str], limits: Limits) -> tuple[str, int]:
    """Which graph runs `name` (`decode` or `head`) for `batch` sequences, padded to how many."""
    if batch == 1 and f"{name}_one" in available:
        return f"{name}_one", 1
    if batch <= limits.few and f"{name}_few" in available:
        return f"{name}_few", limits.few
    return name, batch


def identity(name: str, shape: LayerShape, limits: Limits) -> dict[str, Any]:
    """What, of all parameters, decides the code of graph `name`: part of its cache key."""
    described = asdict(shape)
    if not name.startswith("head"):
        del described["vocab"]
    facts: dict[str, Any] = {"graph": name, "shape": described}
    if name in ("prefill", "decode", "head"):
        facts["max_batch_size"] = limits.max_batch_size
    if name.endswith("_few"):
        facts["few"] = limits.few
    if not name.startswith("head"):
        facts["max_seq_len"] = limits.max_seq_len
    if name == "prefill":
        facts["max_input_len"] = limits.max_input_len
    return facts


def export_graph(name: str, shape: LayerShape, limits: Limits, device: str) -> ExportedProgram:
    """Trace graph `name` with its dynamic dimensions: batch, prompt length, context length."""
    rows = {"one": 1, "few": limits.few}.get(name.rpartition("_")[2])
    fixed_batch = 1 if limits.max_batch_size == 1 else rows
    batch = None if fixed_batch else Dim("batch", min=1, max=limits.max_batch_size)
    # Sizes of 1 would be taken for constants.
    example_batch = fixed_batch or min(3, limits.max_batch_size)

    def make(size: tuple[int, ...], dtype: torch.dtype = shape.torch_dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    if name.startswith("head"):
        module: nn.Module = Head(shape, rows)
        inputs: tuple[Tensor, ...] = (
            make((example_batch, shape.hidden)),
            make((shape.hidden,)),
            make((shape.vocab, shape.hidden)),
        )
        dynamic: tuple[Any, ...] = ({0: batch} if batch else None, None, None)
    else:
        weights = tuple(make(s) for s in shape.layer_weights().values())
        cache = (example_batch, shape.kv_heads, limits.cache_len, shape.head_size)
        per_row: dict[int, Any] = {0: batch} if batch else {}
        if name == "prefill":
            tokens = Dim("tokens", min=1, max=limits.max_input_len)
            length = min(7, limits.max_input_len)
            module = PrefillLayer(shape)
            extra: tuple[Tensor, ...] = ()
            per_token, per_rope = per_row | {1: tokens}, per_row | {2: tokens}
            dynamic = (per_token, per_token, per_rope, per_rope)
        else:
            context = Dim("context", min=1, max=limits.max_seq_len)
            length = 1
            module = DecodeLayer(shape, rows)
            extra = (make((example_batch, 1, 1, min(5, limits.max_seq_len)), torch.float32),)
            dynamic = (*(per_row,) * 4, per_row | {3: context})
        positions = torch.arange(length, device=device).expand(example_batch, length).contiguous()
        rope = (example_batch, 1, length, shape.head_size)
        inputs = (make((example_batch, length, shape.hidden)), positions, make(rope), make(rope))
        inputs += (*extra, make(cache), make(cache), *weights)
        dynamic = (*dynamic, per_row, per_row, (None,) * len(weights))
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return normed.to(x.dtype) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, GPT-NeoX style: halves, not pairs."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def _rows_times(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` in fp32 for a few rows x (B, K), fused into one pass over `weight` (N, K)."""
    wide = weight.float()
    return torch.stack([(row * wide).sum(-1) for row in _in_memory(x.float()).unbind(0)])


def _in_memory(x: Tensor) -> Tensor:
    # Otherwise Inductor would compute x (the norm, say) anew for each of the N rows of a weight.
    # as_strided can only be a view of memory, so what it is applied to is written out.
    return torch.as_strided(x, x.shape, x.stride())


class _Layer(nn.Module):
    """`rows` is the batch size of a graph written row by row, None for one that uses GEMMs."""

    def __init__(self, shape: LayerShape, rows: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.rows = rows

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, S, K) → (B, S, N); S is 1 where `rows` is given."""
        if self.rows is None:
            return F.linear(x, weight, bias)
        y = _rows_times(x[:, 0], weight)
        if bias is not None:
            y = y + bias.float()
        return y.to(x.dtype)[:, None]

    def qkv(
        self, h: Tensor, cos: Tensor, sin: Tensor, w: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q (B, Q, S, D), rotated k and v (B, K, S, D)."""
        s = self.shape
        x = rms_norm(h, w["input_layernorm.weight"], s.norm_epsilon)
        qkv = self.linear(x, w["attention.qkv.weight"], w.get("attention.qkv.bias"))
        sizes = [n * s.head_size for n in (s.heads, s.kv_heads, s.kv_heads)]
        q, k, v = torch.split(qkv, sizes, -1)
        q, k, v = (torch.unflatten(t, -1, (-1, s.head_size)).transpose(1, 2) for t in (q, k, v))
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def finish(self, h: Tensor, attended: Tensor, w: dict[str, Tensor]) -> Tensor:
        """Output projection and MLP; `attended` is (B, Q, S, D)."""
        merged = attended.transpose(1, 2).flatten(2)
        h = h + self.linear(merged, w["attention.dense.weight"], w.get("attention.dense.bias"))
        x = rms_norm(h, w["post_layernorm.weight"], self.shape.norm_epsilon)
        gated = F.silu(self.linear(x, w["mlp.fc.weight"])) * self.linear(x, w["mlp.gate.weight"])
        return h + self.linear(gated, w["mlp.proj.weight"])

    def named(self, weights: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(self.shape.layer_weights(), weights, strict=True))

    @staticmethod
    def store(cache: Tensor, positions: Tensor, values: Tensor) -> None:
        """cache (B, K, L, D)[b, :, positions[b, s]] = values (B, K, S, D)[b, :, s]."""
        rows = torch.arange(cache.shape[0], device=cache.device)[:, None, None]
        heads = torch.arange(cache.shape[1], device=cache.device)[None, :, None]
        cache.index_put_((rows, heads, positions[:, None, :]), values)


class PrefillLayer(_Layer):
    def forward(
        self,
        h: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        w = self.named(weights)
        q, k, v = self.qkv(h, cos, sin, w)
        self.store(k_cache, positions, k)
        self.store(v_cache, positions, v)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.finish(h, attended, w)


class DecodeLayer(_Layer):
    def forward(
        self,
        h: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        """`mask` (B, 1, 1, T) fp32 is added to the scores of the first T cache slots."""
        w = self.named(weights)
        q, k, v = self.qkv(h, cos, sin, w)
        self.store(k_cache, positions, k)
        self.store(v_cache, positions, v)
        length = mask.shape[-1]
        keys, values = k_cache[:, :, :length], v_cache[:, :, :length]
        if q.is_cuda:
            return self.finish(h, self._attend_by_group(q, keys, values, mask), w)
        if self.rows == 1:
            return self.finish(h, self._attend_one(q, keys[0], values[0], mask[0, 0]), w)
        attended = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask.to(q.dtype), enable_gqa=True
        )
        return self.finish(h, attended, w)

    def _attend_by_group(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention as two products per kv head, reading the cache in place.

        On CUDA scaled_dot_product_attention with a mask would copy it to repeat the kv heads.
        """
        batch = q.shape[0]
        s = self.shape
        groups = q.reshape(batch, s.kv_heads, s.heads // s.kv_heads, s.head_size)
        scores = torch.matmul(groups, keys.transpose(-1, -2)).float() * s.head_size**-0.5
        weights = torch.softmax(scores + mask, -1).to(q.dtype)
        return torch.matmul(weights, values).reshape(batch, s.heads, 1, s.head_size)

    def _attend_one(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of one query in fp32; keys and values are (K, T, D)."""
        s = self.shape
        groups = q.reshape(s.kv_heads, s.heads // s.kv_heads, s.head_size).float()
        groups = groups * s.head_size**-0.5
        scores = (groups[:, :, None, :] * keys[:, None].float()).sum(-1) + mask
        weights = torch.softmax(scores, -1)
        mixed = (weights[..., None] * values[:, None].float()).sum(2)
        return mixed.to(q.dtype).reshape(1, s.heads, 1, s.head_size)


class Head(nn.Module):
    def __init__(self, shape: LayerShape, rows: int | None) -> None:
        super().__init__()
        self.epsilon = shape.norm_epsilon
        self.rows = rows

    def forward(self, h: Tensor, norm: Tensor, lm_head: Tensor) -> Tensor:
        """h (B, H) → fp32 logits (B, V)."""
        x = rms_norm(h, norm, self.epsilon)
        if self.rows is None:
            return F.linear(x, lm_head).float()
        return _rows_times(x, lm_head)
