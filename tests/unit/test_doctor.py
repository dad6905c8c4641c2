"""What `trtforge doctor` says: right, helpful, never waiting for ever, and no secrets."""

import base64
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from trtforge.cli import app
from trtforge.doctor import Finding, Report, examine
from trtforge.doctor.containers import check_containers
from trtforge.doctor.examine import run_checks
from trtforge.doctor.gpus import check_gpus
from trtforge.doctor.services import check_prefect, check_storage
from trtforge.doctor.toolchains import check_aoti, check_trtllm
from trtforge.engines.gpu import GpuModel, LocalGpus
from trtforge.prefect_login import without_credentials
from trtforge.settings import Settings

NO_GPU = LocalGpus(absence="NVML cannot be used: NVML Shared Library Not Found")
H100 = LocalGpus((GpuModel("NVIDIA H100 80GB HBM3", "9.0", 85_520_809_984, 2),), "580.82.07")
STANDIN = Path(__file__).parents[1] / "standin" / "bin" / "python"
SECRET = "no-eyes-but-mine"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Nothing is configured."""
    return Settings(home=tmp_path / "home")


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


class TestGpus:
    def test_a_machine_without_one_says_who_needs_it_and_how_to_get_there(self) -> None:
        finding = only(check_gpus(NO_GPU))
        assert (finding.status, finding.detail) == ("missing", "no NVIDIA driver is installed")
        for text in ("aoti does not", "driver", "--gpus all", "Container Toolkit"):
            assert text in finding.remedy

    def test_gpus_are_named_with_their_memory_and_number(self) -> None:
        gpu, driver = check_gpus(H100)[:2]
        assert gpu.detail == "2 × NVIDIA H100 80GB HBM3, 85.5 GB, compute capability 9.0"
        assert (gpu.status, driver.status) == ("ok", "ok")

    def test_what_tensorrt_llm_cannot_use_is_warned_of(self) -> None:
        old = LocalGpus((GpuModel("Tesla T4", "7.5", 16 << 30),), "550.54.15")
        gpu, driver = check_gpus(old)[:2]
        assert (gpu.status, driver.status) == ("warning", "warning")
        assert "8.0 (Ampere)" in gpu.remedy
        assert "needs driver 580 or newer" in driver.remedy


class TestToolchains:
    def test_aoti_is_found_with_its_versions(self, settings: Settings) -> None:
        finding = only(check_aoti(settings))
        assert finding.status == "ok"
        assert finding.detail.startswith("PyTorch ")
        assert "g++" in finding.detail

    def test_an_interpreter_that_does_not_exist_is_named(self, tmp_path: Path) -> None:
        nowhere = tmp_path / "nowhere" / "python"
        finding = only(check_aoti(Settings(toolchain_python=nowhere)))
        assert finding.status == "missing"
        assert "python of the environment" in finding.remedy

    def test_without_tensorrt_llm_it_says_the_three_ways_to_get_it(
        self, settings: Settings
    ) -> None:
        finding = only(check_trtllm(settings, NO_GPU))
        assert finding.status == "missing"
        for text in ("trtforge image build gpu", "pypi.nvidia.com", "TRTFORGE_TRTLLM_PYTHON"):
            assert text in finding.remedy

    def test_an_interpreter_without_tensorrt_llm_is_said_to_lack_it(self) -> None:
        wrong = Settings(trtllm_python=Path(sys.executable))
        finding = only(check_trtllm(wrong, NO_GPU))
        assert finding.status == "missing"
        assert finding.detail.endswith("has no tensorrt_llm")
        assert "trtforge image build gpu" in finding.remedy

    def test_tensorrt_llm_on_a_machine_without_gpu_is_told_apart_from_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.standin(monkeypatch, gpus=0)
        finding = only(check_trtllm(Settings(trtllm_python=STANDIN), NO_GPU))
        assert finding.status == "missing"
        assert "is installed" in finding.detail
        assert finding.remedy == "Run it on a machine with an NVIDIA GPU"

    def test_the_stand_in_of_the_tests_never_passes_for_the_real_thing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.standin(monkeypatch, gpus=1)
        finding = only(check_trtllm(Settings(trtllm_python=STANDIN), H100))
        assert finding.status == "missing"
        assert "1.2.1+standin" in finding.detail
        assert "compiles nothing" in finding.detail

    @pytest.mark.parametrize(("version", "said"), [("1.0.0", "1.0.0+standin"), ("1.0.7", "1.0.7")])
    def test_another_supported_release_is_found_too(
        self, monkeypatch: pytest.MonkeyPatch, version: str, said: str
    ) -> None:
        self.standin(monkeypatch, gpus=1)
        monkeypatch.setenv("TRTFORGE_STANDIN_VERSION", version)
        finding = only(check_trtllm(Settings(trtllm_python=STANDIN), H100))
        assert said in finding.detail
        assert ("the spec asks for" in finding.detail) is (version == "1.0.7")

    @staticmethod
    def standin(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
        monkeypatch.setenv("TRTFORGE_STANDIN_PYTHON", sys.executable)
        monkeypatch.setenv("TRTFORGE_STANDIN_GPUS", str(gpus))


class TestServices:
    def test_nothing_configured_says_how_to_start_or_name_it(self, settings: Settings) -> None:
        storage, prefect = only(check_storage(settings)), only(check_prefect(settings))
        assert (storage.status, prefect.status) == ("missing", "missing")
        assert "trtforge up" in storage.remedy
        assert "trtforge up" in prefect.remedy

    def test_a_bucket_is_asked_whether_it_means_conditional_writes(
        self, s3: Any, tmp_path: Path
    ) -> None:
        reached = Settings(
            home=tmp_path,
            s3_endpoint_url=s3.endpoint_url,
            s3_bucket=s3.bucket,
            s3_access_key_id=s3.access_key_id,
            s3_secret_access_key=s3.secret_access_key,
        )
        assert [f.status for f in check_storage(reached)] == ["ok", "ok"]
        assert s3.client.list_objects_v2(Bucket=s3.bucket)["KeyCount"] == 0

        wrong = reached.model_copy(update={"s3_secret_access_key": SecretStr(SECRET)})
        finding = only(check_storage(wrong))
        assert finding.status == "missing"
        assert SECRET not in str(finding)
        elsewhere = reached.model_copy(update={"s3_bucket": "no-such-bucket"})
        assert only(check_storage(elsewhere)).status == "missing"

    def test_a_storage_that_never_answers_is_given_up_on(self, tmp_path: Path) -> None:
        with _silent_server() as url:
            deaf = Settings(
                home=tmp_path,
                s3_endpoint_url=url,
                s3_bucket="bucket",
                s3_access_key_id="key",
                s3_secret_access_key=SECRET,
                s3_read_timeout_s=0.5,
                s3_patience_s=0,
            )
            finding = only(check_storage(deaf))
        assert finding.status == "missing"
        assert SECRET not in str(finding)

    @pytest.mark.parametrize(("status", "expected"), [(200, "ok"), (404, "missing")])
    def test_the_prefect_server_is_asked_for_its_health(self, status: int, expected: str) -> None:
        with _answering(status) as url:
            api = url.replace("//", f"//user:{SECRET}@") + "/api"
            finding = only(check_prefect(Settings(prefect_api_url=api)))
        # urllib takes user and password for part of the name, and so does not reach it.
        assert SECRET not in str(finding)
        with _answering(status) as url:
            finding = only(check_prefect(Settings(prefect_api_url=f"{url}/api")))
        assert finding.status == expected

    @pytest.mark.parametrize(
        ("given", "said"),
        [(None, "asks for a login, and none is set"), ("someone:" + SECRET, "does not accept")],
    )
    def test_a_wrong_login_is_told_apart_from_a_server_that_is_away(
        self, given: str | None, said: str
    ) -> None:
        with _answering(200, login="user:right") as url:
            asked = Settings(prefect_api_url=f"{url}/api", prefect_auth=given)
            finding = only(check_prefect(asked))
            let_in = asked.model_copy(update={"prefect_auth": SecretStr("user:right")})
            assert only(check_prefect(let_in)).status == "ok"
        assert finding.status == "missing"
        assert finding.detail.startswith(f"the Prefect server {url}/api answers, but")
        assert said in finding.detail
        assert "TRTFORGE_PREFECT_AUTH" in finding.remedy
        assert "trtforge up" not in finding.remedy
        assert SECRET not in str(finding)

    def test_a_prefect_server_that_is_not_there_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}/api"
        finding = only(check_prefect(Settings(prefect_api_url=url)))
        assert finding.status == "missing"
        assert finding.detail.startswith(url)


class TestContainers:
    def test_without_an_engine_it_says_what_for_one_is_needed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        finding = only(check_containers(NO_GPU, probe=False))
        assert finding.status == "missing"
        assert finding.remedy.startswith("Only images and containers need it")

    def test_a_machine_with_gpus_needs_the_container_toolkit_for_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        monkeypatch.setenv("PATH", str(tmp_path))
        toolkit = check_containers(H100, probe=False)[1]
        assert (toolkit.name, toolkit.status) == ("NVIDIA Container Toolkit", "missing")
        assert "nvidia-ctk runtime configure" in toolkit.remedy

        tool = tmp_path / "nvidia-ctk"
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
        toolkit = check_containers(H100, probe=False)[1]
        assert "nvidia-ctk is there, but Docker has neither" in toolkit.detail


class TestRunningChecks:
    def test_a_check_that_hangs_or_breaks_does_not_hide_the_others(self) -> None:
        never = threading.Event()

        def hang() -> list[Finding]:
            never.wait()
            return []

        def breaks() -> list[Finding]:
            raise ValueError(SECRET)

        good = Finding("machine", "system", "ok", "Linux")
        checks: Any = [
            ("gpu", "GPU", hang),
            ("aoti", "toolchain", breaks),
            ("machine", "system", lambda: [good]),
        ]
        found = run_checks(checks, {}, 0.3)
        never.set()
        assert found == [
            Finding("gpu", "GPU", "not checked", "no answer within 0.3 s"),
            Finding("aoti", "toolchain", "not checked", "the check failed (ValueError)"),
            good,
        ]

    def test_credentials_in_an_address_are_left_out(self) -> None:
        url = f"https://me:{SECRET}@prefect.example.org:4200/api?key={SECRET}"
        assert without_credentials(url) == "https://prefect.example.org:4200/api"


class TestWithoutGpu:
    """The whole of it, on a machine like the one the tests run on."""

    def test_aoti_builds_trtllm_does_not_and_each_lack_has_a_remedy(
        self, settings: Settings
    ) -> None:
        report = examine(settings, gpus=NO_GPU)
        assert report.backends == {"aoti": True, "trtllm": False}
        assert report.can_build()
        assert not report.can_build("trtllm")
        assert all(f.remedy for f in report.findings if f.status in ("missing", "warning"))
        areas = [f.area for f in report.findings]
        assert list(dict.fromkeys(areas)) == [
            "machine",
            "gpu",
            "container",
            "aoti",
            "trtllm",
            "services",
        ]

    def test_the_command_tells_people_and_scripts_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRTFORGE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("TRTFORGE_S3_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("TRTFORGE_PREFECT_API_URL", f"http://me:{SECRET}@127.0.0.1:1/api")
        monkeypatch.setenv("TRTFORGE_IMAGE_DIGEST", "trtforge/gpu:latest")
        shown = CliRunner().invoke(app, ["doctor"])
        assert shown.exit_code == 0, shown.output
        assert "Engines can be compiled here with aoti." in shown.stdout
        assert "TRTFORGE_IMAGE_DIGEST: this is not the digest of an image" in shown.stdout

        asked = CliRunner().invoke(app, ["doctor", "--backend", "trtllm", "--json"])
        assert asked.exit_code == (0 if json.loads(asked.stdout)["backends"]["trtllm"] else 2)
        told = json.loads(asked.stdout)
        assert told["format"] == 1
        assert told["backends"]["aoti"] is True
        assert {"area", "name", "status", "detail", "remedy"} == set(told["findings"][0])
        assert SECRET not in shown.output + asked.output

        assert CliRunner().invoke(app, ["doctor", "--backend", "onnx"]).exit_code == 2

    def test_a_warning_does_not_keep_a_backend_from_building(self) -> None:
        report = Report((Finding("aoti", "toolchain", "warning", ""),), {"aoti": True})
        assert report.can_build("aoti")


@contextmanager
def _answering(status: int, login: str = "") -> Iterator[str]:
    """As Prefect does, which tells everybody of its health and its users of the rest."""
    wanted = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == wanted or self.path.endswith("/health")
            self.send_response(status if known else 401)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _silent_server() -> Iterator[str]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
