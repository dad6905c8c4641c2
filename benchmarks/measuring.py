"""What measuring costs: the benchmark's own time per token, on one core.

    python benchmarks/measuring.py

A process pinned to one core runs the benchmark on an engine that gives its tokens at once, with
the same bookkeeping in its loop as the real ones (a clock reading and an append per token), and
then does everything that follows: collecting, writing raw data, the summary, the page. What that
takes in CPU time, divided by the tokens, is the cost; at 200 tokens/s a token has 5 ms. The last
line is JSON.

Two costs are told apart: `during`, while tokens come, which can disturb the measurement; and
`after`, which cannot.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtforge.benchmark.collect import collect
from trtforge.benchmark.sample import read_samples, write_samples
from trtforge.benchmark.summary import summarise
from trtforge.benchmark.workload import sweep
from trtforge.engines.jobs import perform
from trtforge.spec import parse_spec

_RATE = 200.0
_ALLOWED = 0.01


@dataclass
class _Answer:
    tokens: list[list[int]]
    step_s: list[float]
    logits: tuple[()] = ()


def instant(job: dict[str, Any], _keep_logits: bool) -> _Answer:
    """An engine without a model: what the loop of a real one does besides computing."""
    answer = _Answer([[] for _ in job["prompts"]], [])
    finished = [False] * len(answer.tokens)
    stop_ids = job.get("stop_ids", ())
    started = time.perf_counter()
    for _ in range(job["max_new_tokens"]):
        answer.step_s.append(time.perf_counter() - started)
        for row in range(len(finished)):
            if not finished[row]:
                answer.tokens[row].append(7)
                finished[row] = 7 in stop_ids
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=200)
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    spec = parse_spec(
        {
            "model": {"source": "hf://none/none"},
            "engine": {"max_batch_size": 1, "max_input_len": 1000, "max_seq_len": 4096},
            "benchmark": {
                "workload": {"input_tokens": 16, "output_tokens": asked.output_tokens},
                "requests": asked.requests,
                "repeats": 3,
                "warmups": 1,
            },
        }
    )
    waves = sweep(spec, 1000)
    tokens = sum(len(w.job["prompts"]) for w in waves) * asked.output_tokens
    reported: list[str] = []

    def report(what: str, *_: Any, **__: Any) -> None:
        # As a driver tells its parent, per request.
        reported.append(json.dumps({"progress": {"what": what}}))

    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        started = time.process_time()
        outputs = perform([w.job for w in waves], instant, scratch, report)
        during_s = time.process_time() - started
        started = time.process_time()
        samples = collect(waves, outputs, who="engine", workload="null", timeout_s=600)
        raw = scratch / "requests.jsonl"
        write_samples(raw, samples)
        with raw.open() as lines:
            again = summarise(read_samples(lines))
        after_s = time.process_time() - started
        size_bytes = raw.stat().st_size
    assert again == summarise(samples)
    budget_s = 1 / _RATE
    told = {
        "tokens": tokens,
        "during_us_per_token": during_s / tokens * 1e6,
        "after_us_per_token": after_s / tokens * 1e6,
        "raw_bytes_per_token": size_bytes / tokens,
        "at_tokens_per_s": _RATE,
        "during_share": during_s / tokens / budget_s,
        "all_share": (during_s + after_s) / tokens / budget_s,
        "allowed_share": _ALLOWED,
    }
    told["passed"] = told["all_share"] < _ALLOWED
    print(f"{tokens} tokens of {len(samples)} requests, one at a time, on one core")
    print(f"while tokens come  {told['during_us_per_token']:6.2f} µs a token")
    print(f"afterwards         {told['after_us_per_token']:6.2f} µs a token")
    share = told["all_share"]
    print(f"at {_RATE:g} tokens/s: {share:.3%} of a token's time; {_ALLOWED:.0%} is allowed")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
