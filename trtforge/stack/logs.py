"""What the services of a stack wrote, without secrets."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtforge.errors import InputError
from trtforge.redaction import redact, remember
from trtforge.stack import state as state_file
from trtforge.stack.service import Service

_POLL_S = 0.2
_BLOCK_BYTES = 65_536
# No program here writes longer lines; a binary accident must not fill the memory.
_LONGEST_LINE_BYTES = 1_000_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class UnknownServiceError(InputError):
    """No service of the stack has that name."""


@dataclass(frozen=True)
class LogLine:
    """One line of the log of one service, secrets masked, colours taken out."""

    service: str
    text: str


def choose(services: Sequence[Service], slug: str | None) -> list[Service]:
    """The service of that slug, or all for None.

    Raises:
        UnknownServiceError: There is none.
    """
    if slug is None:
        return list(services)
    chosen = [service for service in services if service.slug == slug]
    if not chosen:
        known = ", ".join(service.slug for service in services) or "none: `trtforge up` never ran"
        raise UnknownServiceError(
            "no such service",
            field="SERVICE",
            value=slug,
            remedy=f"Give one of these, or none for all: {known}",
        )
    return chosen


def last_lines(home: Path, services: Sequence[Service], count: int) -> Iterator[LogLine]:
    """The last `count` lines of each."""
    _remember_secrets(home)
    for service in services:
        for line in _end_of(service.log_path, count):
            yield _shown(service.slug, line)


def follow(home: Path, services: Sequence[Service], count: int) -> Iterator[LogLine]:
    """The last `count` lines of each, and then every line that is added; does not end."""
    _remember_secrets(home)
    positions = {service.slug: _size(service.log_path) for service in services}
    yield from last_lines(home, services, count)
    begun = {service.slug: b"" for service in services}
    while True:
        quiet = True
        for service in services:
            slug, path = service.slug, service.log_path
            if _size(path) < positions[slug]:
                positions[slug] = 0  # a new file
            added = _read(path, positions[slug])
            positions[slug] += len(added)
            *lines, begun[slug] = (begun[slug] + added).split(b"\n")
            if len(begun[slug]) > _LONGEST_LINE_BYTES:
                lines.append(begun[slug])
                begun[slug] = b""
            for line in lines:
                quiet = False
                yield _shown(slug, line)
        if quiet:
            time.sleep(_POLL_S)


def _remember_secrets(home: Path) -> None:
    state = state_file.read(home)
    if state is not None:
        auth = state.prefect_auth or ""
        remember(
            state.s3.access_key_id,
            state.s3.secret_access_key,
            state.postgres.password,
            auth,
            auth.partition(":")[2],
        )


def _shown(slug: str, line: bytes) -> LogLine:
    text = _COLOUR.sub("", line.decode(errors="replace").rstrip("\r\n"))
    return LogLine(slug, redact(text))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(position)
            return log.read(_BLOCK_BYTES)
    except FileNotFoundError:
        return b""


def _end_of(path: Path, count: int) -> list[bytes]:
    """The last lines, read from the end: a log may be larger than the memory."""
    if count <= 0:
        return []
    text = b""
    try:
        with path.open("rb") as log:
            position = log.seek(0, os.SEEK_END)
            while position and text.count(b"\n") <= count:
                step = min(_BLOCK_BYTES, position)
                position -= step
                log.seek(position)
                text = log.read(step) + text
    except FileNotFoundError:
        return []
    return text.splitlines()[-count:]
