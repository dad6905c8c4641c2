"""From the text of a source to hashed files in a directory: `resolve`, then `fetch`.

The three kinds give the same `files_digest` for the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from trtforge.errors import TrtforgeError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, ignore
from trtforge.sources import local, s3
from trtforge.sources.landing import Meter, disk_full_explained, hash_arrived, hash_present
from trtforge.sources.resolved import ResolvedSource
from trtforge.sources.uri import HubSource, LocalSource, S3Source, Source, parse_source


def resolve(
    source: Source,
    *,
    token: SecretStr | None = None,
    s3_client: Any = None,
    hub_endpoint: str | None = None,
) -> ResolvedSource:
    """Say what would be fetched, without fetching weights.

    Args:
        token: For the Hub; falls back to HF_TOKEN.
        s3_client: A boto3 S3 client; by default one made from the environment.
        hub_endpoint: Falls back to HF_ENDPOINT, then to https://huggingface.co.

    Raises:
        The error classes of this package; every one names the source and a remedy.
    """
    match source:
        case HubSource():
            # Its client takes a fifth of the time in which a run starts, and few processes need it.
            from trtforge.sources import hub

            return hub.resolve_hub(source, token=token, endpoint=hub_endpoint)
        case LocalSource():
            return local.resolve_local(source)
        case S3Source():
            return s3.resolve_s3(source, client=s3_client)


def fetch(
    resolved: ResolvedSource,
    dest: Path,
    *,
    token: SecretStr | None = None,
    s3_client: Any = None,
    hub_endpoint: str | None = None,
    on_progress: OnProgress = ignore,
) -> list[FileRef]:
    """Put the selected files into `dest` and hash them.

    Call it again with the same arguments after any interruption, `kill -9` included: finished files
    are hashed, not fetched again. One process at a time may work on one `dest`.

    Returns:
        The files, sorted by path; nothing but them is in `dest` unless it was there before.

    Raises:
        The error classes of this package. When one is raised, `dest` may hold some of the files.
    """
    source = parse_source(resolved.uri)
    if isinstance(source, LocalSource):
        local.require_apart(source, dest)
    dest.mkdir(parents=True, exist_ok=True)
    present = hash_present(resolved, dest, on_progress)
    missing = [file for file in resolved.files if file.path not in present]
    if not missing:
        return sorted(present.values())

    meter = Meter(f"fetching {resolved.uri}", resolved.size_bytes, on_progress)
    meter.add(sum(ref.size_bytes for ref in present.values()))
    with disk_full_explained(dest):
        match source:
            case HubSource():
                from trtforge.sources import hub

                hub.download_hub(source, missing, dest, meter, token=token, endpoint=hub_endpoint)
            case LocalSource():
                local.copy_local(source, missing, dest, meter)
            case S3Source():
                s3.download_s3(source, missing, dest, meter, client=s3_client)

    arrived, wrong = hash_arrived(missing, dest, on_progress)
    if wrong:
        for name in wrong:
            (dest / name).unlink(missing_ok=True)
        raise _not_as_resolved(source, wrong)
    if isinstance(source, HubSource):
        from trtforge.sources import hub

        hub.forget_bookkeeping(dest)
    return sorted([*present.values(), *arrived])


def _not_as_resolved(source: Source, names: Sequence[str]) -> TrtforgeError:
    match source:
        case HubSource():
            from trtforge.sources import hub

            return hub.damaged(source, names)
        case LocalSource():
            return local.changed(source, names)
        case S3Source():
            return s3.changed(source, names)
