"""Object storage: what the stages made, the engines that were published, the names they go by.

`Store` is all that the rest of trtforge uses. Store layout version 1:

    blobs/sha256/ab/<hex>                        immutable bytes
    stages/<stage>/<key>.json                    stage result, write-once
    leases/<stage>/<key>.json                    who works on a stage now, compare-and-swap
    manifests/<engine id>.json                   one published engine
    aliases/<model>/<gpu>/<backend>/<alias>.json pointer with history, compare-and-swap
    timing/<toolchain key>/head.json             newest timing cache, compare-and-swap
    toolchains/<pool>/<backend>-<variant>.json   what a GPU pool was last seen to compile with
    runs/<run id>/...                            raw benchmark data, reports, logs
    pins/<engine id>.json                        engines that `gc` keeps
    gates/<engine id>/<time>.json                verdicts on engines, and overrides, write-once
    benchmarks/<engine id>/<time>.json           what an engine did when, write-once
    gc/announced/<id>.json, gc/sweep.json        how publishing and `gc` heed each other
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import SecretStr

from trtforge.files import FileRef
from trtforge.progress import OnProgress, ignore
from trtforge.store.aliases import AliasChange, Aliases, AliasMove, AliasRecord
from trtforge.store.blobs import Blobs, PutSummary
from trtforge.store.cache import BlobCache
from trtforge.store.client import Checksums, S3Client, make_client
from trtforge.store.layout import AliasName, manifest_key, run_key
from trtforge.store.leases import Leases
from trtforge.store.manifests import (
    Manifest,
    ManifestCore,
    Manifests,
    ModelIdentity,
    Parents,
    TimingCacheUse,
)
from trtforge.store.objects import Bucket
from trtforge.store.retry import PATIENCE_S
from trtforge.store.sightings import Sightings
from trtforge.store.stages import StageResult, Stages
from trtforge.store.timing import TimingCaches
from trtforge.store.transfer import PART_BYTES

__all__ = [
    "AliasChange",
    "AliasMove",
    "AliasName",
    "AliasRecord",
    "Manifest",
    "ManifestCore",
    "ModelIdentity",
    "Parents",
    "PutSummary",
    "StageResult",
    "Store",
    "TimingCacheUse",
]


class Store:
    """One bucket of an S3 service, and the local cache in front of its blobs.

    May be shared between threads; several processes may share the bucket and the cache. All
    methods raise the errors of `trtforge.store.client` when the service fails
    (`StoreUnreachableError`, `StoreAccessError`, `BucketMissingError`, `StoreFailedError`), those
    that write local files `DiskFullError`, and those that read JSON `UnknownFormatError` and
    `RecordInvalidError`.

    Args:
        client: From `make_client`.
        bucket: Its name; it must exist.
        cache_dir: Directory of the cache, made when needed.
        part_bytes: Size of the parts of multipart uploads; 5 MiB is the least that S3 takes.
        patience_s: How long a service that has answered before is waited for.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        cache_dir: Path,
        *,
        part_bytes: int = PART_BYTES,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.bucket = Bucket(client, bucket, patience_s)
        self.cache = BlobCache(cache_dir)
        self.blobs = Blobs(self.bucket, self.cache, part_bytes)
        self.stages = Stages(self.bucket, self.blobs)
        self.leases = Leases(self.bucket)
        self.manifests = Manifests(self.bucket, self.blobs)
        self.aliases = Aliases(self.bucket, self.manifests)
        self.timing = TimingCaches(self.bucket, self.blobs)
        self.sightings = Sightings(self.bucket)

    @classmethod
    def from_settings(
        cls,
        *,
        endpoint_url: str | None,
        bucket: str,
        cache_dir: Path,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: SecretStr | None = None,
        checksums: Checksums = "when_supported",
        max_attempts: int = 5,
    ) -> "Store":
        """Open a store from plain settings; see `make_client` for their meaning."""
        client = make_client(
            endpoint_url=endpoint_url,
            region=region,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            checksums=checksums,
            max_attempts=max_attempts,
        )
        return cls(client, bucket, cache_dir)

    # Blobs

    def put_file(self, path: Path, ref: FileRef, on_progress: OnProgress = ignore) -> bool:
        """Upload a file as the blob `ref.sha256`; True when it was sent, False when present.

        Present means: with equal size and the digest in its metadata. `trtforge.store.upload`
        tells how a blob is kept from becoming visible with the wrong bytes.

        Raises:
            FileChangedError: The file is not what `ref` says.
            UploadNotKeptError: The service does not hold what it accepted.
        """
        return self.blobs.put_file(path, ref, on_progress)

    def put_bytes(self, data: bytes, path: str) -> FileRef:
        """Upload a few bytes as a blob that the file sets of others will call `path`."""
        return self.blobs.put_bytes(data, path)

    def get_file(
        self,
        sha256: str,
        size_bytes: int,
        dest: Path,
        on_progress: OnProgress = ignore,
        *,
        verify: bool = False,
    ) -> None:
        """Make `dest` the file with these bytes, from the cache or through it.

        `dest` is a hard link to the read-only cache entry where the file system allows it. A
        download is hashed before it enters the cache; one that comes out wrong is done once more.

        Args:
            verify: Hash an entry found in the cache too; a damaged one is downloaded again.

        Raises:
            BlobMissingError: The store has no such blob.
            BlobCorruptError: The stored bytes do not match their name.
        """
        self.blobs.get_file(sha256, size_bytes, dest, on_progress, verify=verify)

    def add_to_cache(self, path: Path, ref: FileRef, on_progress: OnProgress = ignore) -> None:
        """Put a file produced here into the cache, so that it need not be downloaded.

        The file is hashed. Where the file system allows it, the entry is a hard link, and the
        file becomes read-only.

        Raises:
            FileChangedError: The file is not what `ref` says.
        """
        self.cache.add(path, ref, on_progress)

    # File sets

    def put_files(
        self, directory: Path, files: Sequence[FileRef], on_progress: OnProgress = ignore
    ) -> PutSummary:
        """Upload the files of `directory`, each once; see `put_file`."""
        return self.blobs.put_files(directory, files, on_progress)

    def materialise(
        self,
        files: Sequence[FileRef],
        dest: Path,
        *,
        use_cache: bool = True,
        on_progress: OnProgress = ignore,
    ) -> None:
        """Make the directory `dest` with all of `files`; it appears when it is complete.

        Args:
            use_cache: False downloads every byte from the bucket and leaves the cache alone: the
                way to try the published copy.

        Raises:
            DestinationTakenError: `dest` exists and is not an empty directory.
        """
        self.blobs.materialise(files, dest, use_cache=use_cache, on_progress=on_progress)

    # Stages

    def get_stage(self, stage: str, key: str) -> StageResult | None:
        """The result of a stage, if it is done and the bucket holds all its outputs.

        A record with missing outputs counts as none; a warning in the log says which.
        """
        return self.stages.get(stage, key)

    def put_stage(self, result: StageResult, *, replace: bool = False) -> StageResult:
        """Record that a stage is done, and return the record that the store holds afterwards.

        Upload the outputs first. When two builders did the same work, the first one wins and
        both get its record; but a record whose outputs are gone is replaced.

        Args:
            replace: A forced rebuild: this result wins.
        """
        return self.stages.put(result, replace=replace)

    # Manifests

    def publish(
        self, manifest: Manifest, directory: Path, on_progress: OnProgress = ignore
    ) -> Manifest:
        """Publish the engine in `directory`: blobs first, then the manifest.

        The alias comes later, when the published copy has been tried.
        """
        self.put_files(directory, manifest.core.files, on_progress)
        return self.manifests.publish(manifest, directory)

    def publish_manifest(self, manifest: Manifest) -> Manifest:
        """Make an engine visible whose blobs are uploaded; returns the manifest in the store.

        Publishing the same engine again is no error and changes nothing.

        Raises:
            BlobsNotUploadedError: A blob is not in the bucket.
            ManifestConflictError: The store holds something else under this name.
        """
        return self.manifests.publish(manifest)

    def get_manifest(self, engine_id: str) -> Manifest:
        """The manifest of an engine, by its id or the first 6 or more digits of it.

        Raises:
            EngineIdError: Not a text that an id begins with.
            EngineUnknownError: There is none.
            EngineAmbiguousError: There are several.
            ManifestIdError: Its content does not match its id.
        """
        return self.manifests.get(engine_id)

    def manifest_uri(self, engine_id: str) -> str:
        """The `s3://` address of an engine's manifest."""
        return self.bucket.uri(manifest_key(engine_id))

    def list_manifests(self) -> Iterator[Manifest]:
        """All engines, the newest first; unreadable ones are left out with a warning."""
        return self.manifests.newest_first()

    # Aliases

    def set_alias(self, name: AliasName, engine_id: str, *, by: str) -> AliasChange:
        """Point an alias at a published engine.

        Args:
            engine_id: The whole id.
            by: Who moves it, for the history: a run, or a person.

        Raises:
            EngineUnknownError: The engine is not published; the alias is where it was.
            GateNotPassedError: It did not pass its gates, and nobody let it pass.
            ContendedError: Others kept moving the alias.
        """
        return self.aliases.move(name, engine_id, by=by)

    def get_alias(self, name: AliasName) -> AliasRecord | None:
        """Where an alias points, with its history; None when it was never set."""
        return self.aliases.get(name)

    def list_aliases(self, model: str | None = None) -> Iterator[tuple[AliasName, AliasRecord]]:
        """All aliases, or those of one model."""
        return self.aliases.all(model)

    # Timing caches and runs

    def get_timing_cache(self, toolchain_key: str, dest: Path) -> FileRef | None:
        """Make `dest` the newest timing cache of a toolchain, verified.

        None when there is none; also, with a warning, when the stored one is damaged or gone.
        """
        return self.timing.get(toolchain_key, dest)

    def put_timing_cache(
        self, toolchain_key: str, path: Path, *, entries: int | None = None
    ) -> FileRef:
        """Make `path` the newest timing cache; `TimingCaches.put` can merge, too."""
        return self.timing.put(toolchain_key, path, entries=entries)

    def put_run_file(self, run_id: str, name: str, data: bytes) -> str:
        """Keep a file of a run (raw data, report, log); returns its `s3://` address."""
        key = run_key(run_id, name)
        self.bucket.put(key, data, "application/octet-stream")
        return self.bucket.uri(key)

    def get_run_file(self, run_id: str, name: str) -> bytes | None:
        """A file of a run; None when there is none of this name."""
        stored = self.bucket.get(run_key(run_id, name))
        return stored.data if stored else None

    def probe_conditional_writes(self) -> None:
        """Check that the service honours conditional writes; the first use does it by itself.

        Raises:
            ConditionalWritesError: It does not, and aliases would not be safe.
        """
        self.bucket.probe_conditional_writes()
