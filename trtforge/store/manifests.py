"""Manifests: the immutable description of one published engine, named by what it describes."""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    AwareDatetime,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    field_serializer,
    field_validator,
    model_validator,
)

from trtforge.canonical import digest
from trtforge.engines.base import Toolchain
from trtforge.errors import BuildError, InputError, ServiceError
from trtforge.files import FileRef
from trtforge.store.announce import announced
from trtforge.store.blobs import Blobs
from trtforge.store.layout import MANIFESTS, engine_id_of, manifest_key
from trtforge.store.objects import Bucket
from trtforge.store.records import (
    Part,
    Record,
    RecordInvalidError,
    UnknownFormatError,
    now,
    parse_record,
)

_PREFIX = re.compile(r"[0-9a-f]{6,64}")
_READS_AT_ONCE = 16
_SHOWN = 5
_SHOWN_DIGITS = 12
_log = logging.getLogger(__name__)


def _is_none(value: object) -> bool:
    """For fields added later: left out when None, as in records written before they were kept."""
    return value is None


class ManifestConflictError(ServiceError):
    """The store holds something else under a manifest's name."""


class BlobsNotUploadedError(BuildError):
    """A manifest names blobs that the store does not hold."""


class ManifestIdError(ServiceError):
    """A manifest's engine id is not the digest of its core."""


class EngineIdError(InputError):
    """A text that cannot be the beginning of an engine id."""


class EngineUnknownError(InputError):
    """No engine has this id."""


class EngineAmbiguousError(InputError):
    """Several engines have an id that begins like this."""


class ModelIdentity(Part):
    """The model an engine was built from.

    Attributes:
        source: URI the weights came from.
        revision: Commit, where the source has them.
        content_digest: Digest of the weight files, whatever their source.
    """

    name: str
    source: str
    revision: str | None
    content_digest: str
    licence: str | None


class Parents(Part):
    """Digests of what the engine was made from, stage by stage."""

    source: str
    checkpoint: str


class ManifestCore(Part):
    """Everything that decides which engine this is.

    Attributes:
        spec: What was asked for.
        config: What took effect; toolchains clip and override what they are asked.
        toolchain: Everything that decides where the engine is valid, as it was recorded;
            `built_with` is the typed view.
        files: The files of the engine, in the order of their names.
        gates: The gates it passed, without the numbers measured: those differ between two
            measurements of one engine, and are in the manifest's `evidence`.
    """

    model: ModelIdentity
    spec: dict[str, JsonValue]
    config: dict[str, JsonValue]
    toolchain: dict[str, JsonValue]
    files: tuple[FileRef, ...] = Field(min_length=1)
    parents: Parents
    gates: dict[str, JsonValue]

    @field_validator("files")
    @classmethod
    def _sorted_without_doubles(cls, files: tuple[FileRef, ...]) -> tuple[FileRef, ...]:
        if len({ref.path for ref in files}) != len(files):
            raise ValueError("two files have the same path")
        return tuple(sorted(files))

    @property
    def built_with(self) -> Toolchain:
        """The toolchain that compiled it; what was not recorded is empty or None."""
        return Toolchain.from_json(self.toolchain)

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(ref.size_bytes for ref in self.files)

    @property
    def ranks(self) -> int:
        """GPUs it runs on: tp x pp as asked for, 1 where the spec does not say."""
        checkpoint = self.spec.get("checkpoint")
        asked = checkpoint if isinstance(checkpoint, dict) else {}
        sizes = [asked.get(name, 1) for name in ("tp", "pp")]
        return math.prod(size for size in sizes if isinstance(size, int))


class TimingCacheUse(Part):
    """The timing cache the compiler was started with, and what it was good for.

    Attributes:
        sha256: None: there was none, or it was not to be used.
        outcome: `hit` when the compiler reused something of it.
        mode: `engine.timing_cache` of the build; None in manifests written before it was kept.
        entries_before: What it knew, where the backend can tell.
        entries_after: As `entries_before`, of the cache that the compiler left.
    """

    sha256: str | None
    outcome: Literal["hit", "miss"]
    mode: Literal["off", "read", "read-write"] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    entries_before: int | None = Field(default=None, exclude_if=lambda value: value is None)
    entries_after: int | None = Field(default=None, exclude_if=lambda value: value is None)


