"""What the engine must be able to do."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from trtforge.engines.trtllm import versions as trtllm_versions
from trtforge.errors import InputError
from trtforge.spec.part import FoundError, Part, at

OptionValue = bool | int | float | str
TimingCacheMode = Literal["off", "read", "read-write"]


class EngineSpec(Part):
    """What the engine must be able to do."""

    backend: Literal["aoti", "trtllm"] = Field(
        default="aoti",
        description="aoti: PyTorch AOTInductor, on a CPU or a CUDA GPU; trtllm: TensorRT-LLM, on "
        "an NVIDIA GPU",
        json_schema_extra=at(0),
    )
    version: str = Field(
        default="",
        description=f"Release of TensorRT-LLM: {', '.join(trtllm_versions.SUPPORTED)}; empty for "
        "trtllm: the first of these. aoti takes the PyTorch that is installed",
        # An engine of a backend without releases is the one it was before there was this field.
        exclude_if=lambda version: not version,
        json_schema_extra=at(1),
    )
    max_batch_size: int = Field(
        default=4, ge=1, le=4096, description="Sequences at once", json_schema_extra=at(2)
    )
    max_input_len: int = Field(
        default=384, ge=2, description="Tokens in one prompt", json_schema_extra=at(3)
    )
    max_seq_len: int = Field(
        default=512,
        ge=3,
        description="Tokens in one sequence, prompt and output together",
        json_schema_extra=at(4),
    )
    max_num_tokens: int = Field(
        default=1024,
        ge=2,
        description="Tokens in one forward pass, over all sequences",
        json_schema_extra=at(5),
    )
    options: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="Options of the backend; aoti: device (auto, cpu, cuda), threads (0 = all), "
        "decode (graphs; kernels: on a GPU, experimental); trtllm: those of the release's "
        "trtllm-build, without the dashes",
        json_schema_extra=at(6),
    )
    # How quickly the engine is built, not what it is: part of no stage's key and no engine's id.
    timing_cache: TimingCacheMode = Field(
        default="read-write",
        title="Timing cache",
        description="The model.cache that all builds with this toolchain share. read-write: start "
        "from it and add to it; read: start from it only; off: compile cold and share nothing. An "
        "engine that the store has is found in every mode",
        json_schema_extra=at(7),
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_release(cls, data: Any) -> Any:
        """An empty release means the default one: what is kept of a build names it."""
        if not isinstance(data, Mapping) or data.get("backend") != "trtllm":
            return data
        version = data.get("version", "")
        # YAML takes an unquoted 1.2 for a number; it is refused as the release it looks like.
        text = str(version) if isinstance(version, float) else version
        return {**data, "version": trtllm_versions.DEFAULT if text == "" else text}

    @model_validator(mode="after")
    def _release_is_supported(self) -> Self:
        if self.backend == "trtllm":
            try:
                trtllm_versions.release(self.version)
            except InputError as error:
                raise FoundError("version", self.version, error.problem, error.remedy) from error
        elif self.version:
            raise FoundError(
                "version",
                self.version,
                f"the backend {self.backend} has no releases to choose from",
                "Leave it out: the PyTorch of the toolchain is used",
            )
        return self

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if self.max_input_len > self.max_seq_len:
            raise FoundError(
                "max_input_len",
                self.max_input_len,
                f"a prompt of that length does not fit into max_seq_len {self.max_seq_len}",
                f"Use at most {self.max_seq_len}, or raise max_seq_len",
            )
        if self.max_num_tokens < self.max_input_len:
            raise FoundError(
                "max_num_tokens",
                self.max_num_tokens,
                f"a forward pass must hold one prompt of max_input_len {self.max_input_len}",
                f"Use at least {self.max_input_len}",
            )
        return self
