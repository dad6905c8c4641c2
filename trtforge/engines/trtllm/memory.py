"""What an engine needs of a GPU, of the host and of the disk, before any of them is asked for.

Weights and KV cache are exact: they follow from the checkpoint's config.json and the engine's
limits. Everything else is an estimate, is marked as one, and carries its formula. The estimates
were made to lie above what upstream prints: Llama-2-7B in FP8 with 4096 sequences of 4098 tokens
took 929 MiB of execution context and 5.5 GiB of runtime and decoder buffers on an H100 (upstream's
benchmarks/python README, 0.12), DeepSeek-R1-Distill-Qwen-1.5B at the default limits 922 MiB.

The KV cache is counted in full, for `max_batch_size` sequences of `max_seq_len` tokens: an engine
that cannot hold what it promises is refused. TensorRT-LLM itself would run it, with fewer sequences
at once than its max_batch_size says; `kv_tokens` asks for that.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from trtforge.engines.trtllm.memory_rows import EngineLimits, Limits, MemoryRow, Model, Where
from trtforge.errors import InputError

__all__ = [
    "EngineDiskError",
    "EngineLimits",
    "GpuMemoryError",
    "HostMemoryError",
    "MemoryPlan",
    "MemoryRow",
    "estimate",
]

_MOST_SEQUENCES = 4096
_LONGEST = 1 << 24


class GpuMemoryError(InputError):
    """The engine would not fit into the memory of one GPU."""


class HostMemoryError(InputError):
    """Building would need more memory than the host has."""


class EngineDiskError(InputError):
    """Checkpoint and engine would not fit on the disk."""


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine needs, and what there is.

    Attributes:
        rank: The rank whose GPU needs the most; the rows are its.
        ranks: How many there are, each on a GPU of its own.
        gpu_bytes, host_bytes, disk_bytes: What there is; None when not known.
        max_batch_size: The largest that would fit at the max_seq_len asked for; 0: not even one.
            None when the GPU is not known.
        max_seq_len: The longest that would fit at the max_batch_size asked for; likewise.
        asked: The limits asked for.
    """

    rank: int
    ranks: int
    rows: tuple[MemoryRow, ...]
    gpu_bytes: int | None
    host_bytes: int | None
    disk_bytes: int | None
    max_batch_size: int | None
    max_seq_len: int | None
    asked: Mapping[str, int]

    def needed_bytes(self, where: Where) -> int:
        """The sum of the rows."""
        return sum(row.size_bytes for row in self.rows if row.where == where)

    def available_bytes(self, where: Where) -> int | None:
        """What there is."""
        return {"gpu": self.gpu_bytes, "host": self.host_bytes, "disk": self.disk_bytes}[where]

    def short_bytes(self, where: Where) -> int:
        """How much is lacking; 0 when it fits, or when nothing is known."""
        available = self.available_bytes(where)
        return 0 if available is None else max(0, self.needed_bytes(where) - available)

    @property
    def fits(self) -> bool:
        """Whether nothing is lacking, as far as is known."""
        return not any(self.short_bytes(where) for where in ("gpu", "host", "disk"))

    def require_fits(self) -> None:
        """Refuse what does not fit.

        Raises:
            GpuMemoryError, HostMemoryError, EngineDiskError: With the numbers and a way out.
        """
        if self.short_bytes("gpu"):
            raise self._gpu_error()
        if self.short_bytes("host"):
            raise HostMemoryError(
                f"building needs about {self._sum('host')} of memory, "
                f"{_gb(self.host_bytes or 0)} are free",
                field="checkpoint",
                value=f"{self.ranks} rank{'s' * (self.ranks > 1)}",
                remedy="Build on a machine with more memory, or split the model over more ranks",
            )
        if self.short_bytes("disk"):
            raise EngineDiskError(
                f"checkpoint and engine need about {self._sum('disk')} of disk, "
                f"{_gb(self.disk_bytes or 0)} are free",
                field="TRTFORGE_HOME",
                value=None,
                remedy="Free some space, or set TRTFORGE_HOME to a larger disk",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the sums."""
        sums = {
            where: {"needed": self.needed_bytes(where), "available": self.available_bytes(where)}
            for where in ("gpu", "host", "disk")
        }
        return {**asdict(self), "bytes": sums, "fits": self.fits}

    def _gpu_error(self) -> GpuMemoryError:
        asked_batch, asked_len = self.asked["max_batch_size"], self.asked["max_seq_len"]
        ways = []
        if self.max_batch_size:
            ways.append(f"max_batch_size at most {self.max_batch_size} at max_seq_len {asked_len}")
        if self.max_seq_len:
            ways.append(f"max_seq_len at most {self.max_seq_len} at max_batch_size {asked_batch}")
        remedy = f"Use {', or '.join(ways)}" if ways else "Split the model over more GPUs"
        return GpuMemoryError(
            f"with max_seq_len {asked_len} each GPU needs {self._sum('gpu')}, and has "
            f"{_gb(self.gpu_bytes or 0)}",
            field="engine.max_batch_size" if ways else "checkpoint.tp",
            value=asked_batch if ways else self.asked["tp"],
            remedy=f"{remedy}; more tp or pp, or a GPU with more memory, helps too",
        )

    def _sum(self, where: Where) -> str:
        rows = [row for row in self.rows if row.where == where]
        parts = ", ".join(f"{row.name} {_gb(row.size_bytes)}" for row in rows)
        return f"{_gb(self.needed_bytes(where))} ({parts})"


def estimate(
    config: Mapping[str, Any],
    engine: EngineLimits,
    *,
    gpu_bytes: int | None = None,
    host_bytes: int | None = None,
    disk_bytes: int | None = None,
    release: str = "1.2",
    compute_capability: str | None = None,
    kv_tokens: int | None = None,
    build_workers: int = 1,
) -> MemoryPlan:
    """What an engine of this checkpoint needs, on the rank that needs the most.

    Args:
        config: config.json of the TensorRT-LLM checkpoint.
        gpu_bytes: Memory of one GPU, all of it.
        host_bytes, disk_bytes: Free memory and disk of the machine that builds.
        release: Of TensorRT-LLM: 0.16 has other defaults than 1.x.
        compute_capability: Of the GPU, such as 9.0.
        kv_tokens: That the KV cache must hold, over all sequences; None: all of them at full
            length.
        build_workers: Ranks built at the same time.

    Raises:
        ConfigValueError: config.json lacks a number that is needed.
    """
    model = Model.read(config)
    limits = Limits.read(engine, release, compute_capability, kv_tokens)

    def worst(limits: Limits) -> tuple[int, tuple[MemoryRow, ...]]:
        ranks = [(stage * model.tp, model.gpu_rows(limits, stage)) for stage in range(model.pp)]
        return max(ranks, key=lambda rank: sum(row.size_bytes for row in rank[1]))

    def fits(limits: Limits) -> bool:
        return sum(row.size_bytes for row in worst(limits)[1]) <= (gpu_bytes or 0)

    rank, rows = worst(limits)
    known = gpu_bytes is not None
    return MemoryPlan(
        rank=rank,
        ranks=model.tp * model.pp,
        rows=(*rows, *model.host_rows(build_workers), *model.disk_rows()),
        gpu_bytes=gpu_bytes,
        host_bytes=host_bytes,
        disk_bytes=disk_bytes,
        max_batch_size=_largest(lambda n: fits(replace(limits, batch=n)), _MOST_SEQUENCES)
        if known
        else None,
        max_seq_len=_largest(lambda n: fits(replace(limits, seq_len=n)), _LONGEST)
        if known
        else None,
        asked={
            "max_batch_size": engine.max_batch_size,
            "max_input_len": engine.max_input_len,
            "max_seq_len": engine.max_seq_len,
            "max_num_tokens": engine.max_num_tokens,
            "tp": model.tp,
            "pp": model.pp,
        },
    )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 if none does; what fits, fits when smaller."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB"
