"""Building and pushing images, through the Docker SDK and an engine that speaks Docker's API.

The engine is a small HTTP server which answers as dockerd does (API 1.43) and keeps what it was
sent; a real one builds the CPU image in tests/functional/test_cpu_image.py.
"""

import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from typer.testing import CliRunner

from trtforge import images
from trtforge.cli import app
from trtforge.cli.image import BuildArgumentError
from trtforge.images import (
    DOCKERFILES,
    DockerSdkMissingError,
    DockerUnreachableError,
    ImageBuildError,
    ImageContextError,
    ImageKindError,
    ImagePushError,
    build_image,
    default_tag,
    open_docker,
    push_image,
)
from trtforge.progress import Progress

ROOT = Path(__file__).parents[2]
IMAGE_ID = f"sha256:{'a' * 64}"
DIGEST = f"sha256:{'b' * 64}"
BUILT = [
    {"stream": "Step 1/2 : FROM base"},
    {"status": "Downloading", "id": "one", "progressDetail": {"current": 30, "total": 100}},
    {"status": "Downloading", "id": "two", "progressDetail": {"current": 50, "total": 200}},
    {"status": "Download complete", "id": "one"},
    {"stream": "\n"},
    {"stream": "Step 2/2 : RUN make\n"},
    {"stream": "compiling\n"},
    {"aux": {"ID": IMAGE_ID}},
]


