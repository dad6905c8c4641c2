"""`trtforge logs`: the ends of the logs, and what is added to them, without secrets."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtforge.stack import logs, services
from trtforge.stack import state as stack_state
from trtforge.stack.logs import LogLine, UnknownServiceError
from trtforge.stack.ports import StackPorts
from trtforge.stack.state import PostgresState, S3State, StackState

PASSWORD = "Zx-quite_secret-password"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose services have been running."""
    path = tmp_path_factory.mktemp("home")
    (path / "logs").mkdir()
    s3 = S3State(
        endpoint_url="http://127.0.0.1:8333",
        bucket="trtforge",
        region="us-east-1",
        access_key_id="TF0123456789",
        secret_access_key="Ab-the_secret-key-of-s3",
    )
    state = StackState(
        ports=StackPorts().model_dump(),
        s3=s3,
        postgres=PostgresState(user="u", database="d", password="Cd-password-of-postgres"),
        prefect_api_url="http://127.0.0.1:4200/api",
        prefect_auth=f"trtforge:{PASSWORD}",
    )
    stack_state.write(path, state)
    return path


def log_of(home: Path, slug: str) -> Path:
    (service,) = logs.choose(services(home), slug)
    return service.log_path


def last(home: Path, slug: str | None, count: int) -> list[LogLine]:
    return list(logs.last_lines(home, logs.choose(services(home), slug), count))


@settings(deadline=None)
@given(lines=st.lists(st.text("ab é{}%", max_size=40), max_size=30), count=st.integers(0, 40))
def test_the_last_lines_are_those_of_tail(home: Path, lines: list[str], count: int) -> None:
    log_of(home, "prefect").write_text("".join(f"{line}\n" for line in lines))
    wanted = lines[-count:] if count else []
    assert [line.text for line in last(home, "prefect", count)] == wanted


def test_the_end_of_a_long_log_is_found(home: Path) -> None:
    log_of(home, "prefect").write_text("".join(f"line {n} {'x' * 100}\n" for n in range(5000)))
    assert [line.text.split()[1] for line in last(home, "prefect", 3)] == ["4997", "4998", "4999"]
    assert len(last(home, "prefect", 1000)) == 1000


def test_all_services_are_shown_unless_one_is_named(home: Path) -> None:
    log_of(home, "prefect").write_text("of the server\n")
    log_of(home, "worker-cpu").write_text("\x1b[1mof the worker\x1b[0m\n")
    assert last(home, None, 5) == [
        LogLine("prefect", "of the server"),
        LogLine("worker-cpu", "of the worker"),
    ]
    assert last(home, "worker-cpu", 5) == [LogLine("worker-cpu", "of the worker")]
    log_of(home, "worker-cpu").unlink()


def test_an_unknown_service_is_told_the_known_ones(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownServiceError, match=r"worker.*seaweedfs, postgres.*worker-cpu"):
        logs.choose(services(home), "worker")
    with pytest.raises(UnknownServiceError, match="trtforge up"):
        logs.choose(services(tmp_path), "prefect")


def test_secrets_are_masked(home: Path) -> None:
    log_of(home, "prefect").write_text(
        f"login with {PASSWORD} and Ab-the_secret-key-of-s3 failed\n"
    )
    assert [line.text for line in last(home, "prefect", 1)] == ["login with *** and *** failed"]


def test_what_is_added_is_followed_also_into_a_new_file(home: Path) -> None:
    log = log_of(home, "seaweedfs")
    log.write_text("old\nlast\n")
    lines: Iterator[LogLine] = logs.follow(home, logs.choose(services(home), "seaweedfs"), 1)
    assert next(lines).text == "last"
    with log.open("a") as file:
        file.write("half ")
        file.flush()
        file.write(f"and half\n{PASSWORD}\n")
    assert [line.text for line in islice(lines, 2)] == ["half and half", "***"]
    log.write_text("new\n")
    assert next(lines).text == "new"


def test_the_command_prints_them(home: Path) -> None:
    log_of(home, "prefect").write_text(f"one\ntwo [{PASSWORD}]\n")
    done = subprocess.run(
        [sys.executable, "-m", "trtforge.cli", "logs", "prefect", "-n", "1"],
        env={**os.environ, "TRTFORGE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "two [***]\n"), done.stderr
