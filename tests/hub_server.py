"""A Hugging Face Hub on localhost: the part of its HTTP API that huggingface_hub downloads with.

Real HTTP over a real socket, so that redirect, range, gating and dropped-connection handling of the
client is what is tested. Files named `*.safetensors` are served as Git LFS files (ETag is the
SHA-256), all others as git blobs (ETag is git's object id), as the Hub does. No Xet headers are
sent, so downloads are plain HTTP. Status codes and `X-Error-*` headers follow what
`hf_raise_for_status` of huggingface_hub 2.4 documents.
"""

import hashlib
import json
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """One request as it arrived. Whether a token came is kept, the token is not."""

    method: str
    path: str
    range: str | None
    authenticated: bool


@dataclass
class Repo:
    """One model repository: commits (sha → directory), branches and tags (name → sha)."""

    commits: dict[str, Path] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] | None = None
    gated: bool = False
    private: bool = False


@dataclass
class _Drop:
    after_bytes: int
    times: int


class HubServer:
    """Serves the repositories added to it while its `with` block runs.

    Attributes:
        tokens: Valid token → repositories whose terms its account has accepted (or may read, when
            private).
        requests: Every request so far.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, set[str]] = {}
        self.requests: list[Request] = []
        self._repos: dict[str, Repo] = {}
        self._drops: dict[str, _Drop] = {}
        self._replaced: dict[str, bytes] = {}
        self._outage: tuple[int, int] | None = None
        self._lock = Lock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away: open connections end, new ones are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._server.end_connections()

    def add_commit(
        self,
        repo_id: str,
        directory: Path,
        *,
        branch: str = "main",
        card: Mapping[str, Any] | None = None,
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Serve `directory` as the newest commit of `branch`; returns the commit's sha."""
        repo = self._repos.setdefault(repo_id, Repo())
        state = hashlib.sha1(branch.encode())
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            state.update(f"{path.relative_to(directory)}\0".encode())
            state.update(path.read_bytes())
        sha = state.hexdigest()
        repo.commits[sha] = directory
        repo.refs[branch] = sha
        repo.card = dict(card) if card else repo.card
        repo.gated, repo.private = gated, private
        return sha

    def add_ref(self, repo_id: str, name: str, sha: str) -> None:
        """Give a commit another name, such as a tag."""
        self._repos[repo_id].refs[name] = sha

    def drop_connection(self, filename: str, *, after_bytes: int, times: int = 1) -> None:
        """Break off the next `times` downloads of `filename` after that many bytes."""
        self._drops[filename] = _Drop(after_bytes, times)

    def serve_instead(self, filename: str, content: bytes) -> None:
        """Send other content of the same size, as a broken proxy would; metadata stay."""
        self._replaced[filename] = content

    def fail(self, status: int, *, times: int = 1_000_000) -> None:
        """Answer the next requests with an error of the server's own."""
        self._outage = (status, times)

    def downloads(self, filename: str) -> list[Request]:
        """The GET requests for the content of one file."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(f"/{filename}")]

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def repo(self, repo_id: str) -> Repo | None:
        return self._repos.get(repo_id)

    def content(self, path: Path) -> bytes:
        return self._replaced.get(path.name) or path.read_bytes()

    def take_drop(self, filename: str) -> int | None:
        with self._lock:
            drop = self._drops.get(filename)
            if drop is None or drop.times <= 0:
                return None
            drop.times -= 1
            return drop.after_bytes

    def take_outage(self) -> int | None:
        with self._lock:
            if self._outage is None or self._outage[1] <= 0:
                return None
            status, times = self._outage
            self._outage = (status, times - 1)
            return status


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def end_connections(self) -> None:
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _RefusalError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.server_hub.note(
            Request(
                self.command,
                unquote(url.path),
                self.headers.get("Range"),
                "Authorization" in self.headers,
            )
        )
        try:
            if status := self.server_hub.take_outage():
                raise _RefusalError(status, "", "Internal Error - We're working hard to fix this!")
            self._require_known_token()
            if match := _API.fullmatch(url.path):
                self._answer_api(match, "blobs" in parse_qs(url.query))
            elif match := _RESOLVE.fullmatch(url.path):
                self._answer_file(match)
            else:
                raise _RefusalError(404, "", "Not Found")
        except _RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._send_json({"error": refusal.message}, status=refusal.status, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer_api(self, match: re.Match[str], with_blobs: bool) -> None:
        repo_id = unquote(match[1])
        repo = self._require_repo(repo_id, code="")
        sha, directory = _find(repo, unquote(match[3] or "main"))
        files = sorted(p for p in directory.rglob("*") if p.is_file())
        if match[2] == "tree":
            entries = [_blob(p, directory) for p in files]
            self._send_json([{"type": "file", **_as_tree_entry(e)} for e in entries])
            return
        siblings = [
            _blob(p, directory) if with_blobs else {"rfilename": str(p.relative_to(directory))}
            for p in files
        ]
        self._send_json(
            {
                "id": repo_id,
                "modelId": repo_id,
                "sha": sha,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "siblings": siblings,
                **({"cardData": repo.card} if repo.card is not None else {}),
            }
        )

    def _answer_file(self, match: re.Match[str]) -> None:
        repo_id, revision, name = (unquote(part) for part in match.groups())
        repo = self._require_repo(repo_id, code="RepoNotFound")
        self._require_accepted_terms(repo_id, repo)
        sha, directory = _find(repo, revision)
        path = directory / name
        if not path.is_file():
            raise _RefusalError(404, "EntryNotFound", "Entry not found")
        content = self.server_hub.content(path)
        blob = _blob(path, directory)
        etag = blob["lfs"]["sha256"] if "lfs" in blob else blob["blobId"]
        headers = {
            "ETag": f'"{etag}"',
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(content)),
            "X-Repo-Commit": sha,
            "Accept-Ranges": "bytes",
        }
        start = 0
        if requested := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(requested[1])
            end = min(int(requested[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        self._send_bytes(content, 206 if requested else 200, headers, name)

    def _require_known_token(self) -> None:
        token = self._token()
        if token is not None and token not in self.server_hub.tokens:
            raise _RefusalError(401, "", "Invalid credentials in Authorization header")

    def _require_repo(self, repo_id: str, *, code: str) -> Repo:
        repo = self.server_hub.repo(repo_id)
        token = self._token()
        if repo is not None and (not repo.private or self._accepted(repo_id)):
            return repo
        if token is None:
            # What the Hub says to strangers, so that private names cannot be guessed.
            raise _RefusalError(401, code, "Invalid username or password.")
        raise _RefusalError(404, "RepoNotFound", "Repository not found")

    def _require_accepted_terms(self, repo_id: str, repo: Repo) -> None:
        if not repo.gated or self._accepted(repo_id):
            return
        restricted = f"Access to model {repo_id} is restricted"
        if self._token() is None:
            raise _RefusalError(401, "GatedRepo", f"{restricted}. Please log in.")
        raise _RefusalError(
            403, "GatedRepo", f"{restricted} and you are not in the authorized list."
        )

    def _accepted(self, repo_id: str) -> bool:
        return repo_id in self.server_hub.tokens.get(self._token() or "", ())

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def _send_json(
        self, data: object, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self._send_bytes(
            json.dumps(data).encode(),
            status,
            {"Content-Type": "application/json", **(headers or {})},
            "",
        )

    def _send_bytes(
        self, content: bytes, status: int, headers: Mapping[str, str], filename: str
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        drop_after = self.server_hub.take_drop(filename) if filename else None
        if drop_after is not None:
            content = content[:drop_after]
        for at in range(0, len(content), _PIECE_BYTES):
            self.wfile.write(content[at : at + _PIECE_BYTES])
        if drop_after is not None:
            self.wfile.flush()
            self.close_connection = True


def _find(repo: Repo, revision: str) -> tuple[str, Path]:
    sha = repo.refs.get(revision, revision)
    if sha not in repo.commits:
        raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return sha, repo.commits[sha]


def _blob(path: Path, directory: Path) -> dict[str, Any]:
    content = path.read_bytes()
    blob: dict[str, Any] = {
        "rfilename": path.relative_to(directory).as_posix(),
        "size": len(content),
    }
    if path.suffix == ".safetensors":
        pointer = f"version https://git-lfs.github.com/spec/v1\nsize {len(content)}\n".encode()
        blob["lfs"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": len(pointer),
        }
        content = pointer
    blob["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return blob


def _as_tree_entry(blob: dict[str, Any]) -> dict[str, Any]:
    entry = {"path": blob["rfilename"], "size": blob["size"], "oid": blob["blobId"]}
    if lfs := blob.get("lfs"):
        entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 1}
    return entry
