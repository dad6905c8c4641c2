"""What an engine needs of a GPU, of the host and of the disk, and what there is: told and judged.

The backends' `memory` modules say what is needed, part by part. Standard library only.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trtforge.errors import InputError

Where = Literal["gpu", "host", "disk"]

MOST_SEQUENCES = 4096
"""The largest max_batch_size that is looked for."""
LONGEST = 1 << 24
"""The largest max_seq_len that is looked for."""
NCCL_BYTES = 500_000_000
"""What NCCL takes of each GPU, where there are several ranks."""


class GpuMemoryError(InputError):
    """The engine would not fit into the memory of one GPU."""


class HostMemoryError(InputError):
    """Building would need more memory than the host has."""


class EngineDiskError(InputError):
    """Checkpoint and engine would not fit on the disk."""


@dataclass(frozen=True)
class MemoryRow:
    """One part of what is needed.

    Attributes:
        where: Of which memory: of one GPU, of the host, of the disk.
        exact: Whether it follows from config and limits alone; otherwise it is an estimate.
        formula: With its numbers, for people.
    """

    where: Where
    name: str
    size_bytes: int
    exact: bool
    formula: str


# On an H200 (driver 580.159): 0.65 GB that NVML counts and CUDA never has, 0.72 GB of one context
# with cuBLAS.
CUDA_ROW = MemoryRow(
    "gpu", "CUDA and libraries", 1_500_000_000, False, "driver 0.7 GB + one context 0.8 GB"
)
"""Of every engine that runs on a GPU."""


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
        asked: The limits asked for; and `tp`, `pp`: the ways in which the backend splits a model.
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

    @property
    def counted(self) -> tuple[Where, ...]:
        """Of what the needs are counted."""
        places: tuple[Where, ...] = ("gpu", "host", "disk")
        return tuple(where for where in places if any(row.where == where for row in self.rows))

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
        splits = " or ".join(name for name in ("tp", "pp") if name in self.asked)
        return GpuMemoryError(
            f"with max_seq_len {asked_len} each GPU needs {self._sum('gpu')}, and has "
            f"{_gb(self.gpu_bytes or 0)}",
            field="engine.max_batch_size" if ways else "checkpoint.tp",
            value=asked_batch if ways else self.asked["tp"],
            remedy=f"{remedy}; more {splits}, or a GPU with more memory, helps too",
        )

    def _sum(self, where: Where) -> str:
        rows = [row for row in self.rows if row.where == where]
        parts = ", ".join(f"{row.name} {_gb(row.size_bytes)}" for row in rows)
        return f"{_gb(self.needed_bytes(where))} ({parts})"


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 if none does; what fits, fits when smaller."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB"
