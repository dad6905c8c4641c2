"""The requests a benchmark sends: exact lengths, unique prompts, a fixed seed.

Prompts are made of token ids, so that a tokenizer can neither lengthen them nor take part in the
measurement. No two are the same, so that no engine can answer one from another's cache. Prompts of
the user's (a JSONL file) are taken as they are, in their order, and again from the beginning where
there are too few.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtforge.errors import InputError
from trtforge.spec import BuildSpec
from trtforge.tokenizer import ModelTokenizer

_STAND_IN_TOKENS = 128


class TooFewPromptsError(InputError):
    """The vocabulary does not hold enough different prompts of the length asked for."""


class PromptsFileError(InputError):
    """The user's prompts cannot be read, or do not fit the engine."""


@dataclass(frozen=True)
class Wave:
    """Requests that are sent together, one per user; `job` is for the run drivers.

    A closed loop: each user's next request is in the next wave, sent when all of this one are
    answered. Every output has the same length, so they end together.
    """

    concurrency: int
    repeat: int
    number: int
    job: dict[str, Any]


def benchmark_jobs(spec: BuildSpec, vocab_size: int) -> list[dict[str, Any]]:
    """One job (`trtforge.engines.jobs`) per concurrency; every output token is generated.

    For those who time whole batches. For a workload of the user's own prompts these are prompts of
    a fixed length instead, 128 where the engine takes that.

    Raises:
        TooFewPromptsError: there are fewer different prompts of that length than requests.
    """
    concurrencies = spec.concurrencies()
    prompts = _unique_prompts(spec, vocab_size, sum(concurrencies))
    return [
        {
            "id": f"concurrency-{concurrency}",
            "prompts": list(itertools.islice(prompts, concurrency)),
            "max_new_tokens": spec.benchmark.workload.output_tokens,
            "warmups": spec.benchmark.warmups,
            "repeats": spec.benchmark.repeats,
        }
        for concurrency in concurrencies
    ]


def sweep(spec: BuildSpec, vocab_size: int, tokenizer: ModelTokenizer | None = None) -> list[Wave]:
    """All requests, in the order they are sent: repeat by repeat, each over all concurrencies.

    Every other repeat goes through the concurrencies backwards, so that a machine that grows
    slower or quicker meanwhile favours none of them. Warm-ups are with the first repeat of each
    concurrency (or with every repeat, where each is a process of its own).

    Raises:
        TooFewPromptsError: there are fewer different prompts of that length than requests.
        PromptsFileError: the user's prompts cannot be read, or do not fit.
    """
    load = spec.benchmark
    concurrencies = spec.concurrencies()
    waves = {c: max(1, -(-load.requests // c)) for c in concurrencies}
    total = load.repeats * sum(c * count for c, count in waves.items())
    prompts: Iterator[list[int]]
    if load.workload.prompts_file:
        prompts = itertools.cycle(read_prompts(spec, vocab_size, tokenizer))
    else:
        prompts = _unique_prompts(spec, vocab_size, total)
    made = []
    for repeat in range(load.repeats):
        for concurrency in concurrencies if repeat % 2 == 0 else reversed(concurrencies):
            count = waves[concurrency]
            for number in range(count):
                warm = number == 0 and (repeat == 0 or load.in_turns)
                job = {
                    # People see it as the progress of a benchmark.
                    "id": f"concurrency {concurrency}, repeat {repeat + 1} of {load.repeats}"
                    + (f", batch {number + 1} of {count}" if count > 1 else ""),
                    "prompts": list(itertools.islice(prompts, concurrency)),
                    "max_new_tokens": load.workload.output_tokens,
                    "warmups": load.warmups if warm else 0,
                    "repeats": 1,
                }
                made.append(Wave(concurrency, repeat, number, job))
    return made


def read_prompts(
    spec: BuildSpec, vocab_size: int, tokenizer: ModelTokenizer | None
) -> list[list[int]]:
    """The user's prompts as token ids; texts are put as a user's turn of the chat template.

    Raises:
        PromptsFileError: naming the line.
    """
    path = Path(spec.benchmark.workload.prompts_file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_file(
            spec,
            f"it cannot be read ({error})",
            "Give a JSONL file on the machine that runs the benchmark",
        ) from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt = _prompt(spec, line, number, vocab_size, tokenizer)
            _require_fit(spec, prompt, number)
            prompts.append(prompt)
    if not prompts:
        raise _bad_file(spec, "there is no prompt in it", 'Write lines such as {"prompt": "Hello"}')
    return prompts


def _prompt(
    spec: BuildSpec, line: str, number: int, vocab_size: int, tokenizer: ModelTokenizer | None
) -> list[int]:
    remedy = 'Write {"prompt": "…"} or {"token_ids": [1, 2, …]}'
    try:
        told = json.loads(line)
    except ValueError as error:
        raise _bad_file(spec, f"line {number} is not JSON", remedy) from error
    if not isinstance(told, dict):
        raise _bad_file(spec, f"line {number} is not a JSON object", remedy)
    ids, text = told.get("token_ids"), told.get("prompt")
    if isinstance(ids, list):
        if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
            raise _bad_file(
                spec,
                f"line {number} has something else than token ids of the model",
                f"Use whole numbers from 0 to {vocab_size - 1}",
            )
        return ids
    if not isinstance(text, str):
        raise _bad_file(spec, f"line {number} has neither prompt nor token_ids", remedy)
    if tokenizer is None:
        raise _bad_file(
            spec,
            f"line {number} is a text, and the model has no tokenizer",
            'Give token ids: {"token_ids": [1, 2, …]}',
        )
    return tokenizer.encode_question(text)


def _require_fit(spec: BuildSpec, prompt: list[int], number: int) -> None:
    engine = spec.engine
    limit = min(engine.max_input_len, engine.max_seq_len - spec.benchmark.workload.output_tokens)
    if not 1 <= len(prompt) <= limit:
        raise _bad_file(
            spec,
            f"the prompt in line {number} has {len(prompt)} tokens, and the engine takes 1 to "
            f"{limit} with {spec.benchmark.workload.output_tokens} new ones",
            "Prompts are not clipped: leave it out, or build an engine with larger limits",
        )


def _bad_file(spec: BuildSpec, problem: str, remedy: str) -> PromptsFileError:
    return PromptsFileError(
        problem,
        field="benchmark.workload.prompts_file",
        value=spec.benchmark.workload.prompts_file,
        remedy=remedy,
    )


def _unique_prompts(spec: BuildSpec, vocab_size: int, count: int) -> Iterator[list[int]]:
    load = spec.benchmark.workload
    room = min(spec.engine.max_input_len, spec.engine.max_seq_len - load.output_tokens)
    length = load.input_tokens or min(_STAND_IN_TOKENS, room)
    if vocab_size**length < count:
        raise TooFewPromptsError(
            f"with {vocab_size} token ids there are not {count} different prompts of that length",
            field="benchmark.workload.input_tokens",
            value=load.input_tokens,
            remedy="Use longer prompts",
        )
    return _draw(random.Random(spec.benchmark.seed), length, vocab_size)


def _draw(source: random.Random, length: int, vocab_size: int) -> Iterator[list[int]]:
    seen: set[tuple[int, ...]] = set()
    while True:
        prompt = [source.randrange(vocab_size) for _ in range(length)]
        if tuple(prompt) not in seen:
            seen.add(tuple(prompt))
            yield prompt
