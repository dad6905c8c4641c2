"""`LLM` of the TensorRT backend: what a caller sees of it, with upstream's signature."""

# ruff: noqa: ARG002

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorrt_llm import run_faults
from tensorrt_llm.arithmetic import Arithmetic
from tensorrt_llm.llmapi import KvCacheConfig, SamplingParams

_KNOWN = {
    "kv_cache_config",
    "gather_generation_logits",
    "max_batch_size",
    "max_num_tokens",
    "max_seq_len",
    "max_beam_width",
    "max_input_len",
    "pipeline_parallel_size",
}
_TOKEN_S = 0.0005


class RequestOutput:
    """Iterated over, it gives itself, each time with one token more."""

    def __init__(self, tokens: "list[int]", logits: Any, streaming: bool) -> None:
        self._tokens = tokens
        self._logits = logits
        self._streaming = streaming
        self._done = False
        self.outputs = [SimpleNamespace(token_ids=[], generation_logits=None)]

    def __aiter__(self) -> "RequestOutput":
        return self

    async def __anext__(self) -> "RequestOutput":
        if self._done:
            raise StopAsyncIteration
        output = self.outputs[0]
        more = 1 if self._streaming else len(self._tokens)
        await asyncio.sleep(_TOKEN_S * more)
        output.token_ids += self._tokens[len(output.token_ids) :][:more]
        self._done = len(output.token_ids) == len(self._tokens)
        if self._done:
            output.generation_logits = self._logits
        return self


class LLM:
    def __init__(
        self,
        model: "str | Path",
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: "str | None" = None,
        tokenizer_revision: "str | None" = None,
        **kwargs: Any,
    ) -> None:
        unknown = set(kwargs) - _KNOWN
        if unknown:
            raise ValueError(f"TrtLlmArgs: Extra inputs are not permitted: {sorted(unknown)}")
        if tokenizer is None and not skip_tokenizer_init:
            raise ValueError("the stand-in has no tokenizer")
        assert isinstance(kwargs.get("kv_cache_config", KvCacheConfig()), KvCacheConfig)
        self._gather = kwargs.get("gather_generation_logits", False)
        self._model = Arithmetic(Path(model))

    def generate_async(
        self,
        inputs: "list[int]",
        sampling_params: "SamplingParams | None" = None,
        streaming: bool = False,
    ) -> RequestOutput:
        params = sampling_params or SamplingParams()
        if params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        if run_faults.asked("run-request-error"):
            raise ValueError("Prompt length (40) exceeds maximum input length (32).")
        tokens = self._model.answer(inputs, params.max_tokens, params.stop_token_ids or [])
        logits = None
        if params.return_generation_logits and self._gather:
            logits = None if run_faults.asked("run-no-logits") else self._model.logits(tokens)
        if params.stop_token_ids and not params.include_stop_str_in_output:
            tokens = [token for token in tokens if token not in params.stop_token_ids]
        return RequestOutput(tokens, logits, streaming)

    def shutdown(self) -> None:
        run_faults.while_closing()
