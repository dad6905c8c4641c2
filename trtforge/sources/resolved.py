"""What a source holds, known without downloading weights, and how a fetched copy is recognised."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtforge.canonical import sha256_file
from trtforge.files import FileRef
from trtforge.progress import OnProgress, ignore


@dataclass(frozen=True)
class SourceFile:
    """One selected file of a source.

    Attributes:
        path: Name below the source's top level, POSIX.
        size_bytes: Size the source states.
        fingerprint: What the source says of the content, empty when it says nothing:
            `sha256:<hex>` and `git-sha1:<hex>` (Hub), `s3:<modified, epoch seconds>:<ETag>`,
            `mtime-ns:<ns>` (local).
    """

    path: str
    size_bytes: int
    fingerprint: str = ""


@dataclass(frozen=True)
class ResolvedSource:
    """A source pinned down: what would be fetched.

    Attributes:
        kind: Where it is.
        uri: The source with the revision replaced by the commit; `parse_source` reads it.
        revision: The commit sha for the Hub, None for the others: they keep no history.
        files: The selected files, sorted by path.
        licence: Licence id of the model card (`apache-2.0`, `llama3.1`, …) if it has one.
    """

    kind: Literal["hub", "local", "s3"]
    uri: str
    revision: str | None
    files: tuple[SourceFile, ...]
    licence: str | None

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


def recognise(path: Path, expected: SourceFile, on_progress: OnProgress = ignore) -> FileRef | None:
    """The hashed file at `path` if it is `expected`, else None.

    A file whose source states no fingerprint is judged by its size. None also when the file was
    written to while it was read.
    """
    try:
        before = path.stat()
        if before.st_size != expected.size_bytes:
            return None
        sha256 = sha256_file(path, on_progress)
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return None
        scheme, _, value = expected.fingerprint.partition(":")
        match scheme:
            case "sha256":
                same = sha256 == value
            case "git-sha1":
                same = _git_blob_sha1(path) == value
            case "s3":
                same = int(after.st_mtime) == int(value.partition(":")[0])
            case "mtime-ns":
                same = after.st_mtime_ns == int(value)
            case _:
                same = True
    except FileNotFoundError:
        return None
    return FileRef(expected.path, expected.size_bytes, sha256) if same else None


def _git_blob_sha1(path: Path) -> str:
    # The Hub names files outside Git LFS by git's own object id.
    state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: state).hexdigest()
