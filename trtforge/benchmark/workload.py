"""The requests a benchmark sends: exact lengths, unique prompts, a fixed seed."""

import random
from typing import Any

from trtforge.spec import BuildSpec


def benchmark_jobs(spec: BuildSpec, vocab_size: int) -> list[dict[str, Any]]:
    """One job (`trtforge.engines.jobs`) per concurrency; every output token is generated.

    Prompts are made of token ids, so that a tokenizer can neither lengthen them nor take part in
    the measurement.
    """
    source = random.Random(spec.benchmark.seed)
    load = spec.benchmark.workload
    return [
        {
            "id": f"concurrency-{concurrency}",
            "prompts": [
                [source.randrange(vocab_size) for _ in range(load.input_tokens)]
                for _ in range(concurrency)
            ],
            "max_new_tokens": load.output_tokens,
            "warmups": spec.benchmark.warmups,
            "repeats": spec.benchmark.repeats,
        }
        for concurrency in spec.concurrencies()
    ]
