"""Images for the tests: the CPU image of docker/Dockerfile.cpu, and a quick one in its place.

Building the CPU image takes minutes. Its base is the Dockerfile's own, TEST_PYTHON_IMAGE, or,
where no registry is in reach, a Debian made by debootstrap; TEST_CPU_IMAGE names a CPU image that
is built already.

The quick one holds next to nothing: its containers see this machine's own programs, and the
environment that the tests run in, read-only. What starts them cannot tell the difference.
"""

import ast
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from docker_engine import DockerEngine, NoDockerError
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    parse_sdist_filename,
    parse_wheel_filename,
)

from trtforge.images import build_image

_CPU_IMAGE = "trtforge/cpu:functional-test"
_MACHINE_IMAGE = "trtforge/this-machine:functional-test"
_BASE_IMAGE = "local/debian-python:functional-test"
_ROOT = Path(__file__).parents[1]
# What the Dockerfile installs too: in one go it takes half as long.
_PACKAGES = "python3,python3-venv,ca-certificates,g++,libgomp1"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class WorkerImage:
    """An image with trtforge in it.

    Attributes:
        volumes: What its containers need to have mounted, as `docker run --volume` takes it.
    """

    tag: str
    volumes: tuple[str, ...] = ()


def cpu_image(engine: DockerEngine) -> WorkerImage:
    """The image of docker/Dockerfile.cpu, built if need be.

    Raises:
        NoDockerError: There is no base image, or no container can be started.
    """
    client = engine.client
    if ready := os.environ.get("TEST_CPU_IMAGE"):
        repository, _, tag = _CPU_IMAGE.partition(":")
        client.images.get(ready).tag(repository, tag)
        return WorkerImage(_CPU_IMAGE)
    base = _base_image(engine)
    with _package_index() as arguments:
        build_image(
            client,
            "cpu",
            context=_ROOT,
            tag=_CPU_IMAGE,
            build_args={"PYTHON_IMAGE": base, **arguments},
            network="host",
        )
    return WorkerImage(_CPU_IMAGE)


def machine_image(engine: DockerEngine) -> WorkerImage:
    """An image whose containers see this machine's files, set up as the CPU image is.

    Raises:
        NoDockerError: No container can be started.
    """
    mounted, links = _this_machine()
    with tempfile.TemporaryDirectory(prefix="trtforge-image-") as directory:
        context = Path(directory)
        _write_root(context / "root", links)
        (context / "empty").mkdir()
        (context / "Dockerfile").write_text(_machine_dockerfile())
        engine.client.images.build(path=directory, tag=_MACHINE_IMAGE, rm=True, forcerm=True)
    volumes = tuple(f"{path}:{path}:ro" for path in mounted)
    _require_that_it_starts(engine, _MACHINE_IMAGE, volumes)
    return WorkerImage(_MACHINE_IMAGE, volumes)


def _this_machine() -> tuple[list[Path], dict[str, str]]:
    """Directories to mount, none of them within another one, and links beside them."""
    wanted = {_ROOT, Path("/usr"), Path("/etc/ssl"), Path("/etc/alternatives")}
    wanted |= {Path(path) for path in (sys.prefix, sys.base_prefix)}
    wanted |= {path.resolve() for path in wanted}
    links: dict[str, str] = {}
    for name in ("bin", "lib", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            links[name] = str(path.readlink())
        elif path.is_dir():
            wanted.add(path)
    there = {path for path in wanted if path.is_dir()}
    return sorted(path for path in there if not there & set(path.parents)), links


def _write_root(root: Path, links: dict[str, str]) -> None:
    """The files that the CPU image has beside its system and its Python."""
    ours = root / "opt" / "trtforge"
    for directory in (root / "etc", ours / "bin", ours / "share"):
        directory.mkdir(parents=True)
    # Docker puts its init there, which must not be a part of what is mounted.
    (root / "sbin").mkdir()
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "etc" / "passwd").write_text("trtforge:x:10001:10001::/var/lib/trtforge:/bin/sh\n")
    (root / "etc" / "group").write_text("trtforge:x:10001:\n")
    shutil.copy(_ROOT / "docker" / "with-secrets.sh", ours / "bin" / "with-secrets")
    shutil.copy(_ROOT / "trtforge" / "logging.yml", ours / "share")


