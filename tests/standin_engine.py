"""Engines of the stand-in toolchain, without building them: what a run driver needs to see."""

import json
from pathlib import Path
from typing import Any

STANDIN_DIR = Path(__file__).parent / "standin"
STANDIN_PYTHON = STANDIN_DIR / "bin" / "python"


def write_engine(
    directory: Path,
    *,
    version: str = "1.2.1",
    ranks: int = 1,
    vocab_size: int = 259,
    build: dict[str, Any] | None = None,
) -> Path:
    """An engine directory: config.json as upstream writes it, as far as it is read here."""
    directory.mkdir(parents=True)
    limits = {
        "max_input_len": 1024,
        "max_seq_len": 64,
        "max_batch_size": 4,
        "max_beam_width": 1,
        "max_num_tokens": 128,
        "gather_generation_logits": False,
        "plugin_config": {"remove_input_padding": True, "context_fmha": True},
    }
    config = {
        "version": version,
        "pretrained_config": {
            "vocab_size": vocab_size,
            "mapping": {"world_size": ranks, "tp_size": ranks, "pp_size": 1},
        },
        "build_config": {**limits, **(build or {})},
    }
    (directory / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (directory / f"rank{rank}.engine").write_bytes(b"trtforge stand-in\n{}\n" + bytes(64))
    return directory


def expected_tokens(prompt: list[int], count: int, vocab_size: int = 259) -> list[int]:
    """What the stand-in's arithmetic answers."""
    ids = list(prompt)
    for _ in range(count):
        ids.append((sum(ids) * 31 + len(ids) * 7 + ids[-1]) % vocab_size)
    return ids[len(prompt) :]
