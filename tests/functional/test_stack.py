"""`trtforge up` and `down`, with the real services.

The module has a stack of its own, as it kills parts of it; the tests share it.
"""

import atexit
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
from forge import prefect_http, write_spec

from trtforge.settings import (
    StorageNotConfiguredError,
    load_settings,
    prefect_environment,
)
from trtforge.stack import (
    PortTakenError,
    StackInfo,
    StackMovedError,
    StackPorts,
    down,
    status,
    up,
)
from trtforge.stack import process as processes
from trtforge.stack import state as stack_state
from trtforge.stack.state import StackState

NAMES = {"S3 (SeaweedFS)", "PostgreSQL", "Prefect server"}
WORKERS = {"CPU worker", "GPU stand-in worker"}


def new_home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="trtforge-up-"))
    # As root, PostgreSQL runs as another user, who has to get in.
    home.chmod(0o711)
    return home


@pytest.fixture(scope="module")
def own() -> Iterator[StackInfo]:
    home = new_home()
    atexit.register(down, home)
    try:
        yield up(home, StackPorts.free(), workers=False)
    finally:
        down(home)
        atexit.unregister(down)
        shutil.rmtree(home)


def pids(home: Path) -> dict[str, int | None]:
    return {service.name: service.pid for service in status(home) if service.name in NAMES}


def tree(home: Path) -> list[psutil.Process]:
    leaders = [psutil.Process(pid) for pid in pids(home).values() if pid is not None]
    return [p for leader in leaders for p in (leader, *leader.children(recursive=True))]


def load_home(info: StackInfo) -> StackState:
    state = stack_state.read(info.home)
    assert state is not None
    return state


def prefect_password(info: StackInfo) -> str:
    return str(load_home(info).prefect_auth).partition(":")[2]


def s3_of(info: StackInfo) -> Any:
    state = json.loads(info.credentials_path.read_text())["s3"]
    return boto3.client(
        "s3",
        endpoint_url=state["endpoint_url"],
        region_name=state["region"],
        aws_access_key_id=state["access_key_id"],
        aws_secret_access_key=state["secret_access_key"],
    )


def test_every_service_is_healthy_after_up_and_workers_were_not_asked_for(own: StackInfo) -> None:
    assert set(own.started) == NAMES
    states = {service.name: service.state for service in status(own.home)}
    assert states == dict.fromkeys(NAMES, "healthy") | dict.fromkeys(WORKERS, "stopped")
    logs = [service.log_path for service in status(own.home) if service.name in NAMES]
    assert all(log.stat().st_size > 0 for log in logs)


