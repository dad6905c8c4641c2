"""A Docker engine for the tests: the one that answers, or one of their own.

An own one needs root and Debian's package docker.io (`.ci/install-docker`). It keeps everything in
a temporary directory, makes no network devices and no firewall rules, and is gone when the tests
are. GPU requests work without a GPU, by a stand-in for NVIDIA's hook.
"""

import atexit
import ctypes
import importlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtforge.errors import TrtforgeError
from trtforge.images import docker_sdk, open_docker

STANDIN_HOOK = """\
#!/bin/sh
# A stand-in for the hook of NVIDIA's container toolkit, which would put the driver and the cards
# into the container. This one puts nothing there: the engine only has to find a hook.
exec cat > /dev/null
"""
_START_S = 60.0
_STOP_S = 30.0
_BUILD_S = 1800
_PROGRAMS = ("dockerd", "containerd", "runc")
_PR_SET_PDEATHSIG = 1


class NoDockerError(Exception):
    """There is no engine, and none can be started: why."""


@dataclass(frozen=True)
class DockerEngine:
    """An engine that answers.

    Attributes:
        environment: What programs need to find it.
        own: Whether the tests started it.
    """

    client: Any
    environment: dict[str, str] = field(default_factory=dict)
    own: bool = False

    def containers(self, label: str) -> list[Any]:
        """Containers with a label, whatever became of them."""
        found: list[Any] = self.client.containers.list(all=True, filters={"label": label})
        return found


@contextmanager
def docker_engine() -> Iterator[DockerEngine]:
    """The engine that answers, or else one of our own.

    Raises:
        NoDockerError: Neither is to be had.
    """
    client, why_none = None, ""
    try:
        client = open_docker(_BUILD_S)
    except TrtforgeError as error:
        why_none = str(error)
    if client is None:
        _require_own_is_possible(why_none)
        with _own_engine() as engine:
            yield engine
        return
    try:
        yield DockerEngine(client)
    finally:
        client.close()


def _require_own_is_possible(why_none: str) -> None:
    if os.environ.get("DOCKER_HOST"):
        raise NoDockerError(why_none)
    if os.geteuid() != 0:
        raise NoDockerError(f"{why_none} (and only root can start one)")
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        raise NoDockerError(f"{why_none} (and this machine lacks {', '.join(missing)})")


def _path() -> str:
    """The search path, with where Debian puts the programs of the administrator."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


@contextmanager
def _own_engine() -> Iterator[DockerEngine]:
    home = Path(tempfile.mkdtemp(prefix="trtforge-docker-"))
    clean_up = _CleanUp(home)
    atexit.register(clean_up)
    try:
        host = f"unix://{home}/docker.sock"
        clean_up.daemon = daemon = _start(home, host)
        client = clean_up.client = _client_as_soon_as_it_answers(host, daemon, home)
        yield DockerEngine(client, {"DOCKER_HOST": host}, own=True)
    finally:
        clean_up()
        atexit.unregister(clean_up)


def _start(home: Path, host: str) -> "subprocess.Popen[bytes]":
    programs = home / "bin"
    programs.mkdir()
    hook = programs / "nvidia-container-runtime-hook"
    hook.write_text(STANDIN_HOOK)
    hook.chmod(0o755)
    with (home / "dockerd.log").open("wb") as log:
        return subprocess.Popen(
            [
                "dockerd",
                f"--host={host}",
                f"--data-root={home / 'data'}",
                f"--exec-root={home / 'exec'}",
                f"--pidfile={home / 'pid'}",
                # An empty one: the machine's may be for its own engine.
                f"--config-file={_empty_configuration(home)}",
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
            ],
            env={**os.environ, "PATH": os.pathsep.join([str(programs), _path()])},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_the_tests,
        )


def _empty_configuration(home: Path) -> Path:
    path = home / "daemon.json"
    path.write_text("{}")
    return path


def _end_with_the_tests() -> None:
    """Even if they are killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _client_as_soon_as_it_answers(host: str, daemon: "subprocess.Popen[bytes]", home: Path) -> Any:
    deadline = time.monotonic() + _START_S
    while daemon.poll() is None and time.monotonic() < deadline:
        with suppress(importlib.import_module("docker.errors").DockerException):
            # It asks for the version at once.
            return docker_sdk().DockerClient(base_url=host, timeout=_BUILD_S)
        time.sleep(0.1)
    told = (home / "dockerd.log").read_text(errors="replace").strip().splitlines()
    last = told[-1] if told else "nothing in its log"
    raise NoDockerError(f"dockerd does not start here: {last}")


class _CleanUp:
    """Ends an engine with its containers, unmounts what it mounted, removes its directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.daemon: subprocess.Popen[bytes] | None = None
        self.client: Any = None

    def __call__(self) -> None:
        if self.client is not None:
            with suppress(Exception):
                for container in self.client.containers.list(all=True):
                    container.remove(force=True, v=True)
            self.client.close()
            self.client = None
        if self.daemon is not None:
            self.daemon.terminate()
            try:
                self.daemon.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
            self.daemon = None
        for mount in _mounts_below(self.home):
            subprocess.run(["umount", "--lazy", mount], check=False)
        # Never into something that is still mounted.
        if not _mounts_below(self.home):
            shutil.rmtree(self.home, ignore_errors=True)


def _mounts_below(home: Path) -> list[str]:
    """Mount points, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return sorted((p for p in points if Path(p).is_relative_to(home)), reverse=True)
