"""Weights from the Hub: revisions, content, interruptions, and each way of being refused."""

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer
from pydantic import SecretStr

from trtforge.errors import InputError, ServiceError, TrtforgeError
from trtforge.files import files_digest
from trtforge.progress import Progress
from trtforge.sources import (
    HubDownloadDamagedError,
    HubForbiddenError,
    HubRateLimitError,
    HubRepositoryNotFoundError,
    HubRevisionNotFoundError,
    HubSource,
    HubTermsNotAcceptedError,
    HubTokenMissingError,
    HubTokenRejectedError,
    HubUnavailableError,
    HubUnreachableError,
    LocalSource,
    NotEnoughDiskError,
    ResolvedSource,
    fetch,
    parse_source,
    resolve,
)

_REPO = "acme/small"
_SOURCE = HubSource(_REPO)
_SECRET = "hf_aVerySecretToken0123456789"
_TOKEN = SecretStr(_SECRET)
_WRONG = SecretStr("hf_aWrongToken9876543210")


def _resolve(hub: HubServer, source: HubSource = _SOURCE) -> ResolvedSource:
    return resolve(source, hub_endpoint=hub.endpoint)


def test_a_branch_is_resolved_to_its_commit(
    hub: HubServer, model: Path, selected: set[str]
) -> None:
    commit = hub.add_commit(_REPO, model, card={"license": "apache-2.0"})
    resolved = _resolve(hub)
    assert resolved.revision == commit
    assert resolved.uri == f"hf://{_REPO}@{commit}"
    assert parse_source(resolved.uri) == HubSource(_REPO, commit)
    assert resolved.licence == "apache-2.0"
    assert {f.path for f in resolved.files} == selected
    assert resolved.size_bytes == sum((model / name).stat().st_size for name in selected)


def test_branches_tags_and_commits_lead_to_the_same_place(hub: HubServer, model: Path) -> None:
    commit = hub.add_commit(_REPO, model, branch="refs/pr/1")
    hub.add_ref(_REPO, "v1.0", commit)
    for revision in ("refs/pr/1", "v1.0", commit):
        assert _resolve(hub, HubSource(_REPO, revision)).revision == commit


def test_a_fetch_stays_at_the_commit_when_the_branch_moves_on(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    model.rename(old)
    hub.add_commit(_REPO, old)
    resolved = _resolve(hub)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    hub.add_commit(_REPO, tmp_path / "new")
    files = fetch(resolved, tmp_path / "dest", hub_endpoint=hub.endpoint)
    assert files_digest(files) == files_digest(fetch(resolve(LocalSource(old)), tmp_path / "x"))


def test_resolving_downloads_no_weights(hub: HubServer, model: Path) -> None:
    hub.add_commit(_REPO, model)
    _resolve(hub)
    assert hub.downloads("model.safetensors") == []


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, None),
        ({"license": "other", "license_name": "acme-1"}, "acme-1"),
        ({"license": ["mit", "apache-2.0"]}, "mit, apache-2.0"),
    ],
)
def test_the_licence_is_what_the_card_says(
    hub: HubServer, model: Path, card: dict[str, object] | None, licence: str | None
) -> None:
    hub.add_commit(_REPO, model, card=card)
    assert _resolve(hub).licence == licence


def test_the_same_bytes_give_the_same_digest_as_a_directory(
    hub: HubServer, model: Path, selected: set[str], tmp_path: Path
) -> None:
    hub.add_commit(_REPO, model)
    from_hub = fetch(_resolve(hub), tmp_path / "hub", hub_endpoint=hub.endpoint)
    from_directory = fetch(resolve(LocalSource(model)), tmp_path / "local")
    assert files_digest(from_hub) == files_digest(from_directory)
    assert {p.name for p in (tmp_path / "hub").iterdir()} == selected


def test_files_that_are_not_the_model_are_never_asked_for(
    hub: HubServer, model: Path, selected: set[str], tmp_path: Path
) -> None:
    hub.add_commit(_REPO, model)
    fetch(_resolve(hub), tmp_path / "dest", hub_endpoint=hub.endpoint)
    asked = {r.path.rpartition("/")[2] for r in hub.requests if "/resolve/" in r.path}
    assert asked == selected


def test_shards_are_chosen_by_the_index_of_the_repository(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "consolidated.safetensors").write_bytes(b"a second copy")
    (model / "model.safetensors.index.json").write_text(
        '{"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}'
    )
    hub.add_commit(_REPO, model)
    files = fetch(_resolve(hub), tmp_path / "dest", hub_endpoint=hub.endpoint)
    weights = {f.path for f in files if "safetensors" in f.path}
    assert weights == {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}


