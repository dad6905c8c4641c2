"""The executor's Python bindings, as far as trtforge uses them."""

import itertools
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tensorrt_llm import run_faults
from tensorrt_llm.arithmetic import Arithmetic

_TOKEN_S = 0.0005


@dataclass
class SamplingConfig:
    beam_width: int = 1
    top_k: "int | None" = None
    top_p: "float | None" = None
    seed: "int | None" = None
    temperature: "float | None" = None


@dataclass
class OutputConfig:
    return_log_probs: bool = False
    return_context_logits: bool = False
    return_generation_logits: bool = False
    exclude_input_from_output: bool = False


@dataclass(kw_only=True)
class Request:
    input_token_ids: "list[int]"
    max_tokens: "int | None" = None
    streaming: bool = False
    sampling_config: SamplingConfig = field(default_factory=SamplingConfig)
    output_config: OutputConfig = field(default_factory=OutputConfig)
    end_id: "int | None" = None
    pad_id: "int | None" = None
    stop_words: "list[list[int]] | None" = None


class Executor:
    """Made by `ModelRunnerCpp.from_dir`; upstream's takes a configuration instead of a model."""

    def __init__(self, model: Arithmetic, rank: int, gather: bool) -> None:
        self._model = model
        self._rank = rank
        self._gather = gather
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[Request, list[int], list[int]]] = {}

    def can_enqueue_requests(self) -> bool:
        return self._rank == 0

    def enqueue_requests(self, requests: "list[Request]") -> "list[int]":
        assert self.can_enqueue_requests(), "only rank 0 may send requests"
        ids = []
        for request in requests:
            number = next(self._ids)
            ids.append(number)
            stop = [words[0] for words in request.stop_words or []]
            assert request.max_tokens is not None
            tokens = self._model.answer(request.input_token_ids, request.max_tokens, stop)
            self._waiting[number] = (request, tokens, list(tokens))
        return ids

    def await_responses(self, timeout: Any = None) -> "list[Any]":
        del timeout
        time.sleep(_TOKEN_S)
        responses = []
        for number, (request, tokens, left) in list(self._waiting.items()):
            if run_faults.asked("run-request-error"):
                del self._waiting[number]
                responses.append(_refused(number))
                continue
            new, rest = (left[:1], left[1:]) if request.streaming else (left, [])
            logits = None
            if not rest:
                del self._waiting[number]
                if self._gather and request.output_config.return_generation_logits:
                    logits = self._model.logits(tokens)[None]
            else:
                self._waiting[number] = (request, tokens, rest)
            whole = request.streaming or request.output_config.exclude_input_from_output
            given = new if whole else request.input_token_ids + new
            responses.append(_given(number, given, not rest, logits))
        return responses

    def shutdown(self) -> None:
        run_faults.while_closing()


def _given(number: int, tokens: "list[int]", final: bool, logits: Any) -> Any:
    result = SimpleNamespace(
        output_token_ids=[tokens], is_final=final, generation_logits=logits, sequence_index=0
    )
    return SimpleNamespace(request_id=number, result=result, has_error=lambda: False, error_msg="")


def _refused(number: int) -> Any:
    message = "Prompt length (40) exceeds maximum input length (32)."
    return SimpleNamespace(request_id=number, has_error=lambda: True, error_msg=message)
