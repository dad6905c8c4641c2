"""The whole spec: its parts, and what one of them asks of another."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from trtforge.engines.trtllm import versions as trtllm_versions
from trtforge.spec.benchmark import BenchmarkSpec
from trtforge.spec.engine import EngineSpec
from trtforge.spec.gates import GatesSpec
from trtforge.spec.model import CheckpointSpec, ModelSpec
from trtforge.spec.part import FoundError, Part, at

AliasName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class PublishSpec(Part):
    """Under which names, and what the published copy is asked before it gets them."""

    aliases: tuple[AliasName, ...] = Field(
        default=("latest",),
        description="Pointers moved to the new engine, per model, GPU and backend",
        json_schema_extra=at(0),
    )
    prompt: str = Field(
        default="How do I count to nine in French?",
        min_length=1,
        description="Put to the published copy, downloaded to an empty directory",
        json_schema_extra=at(1),
    )
    max_output_len: int = Field(
        default=100, ge=1, description="Tokens of its answer", json_schema_extra=at(2)
    )


class BuildSpec(Part):
    """One engine to build."""

    model: ModelSpec = Field(title="Model", description="Which weights", json_schema_extra=at(0))
    checkpoint: CheckpointSpec = Field(
        default=CheckpointSpec(),
        title="Checkpoint",
        description="How the weights become a TensorRT-LLM checkpoint",
        json_schema_extra=at(1),
    )
    engine: EngineSpec = Field(
        default=EngineSpec(),
        title="Engine",
        description="What the engine must be able to do",
        json_schema_extra=at(2),
    )
    benchmark: BenchmarkSpec = Field(
        default=BenchmarkSpec(),
        title="Benchmark",
        description="What is measured",
        json_schema_extra=at(3),
    )
    gates: GatesSpec = Field(
        default=GatesSpec(),
        title="Gates",
        description="What an engine must pass before it gets its aliases",
        json_schema_extra=at(4),
    )
    publish: PublishSpec = Field(
        default=PublishSpec(),
        title="Publish",
        description="Under which names, after which last test",
        json_schema_extra=at(5),
    )

    @property
    def ranks(self) -> int:
        """How many processes the engine runs in: each with a GPU, or all on one CPU."""
        return self.checkpoint.tp * self.checkpoint.pp

    def concurrencies(self) -> tuple[int, ...]:
        """The numbers of requests at once to measure, smallest first."""
        most = self.engine.max_batch_size
        doubled = [2**n for n in range(most.bit_length()) if 2**n < most]
        return tuple(sorted(set(self.benchmark.concurrency or (*doubled, most))))

    @model_validator(mode="after")
    def _checkpoint_fits_backend(self) -> Self:
        """aoti runs some checkpoints only, in bfloat16, and a release of TensorRT-LLM reads those
        of its own kind: both would find out only after the pull."""
        if self.engine.backend == "trtllm":
            release = trtllm_versions.release(self.engine.version)
            if self.checkpoint.target != release.checkpoint_target:
                raise FoundError(
                    "checkpoint.target",
                    self.checkpoint.target,
                    f"TensorRT-LLM {release.version} does not load checkpoints written for it",
                    f"Use {release.checkpoint_target}, or choose another engine.version",
                )
            return self
        for field, problem, remedy in (
            (
                "pp",
                "the backend aoti has all layers on every rank",
                "Use 1, and checkpoint.tp to split the model",
            ),
            ("dtype", "the backend aoti compiles bfloat16 only", "Use bfloat16"),
            (
                "use_parallel_embedding",
                "the backend aoti has the whole input embedding on every rank",
                "Use false",
            ),
        ):
            value = getattr(self.checkpoint, field)
            if value != CheckpointSpec.model_fields[field].default:
                raise FoundError(f"checkpoint.{field}", value, problem, remedy)
        decode = self.engine.options.get("decode")
        if decode == "kernels" and self.checkpoint.tp > 1:
            raise FoundError(
                "engine.options.decode",
                decode,
                f"these kernels run on one GPU, and checkpoint.tp is {self.checkpoint.tp}",
                "Use graphs, or checkpoint.tp 1",
            )
        return self

    @model_validator(mode="after")
    def _benchmark_fits_engine(self) -> Self:
        engine, load = self.engine, self.benchmark.workload
        for concurrency in self.benchmark.concurrency:
            if not 1 <= concurrency <= engine.max_batch_size:
                raise FoundError(
                    "benchmark.concurrency",
                    concurrency,
                    f"the engine takes 1 to {engine.max_batch_size} sequences at once",
                    "Choose within that, or raise engine.max_batch_size",
                )
        if load.input_tokens > engine.max_input_len:
            raise FoundError(
                "benchmark.workload.input_tokens",
                load.input_tokens,
                f"the engine takes prompts of {engine.max_input_len} tokens at most",
                "Shorten the workload, or raise engine.max_input_len",
            )
        total = load.input_tokens + load.output_tokens
        if total > engine.max_seq_len:
            raise FoundError(
                "benchmark.workload",
                f"{load.input_tokens}+{load.output_tokens}",
                f"the engine takes {engine.max_seq_len} tokens in a sequence, this is {total}",
                "Shorten the workload, or raise engine.max_seq_len",
            )
        return self
