"""Run an engine of one rank with `tensorrt_llm._tensorrt_engine.LLM`, releases 1.0 to 1.2.

In those releases `tensorrt_llm.LLM` is PyTorch and refuses an engine directory. Read in upstream's
`llmapi/llm.py` (`_TrtLLM`, `BaseLLM.generate_async`, `_prepare_sampling_params`),
`sampling_params.py`, `executor/result.py` and `executor/executor.py` (1.0 … 1.2); never run by
trtforge's authors: no GPU [not run].
"""

import asyncio
import time
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError
from trtforge.engines.trtllm.engine_limits import EngineLimits
from trtforge.engines.trtllm.generation import NO_TOKEN, Generation, assemble, sampling_of


class LlmSession:
    """A loaded engine.

    Args:
        keep_logits: Logits need another executor, in this process, which streams more slowly:
            jobs with logits and jobs whose times matter go to sessions of their own.
        kv_cache_fraction: Of the GPU memory that is free once the weights are loaded.
    """

    def __init__(
        self, engine_dir: Path, limits: EngineLimits, keep_logits: bool, kv_cache_fraction: float
    ) -> None:
        from tensorrt_llm import SamplingParams
        from tensorrt_llm._tensorrt_engine import LLM
        from tensorrt_llm.llmapi import KvCacheConfig

        self._params: Any = SamplingParams
        self._limits = limits
        self._llm: Any = LLM(
            model=str(engine_dir),
            # Token ids in, token ids out; the engine directory has no tokenizer either.
            skip_tokenizer_init=True,
            # The defaults of later 1.x releases (2048, 8192) are not this engine's.
            max_batch_size=limits.max_batch_size,
            max_num_tokens=limits.max_num_tokens,
            max_seq_len=limits.max_seq_len,
            max_beam_width=limits.max_beam_width,
            gather_generation_logits=keep_logits,
            kv_cache_config=KvCacheConfig(
                free_gpu_memory_fraction=kv_cache_fraction,
                # On by default: a repeated prompt would be answered from the last one's cache.
                enable_block_reuse=False,
            ),
        )
        self._loop = asyncio.new_event_loop()

    def generate(self, job: "dict[str, Any]", keep_logits: bool) -> Generation:
        """Send the prompts at once and wait for all."""
        params = {
            "max_tokens": job["max_new_tokens"],
            "end_id": NO_TOKEN,
            "pad_id": NO_TOKEN,
            "ignore_eos": True,
            "detokenize": False,
            "stop_token_ids": list(job.get("stop_ids", ())) or None,
            # Otherwise the stop token is cut off.
            "include_stop_str_in_output": True,
            "return_generation_logits": keep_logits,
            **sampling_of(job),
        }
        return self._loop.run_until_complete(self._all(job["prompts"], params, keep_logits))

    def close(self) -> None:
        self._llm.shutdown()

    async def _all(
        self, prompts: "list[list[int]]", params: "dict[str, Any]", keep_logits: bool
    ) -> Generation:
        started = time.perf_counter()
        answers = await asyncio.gather(
            *(self._one(prompt, params, keep_logits, started) for prompt in prompts)
        )
        tokens = [answer[0] for answer in answers]
        logits = [answer[2] for answer in answers] if keep_logits else None
        times = [answer[1] for answer in answers]
        return assemble(tokens, times, logits, self._limits.vocab_size)

    async def _one(
        self, prompt: "list[int]", params: "dict[str, Any]", keep_logits: bool, started: float
    ) -> "tuple[list[int], list[float], Any]":
        # Logits come whole with the last token; streamed ones are of the newest token only.
        request = self._llm.generate_async(
            prompt, sampling_params=self._params(**params), streaming=not keep_logits
        )
        times: list[float] = []
        async for answer in request:
            now = time.perf_counter() - started
            times += [now] * (len(answer.outputs[0].token_ids) - len(times))
        output = request.outputs[0]
        if keep_logits and output.generation_logits is None:
            raise DriverError(
                "no-logits",
                "the engine gives no logits, which correctness is judged by",
                "Build it again; if it was built by another tool, without speculative decoding",
            )
        return list(output.token_ids), times, output.generation_logits
