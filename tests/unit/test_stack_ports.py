"""The ports of the embedded stack, as the environment and an earlier `trtforge up` say."""

import sys
from pathlib import Path

import pytest

from trtforge import cli
from trtforge.stack import PortInvalidError, PortsOverlapError
from trtforge.stack.ports import StackPorts


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in StackPorts.model_fields:
        monkeypatch.delenv(f"TRTFORGE_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"TRTFORGE_POSTGRES_PORT": "8333"},
            "TRTFORGE_POSTGRES_PORT = 8333: this port is taken by another service of the stack "
            "(TRTFORGE_S3_PORT). Set TRTFORGE_POSTGRES_PORT or TRTFORGE_S3_PORT to another port",
        ),
        (
            {"TRTFORGE_PREFECT_PORT": "5000", "TRTFORGE_SEAWEEDFS_PORT": "4995"},
            "TRTFORGE_PREFECT_PORT = 5000: this port is taken by another service of the stack "
            "(TRTFORGE_SEAWEEDFS_PORT = 4995 takes up to 5001). "
            "Set TRTFORGE_PREFECT_PORT or TRTFORGE_SEAWEEDFS_PORT to another port",
        ),
        (
            {"TRTFORGE_S3_PORT": "https"},
            "TRTFORGE_S3_PORT = 'https': input should be a valid integer, unable to parse string "
            "as an integer. Set TRTFORGE_S3_PORT to a free port, or unset it for the default",
        ),
        (
            {"TRTFORGE_SEAWEEDFS_PORT": "65533"},
            "TRTFORGE_SEAWEEDFS_PORT = '65533': input should be less than or equal to 65529. "
            "Set TRTFORGE_SEAWEEDFS_PORT to a free port, or unset it for the default",
        ),
    ],
)
def test_ports_that_cannot_be_are_one_line_and_nothing_is_started(
    given: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    for name, value in {"TRTFORGE_HOME": str(home), **given}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["trtforge", "up"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == PortsOverlapError.exit_code == PortInvalidError.exit_code
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not (home / "credentials.json").exists()


def test_the_environment_goes_before_what_the_home_used_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = {"s3_port": 9001, "prefect_port": 9002}
    monkeypatch.setenv("TRTFORGE_S3_PORT", "9003")
    ports = StackPorts.for_home(recorded)
    assert (ports.s3_port, ports.prefect_port) == (9003, 9002)
    assert ports.postgres_port == StackPorts().postgres_port


def test_a_port_that_another_service_had_by_default_may_be_used_when_that_one_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default = StackPorts().prefect_port
    monkeypatch.setenv("TRTFORGE_S3_PORT", str(default))
    assert StackPorts.for_home({"prefect_port": 9002}).s3_port == default
