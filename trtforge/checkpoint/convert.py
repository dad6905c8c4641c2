"""From a Hugging Face directory to a TensorRT-LLM checkpoint directory, streaming."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from trtforge.checkpoint.plan import ConversionPlan, RankFile
from trtforge.checkpoint.preflight import preflight
from trtforge.checkpoint.staging import staged_directory
from trtforge.checkpoint.streaming import write_group
from trtforge.checkpoint.target import DEFAULT_TARGET, Target
from trtforge.errors import InputError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, Progress, ignore

# Beside the rank files: config.json and what the file system needs for itself.
_SPARE_BYTES = 1 << 20
# Pipeline ranks written side by side; each takes its own buffers.
_GROUPS_AT_ONCE = 4


class NotEnoughDiskError(InputError):
    """The checkpoint does not fit on the disk."""


def convert(
    model_dir: Path,
    out_dir: Path,
    target: Target = DEFAULT_TARGET,
    *,
    on_progress: OnProgress = ignore,
) -> list[FileRef]:
    """Write the TensorRT-LLM checkpoint of a Hugging Face model to `out_dir`.

    The same model gives the same bytes. The source is read once, however many ranks there are;
    memory stays below some hundred MiB whatever the model's size. `out_dir` (absent or empty
    before) appears complete and synced to disk, or not at all: the work is done in a hidden
    sibling, which an error removes and the next start after a kill cleans up.

    Args:
        target: Release, type and split. Weights of that type are copied bit by bit, others
            rounded to nearest even.
        on_progress: Told the bytes written of all rank files, with the tensor's name. An exception
            it raises ends the conversion.

    Returns:
        config.json and the rank files, with digests computed while writing.

    Raises:
        InputError: What `preflight` raises; OutputNotEmptyError, OutputBusyError,
            NotEnoughDiskError, WeightOverflowError.
    """
    plan = preflight(model_dir, target)
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
    report = _Report(plan.output_bytes, on_progress)
    files = [_write_config(plan, directory)]
    workers = min(len(plan.groups), _GROUPS_AT_ONCE, max(1, (os.cpu_count() or 1) // 2))
    with ThreadPoolExecutor(workers, "ranks") as pool:
        groups = [pool.submit(_write_group, ranks, directory, report) for ranks in plan.groups]
        try:
            for group in groups:
                files += group.result()
        except BaseException:
            report.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return files


def _write_config(plan: ConversionPlan, directory: Path) -> FileRef:
    raw = json.dumps(plan.config, indent=4, sort_keys=True).encode() + b"\n"
    with (directory / "config.json").open("xb") as out:
        out.write(raw)
        out.flush()
        os.fsync(out.fileno())
    return FileRef("config.json", len(raw), hashlib.sha256(raw).hexdigest())


def _write_group(ranks: Sequence[RankFile], directory: Path, report: "_Report") -> list[FileRef]:
    """Write the files of one pipeline rank."""
    files = []
    for step in write_group(ranks, directory):
        if isinstance(step, FileRef):
            files.append(step)
        else:
            report.add(*step)
    return files


class _Report:
    """Adds up what the groups write, and tells it in one place."""

    def __init__(self, total_bytes: int, on_progress: OnProgress) -> None:
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._done_bytes = 0
        self._stopped = False
        self._lock = Lock()

    def add(self, name: str, count: int) -> None:
        with self._lock:
            if self._stopped:
                raise CancelledError
            self._done_bytes += count
            self._on_progress(Progress(name, self._done_bytes, self._total_bytes, "bytes"))

    def stop(self) -> None:
        """The next `add` of every group ends it."""
        self._stopped = True