@dataclass
class Engine:
    """What the engine answers next, and what it was asked."""

    host: str
    answers: list[dict[str, Any]] = field(default_factory=lambda: list(BUILT))
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    context: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    asked = Engine(host="")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(b"OK" if self.path.endswith("_ping") else b'{"ApiVersion": "1.43"}')

        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            asked.path = unquote(parts.path)
            asked.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body = self.read()
            if body[:1] != b"{" and body:
                with tarfile.open(fileobj=io.BytesIO(body)) as context:
                    asked.context = {member.name: member.mode for member in context}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in asked.answers:
                chunk = json.dumps(line).encode() + b"\r\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")

        def read(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked.host = f"tcp://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("DOCKER_HOST", asked.host)
    monkeypatch.setenv("DOCKER_CONFIG", "/nonexistent")
    yield asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(engine: Engine) -> Iterator[Any]:
    del engine  # it runs, and the environment names it
    opened = open_docker()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout, with things in it that belong into no image."""
    root = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "constraints.txt", "README.md", ".dockerignore"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "docker", root / "docker", ignore=shutil.ignore_patterns("*_key"))
    for package in ("trtforge", "flows", "tasks", "deployments"):
        (root / package).mkdir()
        (root / package / "module.py").write_text("")
    (root / "trtforge" / "__pycache__").mkdir()
    (root / "trtforge" / "__pycache__" / "module.pyc").write_text("")
    for private in (".git/config", ".venv/secret", ".trtforge/credentials.json", ".env"):
        (root / private).parent.mkdir(exist_ok=True)
        (root / private).write_text("")
    (root / "docker" / "secrets" / "postgres_password").write_text("")
    return root


class TestBuild:
    def test_it_says_what_it_does_and_what_came_of_it(self, client: Any, sources: Path) -> None:
        told: list[Progress] = []
        lines: list[str] = []
        built = build_image(
            client, "cpu", context=sources, on_progress=told.append, on_log=lines.append
        )
        assert (built.tag, built.image_id) == (default_tag("cpu"), IMAGE_ID)
        assert told == [
            Progress("FROM base", 0, 2, "steps"),
            Progress("fetching the base image", 30, 100, "bytes"),
            Progress("fetching the base image", 80, 300, "bytes"),
            Progress("RUN make", 1, 2, "steps"),
        ]
        assert lines == ["Step 1/2 : FROM base", "Step 2/2 : RUN make", "compiling"]

    @pytest.mark.parametrize("kind", DOCKERFILES)
    def test_the_engine_gets_the_dockerfile_the_arguments_and_the_network(
        self, client: Any, engine: Engine, sources: Path, kind: str
    ) -> None:
        build_image(
            client,
            kind,
            context=sources,
            tag="registry.example.org:5000/forge:1",
            build_args={"EXTRAS": "aoti"},
            network="host",
        )
        assert engine.query["dockerfile"].endswith(DOCKERFILES[kind].rpartition("/")[2])
        assert engine.query["t"] == "registry.example.org:5000/forge:1"
        assert engine.query["networkmode"] == "host"
        arguments = json.loads(engine.query["buildargs"])
        assert arguments == {"EXTRAS": "aoti", "VERSION": "0.1.0", "REVISION": "unknown"}

    def test_sources_are_sent_and_nothing_private(
        self, client: Any, engine: Engine, sources: Path
    ) -> None:
        build_image(client, "cpu", context=sources)
        files = {name for name in engine.context if "." in name.rpartition("/")[2]}
        assert files >= {"pyproject.toml", "trtforge/module.py", "docker/with-secrets.sh"}
        assert not [name for name in files if "secret" in name and "with-secrets" not in name]
        assert not [
            name for name in files if name.startswith((".git", ".venv", ".trtforge", ".env"))
        ]
        assert not [name for name in files if name.endswith(".pyc")]
        assert engine.context["docker/with-secrets.sh"] & 0o111

    def test_a_step_that_fails_is_told_with_its_last_lines(
        self, client: Any, engine: Engine, sources: Path
    ) -> None:
        engine.answers = [
            *({"stream": f"line {n}\n"} for n in range(20)),
            {"errorDetail": {"code": 1}, "error": "The command 'make' returned 1"},
        ]
        with pytest.raises(ImageBuildError, match=r"line 18 \| line 19 \| The command") as failed:
            build_image(client, "gpu", context=sources)
        assert "line 13" not in str(failed.value)
        assert failed.value.value == "docker/Dockerfile.gpu"

    def test_a_directory_without_the_sources_is_refused(self, client: Any, tmp_path: Path) -> None:
        with pytest.raises(ImageContextError, match="--context"):
            build_image(client, "cpu", context=tmp_path)

    def test_an_image_that_does_not_exist_is_refused(self, client: Any, sources: Path) -> None:
        with pytest.raises(ImageKindError, match="Use one of cpu, gpu, gpu-from-cuda"):
            build_image(client, "tpu", context=sources)


class TestPush:
    TAG = "registry.example.org:5000/forge/gpu:1.2"

    def test_it_gives_the_reference_to_start_containers_from(
        self, client: Any, engine: Engine
    ) -> None:
        told: list[Progress] = []
        engine.answers = [
            {"status": "Preparing", "id": "one", "progressDetail": {}},
            {"status": "Pushing", "id": "one", "progressDetail": {"current": 700, "total": 512}},
            {"aux": {"Tag": "1.2", "Digest": DIGEST, "Size": 1}},
        ]
        reference = push_image(client, self.TAG, on_progress=told.append)
        assert reference == f"registry.example.org:5000/forge/gpu@{DIGEST}"
        assert engine.path.endswith("/images/registry.example.org:5000/forge/gpu/push")
        assert told == [Progress(f"pushing {self.TAG}", 512, 512, "bytes")]

    def test_a_registry_that_refuses_is_told_with_a_way_out(
        self, client: Any, engine: Engine
    ) -> None:
        engine.answers = [{"error": "denied: requested access to the resource is denied"}]
        with pytest.raises(ImagePushError, match=r"denied.*docker login"):
            push_image(client, self.TAG)

    def test_a_push_without_a_digest_is_not_taken_for_done(
        self, client: Any, engine: Engine
    ) -> None:
        engine.answers = [{"status": "Pushed"}]
        with pytest.raises(ImagePushError, match="did not say its digest"):
            push_image(client, self.TAG)


class TestCommand:
    def test_build_prints_the_digest_that_goes_into_the_toolchain(
        self, engine: Engine, sources: Path
    ) -> None:
        words = ["image", "build", "gpu", "--context", str(sources), "--build-arg", "EXTRAS=aoti"]
        done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exit_code == 0, done.exception
        assert json.loads(done.stdout) == {"tag": default_tag("gpu"), "image_id": IMAGE_ID}
        assert json.loads(engine.query["buildargs"])["EXTRAS"] == "aoti"
        assert "TRTFORGE_IMAGE_DIGEST" in CliRunner().invoke(app, words).stdout

    def test_push_prints_it_too(self, engine: Engine) -> None:
        engine.answers = [{"aux": {"Digest": DIGEST}}]
        done = CliRunner().invoke(app, ["image", "push", "forge:1", "--json"])
        assert json.loads(done.stdout) == {"reference": f"forge@{DIGEST}", "digest": DIGEST}

    def test_a_build_argument_without_value_is_refused(self) -> None:
        done = CliRunner().invoke(app, ["image", "build", "cpu", "--build-arg", "EXTRAS"])
        assert isinstance(done.exception, BuildArgumentError)


class TestEngine:
    def test_none_that_answers_is_an_error_with_a_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        with pytest.raises(DockerUnreachableError, match=r"no Docker engine answers.*DOCKER_HOST"):
            open_docker()

    def test_one_that_goes_away_is_an_error_of_a_service(self, client: Any, sources: Path) -> None:
        client.api.base_url = "http://127.0.0.1:9"
        with pytest.raises(DockerUnreachableError, match="the Docker engine failed"):
            build_image(client, "cpu", context=sources)

    def test_without_the_sdk_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> Any:
            raise ImportError(name)

        monkeypatch.setattr(images.importlib, "import_module", missing)
        with pytest.raises(DockerSdkMissingError, match=r"trtforge\[docker\]"):
            open_docker()
