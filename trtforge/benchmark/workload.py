"""The requests a benchmark sends: exact lengths, unique prompts, a fixed seed."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

from trtforge.errors import InputError
from trtforge.spec import BuildSpec


class TooFewPromptsError(InputError):
    """The vocabulary does not hold enough different prompts of the length asked for."""


def benchmark_jobs(spec: BuildSpec, vocab_size: int) -> list[dict[str, Any]]:
    """One job (`trtforge.engines.jobs`) per concurrency; every output token is generated.

    Prompts are made of token ids, so that a tokenizer can neither lengthen them nor take part in
    the measurement. No two are the same, so that no engine can answer one from another's cache.

    Raises:
        TooFewPromptsError: there are fewer different prompts of that length than requests.
    """
    load = spec.benchmark.workload
    concurrencies = spec.concurrencies()
    if vocab_size**load.input_tokens < sum(concurrencies):
        raise TooFewPromptsError(
            f"with {vocab_size} token ids there are not {sum(concurrencies)} different prompts of "
            "that length",
            field="benchmark.workload.input_tokens",
            value=load.input_tokens,
            remedy="Use longer prompts",
        )
    prompts = _unique_prompts(random.Random(spec.benchmark.seed), load.input_tokens, vocab_size)
    return [
        {
            "id": f"concurrency-{concurrency}",
            "prompts": list(itertools.islice(prompts, concurrency)),
            "max_new_tokens": load.output_tokens,
            "warmups": spec.benchmark.warmups,
            "repeats": spec.benchmark.repeats,
        }
        for concurrency in concurrencies
    ]


def _unique_prompts(source: random.Random, length: int, vocab_size: int) -> Iterator[list[int]]:
    seen: set[tuple[int, ...]] = set()
    while True:
        prompt = [source.randrange(vocab_size) for _ in range(length)]
        if tuple(prompt) not in seen:
            seen.add(tuple(prompt))
            yield prompt
