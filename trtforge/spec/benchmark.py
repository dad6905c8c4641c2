"""What is measured: the workload, and how often."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from trtforge.spec.part import FoundError, Part, at

WorkloadName = Literal["smoke", "chat", "summary", "standard"]
WORKLOADS: dict[WorkloadName, tuple[int, int]] = {
    "smoke": (128, 32),
    "chat": (1000, 200),
    "summary": (2048, 128),
    "standard": (1000, 1000),
}
"""Input and output tokens of the shapes that have a name."""


class Workload(Part):
    """One shape of request: a name, or exact lengths, or prompts of your own.

    A text stands for a name: `workload: chat`. Every output has exactly `output_tokens`.
    """

    name: WorkloadName | None = Field(
        default=None,
        description="smoke 128/32, chat 1000/200, summary 2048/128, standard 1000/1000 tokens in "
        "and out; empty: the lengths below",
        exclude_if=lambda name: name is None,
        json_schema_extra=at(0),
    )
    input_tokens: int = Field(
        default=0,
        ge=0,
        description="Tokens in, of every prompt; 0: those of the name, or of the prompts",
        json_schema_extra=at(1),
    )
    output_tokens: int = Field(
        default=0,
        ge=0,
        description="Tokens out, of every answer; 0: those of the name",
        json_schema_extra=at(2),
    )
    prompts_file: str = Field(
        default="",
        description="JSONL with prompts of your own, where the benchmark runs: each line "
        '{"prompt": text} or {"token_ids": [...]}',
        exclude_if=lambda path: not path,
        json_schema_extra=at(3),
    )

    @property
    def label(self) -> str:
        """What a report calls it: `chat`, `1000/200`, `prompts/200`."""
        first = "prompts" if self.prompts_file else str(self.input_tokens)
        return self.name or f"{first}/{self.output_tokens}"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_name(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        if not isinstance(data, Mapping) or data.get("name") not in WORKLOADS:
            return data
        shape = dict(zip(("input_tokens", "output_tokens"), WORKLOADS[data["name"]], strict=True))
        for field, tokens in shape.items():
            if data.get(field) not in (None, 0, tokens):
                raise FoundError(
                    field,
                    data[field],
                    f"the workload {data['name']} has {tokens}",
                    "Leave it out, or leave the name out",
                )
        return {**data, **shape}

    @model_validator(mode="after")
    def _lengths_are_told(self) -> Self:
        if self.prompts_file and (self.name or self.input_tokens):
            raise FoundError(
                "prompts_file",
                self.prompts_file,
                "the prompts have lengths of their own",
                "Give prompts_file and output_tokens alone",
            )
        if not self.prompts_file and not self.input_tokens:
            raise FoundError(
                "input_tokens", 0, "no prompt is so short", "Name a workload, or give both lengths"
            )
        if self.output_tokens < 2:
            raise FoundError(
                "output_tokens",
                self.output_tokens,
                "the time between tokens needs two of them",
                "Expected: 2 or more",
            )
        return self


class SloSpec(Part):
    """What a request must keep to count for goodput; 0 asks nothing."""

    ttft_ms: float = Field(
        default=0, ge=0, description="Time to first token, at most", json_schema_extra=at(0)
    )
    itl_ms: float = Field(
        default=0,
        ge=0,
        description="Mean time between tokens of the request, at most",
        json_schema_extra=at(1),
    )


class BenchmarkSpec(Part):
    """What is measured."""

    workload: Workload = Field(
        default=Workload(input_tokens=128, output_tokens=32),
        description="Lengths of each request",
        json_schema_extra=at(0),
    )
    concurrency: tuple[int, ...] = Field(
        default=(),
        description="Requests at once, one measurement each; empty: 1, 2, 4 … max_batch_size",
        json_schema_extra=at(1),
    )
    warmups: int = Field(
        default=1,
        ge=1,
        description="Batches thrown away, at each concurrency",
        json_schema_extra=at(2),
    )
    repeats: int = Field(
        default=3,
        ge=1,
        description="Runs over all concurrencies; intervals need 2, and 3 to mean much",
        json_schema_extra=at(3),
    )
    seed: int = Field(default=0, ge=0, description="Of the prompts", json_schema_extra=at(4))
    requests: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Requests at each concurrency in each repeat, rounded up to whole batches; 0: "
        "one batch. A p99 needs 100 in all",
        exclude_if=lambda requests: not requests,
        json_schema_extra=at(5),
    )
    in_turns: bool = Field(
        default=False,
        title="In turns",
        description="Load engine and original model anew for each repeat, by turns, so that a "
        "machine that grows slower cannot favour one of them",
        exclude_if=lambda in_turns: not in_turns,
        json_schema_extra=at(6),
    )
    timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds after which a request counts as timed out",
        exclude_if=lambda timeout_s: timeout_s == 600.0,
        json_schema_extra=at(7),
    )
    slo: SloSpec = Field(
        default=SloSpec(),
        title="SLO",
        description="What a request must keep to count for goodput",
        exclude_if=lambda slo: slo == SloSpec(),
        json_schema_extra=at(8),
    )
    hourly_price: float = Field(
        default=0,
        ge=0,
        title="Hourly price",
        description="Of the machine, in any currency; gives the cost of a million output tokens",
        exclude_if=lambda price: not price,
        json_schema_extra=at(9),
    )
