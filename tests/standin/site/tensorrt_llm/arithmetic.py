"""In place of a model: the next token is a sum over those before, and logits agree with it."""

import json
from pathlib import Path
from typing import Any

from tensorrt_llm import run_faults


class Arithmetic:
    """An engine directory, read as far as the stand-in needs it."""

    def __init__(self, engine_dir: Path, rank: int = 0) -> None:
        run_faults.while_loading(rank)
        config = json.loads((engine_dir / "config.json").read_text())
        self.model = config["pretrained_config"]
        self.build = config["build_config"]
        self.vocab_size = int(self.model["vocab_size"])
        first_line = (engine_dir / f"rank{rank}.engine").read_bytes()[:18]
        if first_line != b"trtforge stand-in\n":
            raise RuntimeError("this is no engine of the stand-in; a real one needs TensorRT")

    def next_token(self, ids: "list[int]") -> int:
        return (sum(ids) * 31 + len(ids) * 7 + ids[-1]) % self.vocab_size

    def answer(self, prompt: "list[int]", max_tokens: int, stop: "list[int]") -> "list[int]":
        limit = self.build["max_seq_len"]
        if len(prompt) + max_tokens > limit:
            raise ValueError(
                f"The sum of prompt length ({float(len(prompt))}) and query length (0) max_tokens "
                f"({max_tokens}) should not exceed max_seq_len ({limit})"
            )
        if run_faults.asked("run-short"):
            max_tokens -= 1
        ids = list(prompt)
        for _ in range(max_tokens):
            ids.append(self.next_token(ids))
            if ids[-1] in stop:
                break
        return ids[len(prompt) :]

    def logits(self, tokens: "list[int]") -> Any:
        """(tokens, padded vocabulary), as bfloat16: tensor parallelism pads, upstream's type."""
        import torch

        padded = -(-self.vocab_size // 8) * 8 + 8
        logits = torch.zeros(len(tokens), padded, dtype=torch.bfloat16)
        logits[:, self.vocab_size :] = 99
        for step, token in enumerate(tokens):
            logits[step, token] = 5
        return logits
