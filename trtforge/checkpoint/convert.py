"""From a Hugging Face directory to a TensorRT-LLM checkpoint directory, streaming."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from trtforge.checkpoint.casting import SOURCE_DTYPES, cast
from trtforge.checkpoint.hashed_file import PIECE_BYTES, HashedFile
from trtforge.checkpoint.plan import ConversionPlan, RankFile, Rows
from trtforge.checkpoint.preflight import preflight
from trtforge.checkpoint.safetensors_io import TensorReader
from trtforge.checkpoint.staging import staged_directory
from trtforge.errors import InputError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, Progress, ignore

# Beside the rank files: config.json and what the file system needs for itself.
_SPARE_BYTES = 1 << 20


class NotEnoughDiskError(InputError):
    """The checkpoint does not fit on the disk."""


def convert(
    model_dir: Path,
    out_dir: Path,
    *,
    dtype: str = "bfloat16",
    tp: int = 1,
    pp: int = 1,
    on_progress: OnProgress = ignore,
) -> list[FileRef]:
    """Write the TensorRT-LLM 1.2 checkpoint of a Hugging Face model to `out_dir`.

    The same model gives the same bytes. Memory stays at some tens of MiB whatever the model's
    size. `out_dir` (absent or empty before) appears complete and synced to disk, or not at all:
    the work is done in a hidden sibling, which an error removes and the next start after a kill
    cleans up.

    Args:
        dtype: Type of the weights; bfloat16 weights are copied bit by bit, others rounded to
            nearest even.
        on_progress: Told the bytes written of all rank files, with the tensor's name. An exception
            it raises ends the conversion.

    Returns:
        config.json and the rank files, with digests computed while writing.

    Raises:
        InputError: What `preflight` raises; OutputNotEmptyError, OutputBusyError,
            NotEnoughDiskError.
    """
    plan = preflight(model_dir, dtype=dtype, tp=tp, pp=pp)
    try:
        with staged_directory(out_dir) as directory:
            _check_disk(plan, directory, out_dir)
            return _write_checkpoint(plan, directory, on_progress)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NotEnoughDiskError(
            f"the disk or quota was full before all {plan.output_bytes} bytes were written",
            field="out_dir",
            value=str(out_dir),
            remedy="Free space, or choose a directory on a larger disk",
        ) from error


def _check_disk(plan: ConversionPlan, directory: Path, out_dir: Path) -> None:
    needed = plan.output_bytes + _SPARE_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise NotEnoughDiskError(
            f"the checkpoint needs {needed} bytes, but only {free} are free there",
            field="out_dir",
            value=str(out_dir),
            remedy=f"Free {needed - free} bytes, or choose a directory on a larger disk",
        )


def _write_checkpoint(
    plan: ConversionPlan, directory: Path, on_progress: OnProgress
) -> list[FileRef]:
    with HashedFile(directory / "config.json") as out:
        out.write(json.dumps(plan.config, indent=4, sort_keys=True).encode() + b"\n")
        files = [out.finish()]
    done_bytes = 0
    scratch = memoryview(bytearray(PIECE_BYTES))
    with TensorReader() as reader:
        for rank in plan.ranks:
            with HashedFile(directory / rank.name) as out:
                out.write(rank.header)
                done_bytes += len(rank.header)
                for name, written_bytes in _write_tensors(out, rank, reader, scratch):
                    done_bytes += written_bytes
                    on_progress(Progress(name, done_bytes, plan.output_bytes, "bytes"))
                files.append(out.finish())
    return files


def _write_tensors(
    out: HashedFile, rank: RankFile, reader: TensorReader, scratch: memoryview
) -> Iterator[tuple[str, int]]:
    """Yields the tensor's name and the bytes written, after each piece."""
    for tensor in rank.tensors:
        for rows in tensor.sources:
            for written_bytes in _write_rows(out, rows, tensor.dtype, reader, scratch):
                yield tensor.name, written_bytes


def _write_rows(
    out: HashedFile, rows: Rows, dtype: str, reader: TensorReader, scratch: memoryview
) -> Iterator[int]:
    source_dtype = rows.tensor.dtype
    read_width, write_width = SOURCE_DTYPES[source_dtype].itemsize, SOURCE_DTYPES[dtype].itemsize
    numbers = rows.size_bytes // read_width
    step = PIECE_BYTES // max(read_width, write_width)
    for first in range(0, numbers, step):
        count = min(step, numbers - first)
        offset_bytes = rows.offset_bytes + first * read_width
        piece = out.take()
        if source_dtype == dtype:
            reader.read_into(rows.tensor, offset_bytes, piece[: count * read_width])
        else:
            raw = scratch[: count * read_width]
            reader.read_into(rows.tensor, offset_bytes, raw)
            cast(raw, source_dtype, piece[: count * write_width], dtype)
        out.put(piece, count * write_width)
        yield count * write_width
