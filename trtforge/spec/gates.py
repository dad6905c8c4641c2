"""What an engine must pass before it gets its aliases."""

from typing import Literal, Self

from pydantic import Field, model_validator

from trtforge.spec.part import FoundError, Part, at

PromptSet = Literal["general", "multilingual", "code", "long-context"]
PerformanceMetric = Literal["output_tokens_per_s", "ttft_s", "itl_s"]


class PerformanceGateSpec(Part):
    """How much slower than the engine in use a new one may be."""

    mode: Literal["enforce", "report", "off"] = Field(
        default="enforce",
        description="enforce: an engine that is slower beyond doubt does not get the aliases; "
        "report: say so only; off: do not compare. Without an engine to compare with, nothing is "
        "enforced",
        json_schema_extra=at(0),
    )
    tolerance: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Share by which it may be slower; it fails only when the whole confidence "
        "interval lies beyond",
        json_schema_extra=at(1),
    )
    metrics: tuple[PerformanceMetric, ...] = Field(
        default=("output_tokens_per_s", "ttft_s"),
        min_length=1,
        description="What is compared, at each concurrency of the benchmark",
        json_schema_extra=at(2),
    )
    repeats: int = Field(
        default=5,
        ge=3,
        description="Runs of each of the two engines, in turns, where both run on the machine",
        json_schema_extra=at(3),
    )


class GatesSpec(Part):
    """What an engine must pass before it gets its aliases."""

    prompts: tuple[str, ...] = Field(
        default=(),
        description="Prompts of your own whose greedy output is compared with the original model's",
        json_schema_extra=at(0),
    )
    new_tokens: int = Field(
        default=24, ge=1, description="Tokens compared for each prompt", json_schema_extra=at(1)
    )
    rounding_factor: float = Field(
        default=2.0,
        gt=0,
        description="How many times the original 16-bit model's own rounding error (its distance "
        "from fp32) the engine may be away from fp32",
        json_schema_extra=at(2),
    )
    step_factor: float = Field(
        default=4.0,
        gt=0,
        description="The same at any single token, where luck counts for more",
        json_schema_extra=at(3),
    )
    prompt_sets: tuple[PromptSet, ...] = Field(
        default=("general", "multilingual", "code", "long-context"),
        description="Prompts that trtforge brings; those that do not fit the engine are left out. "
        "long-context is one prompt of max_input_len tokens (8192 at most)",
        json_schema_extra=at(4),
    )
    text_tokens: int = Field(
        default=64,
        ge=0,
        le=4096,
        description="Tokens of a text that trtforge brings, which engine and original model read "
        "token by token: for the three limits below. 0: none",
        json_schema_extra=at(5),
    )
    kl_factor: float = Field(
        default=4.0,
        gt=0,
        description="On the text: how many times the 16-bit model's own KL divergence from fp32 "
        "the engine's may be",
        json_schema_extra=at(6),
    )
    top1_agreement: float = Field(
        default=0.98,
        gt=0,
        le=1,
        description="On the text: share of tokens where engine and original model find the same "
        "one likeliest, or where rounding explains that they do not",
        json_schema_extra=at(7),
    )
    perplexity_tolerance: float = Field(
        default=0.05,
        gt=0,
        description="On the text: share by which the engine's perplexity may differ from the "
        "16-bit model's",
        json_schema_extra=at(8),
    )
    performance: PerformanceGateSpec = Field(
        default=PerformanceGateSpec(),
        title="Performance",
        description="How much slower than the engine in use a new one may be",
        json_schema_extra=at(9),
    )

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        if not (self.prompts or self.prompt_sets or self.text_tokens):
            raise FoundError(
                "prompt_sets",
                [],
                "with no prompt and no text nothing would be compared",
                "Name one of general, multilingual, code, long-context, or give prompts",
            )
        return self
