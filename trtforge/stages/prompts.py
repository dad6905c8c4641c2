"""The prompts of the gates and of the published copy, as token ids that fit the engine."""

import random

from trtforge.errors import InputError
from trtforge.spec import BuildSpec
from trtforge.tokenizer import ModelTokenizer

_STAND_IN_PROMPTS = 3
_STAND_IN_TOKENS = 12


class PromptTooLongError(InputError):
    """A prompt does not fit the engine that is to be built."""


def gate_prompts(
    spec: BuildSpec, tokenizer: ModelTokenizer | None, vocab_size: int
) -> list[list[int]]:
    """Token ids of `gates.prompts`; random ids for a model without a tokenizer.

    Raises:
        PromptTooLongError: naming the prompt and the limit.
    """
    if tokenizer is None:
        source = random.Random(0)
        length = min(_STAND_IN_TOKENS, spec.engine.max_input_len)
        prompts = [
            [source.randrange(vocab_size) for _ in range(length)] for _ in range(_STAND_IN_PROMPTS)
        ]
    else:
        prompts = [tokenizer.encode_question(text) for text in spec.gates.prompts]
    for number, ids in enumerate(prompts):
        _require_fit(spec, f"gates.prompts.{number}", ids, spec.gates.new_tokens)
    return prompts


def question(spec: BuildSpec, tokenizer: ModelTokenizer) -> tuple[list[int], int]:
    """Token ids of `publish.prompt`, and how many tokens its answer may have."""
    ids = tokenizer.encode_question(spec.publish.prompt)
    _require_fit(spec, "publish.prompt", ids, 1)
    return ids, min(spec.publish.max_output_len, spec.engine.max_seq_len - len(ids))


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
