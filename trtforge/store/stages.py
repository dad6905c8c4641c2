"""Stage records: what a stage made of its inputs, found again by the key of those inputs."""

import logging
from contextlib import suppress
from datetime import timedelta

from pydantic import AwareDatetime, Field, JsonValue

from trtforge.errors import ServiceError
from trtforge.files import FileRef
from trtforge.store.blobs import Blobs
from trtforge.store.layout import stage_key
from trtforge.store.objects import Bucket, ConditionalWritesError
from trtforge.store.records import Record, RecordInvalidError, Sha256, now, parse_record

_FRESH = timedelta(days=1)
_log = logging.getLogger(__name__)


class StageResult(Record):
    """What one run of a stage produced.

    Attributes:
        stage: `pull`, `convert`, `compile` or `benchmark`.
        key: Digest of everything that decides the outputs.
        inputs: The digests and parameters that `key` was made of, for people.
        outputs: The files produced; their bytes are blobs.
        facts: What is worth knowing beside the files: sizes, timings, versions.
        seconds: Wall time the stage took.
    """

    stage: str
    key: Sha256
    inputs: dict[str, JsonValue]
    outputs: tuple[FileRef, ...]
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    created_at: AwareDatetime = Field(default_factory=now)
    seconds: float = Field(ge=0)


class Stages:
    """The stage records of a bucket."""

    def __init__(self, bucket: Bucket, blobs: Blobs) -> None:
        self._bucket = bucket
        self._blobs = blobs

    def get(self, stage: str, key: str) -> StageResult | None:
        """See `Store.get_stage`."""
        where = stage_key(stage, key)
        stored = self._bucket.get(where)
        result = self._usable(stage, key, stored.data) if stored else None
        if stored and result and now() - result.created_at > _FRESH:
            # `gc` goes by when the object was written. Who may only read leaves it as it is.
            with suppress(ServiceError):
                self._bucket.swap(where, stored.data, stored.etag)
        return result

    def put(self, result: StageResult, *, replace: bool = False) -> StageResult:
        """See `Store.put_stage`."""
        kept = result

        def decide(data: bytes | None) -> bytes | None:
            nonlocal kept
            wanted = result.to_bytes()
            first = self._usable(result.stage, result.key, data) if data and not replace else None
            kept = first or result
            return None if first or data == wanted else wanted

        where = stage_key(result.stage, result.key)
        try:
            self._bucket.update(where, decide)
        except ConditionalWritesError:
            # Whoever comes last wins then. Both did the same work, so nothing is lost by it.
            current = self._bucket.get(where)
            wanted = decide(current.data if current else None)
            if wanted is not None:
                self._bucket.put(where, wanted)
        return kept

    def _usable(self, stage: str, key: str, data: bytes) -> StageResult | None:
        """The record in `data`, unless it is another's or names blobs that are gone."""
        where = self._bucket.uri(stage_key(stage, key))
        result = parse_record(StageResult, data, where)
        if (result.stage, result.key) != (stage, key):
            raise RecordInvalidError(
                f"{where} is the record of stage {result.stage!r} with another key",
                field="key",
                value=result.key,
                remedy="It was copied or renamed by hand: delete it and run again",
            )
        missing = self._blobs.missing(result.outputs)
        if missing:
            _log.warning(
                "stage %s counts as not done: the store lacks %d of its %d outputs, such as %s",
                stage,
                len(missing),
                len(result.outputs),
                missing[0].path,
            )
            return None
        return result
