"""The prompts of the gates, the benchmark and the published copy, as token ids that fit the engine.

Whether they fit is found out before anything is made from the model: `require_prompts_fit`.
"""

import json
from pathlib import Path

from trtforge.benchmark.workload import read_prompts, sweep
from trtforge.errors import InputError
from trtforge.gates.checks import CorrectnessChecks, correctness_checks
from trtforge.spec import BuildSpec
from trtforge.tokenizer import TOKENIZER_FILES, ModelTokenizer, open_tokenizer

# All that this module reads of a model.
PROMPT_FILES = frozenset({"config.json", *TOKENIZER_FILES})

_STAND_IN_QUESTION = (1, 2, 3, 4)
_STAND_IN_ANSWER_TOKENS = 8


class PromptTooLongError(InputError):
    """A prompt does not fit the engine that is to be built."""


class NothingToAskError(InputError):
    """The correctness gate would compare nothing."""


def require_prompts_fit(spec: BuildSpec, model_dir: Path) -> None:
    """Check every prompt of a build; `model_dir` needs no more of the model than `PROMPT_FILES`.

    Raises:
        PromptTooLongError, TokenizerError, TooFewPromptsError: as the stages themselves would,
            after a compile.
    """
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    tokenizer = open_tokenizer(model_dir)
    gate_checks(spec, tokenizer, vocab_size)
    if spec.benchmark.workload.prompts_file:
        # The file may lie on the machine with the GPU alone; there it is looked at again.
        if Path(spec.benchmark.workload.prompts_file).is_file():
            read_prompts(spec, vocab_size, tokenizer)
    else:
        sweep(spec, vocab_size, tokenizer)
    question(spec, tokenizer)


def gate_checks(
    spec: BuildSpec, tokenizer: ModelTokenizer | None, vocab_size: int
) -> CorrectnessChecks:
    """What the correctness gate asks.

    Raises:
        PromptTooLongError: One of the spec's own prompts does not fit; those that trtforge brings
            are left out then.
        NothingToAskError: Nothing that is asked for fits.
    """
    if tokenizer is None:
        _require_fit(spec, "gates.new_tokens", [0], spec.gates.new_tokens)
    checks = correctness_checks(spec, tokenizer, vocab_size)
    answered = {checks.sources[job["id"]]: job["prompts"][0] for job in checks.reference_answers}
    for source, ids in answered.items():
        if source.startswith("gates.prompts."):
            _require_fit(spec, source, ids, spec.gates.new_tokens)
    if not checks.reference_jobs:
        raise NothingToAskError(
            f"none of these prompts fits into max_input_len {spec.engine.max_input_len} and "
            f"max_seq_len {spec.engine.max_seq_len}, and no text is read",
            field="gates.prompt_sets",
            value=", ".join(spec.gates.prompt_sets),
            remedy="Add long-context, which fits any engine, or set gates.text_tokens",
        )
    return checks


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
