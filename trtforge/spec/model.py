"""Which weights, and how they become a checkpoint."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from trtforge.spec.part import Part, at

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]


class ModelSpec(Part):
    """Which weights."""

    source: str = Field(
        min_length=1,
        title="Source",
        description="hf://org/name@revision, a local directory, or s3://bucket/prefix",
        json_schema_extra=at(0),
    )
    name: ModelName | None = Field(
        default=None,
        title="Name",
        description="Name the engine's aliases are filed under; taken from the source when empty",
        json_schema_extra=at(1),
    )


class CheckpointSpec(Part):
    """How the weights become a TensorRT-LLM checkpoint."""

    dtype: Literal["bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of the weights", json_schema_extra=at(0)
    )
    tp: int = Field(default=1, ge=1, description="Tensor-parallel ranks", json_schema_extra=at(1))
    pp: int = Field(default=1, ge=1, description="Pipeline-parallel ranks", json_schema_extra=at(2))
    use_parallel_embedding: bool = Field(
        default=False,
        description="Split the input embedding over the tensor-parallel ranks too",
        json_schema_extra=at(3),
    )
    embedding_sharding_dim: Literal[0, 1] = Field(
        default=0,
        description="Which dimension of a parallel embedding is split: 0 the vocabulary, 1 hidden",
        json_schema_extra=at(4),
    )
    target: Literal["1.2", "1.1", "1.0", "0.16"] = Field(
        default="1.2",
        description="Release of TensorRT-LLM that will load the checkpoint",
        json_schema_extra=at(5),
    )
    tool: Literal["trtforge", "upstream"] = Field(
        default="trtforge",
        description="trtforge: the built-in converter, for Llama, Mistral and Qwen; upstream: the "
        "release's own convert_checkpoint.py, for other architectures",
        json_schema_extra=at(6),
    )

    @field_validator("target", mode="before")
    @classmethod
    def _target_is_text(cls, value: Any) -> Any:
        # YAML takes an unquoted 1.2 for a number.
        return str(value) if isinstance(value, float) else value
