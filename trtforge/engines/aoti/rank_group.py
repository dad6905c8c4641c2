"""What the ranks of one engine say to each other: sums, logits, tokens. gloo on CPUs, NCCL on GPUs.

Every rank makes the same calls in the same order. NCCL was never run: it is written by its manual.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from trtforge.engines.driver_main import DriverError


class RankGroup:
    """This process as one of `ranks` that meet at the file `rendezvous`.

    Args:
        device: Type, `cpu` or `cuda`; rank r of the latter has the r-th visible GPU to itself.

    Raises:
        DriverError: `too-few-gpus`; of this and of every method `rank-lost`.
    """

    def __init__(self, rank: int, ranks: int, rendezvous: Path, device: str) -> None:
        self.rank = rank
        self.ranks = ranks
        here = None
        if device == "cuda":
            _require_gpus(ranks)
            here = torch.device("cuda", rank)
            torch.cuda.set_device(here)
        with _others():
            dist.init_process_group(
                "nccl" if here else "gloo",
                store=dist.FileStore(str(rendezvous), ranks),  # type: ignore[attr-defined]
                rank=rank,
                world_size=ranks,
                device_id=here,
            )

    def add(self, part: Tensor) -> Tensor:
        """The sum of all ranks' parts, in place of this one's."""
        with _others():
            dist.all_reduce(part)
        return part

    def joined(self, logits: Tensor) -> Tensor:
        """Every rank's logits (B, V of a rank) side by side: (B, V of all)."""
        parts = [torch.empty_like(logits) for _ in range(self.ranks)]
        with _others():
            dist.all_gather(parts, logits.contiguous())
        return torch.cat(parts, -1)

    def agreed(self, choose: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """`choose`, with what rank 0 chooses for the choice of all: ranks that differed in one
        token would end at different steps, and wait for each other for ever."""

        def choose_alike(logits: Tensor) -> Tensor:
            tokens = choose(logits).contiguous()
            with _others():
                dist.broadcast(tokens, 0)
            return tokens

        return choose_alike

    def leave(self) -> None:
        """Wait for the others, so that nobody is left in the middle of a word, and part."""
        with _others():
            dist.barrier()
        dist.destroy_process_group()


@contextmanager
def _others() -> Iterator[None]:
    """What goes wrong between ranks is told apart from what goes wrong in one of them."""
    try:
        yield
    except RuntimeError as error:
        why = next(iter(str(error).splitlines()), "no reason given")
        raise DriverError(
            "rank-lost",
            f"the other ranks do not answer any more ({why})",
            "See the log for the rank that ended first",
        ) from error


def _require_gpus(ranks: int) -> None:
    found = torch.cuda.device_count()
    if found < ranks:
        raise DriverError(
            "too-few-gpus",
            f"the engine runs on {ranks} GPUs, and PyTorch finds {found}",
            "Run it on a machine with more (CUDA_VISIBLE_DEVICES may hide some), or build it with "
            "a smaller checkpoint.tp",
        )
