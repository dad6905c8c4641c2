"""The part of the LLM API's parameters that exists in 1.0 to 1.2 under these names."""

from dataclasses import dataclass


@dataclass
class KvCacheConfig:
    enable_block_reuse: bool = True
    max_tokens: "int | None" = None
    free_gpu_memory_fraction: "float | None" = None


@dataclass
class SamplingParams:
    end_id: "int | None" = None
    pad_id: "int | None" = None
    max_tokens: int = 32
    stop_token_ids: "list[int] | None" = None
    include_stop_str_in_output: bool = False
    n: int = 1
    best_of: "int | None" = None
    top_k: "int | None" = None
    top_p: "float | None" = None
    seed: "int | None" = None
    temperature: "float | None" = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    ignore_eos: bool = False
    detokenize: bool = True
