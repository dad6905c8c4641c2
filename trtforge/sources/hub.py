"""Weights from the Hugging Face Hub, through huggingface_hub.

Files are taken one by one with `hf_hub_download` rather than `snapshot_download`, which is the same
call behind a second listing of the repository, and which hands back an incomplete directory without
an error when the Hub cannot be reached.
"""

import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.hf_api import RepoSibling
from pydantic import SecretStr

from trtforge.sources.hub_client import ANSWER_TIMEOUT_S, connect, explained
from trtforge.sources.hub_errors import HubAccess, HubDownloadDamagedError, not_the_hub
from trtforge.sources.landing import Meter, require_free_space
from trtforge.sources.model_card import licence_id
from trtforge.sources.resolved import ResolvedSource, SourceFile
from trtforge.sources.selection import CONFIG, select_files
from trtforge.sources.uri import FIELD, HubSource

_PARALLEL_FILES = 4
_BOOKKEEPING = Path(".cache", "huggingface")


def resolve_hub(
    source: HubSource, *, token: SecretStr | None = None, endpoint: str | None = None
) -> ResolvedSource:
    """Resolve branch or tag to a commit, choose the files, and prove that they may be read.

    The list of a gated model's files is public, so one file is asked for as well: whoever lacks
    access is told now, not after a GPU has been taken.

    Raises:
        The classes of `trtforge.sources.hub_errors` and `trtforge.sources.selection`.
    """
    api, access = connect(source, token, endpoint)
    try:
        with explained(access):
            info = api.model_info(
                source.repo_id,
                revision=source.revision,
                files_metadata=True,
                timeout=ANSWER_TIMEOUT_S,
            )
    except (ValueError, KeyError):
        raise not_the_hub(access) from None
    if not info.sha or any(sibling.size is None for sibling in info.siblings or []):
        raise not_the_hub(access)
    commit = info.sha
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    if CONFIG in siblings:
        _require_readable(api, access, commit)
    names = select_files(siblings, lambda name: _read(api, access, commit, name), source=source.uri)
    card: Any = info.card_data
    return ResolvedSource(
        kind="hub",
        uri=HubSource(source.repo_id, commit).uri,
        revision=commit,
        files=tuple(_source_file(siblings[name]) for name in names),
        licence=licence_id(card.get("license"), card.get("license_name")) if card else None,
    )


def download_hub(
    source: HubSource,
    files: Sequence[SourceFile],
    dest: Path,
    meter: Meter,
    *,
    token: SecretStr | None = None,
    endpoint: str | None = None,
) -> None:
    """Download `files` at the commit `source.revision` into `dest`.

    A dropped connection is continued at the byte where it broke. A process that was killed leaves
    its finished files; huggingface_hub starts the unfinished ones again.

    Raises:
        NotEnoughDiskError, and the classes of `trtforge.sources.hub_errors`.
    """
    api, access = connect(source, token, endpoint)
    # Without this the first request would be one that huggingface_hub retries for a minute.
    _require_readable(api, access, source.revision)
    _remove_orphans(dest)
    require_free_space(dest, sum(file.size_bytes for file in files))
    stop = Event()

    def download(file: SourceFile) -> None:
        with explained(access):
            api.hf_hub_download(
                source.repo_id,
                file.path,
                revision=source.revision,
                local_dir=dest,
                etag_timeout=ANSWER_TIMEOUT_S,
                tqdm_class=_bar_class(meter, stop),
            )

    with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="hub") as pool:
        # Big files first, so that the last minutes are not spent on one of them alone.
        ordered = sorted(files, key=lambda file: file.size_bytes, reverse=True)
        _await_all([pool.submit(download, file) for file in ordered], stop)


def forget_bookkeeping(dest: Path) -> None:
    """Remove what huggingface_hub keeps beside a finished download."""
    shutil.rmtree(dest / _BOOKKEEPING, ignore_errors=True)
    cache = dest / _BOOKKEEPING.parent
    if cache.is_dir() and not any(cache.iterdir()):
        cache.rmdir()


def damaged(source: HubSource, names: Sequence[str]) -> HubDownloadDamagedError:
    """For files whose content is not what the Hub stated."""
    return HubDownloadDamagedError(
        f"{', '.join(names)} arrived with other content than the Hub states, and was removed",
        field=FIELD,
        value=source.uri,
        remedy="Run again; if it happens twice, a proxy or a mirror is changing files",
    )


def _require_readable(api: HfApi, access: HubAccess, commit: str) -> None:
    url = hf_hub_url(access.source.repo_id, CONFIG, revision=commit, endpoint=access.endpoint)
    with explained(access):
        get_hf_file_metadata(
            url, token=api.token, timeout=ANSWER_TIMEOUT_S, endpoint=access.endpoint
        )


def _read(api: HfApi, access: HubAccess, commit: str, name: str) -> bytes:
    with TemporaryDirectory() as directory, explained(access):
        path = api.hf_hub_download(
            access.source.repo_id, name, revision=commit, local_dir=directory
        )
        return Path(str(path)).read_bytes()


def _source_file(sibling: RepoSibling) -> SourceFile:
    fingerprint = ""
    if sibling.lfs is not None:
        fingerprint = f"sha256:{sibling.lfs.sha256}"
    elif sibling.blob_id:
        fingerprint = f"git-sha1:{sibling.blob_id}"
    return SourceFile(sibling.rfilename, sibling.size or 0, fingerprint)


def _remove_orphans(dest: Path) -> None:
    # Left by a process that was killed; their names are unique to it, so nobody continues them.
    for path in (dest / _BOOKKEEPING).rglob("*.incomplete"):
        path.unlink(missing_ok=True)


def _await_all(downloads: Sequence[Future[None]], stop: Event) -> None:
    try:
        for done in as_completed(downloads):
            done.result()
    except BaseException as error:
        for download in downloads:
            download.cancel()
        # A failure lets the files under way finish: their bytes would be lost. Ctrl-C does not.
        if not isinstance(error, Exception):
            stop.set()
        raise


class _StoppedError(Exception):
    """Ends a download whose user has gone."""


def _bar_class(meter: Meter, stop: Event) -> type:
    """What huggingface_hub takes for a class of tqdm bars; `update` is all that means something."""

    class Bar:
        def __init__(self, **_: object) -> None:
            pass

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise _StoppedError
            meter.add(int(n or 0))

        # Its presence says that this bar takes both figures of a Xet download: bytes written, which
        # count, and bytes received; otherwise a second bar would be made and counted as well.
        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_postfix_str(self, _: str, refresh: bool = False) -> None:
            pass

        def set_transfer_postfix_str(self, _: str, refresh: bool = False) -> None:
            pass

        def close(self) -> None:
            pass

    return Bar
