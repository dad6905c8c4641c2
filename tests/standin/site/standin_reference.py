"""The reference of an engine of the stand-in: it answers as that engine does, in a moment.

Where the GPU is a stand-in, the original model cannot be run on it; and tests of what happens
round a build have nothing to compare.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.engines.driver_main import Report, drive
from trtforge.engines.jobs import perform


class _Logits:
    """As much of a tensor as a job's logits need."""

    def __init__(self, tokens: "list[int]", vocab_size: int) -> None:
        self._rows = np.zeros((len(tokens), vocab_size), dtype="<f4")
        self._rows[np.arange(len(tokens)), tokens] = 5

    def contiguous(self) -> "_Logits":
        return self

    def numpy(self) -> Any:
        return self._rows


class _Generation:
    def __init__(self, tokens: "list[list[int]]", vocab_size: int, seconds: float) -> None:
        steps = range(len(tokens[0]))
        self.tokens = tokens
        self.step_s = [seconds + (step + 1) * 1e-3 for step in steps]
        self.logits = [_Logits([row[step] for row in tokens], vocab_size) for step in steps]


def run(request: "dict[str, Any]", report: Report) -> "dict[str, Any]":
    config = json.loads((Path(request["model_dir"]) / "config.json").read_text())
    vocab_size, logits_dir = int(config["vocab_size"]), Path(request["logits_dir"])

    def generate(job: "dict[str, Any]", _keep_logits: bool) -> _Generation:
        started = time.perf_counter()
        answers = [_answer(prompt, job["max_new_tokens"], vocab_size) for prompt in job["prompts"]]
        return _Generation(answers, vocab_size, time.perf_counter() - started)

    outputs = perform(request["jobs"], generate, logits_dir, report)
    for output in outputs:
        if output["logits"]:
            output["logits_fp32"] = f"{output['id']}.fp32.f32"
            same = (logits_dir / output["logits"]).read_bytes()
            (logits_dir / output["logits_fp32"]).write_bytes(same)
    return {"load_s": 0.0, "outputs": outputs, "versions": {"torch": "stand-in"}}


def asked(name: str) -> bool:
    path = os.environ.get("TRTFORGE_STANDIN_FAULT_FILE")
    return path is not None and name in Path(path).read_text().strip().split(",")


def _answer(prompt: "list[int]", count: int, vocab_size: int) -> "list[int]":
    # As tensorrt_llm.arithmetic, which cannot be imported beside the driver's own package.
    ids, other = list(prompt), asked("reference-other")
    for _ in range(count):
        ids.append((sum(ids) * 31 + len(ids) * 7 + ids[-1] + other) % vocab_size)
    return ids[len(prompt) :]


if __name__ == "__main__":
    drive(run)
