"""Weights from a directory of this machine."""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from trtforge.errors import InputError
from trtforge.sources.landing import Meter, require_free_space
from trtforge.sources.model_card import licence_of_card
from trtforge.sources.resolved import ResolvedSource, SourceFile
from trtforge.sources.selection import CARD, select_files
from trtforge.sources.uri import FIELD, LocalSource


class SourceDirectoryError(InputError):
    """The path is not a directory that can be read."""


class SourceChangedError(InputError):
    """Files were written to between resolving and the end of hashing."""


class DestinationIsSourceError(InputError):
    """The copy would go into the directory it comes from."""


def resolve_local(source: LocalSource) -> ResolvedSource:
    """List the directory and choose the files.

    Raises:
        SourceDirectoryError, and the classes of `trtforge.sources.selection`.
    """
    directory = source.path.resolve()
    try:
        found = {entry.name: entry.stat() for entry in directory.iterdir() if entry.is_file()}
        names = select_files(
            found, lambda name: (directory / name).read_bytes(), source=str(source.path)
        )
        card = (directory / CARD).read_text(errors="replace") if CARD in found else ""
    except OSError as error:
        raise _unreadable(source, error) from error
    return ResolvedSource(
        kind="local",
        uri=LocalSource(directory).uri,
        revision=None,
        files=tuple(
            SourceFile(name, found[name].st_size, f"mtime-ns:{found[name].st_mtime_ns}")
            for name in names
        ),
        licence=licence_of_card(card),
    )


def copy_local(source: LocalSource, files: Sequence[SourceFile], dest: Path, meter: Meter) -> None:
    """Put copies of `files` into `dest`.

    Not hard links: what is kept by content must not change when the user edits a file in place.

    Raises:
        NotEnoughDiskError: The copies do not fit.
        SourceChangedError: A file went away.
    """
    for orphan in dest.glob(".*.partial"):
        orphan.unlink()
    try:
        require_free_space(dest, sum(file.size_bytes for file in files))
        for file in files:
            _copy(source, file, dest, meter)
    except FileNotFoundError as error:
        raise changed(source, [Path(str(error.filename)).name]) from error


def require_apart(source: LocalSource, dest: Path) -> None:
    """Refuse a destination that is the source itself.

    Raises:
        DestinationIsSourceError
    """
    if dest.resolve() == source.path.resolve():
        raise DestinationIsSourceError(
            "the files would be copied onto themselves",
            field="destination",
            value=str(dest),
            remedy="Choose another directory",
        )


def changed(source: LocalSource, names: Sequence[str]) -> SourceChangedError:
    """For files that are no longer what was resolved."""
    return SourceChangedError(
        f"{', '.join(names)} changed while being read",
        field=FIELD,
        value=str(source.path),
        remedy="Wait until whatever writes there has ended, then run again",
    )


def _copy(source: LocalSource, file: SourceFile, dest: Path, meter: Meter) -> None:
    temporary = _temporary(dest, file)
    try:
        shutil.copyfile(source.path / file.path, temporary)
        # The modification time is how the copy is recognised.
        shutil.copystat(source.path / file.path, temporary)
        temporary.replace(dest / file.path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    meter.add(file.size_bytes)


def _temporary(dest: Path, file: SourceFile) -> Path:
    return dest / f".{file.path}.{uuid4().hex[:8]}.partial"


def _unreadable(source: LocalSource, error: OSError) -> SourceDirectoryError:
    text = str(source.path)
    parts = source.path.parts
    if isinstance(error, FileNotFoundError):
        looks_like_hub = not source.path.is_absolute() and len(parts) == 2
        return SourceDirectoryError(
            "there is no such directory on this machine",
            field=FIELD,
            value=text,
            remedy=f"For the model on the Hub, write hf://{text}"
            if looks_like_hub
            else "Check the path; it must be visible to the worker that pulls the weights",
        )
    if isinstance(error, NotADirectoryError):
        return SourceDirectoryError(
            "this is a file",
            field=FIELD,
            value=text,
            remedy="Give the directory that holds config.json and *.safetensors",
        )
    return SourceDirectoryError(
        f"the directory cannot be read ({error.strerror or error})",
        field=FIELD,
        value=text,
        remedy="Make it readable for the user that runs trtforge",
    )