def test_it_listens_on_loopback_only(own: StackInfo) -> None:
    listening = [
        connection.laddr.ip
        for process in tree(own.home)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 10
    assert set(listening) == {"127.0.0.1"}


def test_credentials_are_for_the_owner_only(own: StackInfo) -> None:
    secrets = [own.credentials_path, *(own.home / "run").glob("*identities*")]
    assert len(secrets) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    for private in ("s3", "prefect", "logs", "run", "postgres/data"):
        assert stat.S_IMODE((own.home / private).stat().st_mode) == 0o700


def test_no_secret_is_on_a_command_line(own: StackInfo) -> None:
    state = json.loads(own.credentials_path.read_text())
    for process in tree(own.home):
        shown = " ".join(process.cmdline())
        assert state["s3"]["secret_access_key"] not in shown
        assert state["postgres"]["password"] not in shown
        assert state["prefect_auth"].partition(":")[2] not in shown


def test_the_ui_is_told_where_its_api_is_and_nothing_is_reported_home(own: StackInfo) -> None:
    settings = httpx.get(f"{own.prefect_ui_url}/ui-settings").raise_for_status().json()
    assert settings["api_url"] == own.prefect_api_url
    with prefect_http(own) as http:
        server = http.get("admin/settings").raise_for_status().json()["server"]
    assert server["analytics_enabled"] is False
    assert server["ui"]["show_promotional_content"] is False
    assert server["concurrency"]["lease_storage"].endswith("lease_storage.filesystem")


def test_the_prefect_api_is_for_those_who_know_its_password(own: StackInfo) -> None:
    api, password = own.prefect_api_url, prefect_password(own)
    body = {"name": "theirs", "value": "1"}
    for guess in (None, ("trtforge", "guess")):
        for path in ("variables/name/theirs", "csrf-token?client=me", "admin/settings"):
            assert httpx.get(f"{api}/{path}", auth=guess).status_code == 401
    # A page in the browser of somebody who is logged in does not know the token.
    forged = httpx.post(f"{api}/variables/", json=body, auth=("trtforge", password))
    assert (forged.status_code, forged.json()["detail"]) == (403, "Missing CSRF token.")
    with prefect_http(own) as http:
        assert http.get("variables/name/theirs").status_code == 404
        assert http.post("variables/filter", json={}).status_code == 200


def test_other_origins_are_not_let_in_by_cors(own: StackInfo) -> None:
    def allowed(origin: str) -> str | None:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = httpx.options(f"{own.prefect_api_url}/flow_runs/filter", headers=asked)
        return answer.headers.get("access-control-allow-origin")

    assert allowed(own.prefect_ui_url) == own.prefect_ui_url
    assert allowed("http://evil.example") is None


def test_a_home_of_an_older_version_gets_a_password_and_a_server_that_asks_for_it(
    own: StackInfo,
) -> None:
    state = json.loads(own.credentials_path.read_text())
    del state["prefect_auth"]
    own.credentials_path.write_text(json.dumps(state))
    assert load_home(own).prefect_auth is None
    again = up(own.home, workers=False)
    assert again.started == ("Prefect server",)
    assert load_home(own).prefect_auth is not None
    prefect_http(own).close()


def test_objects_cannot_be_read_past_the_s3_api(own: StackInfo) -> None:
    s3_of(own).put_object(Bucket=own.s3_bucket, Key="private", Body=b"x")
    (seaweedfs,) = (s for s in status(own.home) if "S3" in s.name)
    ports = json.loads(own.credentials_path.read_text())["ports"]
    filer = ports["seaweedfs_port"] + 4
    assert seaweedfs.healthy
    assert httpx.get(f"http://127.0.0.1:{filer}/buckets/{own.s3_bucket}/private").status_code == 401


def test_a_second_up_starts_nothing(own: StackInfo) -> None:
    before = pids(own.home)
    lines: list[str] = []
    again = up(own.home, announce=lines.append, workers=False)
    assert again.started == ()
    assert pids(own.home) == before
    assert again.prefect_api_url == own.prefect_api_url
    assert len(lines) == len(NAMES)
    assert all("is running" in line for line in lines)


def test_two_ups_at_once_start_each_service_once(own: StackInfo) -> None:
    down(own.home)
    infos: list[StackInfo] = []
    threads = [
        threading.Thread(target=lambda: infos.append(up(own.home, workers=False))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = sorted(infos, key=lambda info: len(info.started))
    assert [set(info.started) for info in started] == [set(), NAMES]


@pytest.mark.parametrize("killed", sorted(NAMES))
def test_a_killed_service_alone_is_started_again_with_its_data(own: StackInfo, killed: str) -> None:
    body = os.urandom(5_000_000)
    s3_of(own).put_object(Bucket=own.s3_bucket, Key="kept", Body=body)
    variable = {"name": f"kept_{uuid.uuid4().hex}", "value": "yes"}
    prefect_http(own).post("variables/", json=variable).raise_for_status()
    before = pids(own.home)
    os.kill(before[killed] or 0, signal.SIGKILL)
    assert {s.name: s.state for s in status(own.home)}[killed] == "dead"
    assert up(own.home, workers=False).started == (killed,)
    after = pids(own.home)
    assert [name for name in NAMES if after[name] != before[name]] == [killed]
    assert s3_of(own).get_object(Bucket=own.s3_bucket, Key="kept")["Body"].read() == body
    answer = prefect_http(own).get(f"variables/name/{variable['name']}").raise_for_status()
    assert answer.json()["value"] == "yes"


def test_a_service_whose_pid_file_was_lost_is_found_again(own: StackInfo) -> None:
    before = pids(own.home)
    (own.home / "run" / "seaweedfs.json").unlink()
    assert up(own.home, workers=False).started == ()
    assert pids(own.home) == before


def test_a_recycled_pid_is_neither_believed_nor_killed(tmp_path: Path) -> None:
    bystander = psutil.Popen(["sleep", "60"], start_new_session=True)
    try:
        pid_file = tmp_path / "service.json"
        record = {"pid": bystander.pid, "created_s": bystander.create_time() - 100}
        pid_file.write_text(json.dumps(record))
        assert processes.find(pid_file, "no such mark") is None
        processes.stop(pid_file, "no such mark", first_signal=signal.SIGTERM, grace_s=1)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"TRTFORGE_PREFECT_AUTH": "trtforge:not-the-one"},
            "prefect_auth = '***': the Prefect server {url} answers, but does not accept this",
        ),
        (
            {"TRTFORGE_PREFECT_AUTH": ""},
            "prefect_auth = None: the Prefect server {url} answers, but asks for a login",
        ),
        (
            {"TRTFORGE_PREFECT_API_URL": "http://127.0.0.1:9/api"},
            "prefect_api_url = 'http://127.0.0.1:9/api': no answer from the Prefect server",
        ),
    ],
)
def test_a_build_tells_a_wrong_login_from_a_server_that_is_away(
    own: StackInfo, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    state = stack_state.read(own.home)
    assert state is not None
    spec = write_spec(tmp_path / "spec.yaml", tmp_path / "no-model-is-looked-at")
    done = subprocess.run(
        [sys.executable, "-m", "trtforge.cli", "build", spec],
        env={
            **os.environ,
            # Another home: of this one the login would be known.
            "TRTFORGE_HOME": str(tmp_path / "home"),
            "TRTFORGE_S3_BUCKET": own.s3_bucket,
            "TRTFORGE_PREFECT_API_URL": own.prefect_api_url,
            "TRTFORGE_PREFECT_AUTH": str(state.prefect_auth),
            **changed,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {said.format(url=own.prefect_api_url)}")
    assert done.stderr.count("\n") == 1
    assert "not-the-one" not in done.stderr


def test_other_ports_are_refused_while_it_runs(own: StackInfo) -> None:
    with pytest.raises(StackMovedError, match="trtforge down"):
        up(own.home, StackPorts.free(), workers=False)


def test_a_taken_port_is_named_with_its_holder_and_nothing_is_started() -> None:
    home, ports = new_home(), StackPorts.free()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", ports.postgres_port))
        holder.listen()
        try:
            with pytest.raises(PortTakenError) as caught:
                up(home, ports, workers=False)
        finally:
            running = [s for s in status(home) if s.running]
            down(home)
            shutil.rmtree(home)
    message = str(caught.value)
    for part in ("PostgreSQL", str(ports.postgres_port), f"pid {os.getpid()}"):
        assert part in message
    assert "TRTFORGE_POSTGRES_PORT" in message
    assert running == []


def test_settings_come_from_the_stack_of_the_home(
    own: StackInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTFORGE_HOME", str(own.home))
    settings = load_settings()
    assert settings.s3_endpoint_url == own.s3_endpoint_url
    assert settings.require_bucket() == own.s3_bucket
    assert prefect_environment(settings)["PREFECT_API_URL"] == own.prefect_api_url
    secret = json.loads(own.credentials_path.read_text())["s3"]["secret_access_key"]
    assert settings.s3_secret_access_key is not None
    assert settings.s3_secret_access_key.get_secret_value() == secret
    assert secret not in repr(settings)


def test_the_embedded_keys_are_not_sent_to_an_endpoint_of_the_environment(
    own: StackInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTFORGE_HOME", str(own.home))
    monkeypatch.setenv("TRTFORGE_S3_BUCKET", "elsewhere")
    settings = load_settings()
    assert settings.require_bucket() == "elsewhere"
    assert settings.s3_endpoint_url is None
    assert settings.s3_secret_access_key is None


def test_without_stack_and_environment_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.home == tmp_path / ".trtforge"
    with pytest.raises(StorageNotConfiguredError, match=r"trtforge up.*TRTFORGE_S3_BUCKET"):
        settings.require_bucket()


def test_down_leaves_no_process_and_may_be_repeated(own: StackInfo) -> None:
    everything = tree(own.home)
    assert len(everything) > len(NAMES)
    down(own.home)
    down(own.home)
    assert [process for process in everything if processes.alive(process)] == []
    assert [s.name for s in status(own.home) if s.running or s.healthy] == []
    assert list((own.home / "run").glob("*.json")) == [own.home / "run" / "s3-identities.json"]
