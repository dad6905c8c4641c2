"""The jobs a run driver performs, the same for every backend and for the eager reference.

A job is JSON:

    {"id": str, "prompts": [[token id, ...], ...], "max_new_tokens": int,
     "sampling": {temperature, top_k, top_p, seed},   greedy when absent
     "stop_ids": [int, ...],                          none when absent: every token is generated
     "forced": [[int, ...], ...],                     the new tokens, whatever the logits say
     "logits": bool,                                  write the logits of every step
     "warmups": int, "repeats": int}                  1 repeat, no warm-up, when absent

Its output is `{"id", "tokens": [[...]], "step_s": [[...] per repeat], "start_s": [per repeat],
"logits": file name | null}`. `step_s` are seconds from the start of a request to each of its
tokens: the first is the TTFT. `start_s` are the starts, on one clock for all jobs of a process.
Logits are raw little-endian fp32 of shape (steps, batch, vocabulary), in `logits_dir`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import Report


def perform(
    jobs: "list[dict[str, Any]]",
    generate: Callable[[dict[str, Any], bool], Any],
    logits_dir: Path,
    report: Report,
) -> "list[dict[str, Any]]":
    """Run every job: `generate(job, keep_logits)` gives an object with tokens, step_s, logits."""
    total = sum(job.get("warmups", 0) + job.get("repeats", 1) for job in jobs)
    done = 0
    outputs = []
    for job in jobs:
        for _ in range(job.get("warmups", 0)):
            generate(job, False)
            done += 1
            report(f"warming up {job['id']}", done, total)
        runs = []
        start_s = []
        for _ in range(job.get("repeats", 1)):
            start_s.append(time.perf_counter())
            runs.append(generate(job, job.get("logits", False)))
            done += 1
            report(job["id"], done, total)
        name = None
        if job.get("logits"):
            name = f"{job['id']}.logits.f32"
            with (logits_dir / name).open("wb") as file:
                for step in runs[-1].logits:
                    file.write(step.contiguous().numpy().astype("<f4").tobytes())
        outputs.append(
            {
                "id": job["id"],
                "tokens": runs[-1].tokens,
                "step_s": [run.step_s for run in runs],
                "start_s": start_s,
                "logits": name,
            }
        )
    return outputs
