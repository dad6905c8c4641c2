"""What an engine can take, from its own config.json, and jobs held against it.

Known before the engine is loaded, which takes minutes and a GPU. Standard library only.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError


@dataclass(frozen=True)
class EngineLimits:
    """The limits in effect: `trtllm-build` clips what it was asked for.

    Attributes:
        version: TensorRT-LLM's, of the build.
        vocab_size: Without the padding that tensor parallelism adds to the logits.
        generation_logits: Whether 0.16's engine was built to give logits; 1.x decides at run time.
    """

    version: str
    world_size: int
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    max_input_len: int
    max_beam_width: int
    vocab_size: int
    generation_logits: bool

    @property
    def max_prompt(self) -> int:
        """Tokens in one prompt.

        `min(max_seq_len - 1, max_num_tokens)` with context FMHA and packed input, where
        max_input_len is not used (TrtGptModel's log line says so); one token must come out.
        """
        return min(self.max_seq_len - 1, self.max_num_tokens, self.max_input_len)


def read_limits(engine_dir: Path) -> EngineLimits:
    """Read `config.json` and check that every rank's file is there.

    Raises:
        DriverError: `no-engine`, `broken-engine`, `incomplete-engine`.
    """
    path = engine_dir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DriverError(
            "no-engine",
            f"{path} cannot be read ({error})",
            "An engine directory holds config.json and rank0.engine; build it again",
        ) from error
    try:
        limits = _limits(config)
    except (KeyError, TypeError, ValueError) as error:
        raise DriverError(
            "broken-engine",
            f"{path} is not what trtllm-build writes ({type(error).__name__}: {error})",
            "Build the engine again",
        ) from error
    for rank in range(limits.world_size):
        file = engine_dir / f"rank{rank}.engine"
        if not file.is_file() or file.stat().st_size == 0:
            raise DriverError(
                "incomplete-engine",
                f"{file.name} is missing or empty; config.json says {limits.world_size} ranks",
                "Build the engine again",
            )
    return limits


def require_version(limits: EngineLimits, installed: str) -> None:
    """TensorRT finds out too, but says "serialization assertion".

    Raises:
        DriverError: `wrong-engine-version`.
    """
    if limits.version != installed:
        raise DriverError(
            "wrong-engine-version",
            f"the engine was built by TensorRT-LLM {limits.version}, this is {installed}",
            f"Run it with {limits.version}, or build it again: an engine runs only with the very "
            "version that built it",
        )


def require_jobs_fit(limits: EngineLimits, jobs: "list[dict[str, Any]]") -> None:
    """Refuse what the engine would refuse or cut short.

    Raises:
        DriverError: `batch-too-large`, `prompt-too-long`, `sequence-too-long`, `empty-prompt`,
            `token-id-too-large`.
    """
    for job in jobs:
        _require_job_fits(limits, job)


def _require_job_fits(limits: EngineLimits, job: "dict[str, Any]") -> None:
    name, prompts, new_tokens = job["id"], job["prompts"], job["max_new_tokens"]
    if len(prompts) > limits.max_batch_size:
        raise DriverError(
            "batch-too-large",
            f"{name} has {len(prompts)} prompts, the engine takes {limits.max_batch_size} at once",
            "Raise engine.max_batch_size, or ask for less at once",
        )
    if not prompts or not all(prompts):
        raise DriverError("empty-prompt", f"{name} has an empty prompt", "Give it a token")
    longest = max(len(prompt) for prompt in prompts)
    if longest > limits.max_prompt:
        raise DriverError(
            "prompt-too-long",
            f"a prompt of {name} has {longest} tokens, the engine takes {limits.max_prompt}: the "
            f"least of max_seq_len - 1 ({limits.max_seq_len - 1}), max_num_tokens "
            f"({limits.max_num_tokens}) and, without context FMHA, max_input_len",
            "Raise engine.max_seq_len or engine.max_num_tokens, or shorten the prompt",
        )
    if longest + new_tokens > limits.max_seq_len:
        raise DriverError(
            "sequence-too-long",
            f"{name} needs {longest} + {new_tokens} tokens, the engine takes {limits.max_seq_len}",
            "Raise engine.max_seq_len, or ask for less",
        )
    largest = max(max(prompt) for prompt in prompts)
    if largest >= limits.vocab_size or min(min(prompt) for prompt in prompts) < 0:
        raise DriverError(
            "token-id-too-large",
            f"{name} has token id {largest}, the model's vocabulary has {limits.vocab_size}",
            "Use the tokenizer of the model that the engine was built from",
        )


def _limits(config: "dict[str, Any]") -> EngineLimits:
    build, model = config["build_config"], config["pretrained_config"]
    plugins = build.get("plugin_config") or {}
    packed = bool(plugins.get("remove_input_padding", True))
    fused = bool(plugins.get("context_fmha", True))
    max_seq_len = int(build["max_seq_len"])
    return EngineLimits(
        version=str(config["version"]),
        world_size=int(model["mapping"]["world_size"]),
        max_batch_size=int(build["max_batch_size"]),
        max_seq_len=max_seq_len,
        max_num_tokens=int(build["max_num_tokens"]),
        max_input_len=max_seq_len if packed and fused else int(build["max_input_len"]),
        max_beam_width=int(build.get("max_beam_width", 1)),
        vocab_size=int(model["vocab_size"]),
        generation_logits=bool(build.get("gather_generation_logits", False)),
    )