class Manifest(Record):
    """One published engine. Make one with `Manifest.of`.

    Attributes:
        engine_id: Digest of the canonical JSON of `core` as it was first written; checked
            whenever a manifest is made or read (`ManifestIdError`). A manifest that was read is
            written again with that very core, so fields added to `ManifestCore` later change no
            id of before, and fields of newer writers stay under the id.
        timings: Seconds per stage.
        benchmark: Summary of the numbers measured, if any were.
        evidence: The files of the measurement that the gates decided by; blobs of the store.
    """

    engine_id: str
    core: ManifestCore
    timings: dict[str, float] = Field(default_factory=dict)
    benchmark: dict[str, JsonValue] | None = None
    # Left out when empty, as in manifests written before it was kept.
    evidence: tuple[FileRef, ...] = Field(default=(), exclude_if=lambda files: not files)
    timing_cache: TimingCacheUse | None = None
    created_at: AwareDatetime = Field(default_factory=now)
    _core_as_written: dict[str, Any] = PrivateAttr()

    @classmethod
    def of(
        cls,
        core: ManifestCore,
        *,
        timings: dict[str, float] | None = None,
        benchmark: dict[str, JsonValue] | None = None,
        evidence: tuple[FileRef, ...] = (),
        timing_cache: TimingCacheUse | None = None,
    ) -> Self:
        """Describe an engine built now."""
        return cls(
            engine_id=digest(core.model_dump(mode="json")),
            core=core,
            timings=timings or {},
            benchmark=benchmark,
            evidence=evidence,
            timing_cache=timing_cache,
        )

    @model_validator(mode="wrap")
    @classmethod
    def _id_is_digest_of_core(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        manifest = handler(data)
        if not isinstance(data, Mapping):  # a manifest already, and so checked
            return manifest
        core = data["core"]
        written = core if isinstance(core, dict) else manifest.core.model_dump(mode="json")
        if manifest.engine_id != digest(written):
            raise ManifestIdError(
                "the manifest's content does not give this id; it was changed after it was made",
                field="engine_id",
                value=manifest.engine_id,
                remedy="Do not use this engine; publish it again from a build you trust",
            )
        manifest._core_as_written = written
        return manifest

    @field_serializer("core", when_used="json")
    def _core(self, _: ManifestCore) -> dict[str, Any]:
        return self._core_as_written


class Manifests:
    """The manifests of a bucket."""

    def __init__(self, bucket: Bucket, blobs: Blobs) -> None:
        self._bucket = bucket
        self._blobs = blobs

    def publish(self, manifest: Manifest, directory: Path | None = None) -> Manifest:
        """See `Store.publish_manifest`; files that were swept since come from `directory`."""
        files = (*manifest.core.files, *manifest.evidence)
        with announced(self._bucket, engine_ids=[manifest.engine_id], files=files):
            return self._publish(manifest, directory)

    def _publish(self, manifest: Manifest, directory: Path | None) -> Manifest:
        # Found present when it was to be uploaded, a file may have been swept since.
        absent = self._blobs.missing(manifest.core.files)
        missing = [ref for ref in absent if not self._upload_again(ref, directory)]
        if missing:
            raise BlobsNotUploadedError(
                f"the store lacks {len(missing)} of the {len(manifest.core.files)} files of this "
                f"engine, such as {missing[0].path!r}",
                field="engine_id",
                value=manifest.engine_id,
                remedy="Upload the files first, then publish the manifest",
            )
        key = manifest_key(manifest.engine_id)
        if self._bucket.put_if_absent(key, manifest.to_bytes()):
            return manifest
        try:
            return self._read(manifest.engine_id)
        except (ManifestIdError, RecordInvalidError) as error:
            raise ManifestConflictError(
                f"{self._bucket.uri(key)} exists and is not the manifest of this engine",
                field="engine_id",
                value=manifest.engine_id,
                remedy="Somebody changed the bucket by hand: find out who, delete that object, "
                "and publish again",
            ) from error

    def _upload_again(self, ref: FileRef, directory: Path | None) -> bool:
        if directory is None:
            return self._blobs.put_cached(ref)
        self._blobs.put_file(directory / ref.path, ref)
        return True

    def get(self, engine_id: str) -> Manifest:
        """See `Store.get_manifest`."""
        return self._read(self._complete(engine_id))

    def exists(self, engine_id: str) -> bool:
        """Whether an engine of this (whole) id is published."""
        return self._bucket.head(manifest_key(engine_id)) is not None

    def newest_first(self) -> Iterator[Manifest]:
        """See `Store.list_manifests`."""
        ids = self._ids("")
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            found = [manifest for manifest in pool.map(self._read_or_none, ids) if manifest]
        yield from sorted(found, key=lambda m: (m.created_at, m.engine_id), reverse=True)

    def unknown(self, engine_id: str) -> EngineUnknownError:
        """The error for an id that no engine has; it names some that exist."""
        known = [m.engine_id[:_SHOWN_DIGITS] for m in islice(self.newest_first(), _SHOWN)]
        newest = f"the newest are {', '.join(known)}" if known else "none is published yet"
        return EngineUnknownError(
            f"no engine in bucket {self._bucket.name!r} has this id; {newest}",
            field="engine_id",
            value=engine_id,
            remedy="Run `trtforge list` to see them all",
        )

    def _complete(self, engine_id: str) -> str:
        prefix = engine_id.strip().lower()
        if not _PREFIX.fullmatch(prefix):
            raise EngineIdError(
                "this is not an engine id",
                field="engine_id",
                value=engine_id,
                remedy="Give at least the first 6 of its 64 hex digits; `trtforge list` shows them",
            )
        if len(prefix) == 64:
            return prefix
        ids = self._ids(prefix)
        if not ids:
            raise self.unknown(engine_id)
        if len(ids) > 1:
            raise EngineAmbiguousError(
                f"{len(ids)} engines have an id that begins like this: {', '.join(ids[:_SHOWN])}",
                field="engine_id",
                value=engine_id,
                remedy="Give more digits",
            )
        return ids[0]

    def _ids(self, prefix: str) -> list[str]:
        keys = self._bucket.keys(MANIFESTS + prefix)
        return [engine_id_of(key) for key in keys if key.endswith(".json")]

    def _read(self, engine_id: str) -> Manifest:
        key = manifest_key(engine_id)
        stored = self._bucket.get(key)
        if stored is None:
            raise self.unknown(engine_id)
        manifest = parse_record(Manifest, stored.data, self._bucket.uri(key))
        if manifest.engine_id != engine_id:
            raise RecordInvalidError(
                f"{self._bucket.uri(key)} describes another engine",
                field="engine_id",
                value=manifest.engine_id,
                remedy="It was copied or renamed by hand: delete it",
            )
        return manifest

    def _read_or_none(self, engine_id: str) -> Manifest | None:
        try:
            return self._read(engine_id)
        except (ManifestIdError, RecordInvalidError, UnknownFormatError, EngineUnknownError) as bad:
            _log.warning("leaving out of the list: %s", bad)
            return None
