"""One pass over the stored tensors, straight into the rank files of a pipeline rank.

Three kinds of threads work side by side: one reads ahead, the caller's rounds, cuts and writes,
and those of `hashed_file` hash.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtforge.checkpoint.casting import SOURCE_DTYPES, cast, overflows
from trtforge.checkpoint.hashed_file import BUFFER_BYTES, HashedFile, HashingCrew
from trtforge.checkpoint.plan import PlannedTensor, RankFile
from trtforge.checkpoint.read_ahead import read_ahead
from trtforge.checkpoint.safetensors_io import StoredTensor, TensorReader
from trtforge.checkpoint.tiling import Part, Tile, tiles
from trtforge.errors import InputError
from trtforge.files import FileRef

_FLOAT16_MAX = 65504


class WeightOverflowError(InputError):
    """A finite weight is too large for the type of the checkpoint."""


@dataclass(frozen=True)
class _Read:
    """A tile of a stored tensor, for the tensor `name` of every rank."""

    name: str
    stored: StoredTensor
    dtype: str
    tile: Tile

    @property
    def offset_bytes(self) -> int:
        return self.tile.first * SOURCE_DTYPES[self.stored.dtype].itemsize

    @property
    def size_bytes(self) -> int:
        return self.tile.numbers * SOURCE_DTYPES[self.stored.dtype].itemsize


@dataclass(frozen=True)
class _Pad:
    """Zeros at the end of a tensor, as many bytes for each rank as `sizes_bytes` says."""

    name: str
    sizes_bytes: tuple[int, ...]


def write_group(ranks: Sequence[RankFile], directory: Path) -> Iterator[tuple[str, int] | FileRef]:
    """Write the rank files of one pipeline rank, in step.

    Yields (tensor name, bytes written) as it goes, and last the files, in rank order.

    Raises:
        TruncatedFileError: A source became shorter meanwhile.
        WeightOverflowError: A weight became infinite in float16.
        OSError: The disk.
    """
    with ExitStack() as opened:
        reader = opened.enter_context(TensorReader())
        crew = opened.enter_context(HashingCrew(len(ranks)))
        outs = [opened.enter_context(crew.create(directory / rank.name)) for rank in ranks]
        for out, rank in zip(outs, ranks, strict=True):
            out.write(rank.header)
            yield "header", len(rank.header)

        def read(step: _Read | _Pad, buffer: memoryview) -> bool:
            if isinstance(step, _Pad):
                return False
            reader.read_into(step.stored, step.offset_bytes, buffer[: step.size_bytes])
            return True

        steps = opened.enter_context(closing(read_ahead(_steps(ranks), read, crew.buffers)))
        for step, buffer in steps:
            if isinstance(step, _Read) and buffer is not None:
                written_bytes = _write_tile(step, buffer, outs, crew)
            elif isinstance(step, _Pad):
                for out, size_bytes in zip(outs, step.sizes_bytes, strict=True):
                    out.write_zeros(size_bytes)
                written_bytes = sum(step.sizes_bytes)
            yield step.name, written_bytes
        for out in outs:
            yield out.finish()


def _steps(ranks: Sequence[RankFile]) -> Iterator[_Read | _Pad]:
    for shards in zip(*(rank.tensors for rank in ranks), strict=True):
        yield from _steps_of_tensor(shards)


def _steps_of_tensor(shards: Sequence[PlannedTensor]) -> Iterator[_Read | _Pad]:
    name, dtype = shards[0].name, shards[0].dtype
    for blocks in zip(*(shard.sources for shard in shards), strict=True):
        stored = blocks[0].tensor
        width = max(SOURCE_DTYPES[stored.dtype].itemsize, SOURCE_DTYPES[dtype].itemsize)
        for tile in tiles(blocks, BUFFER_BYTES // width):
            yield _Read(name, stored, dtype, tile)
    if any(shard.padding_bytes for shard in shards):
        yield _Pad(name, tuple(shard.padding_bytes for shard in shards))


def _write_tile(
    step: _Read, buffer: memoryview, outs: Sequence[HashedFile], crew: HashingCrew
) -> int:
    """Hand a tile that has been read to the ranks; the buffer is the crew's again."""
    tile, width = step.tile, SOURCE_DTYPES[step.dtype].itemsize
    size_bytes = tile.numbers * width
    if step.stored.dtype != step.dtype:
        rounded = crew.buffers.get()
        _cast(step, buffer[: step.size_bytes], rounded[:size_bytes])
        crew.buffers.put(buffer)
        buffer = rounded
    if tile.is_whole:
        outs[tile.parts[0].rank].put(buffer, size_bytes)
        return size_bytes
    written_bytes = sum(
        _write_part(tile, part, buffer[:size_bytes], width, outs[part.rank], crew)
        for part in tile.parts
    )
    crew.buffers.put(buffer)
    return written_bytes


def _write_part(
    tile: Tile, part: Part, ready: memoryview, width: int, out: HashedFile, crew: HashingCrew
) -> int:
    columns = part.stop - part.start
    size_bytes = tile.rows * columns * width
    buffer = crew.buffers.get()
    numbers = np.frombuffer(ready, f"u{width}").reshape(tile.rows, tile.row_numbers)
    into = np.frombuffer(buffer[:size_bytes], f"u{width}").reshape(tile.rows, columns)
    np.copyto(into, numbers[:, part.start : part.stop])
    out.put(buffer, size_bytes)
    return size_bytes


def _cast(step: _Read, raw: memoryview, target: memoryview) -> None:
    stored, dtype = step.stored, step.dtype
    cast(raw, stored.dtype, target, dtype)
    if dtype == "F16" and overflows(raw, stored.dtype, target, dtype):
        raise WeightOverflowError(
            f"it holds a weight beyond ±{_FLOAT16_MAX}, the largest number of float16; the engine "
            "would compute with infinity",
            field=f"tensor {stored.name} in {stored.path.name}",
            value=stored.dtype,
            remedy="Convert to bfloat16 (checkpoint.dtype)",
        )
