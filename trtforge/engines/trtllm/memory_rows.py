"""What one rank of an engine needs, part by part: the arithmetic behind `memory`."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from trtforge.checkpoint.config_keys import count
from trtforge.checkpoint.expected import expected_tensors
from trtforge.checkpoint.families import FAMILIES
from trtforge.checkpoint.split import layers_of
from trtforge.engines.memory import CUDA_ROW, NCCL_BYTES, MemoryRow
from trtforge.engines.trtllm.attention_workspace import Attention, workspace_bytes

_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Bytes of a weight of the layers' matrices, by quant_algo; those not listed are counted as 1.
_FOUR_BITS = ("W4A16", "W4A8", "NVFP4", "INT4", "MXFP4")
_LOGIT_BYTES = 4
# Logits as often as runtime and decoder buffers hold something of that size: 11.2 were measured.
_LOGITS_HELD = 12
_HOST_PROCESS_BYTES = 3_000_000_000
# What TensorRT-LLM gives the KV cache of the memory that is left (kv_cache_free_gpu_mem_fraction).
_KV_SHARE = 0.9


class EngineLimits(Protocol):
    """What is asked of an engine; `trtforge.spec.EngineSpec` is one."""

    @property
    def max_batch_size(self) -> int: ...
    @property
    def max_input_len(self) -> int: ...
    @property
    def max_seq_len(self) -> int: ...
    @property
    def max_num_tokens(self) -> int: ...
    @property
    def options(self) -> Mapping[str, bool | int | float | str]: ...


@dataclass(frozen=True)
class Limits:
    """The limits that decide about memory, with what upstream makes of them."""

    batch: int
    beams: int
    input_len: int
    seq_len: int
    num_tokens: int
    block: int
    paged: bool
    has_cache: bool
    fused: bool
    paged_context: bool
    all_logits: bool
    compute_capability: str | None
    kv_tokens: int | None

    @classmethod
    def read(
        cls, engine: EngineLimits, release: str, capability: str | None, kv_tokens: int | None
    ) -> "Limits":
        options, old = engine.options, release.startswith("0.")
        kind = str(options.get("kv_cache_type", "paged")).lower()
        older_than_ampere = capability is not None and capability.split(".")[0] in ("6", "7")
        return cls(
            batch=engine.max_batch_size,
            beams=int(options.get("max_beam_width", 1)),
            input_len=engine.max_input_len,
            seq_len=engine.max_seq_len,
            num_tokens=engine.max_num_tokens,
            block=int(options.get("tokens_per_block", 64 if old else 32)),
            paged=kind == "paged",
            has_cache=kind != "disabled",
            fused=_on(options.get("context_fmha", True)) and not older_than_ampere,
            paged_context=_on(options.get("use_paged_context_fmha", not old)),
            all_logits=_on(options.get("gather_context_logits", False))
            or _on(options.get("gather_all_token_logits", False)),
            compute_capability=capability,
            kv_tokens=kv_tokens,
        )

    @property
    def tokens(self) -> int:
        """In one forward pass: max_num_tokens is clipped to all tokens there can be."""
        return max(self.block, min(self.num_tokens, self.batch * self.beams * self.seq_len))

    @property
    def cached_tokens(self) -> int:
        """That the KV cache must hold: each sequence is rounded up to whole blocks."""
        if not self.has_cache:
            return 0
        each = -(-self.seq_len // self.block) * self.block if self.paged else self.seq_len
        full = self.batch * self.beams * each
        return full if self.kv_tokens is None else min(full, self.kv_tokens)


@dataclass(frozen=True)
class Model:
    """What config.json says, as far as memory depends on it."""

    config: Mapping[str, Any]
    tp: int
    pp: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocab: int
    element_bytes: int
    quant: str | None
    kv_quant: str | None
    experts: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Model":
        mapping = config.get("mapping") or {}
        quantisation = config.get("quantization") or {}
        moe = config.get("moe") or {}
        return cls(
            config=config,
            tp=int(mapping.get("tp_size") or 1),
            pp=int(mapping.get("pp_size") or 1),
            layers=count(config, "num_hidden_layers"),
            hidden=count(config, "hidden_size"),
            heads=count(config, "num_attention_heads"),
            kv_heads=count(config, "num_key_value_heads"),
            head_size=count(config, "head_size"),
            mlp=count(config, "intermediate_size"),
            vocab=count(config, "vocab_size"),
            element_bytes=_ELEMENT_BYTES.get(str(config.get("dtype")), 2),
            quant=quantisation.get("quant_algo"),
            kv_quant=quantisation.get("kv_cache_quant_algo"),
            experts=max(1, int(moe.get("num_experts") or 0)),
        )

    @property
    def local_heads(self) -> int:
        return -(-self.heads // self.tp)

    @property
    def local_kv_heads(self) -> int:
        # Fewer heads than ranks: several ranks hold the same one.
        return max(self.kv_heads // self.tp, 1)

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab // self.tp) * self.tp

    @property
    def weights_exact(self) -> bool:
        known = self.config.get("architecture") in FAMILIES
        return known and not self.quant and self.experts == 1

    def weight_bytes(self, stage: int) -> int:
        """Of one rank of a pipeline stage."""
        tensors = expected_tensors(
            self.config,
            tp=self.tp,
            layers=len(layers_of(stage, self.layers, self.pp)),
            first=stage == 0,
            last=stage == self.pp - 1,
        )
        total = 0.0
        for name, shape in tensors.items():
            each = float(self.element_bytes)
            if self.quant and ".layers." in name and len(shape) > 1:
                each = 0.5 if str(self.quant).upper().startswith(_FOUR_BITS) else 1.0
            total += prod(shape) * each * (self.experts if ".mlp." in name else 1)
        return int(total)

    def gpu_rows(self, limits: Limits, stage: int) -> tuple[MemoryRow, ...]:
        """What one GPU of a pipeline stage needs while the engine runs.

        Building needs less: there is no KV cache, and no buffers of the runtime.
        """
        held = layers_of(stage, self.layers, self.pp)
        kv_bytes = 1 if self.kv_quant else self.element_bytes
        cached = limits.cached_tokens
        kv = 2 * len(held) * self.local_kv_heads * self.head_size * cached * kv_bytes
        logits = limits.batch * limits.beams * self.padded_vocab * _LOGIT_BYTES
        last = stage == self.pp - 1
        attention = Attention(
            heads=self.local_heads,
            kv_heads=self.local_kv_heads,
            head_size=self.head_size,
            element_bytes=self.element_bytes,
            fused=limits.fused,
            paged_context=limits.paged_context,
        )
        mlp = -(-self.mlp // self.tp)
        activations = limits.tokens * self.element_bytes * (8 * self.hidden + 2 * mlp)
        activations += logits // 2 if last else 0
        rows = [
            MemoryRow(
                "gpu",
                "weights",
                self.weight_bytes(stage),
                self.weights_exact,
                f"tensors of rank {stage * self.tp}: {len(held)} of {self.layers} layers, "
                f"1/{self.tp} of each"
                + (
                    "" if self.weights_exact else f"; as a dense decoder, {self.quant or 'unknown'}"
                ),
            ),
            MemoryRow(
                "gpu",
                "KV cache",
                kv,
                True,
                f"2 · {len(held)} layers · {self.local_kv_heads} kv heads · {self.head_size} · "
                f"{cached} tokens · {kv_bytes} B",
            ),
            MemoryRow(
                "gpu",
                "left by the KV cache pool",
                int(kv / _KV_SHARE) - kv,
                False,
                f"the runtime gives the pool {_KV_SHARE:.0%} of what is free",
            ),
            MemoryRow(
                "gpu",
                "activations",
                activations,
                False,
                f"{limits.tokens} tokens · {self.element_bytes} B · (8 · {self.hidden} + 2 · {mlp})"
                + (" + logits before the cast" if last else ""),
            ),
            MemoryRow(
                "gpu",
                "attention workspace",
                workspace_bytes(
                    attention,
                    batch=limits.batch * limits.beams,
                    input_len=limits.input_len,
                    tokens=limits.tokens,
                    seq_len=limits.seq_len,
                    compute_capability=limits.compute_capability,
                ),
                False,
                "the attention plugin's own formula"
                + ("" if limits.fused else ", not fused: batch · heads · max_input_len² · 6 B"),
            ),
        ]
        if last:
            rows.append(
                MemoryRow(
                    "gpu",
                    "runtime and decoder buffers",
                    _LOGITS_HELD * logits + 4 * limits.batch * limits.beams * limits.seq_len,
                    False,
                    f"{_LOGITS_HELD} · batch · {self.padded_vocab} · 4 B + token ids",
                )
            )
        if last and limits.all_logits:
            rows.append(
                MemoryRow(
                    "gpu",
                    "context logits",
                    limits.tokens * self.padded_vocab * _LOGIT_BYTES,
                    False,
                    f"{limits.tokens} tokens · {self.padded_vocab} · 4 B",
                )
            )
        if self.tp * self.pp > 1:
            rows.append(
                MemoryRow(
                    "gpu",
                    "communication",
                    NCCL_BYTES + 3 * limits.tokens * self.hidden * self.element_bytes,
                    False,
                    "NCCL 0.5 GB + 3 buffers of one forward pass",
                )
            )
        return (*rows, CUDA_ROW)

    def host_rows(self, workers: int) -> tuple[MemoryRow, ...]:
        """What `trtllm-build` needs: a rank's weights, and the engine before it is written."""
        largest = max(self.weight_bytes(stage) for stage in range(self.pp))
        each = min(workers, self.tp * self.pp)
        text = f"largest rank · {each} built at once"
        return (
            MemoryRow("host", "checkpoint in memory", largest * each, False, text),
            MemoryRow("host", "engine in memory", largest * each, False, f"{text}, ≈ its weights"),
            MemoryRow(
                "host",
                "process and libraries",
                _HOST_PROCESS_BYTES * each,
                False,
                "3 GB: Python, PyTorch, TensorRT, CUDA",
            ),
        )

    def disk_rows(self) -> tuple[MemoryRow, ...]:
        """The checkpoint, and the engine made of it."""
        every = self.tp * sum(self.weight_bytes(stage) for stage in range(self.pp))
        text = f"the weights of {self.tp * self.pp} rank{'s' * (self.tp * self.pp > 1)}"
        return (
            MemoryRow("disk", "checkpoint", every, self.weights_exact, text),
            MemoryRow("disk", "engine", every, False, f"≈ {text}"),
        )


def _on(value: object) -> bool:
    return value is True or str(value).lower() in ("true", "enable", "1")
