"""What the settings make of the environment and of the embedded stack's credentials."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from trtforge.settings import (
    PrefectNotConfiguredError,
    SettingInvalidError,
    Settings,
    load_settings,
    prefect_environment,
)
from trtforge.stack import state as stack_state
from trtforge.stack.state import PostgresState, S3State, StackState

STACK_API = "http://127.0.0.1:4200/api"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which `trtforge up` ran."""
    monkeypatch.setenv("TRTFORGE_HOME", str(tmp_path))
    stack_state.write(
        tmp_path,
        StackState(
            ports={},
            s3=S3State(
                endpoint_url="http://127.0.0.1:8333",
                bucket="trtforge",
                region="us-east-1",
                access_key_id="id",
                secret_access_key="s3 key",
            ),
            postgres=PostgresState(user="u", database="d", password="postgres password"),
            prefect_api_url=STACK_API,
            prefect_auth="trtforge:of-the-stack",
        ),
    )
    return tmp_path


def login() -> str:
    return prefect_environment(load_settings())["PREFECT_API_AUTH_STRING"]


def test_the_embedded_server_is_talked_to_with_its_own_login(home: Path) -> None:
    environment = prefect_environment(load_settings())
    assert environment["PREFECT_API_URL"] == STACK_API
    assert environment["PREFECT_API_AUTH_STRING"] == "trtforge:of-the-stack"
    assert "of-the-stack" not in repr(load_settings())
    assert "of-the-stack" not in repr(stack_state.read(home))


@pytest.mark.usefixtures("home")
def test_naming_the_embedded_server_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", STACK_API)
    assert login() == "trtforge:of-the-stack"


@pytest.mark.usefixtures("home")
def test_the_embedded_login_is_not_sent_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTFORGE_PREFECT_API_URL", "https://prefect.example/api")
    assert login() == ""


@pytest.mark.usefixtures("home")
def test_a_login_for_another_server_is_not_sent_to_the_embedded_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:elsewhere")
    assert login() == "trtforge:of-the-stack"


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("variable", ["TRTFORGE_PREFECT_AUTH", "PREFECT_API_AUTH_STRING"])
def test_another_server_and_its_login_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    monkeypatch.setenv(variable, "me:there")
    assert login() == "me:there"
    assert "there" not in repr(load_settings().prefect_auth)


def test_a_home_from_before_there_were_logins_stays_readable(home: Path) -> None:
    state = stack_state.read(home)
    assert state is not None
    document = state.model_dump()
    del document["prefect_auth"]
    stack_state.write_private_json(home / stack_state.FILE_NAME, document)
    assert load_settings().prefect_api_url == STACK_API
    assert login() == ""


def test_without_a_server_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrefectNotConfiguredError, match=r"trtforge up.*TRTFORGE_PREFECT_API_URL"):
        prefect_environment(Settings(home=tmp_path))


def test_a_server_without_login_is_not_sent_the_callers(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, prefect_api_url="http://127.0.0.1:1/api")
    assert prefect_environment(settings)["PREFECT_API_AUTH_STRING"] == ""
    given = settings.model_copy(update={"prefect_auth": SecretStr("me:mine")})
    assert prefect_environment(given)["PREFECT_API_AUTH_STRING"] == "me:mine"


def test_a_wrong_variable_is_named_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTFORGE_S3_MAX_ATTEMPTS", "none")
    with pytest.raises(SettingInvalidError, match=r"TRTFORGE_S3_MAX_ATTEMPTS.*none"):
        load_settings()
