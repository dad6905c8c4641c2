"""What to write: for which release, in which type, split how."""

from collections.abc import Mapping
from dataclasses import dataclass

from trtforge.checkpoint.casting import TARGET_DTYPES
from trtforge.errors import InputError

# What a user may write → the release line whose config.json it means.
RELEASES: Mapping[str, str] = {"0.16": "0.16", "1.0": "1.0", "1.1": "1.0", "1.2": "1.2"}


class UnsupportedTargetError(InputError):
    """A release of TensorRT-LLM for which no checkpoint is written."""


class UnsupportedDtypeError(InputError):
    """A type that checkpoints are not written in."""


class SplitError(InputError):
    """A split that makes no sense for any model."""


@dataclass(frozen=True)
class Target:
    """A kind of TensorRT-LLM checkpoint; checked when made.

    Attributes:
        version: Release of TensorRT-LLM that will load it: 0.16, 1.0, 1.1 or 1.2.
        dtype: Type of all weights, `bfloat16` or `float16`.
        tp, pp: Tensor-parallel and pipeline-parallel ranks.
        use_parallel_embedding: Split the input embedding over the tensor-parallel ranks too.
        embedding_sharding_dim: 0 splits its vocabulary, 1 its hidden dimension.

    Raises:
        UnsupportedTargetError, UnsupportedDtypeError, SplitError: When made with another value.
    """

    version: str = "1.2"
    dtype: str = "bfloat16"
    tp: int = 1
    pp: int = 1
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0

    def __post_init__(self) -> None:
        if self.version not in RELEASES:
            raise UnsupportedTargetError(
                "checkpoints are not written for this release of TensorRT-LLM",
                field="checkpoint.target",
                value=self.version,
                remedy=f"Supported: {', '.join(RELEASES)}",
            )
        if self.dtype not in TARGET_DTYPES:
            raise UnsupportedDtypeError(
                "checkpoints are not written in this type",
                field="checkpoint.dtype",
                value=self.dtype,
                remedy=f"Supported: {', '.join(TARGET_DTYPES)}",
            )
        for name in ("tp", "pp"):
            if getattr(self, name) < 1:
                raise SplitError(
                    "the number of ranks must be 1 or more",
                    field=f"checkpoint.{name}",
                    value=getattr(self, name),
                    remedy="Use 1 for a model that is not split",
                )
        if self.embedding_sharding_dim not in (0, 1):
            raise SplitError(
                "the input embedding has two dimensions",
                field="checkpoint.embedding_sharding_dim",
                value=self.embedding_sharding_dim,
                remedy="Use 0 (vocabulary) or 1 (hidden size)",
            )

    @property
    def release(self) -> str:
        """The release line: versions with the same config.json share one."""
        return RELEASES[self.version]

    @property
    def ranks(self) -> int:
        return self.tp * self.pp


DEFAULT_TARGET = Target()
