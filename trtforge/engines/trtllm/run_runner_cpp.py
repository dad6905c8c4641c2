"""Run an engine with `tensorrt_llm.runtime.ModelRunnerCpp`: 0.16, and several ranks on any release.

The engine is opened by `ModelRunnerCpp.from_dir`; requests go to the executor it holds, as
`ModelRunnerCpp.generate` sends them. `generate(streaming=True)` itself makes tensors of the whole
batch × max_seq_len on the GPU for every token, which would be measured too. Read in upstream's
`runtime/model_runner_cpp.py` (0.16.0.dev2024121000; 1.x) and `pybind/executor/bindings.cpp`; never
run by trtforge's authors: no GPU [not run].

Every rank opens the engine. Rank 0 sends requests; the others work inside the executor until it
shuts down.
"""

import time
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError
from trtforge.engines.trtllm.engine_limits import EngineLimits
from trtforge.engines.trtllm.generation import NO_TOKEN, Generation, assemble, sampling_of


class RunnerSession:
    """A loaded engine, on this rank; arguments as those of `run_llm.LlmSession`."""

    def __init__(
        self, engine_dir: Path, limits: EngineLimits, keep_logits: bool, kv_cache_fraction: float
    ) -> None:
        import tensorrt_llm
        from tensorrt_llm.bindings import executor
        from tensorrt_llm.runtime import ModelRunnerCpp

        self._limits = limits
        self._bindings: Any = executor
        self.rank = int(tensorrt_llm.mpi_rank())
        options: dict[str, Any] = {}
        if keep_logits and limits.version.startswith("0."):
            if not limits.generation_logits:
                raise DriverError(
                    "no-logits",
                    "the engine was built without --gather_generation_logits, and correctness is "
                    "judged by logits",
                    "Build it with trtforge, which asks for them, or with that option",
                )
        elif keep_logits:
            # From 1.0 on it is asked for at run time, and is no property of the engine.
            options["gather_generation_logits"] = True
        runner: Any = ModelRunnerCpp.from_dir(
            engine_dir=str(engine_dir),
            rank=self.rank,
            max_batch_size=limits.max_batch_size,
            # Without it build_config.max_input_len counts, which the build does not use.
            max_input_len=limits.max_prompt,
            max_beam_width=1,
            kv_cache_free_gpu_memory_fraction=kv_cache_fraction,
            kv_cache_enable_block_reuse=False,
            **options,
        )
        # It is called `session` up to 0.16 and `executor` in 1.x.
        self._executor: Any = getattr(runner, "executor", None) or runner.session
        self._runner = runner

    def generate(self, job: "dict[str, Any]", keep_logits: bool) -> Generation:
        """Send the prompts at once and wait for all."""
        started = time.perf_counter()
        prompts = job["prompts"]
        ids = self._executor.enqueue_requests(
            [self._request(prompt, job, keep_logits) for prompt in prompts]
        )
        rows = {request_id: row for row, request_id in enumerate(ids)}
        tokens: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        logits: list[Any] = [None] * len(prompts)
        unfinished = set(rows)
        while unfinished:
            responses = self._executor.await_responses()
            now = time.perf_counter() - started
            for response in responses:
                if response.has_error():
                    raise RuntimeError(response.error_msg)
                row, result = rows[response.request_id], response.result
                new = list(result.output_token_ids[0])
                tokens[row] += new
                times[row] += [now] * len(new)
                if result.is_final:
                    unfinished.discard(response.request_id)
                    if keep_logits:
                        # (sequences, tokens, vocabulary)
                        logits[row] = result.generation_logits[0]
        return assemble(tokens, times, logits if keep_logits else None, self._limits.vocab_size)

    def close(self) -> None:
        """On rank 0 this ends the executor of every rank; on the others it waits for that."""
        self._executor.shutdown()

    def _request(self, prompt: "list[int]", job: "dict[str, Any]", keep_logits: bool) -> Any:
        stop_ids = [[token] for token in job.get("stop_ids", ())]
        return self._bindings.Request(
            input_token_ids=prompt,
            max_tokens=job["max_new_tokens"],
            end_id=NO_TOKEN,
            pad_id=NO_TOKEN,
            stop_words=stop_ids or None,
            sampling_config=self._bindings.SamplingConfig(beam_width=1, **sampling_of(job)),
            # Without streaming the logits of all tokens come at the end, in one piece.
            streaming=not keep_logits,
            output_config=self._bindings.OutputConfig(
                return_generation_logits=keep_logits, exclude_input_from_output=True
            ),
        )
