"""The last metres of every fetch: is there room, and did the right bytes arrive?"""

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from trtforge.checkpoint.safetensors_io import read_header
from trtforge.errors import BuildError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, Progress
from trtforge.sources.resolved import ResolvedSource, SourceFile, recognise


class NotEnoughDiskError(BuildError):
    """The weights do not fit on the disk they should go to."""


class Meter:
    """Adds up the bytes of files that arrive in parallel and reports one rising figure."""

    def __init__(self, what: str, total_bytes: int, on_progress: OnProgress) -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._done_bytes = 0
        self._lock = Lock()

    def add(self, size_bytes: int) -> None:
        """Count `size_bytes` more; negative when a file had to start again."""
        with self._lock:
            self._done_bytes += size_bytes
            done_bytes = min(max(self._done_bytes, 0), self._total_bytes)
            self._on_progress(Progress(self._what, done_bytes, self._total_bytes, "bytes"))


def hash_present(
    resolved: ResolvedSource, dest: Path, on_progress: OnProgress
) -> dict[str, FileRef]:
    """Files that an earlier fetch finished, hashed. Anything else under their names is removed."""
    meter = Meter("checking what is already here", resolved.size_bytes, on_progress)
    present: dict[str, FileRef] = {}
    for file in resolved.files:
        path = dest / file.path
        ref = recognise(path, file, _into(meter)) if file.fingerprint else None
        if ref is not None:
            present[file.path] = ref
        else:
            path.unlink(missing_ok=True)
    return present


def hash_arrived(
    files: Sequence[SourceFile], dest: Path, on_progress: OnProgress
) -> tuple[list[FileRef], list[str]]:
    """Check and hash fetched files: the good ones, and the names of those that are not as stated.

    Raises:
        TruncatedFileError, CorruptFileError, LfsPointerError: The source's own copy is broken.
    """
    meter = Meter("hashing", sum(f.size_bytes for f in files), on_progress)
    good: list[FileRef] = []
    wrong: list[str] = []
    for file in files:
        path = dest / file.path
        if file.path.endswith(".safetensors") and _size_bytes(path) == file.size_bytes:
            read_header(path)
        ref = recognise(path, file, _into(meter))
        if ref is None:
            wrong.append(file.path)
        else:
            good.append(ref)
    return good, wrong


def require_free_space(dest: Path, needed_bytes: int) -> None:
    """Refuse to start a fetch that cannot end.

    Raises:
        NotEnoughDiskError: names the needed and the free bytes.
    """
    existing = next(p for p in (dest, *dest.parents) if p.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise _disk_error(dest, f"{needed_bytes} bytes are needed and {free_bytes} are free")


@contextmanager
def disk_full_explained(dest: Path) -> Iterator[None]:
    """Turn "no space left" of the block into `NotEnoughDiskError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free_bytes = shutil.disk_usage(dest).free
        raise _disk_error(dest, f"the disk ran full, {free_bytes} bytes are free") from error


def _disk_error(dest: Path, problem: str) -> NotEnoughDiskError:
    return NotEnoughDiskError(
        problem,
        field="destination",
        value=str(dest),
        remedy="Free some space or choose another disk, then run again; finished files are kept",
    )


def _size_bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _into(meter: Meter) -> OnProgress:
    seen_bytes = 0

    def step(progress: Progress) -> None:
        nonlocal seen_bytes
        meter.add(progress.done - seen_bytes)
        seen_bytes = progress.done

    return step