def _machine_dockerfile() -> str:
    """From Dockerfile.cpu, what its last stage says about running; not what it installs."""
    _, _, last = (_ROOT / "docker" / "Dockerfile.cpu").read_text().rpartition("\nFROM ")
    settings = re.findall(r"^(?:ENV|USER|WORKDIR|VOLUME|ENTRYPOINT)\b(?:.*\\\n)*.*$", last, re.M)
    return "\n".join(
        [
            "FROM scratch",
            "COPY root /",
            "COPY --chown=10001:10001 empty /var/lib/trtforge",
            *settings,
            f"ENV PATH=/opt/trtforge/bin:{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        ]
    )


def _base_image(engine: DockerEngine) -> str:
    errors = importlib.import_module("docker.errors")
    dockerfile = (_ROOT / "docker" / "Dockerfile.cpu").read_text()
    usual = re.search(r"^ARG PYTHON_IMAGE=(\S+)", dockerfile, re.MULTILINE)
    assert usual
    base = os.environ.get("TEST_PYTHON_IMAGE", usual[1])
    try:
        engine.client.images.get(base)
        return base
    except errors.ImageNotFound:
        pass
    try:
        engine.client.images.pull(base)
        return base
    except errors.APIError as error:
        if os.geteuid() != 0 or shutil.which("debootstrap") is None:
            raise NoDockerError(f"the base image cannot be fetched: {error.explanation}") from error
    return _bootstrap(engine)


def _bootstrap(engine: DockerEngine) -> str:
    """A Debian with Python 3, as an image; it trusts whom this machine trusts."""
    with tempfile.TemporaryDirectory(prefix="trtforge-debian-") as directory:
        root = Path(directory) / "root"
        suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "bookworm")
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, root],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stdout.strip().splitlines() or ["(it said nothing)"])[-1]
            raise NoDockerError(f"debootstrap cannot make a base image here: {last}")
        if _CERTIFICATES.is_file():
            shutil.copyfile(_CERTIFICATES, root / _CERTIFICATES.relative_to("/"))
            (root / "etc" / "pip.conf").write_text(f"[global]\ncert = {_CERTIFICATES}\n")
        shutil.rmtree(root / "var" / "cache" / "apt", ignore_errors=True)
        repository, _, tag = _BASE_IMAGE.partition(":")
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            engine.client.api.import_image(
                src=tar.stdout, repository=repository, tag=tag, stream_src=True
            )
    _require_that_it_starts(engine, _BASE_IMAGE, ())
    return _BASE_IMAGE


def _require_that_it_starts(engine: DockerEngine, image: str, volumes: tuple[str, ...]) -> None:
    errors = importlib.import_module("docker.errors")
    command = ["sh", "-c", "exit 0"]
    try:
        engine.client.containers.run(
            image, command, init=True, network_mode="host", volumes=list(volumes), remove=True
        )
    except errors.DockerException as error:
        raise NoDockerError(f"no container can be started here: {error}") from error


@contextmanager
def _package_index() -> Iterator[dict[str, str]]:
    """Build arguments with which pip in a container finds what pip finds here.

    Directories of packages, which a container does not see, are served while the block runs.
    """
    configured = _pip_configuration()
    with tempfile.TemporaryDirectory(prefix="trtforge-packages-") as directory:
        root = Path(directory)
        handler = partial(_Quiet, directory=directory)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            indexes = [
                _served(root, number, index, url)
                for number, index in enumerate(configured.get("extra-index-url", "").split())
            ]
            for path in configured.get("find-links", "").split():
                _as_index(root / "links", Path(path))
                indexes.append(f"{url}/links")
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                arguments = {"PIP_EXTRA_INDEX_URL": " ".join(dict.fromkeys(indexes))}
                arguments["PIP_INDEX_URL"] = configured.get("index-url", "")
                yield {name: value for name, value in arguments.items() if value}
            finally:
                server.shutdown()


def _pip_configuration() -> dict[str, str]:
    """What files and environment tell pip, by option; the environment has the last word."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, str] = {}
    for line in sorted(done.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    return found


def _served(root: Path, number: int, index: str, url: str) -> str:
    """The address of an index, for a container."""
    parts = urlsplit(index)
    if parts.scheme != "file":
        return index
    directory = Path(unquote(parts.path))
    # Its links lead to directories beside it.
    (root / str(number)).symlink_to(directory.parent)
    return f"{url}/{number}/{directory.name}"


def _as_index(root: Path, directory: Path) -> None:
    """The packages of a directory, in one directory for each project."""
    for package in directory.iterdir() if directory.is_dir() else ():
        try:
            parse = parse_wheel_filename if package.suffix == ".whl" else parse_sdist_filename
            project = str(parse(package.name)[0])
        except (InvalidWheelFilename, InvalidSdistFilename):
            continue
        (root / project).mkdir(parents=True, exist_ok=True)
        (root / project / package.name).symlink_to(package)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass
