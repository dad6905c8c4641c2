"""Canonical JSON and SHA-256: the two things every key, digest and engine id is made of."""

import hashlib
import json
from pathlib import Path

from trtforge.progress import OnProgress, Progress, ignore

_CHUNK_BYTES = 4 << 20


def canonical_json(value: object) -> bytes:
    """Encode JSON data so that equal data give equal bytes.

    Keys are sorted, there is no white space, text is UTF-8, NaN and infinities are refused
    (`ValueError`).
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: object) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: Path, on_progress: OnProgress = ignore) -> str:
    """SHA-256 (64 hex digits) of a file, read in pieces; progress in bytes."""
    total = path.stat().st_size
    state = hashlib.sha256()
    done = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
            done += len(chunk)
            on_progress(Progress(f"hashing {path.name}", done, total, "bytes"))
    return state.hexdigest()
