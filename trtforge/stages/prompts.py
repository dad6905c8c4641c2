"""The prompts of the gates, the benchmark and the published copy, as token ids that fit the engine.

Whether they fit is found out before anything is made from the model: `require_prompts_fit`.
"""

import json
import random
from pathlib import Path

from trtforge.benchmark.workload import benchmark_jobs
from trtforge.errors import InputError
from trtforge.spec import BuildSpec
from trtforge.tokenizer import TOKENIZER_FILES, ModelTokenizer, open_tokenizer

# All that this module reads of a model.
PROMPT_FILES = frozenset({"config.json", *TOKENIZER_FILES})

_STAND_IN_PROMPTS = 3
_STAND_IN_TOKENS = 12
_STAND_IN_QUESTION = (1, 2, 3, 4)
_STAND_IN_ANSWER_TOKENS = 8


class PromptTooLongError(InputError):
    """A prompt does not fit the engine that is to be built."""


def require_prompts_fit(spec: BuildSpec, model_dir: Path) -> None:
    """Check every prompt of a build; `model_dir` needs no more of the model than `PROMPT_FILES`.

    Raises:
        PromptTooLongError, TokenizerError, TooFewPromptsError: as the stages themselves would,
            after a compile.
    """
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    tokenizer = open_tokenizer(model_dir)
    gate_prompts(spec, tokenizer, vocab_size)
    benchmark_jobs(spec, vocab_size)
    question(spec, tokenizer)


def gate_prompts(
    spec: BuildSpec, tokenizer: ModelTokenizer | None, vocab_size: int
) -> list[list[int]]:
    """Token ids of `gates.prompts`; random ids for a model without a tokenizer.

    Raises:
        PromptTooLongError: naming the prompt and the limit.
    """
    if tokenizer is None:
        source = random.Random(0)
        room = spec.engine.max_seq_len - spec.gates.new_tokens
        length = max(1, min(_STAND_IN_TOKENS, spec.engine.max_input_len, room))
        prompts = [
            [source.randrange(vocab_size) for _ in range(length)] for _ in range(_STAND_IN_PROMPTS)
        ]
    else:
        prompts = [tokenizer.encode_question(text) for text in spec.gates.prompts]
    for number, ids in enumerate(prompts):
        _require_fit(spec, f"gates.prompts.{number}", ids, spec.gates.new_tokens)
    return prompts


def question(spec: BuildSpec, tokenizer: ModelTokenizer | None) -> tuple[list[int], int]:
    """Token ids of `publish.prompt`, and how many tokens its answer may have.

    For a model without a tokenizer a few fixed ids, and a short answer.

    Raises:
        PromptTooLongError: naming the limit.
    """
    if tokenizer is None:
        ids = list(_STAND_IN_QUESTION[: spec.engine.max_input_len])
        answer_tokens = min(spec.publish.max_output_len, _STAND_IN_ANSWER_TOKENS)
    else:
        ids, answer_tokens = (
            tokenizer.encode_question(spec.publish.prompt),
            spec.publish.max_output_len,
        )
    _require_fit(spec, "publish.prompt", ids, 1)
    return ids, min(answer_tokens, spec.engine.max_seq_len - len(ids))


def _require_fit(spec: BuildSpec, field: str, ids: list[int], new_tokens: int) -> None:
    engine = spec.engine
    limit = min(engine.max_input_len, engine.max_seq_len - new_tokens)
    if len(ids) > limit:
        raise PromptTooLongError(
            f"the prompt has {len(ids)} tokens (with the chat template), and at most {limit} fit "
            f"with {new_tokens} new ones",
            field=field,
            value=len(ids),
            remedy="Shorten it, or raise engine.max_input_len and engine.max_seq_len",
        )