def test_progress_rises_to_the_total(hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.add_commit(_REPO, model)
    resolved = _resolve(hub)
    seen: list[Progress] = []
    fetch(resolved, tmp_path / "dest", hub_endpoint=hub.endpoint, on_progress=seen.append)
    for what in (f"fetching {resolved.uri}", "hashing"):
        done = [p.done for p in seen if p.what == what]
        assert done == sorted(done)
        assert done[-1] == resolved.size_bytes


def _with_big_weights(model: Path, data_bytes: int) -> None:
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (data_bytes, data_bytes)
    content = len(header).to_bytes(8, "little") + header + b"\x5a" * data_bytes
    (model / "model.safetensors").write_bytes(content)


def test_a_dropped_connection_goes_on_where_it_broke(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    # huggingface_hub writes in pieces of 10 MiB; what is shorter when it breaks is asked for again.
    _with_big_weights(model, 24 << 20)
    hub.add_commit(_REPO, model)
    hub.drop_connection("model.safetensors", after_bytes=23 << 20)
    files = fetch(_resolve(hub), tmp_path / "dest", hub_endpoint=hub.endpoint)
    ranges = [r.range for r in hub.downloads("model.safetensors")]
    assert ranges == [None, f"bytes={20 << 20}-"]
    assert files_digest(files) == files_digest(fetch(resolve(LocalSource(model)), tmp_path / "x"))


class _Killed(BaseException):
    pass


def test_a_second_call_fetches_only_what_the_first_did_not_finish(
    hub: HubServer, model: Path, selected: set[str], tmp_path: Path
) -> None:
    _with_big_weights(model, 24 << 20)
    hub.add_commit(_REPO, model)
    resolved = _resolve(hub)
    dest = tmp_path / "dest"

    def die_in_the_middle(progress: Progress) -> None:
        if progress.what.startswith("fetching") and progress.done > 15 << 20:
            raise _Killed

    with pytest.raises(_Killed):
        fetch(resolved, dest, hub_endpoint=hub.endpoint, on_progress=die_in_the_middle)
    finished = {p.name for p in dest.iterdir() if p.is_file()}
    assert "model.safetensors" not in finished
    orphan = dest / ".cache/huggingface/download/of-a-killed-process.incomplete"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"half")

    hub.requests.clear()
    files = fetch(resolved, dest, hub_endpoint=hub.endpoint)
    assert {f.path for f in files} == selected
    assert {p.name for p in dest.iterdir()} == selected
    for name in finished:
        assert hub.downloads(name) == []


def test_a_complete_copy_needs_no_network(hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.add_commit(_REPO, model)
    resolved = _resolve(hub)
    files = fetch(resolved, tmp_path / "dest", hub_endpoint=hub.endpoint)
    hub.stop()
    assert fetch(resolved, tmp_path / "dest", hub_endpoint=hub.endpoint) == files


def test_files_of_another_commit_are_replaced(hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.add_commit(_REPO, model)
    fetch(_resolve(hub), tmp_path / "dest", hub_endpoint=hub.endpoint)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    hub.add_commit(_REPO, model)
    files = fetch(_resolve(hub), tmp_path / "dest", hub_endpoint=hub.endpoint)
    assert files_digest(files) == files_digest(fetch(resolve(LocalSource(model)), tmp_path / "x"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_content_than_the_hub_states_is_refused_and_removed(
    hub: HubServer, model: Path, tmp_path: Path, name: str
) -> None:
    hub.add_commit(_REPO, model)
    content = (model / name).read_bytes()
    hub.serve_instead(name, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(HubDownloadDamagedError, match=name):
        fetch(_resolve(hub), tmp_path / "dest", hub_endpoint=hub.endpoint)
    assert not (tmp_path / "dest" / name).exists()


def test_a_full_disk_is_told_before_the_download(
    hub: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_commit(_REPO, model)
    resolved = _resolve(hub)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(NotEnoughDiskError, match=rf"{resolved.size_bytes} bytes.*1000 are free"):
        fetch(resolved, tmp_path / "dest", hub_endpoint=hub.endpoint)
    assert hub.downloads("model.safetensors") == []


def _missing_repository(hub: HubServer, _: Path) -> None:
    hub.tokens[_SECRET] = set()


def _missing_revision(hub: HubServer, model: Path) -> None:
    hub.tokens[_SECRET] = set()
    hub.add_commit(_REPO, model, branch="only-this-one")


def _private(hub: HubServer, model: Path) -> None:
    hub.tokens[_SECRET] = set()
    hub.add_commit(_REPO, model, private=True)


def _gated(hub: HubServer, model: Path) -> None:
    hub.tokens[_SECRET] = set()
    hub.add_commit(_REPO, model, gated=True)


def _open(hub: HubServer, model: Path) -> None:
    hub.add_commit(_REPO, model)


def _failing_with(status: int) -> Callable[[HubServer, Path], None]:
    return lambda hub, _: hub.fail(status)


def _stopped(hub: HubServer, _: Path) -> None:
    hub.stop()


@pytest.mark.parametrize(
    ("given", "token", "error", "family", "remedy"),
    [
        (_missing_repository, None, HubRepositoryNotFoundError, InputError, "spelling"),
        (_missing_repository, _TOKEN, HubRepositoryNotFoundError, InputError, "spelling"),
        (_private, None, HubRepositoryNotFoundError, InputError, "set HF_TOKEN"),
        (_private, _TOKEN, HubRepositoryNotFoundError, InputError, "account that can read"),
        (_missing_revision, None, HubRevisionNotFoundError, InputError, "leave @ out"),
        (_gated, None, HubTokenMissingError, InputError, "set HF_TOKEN"),
        (_gated, _TOKEN, HubTermsNotAcceptedError, InputError, "with the account the token"),
        (_open, _WRONG, HubTokenRejectedError, InputError, "expired or been revoked"),
        (_gated, _WRONG, HubTokenRejectedError, InputError, "expired or been revoked"),
        (_open, SecretStr('hf_a"b\nc'), HubTokenRejectedError, InputError, "Copy it again"),
        (_failing_with(403), _TOKEN, HubForbiddenError, InputError, "read access"),
        (_failing_with(429), None, HubRateLimitError, ServiceError, "Wait some minutes"),
        (_failing_with(500), None, HubUnavailableError, ServiceError, "Try again later"),
        (_failing_with(503), None, HubUnavailableError, ServiceError, "Try again later"),
        (_failing_with(200), None, HubUnavailableError, ServiceError, "own page"),
        (_stopped, None, HubUnreachableError, ServiceError, "HF_ENDPOINT"),
    ],
)
def test_each_refusal_has_its_class_and_its_remedy_and_never_shows_the_token(
    hub: HubServer,
    model: Path,
    given: Callable[[HubServer, Path], None],
    token: SecretStr | None,
    error: type[TrtforgeError],
    family: type[TrtforgeError],
    remedy: str,
) -> None:
    given(hub, model)
    with pytest.raises(error) as caught:
        resolve(_SOURCE, token=token, hub_endpoint=hub.endpoint)
    assert isinstance(caught.value, family)
    assert (caught.value.field, caught.value.value) == ("model.source", _SOURCE.uri)
    assert remedy in caught.value.remedy
    if token is not None:
        shown = repr(caught.value) + "".join(traceback.format_exception(caught.value))
        assert token.get_secret_value() not in shown


def test_gated_terms_are_accepted_at_the_page_of_the_model(hub: HubServer, model: Path) -> None:
    _gated(hub, model)
    with pytest.raises(HubTermsNotAcceptedError, match=f"{hub.endpoint}/{_REPO}"):
        resolve(_SOURCE, token=_TOKEN, hub_endpoint=hub.endpoint)


def test_an_accepted_account_fetches_a_gated_model_and_the_token_is_not_logged(
    hub: HubServer, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _gated(hub, model)
    hub.tokens[_SECRET] = {_REPO}
    resolved = resolve(_SOURCE, token=_TOKEN, hub_endpoint=hub.endpoint)
    fetch(resolved, tmp_path / "dest", token=_TOKEN, hub_endpoint=hub.endpoint)
    assert all(r.authenticated for r in hub.requests)
    assert _SECRET not in caplog.text
    assert _SECRET not in repr(resolved)
    for path in (tmp_path / "dest").rglob("*"):
        assert path.is_dir() or _SECRET.encode() not in path.read_bytes()


def test_token_and_endpoint_fall_back_to_the_environment(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gated(hub, model)
    hub.tokens[_SECRET] = {_REPO}
    monkeypatch.setenv("HF_TOKEN", f"{_SECRET}\n")
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    assert resolve(_SOURCE).kind == "hub"


def test_access_lost_between_resolving_and_fetching_is_told_the_same_way(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    _gated(hub, model)
    hub.tokens[_SECRET] = {_REPO}
    resolved = resolve(_SOURCE, token=_TOKEN, hub_endpoint=hub.endpoint)
    with pytest.raises(HubTokenMissingError):
        fetch(resolved, tmp_path / "dest", hub_endpoint=hub.endpoint)


def test_a_hub_that_is_gone_when_fetching_starts_is_told_at_once(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    hub.add_commit(_REPO, model)
    resolved = _resolve(hub)
    hub.stop()
    with pytest.raises(HubUnreachableError, match="cannot be reached"):
        fetch(resolved, tmp_path / "dest", hub_endpoint=hub.endpoint)


def test_offline_mode_is_named(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_commit(_REPO, model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ServiceError, match="Unset HF_HUB_OFFLINE"):
        _resolve(hub)
