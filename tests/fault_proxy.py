"""A proxy in front of an S3 server that does to HTTP what bad networks do.

Faults are put in a queue for one direction; each is used up by one message that is long enough.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Fault:
    """What to do to a message's body.

    Attributes:
        kind: `drop` closes both connections, `truncate` forwards the bytes before `at` and then
            closes, `corrupt` turns one bit of the byte at `at`, `delay` waits `delay_s`, `answer`
            sends `status` instead of forwarding a request.
        method: Of the request, or of the request that a response belongs to.
        at: Offset in the body.
        least_bytes: Shorter messages pass unharmed.
        words: To be found in the request's first line.
    """

    kind: Literal["drop", "truncate", "corrupt", "delay", "answer"]
    method: str = "PUT"
    at: int = 1000
    least_bytes: int = 0
    delay_s: float = 0.0
    status: int = 503
    words: str = ""


@dataclass
class Traffic:
    """What passed: bytes of request bodies by method, and requests by their first line."""

    body_bytes: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


class FaultProxy:
    """Forwards connections to 127.0.0.1:`port`, one request at a time each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self.requests: deque[Fault] = deque()
        self.responses: deque[Fault] = deque()
        self.traffic = Traffic()
        self.on_request: Callable[[str], None] = lambda _: None
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            suppress(OSError, _ClosedError),
            client,
            socket.create_connection(("127.0.0.1", self._port)) as server,
        ):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._exchange(_Reader(client), client, _Reader(server), server):
                pass

    def _exchange(
        self, asked: "_Reader", client: socket.socket, said: "_Reader", server: socket.socket
    ) -> bool:
        head = asked.head()
        if not head:
            return False
        line = head.split(b"\r\n", 1)[0].decode("latin-1")
        method = line.split(" ", 1)[0]
        length = _content_length(head)
        self.on_request(line)
        with self._lock:
            self.traffic.requests.append(line)
        fault = self._due(self.requests, method, length, line)
        if fault and fault.kind == "answer":
            asked.skip(length if b"100-continue" not in head.lower() else 0)
            reply = (
                f"HTTP/1.1 {fault.status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            client.sendall(reply.encode())
            return False
        server.sendall(head)
        if length and b"100-continue" in head.lower():
            answer = said.head()
            client.sendall(answer)
            if b" 100 " not in answer.split(b"\r\n", 1)[0]:
                return False
        sent = self._body(asked, server, length, fault)
        with self._lock:
            self.traffic.body_bytes[method] = self.traffic.body_bytes.get(method, 0) + sent
        answer = said.head()
        while b" 100 " in answer.split(b"\r\n", 1)[0]:
            answer = said.head()
        length = 0 if method == "HEAD" else _content_length(answer)
        fault = self._due(self.responses, method, length, line)
        client.sendall(answer)
        if b"chunked" in answer.lower():
            said.copy_chunks(client)
            return True
        self._body(said, client, length, fault)
        return b"connection: close" not in answer.lower()

    def _body(
        self, source: "_Reader", target: socket.socket, length: int, fault: Fault | None
    ) -> int:
        done = 0
        if fault and fault.kind == "delay":
            time.sleep(fault.delay_s)
        while done < length:
            block = bytearray(source.some(length - done))
            if not block:
                raise _ClosedError
            if fault and done <= fault.at < done + len(block):
                if fault.kind in {"drop", "truncate"}:
                    if fault.kind == "truncate":
                        target.sendall(block[: fault.at - done])
                    raise _ClosedError
                if fault.kind == "corrupt":
                    block[fault.at - done] ^= 1
            target.sendall(block)
            done += len(block)
        return done

    def _due(self, faults: deque[Fault], method: str, length: int, line: str) -> Fault | None:
        with self._lock:
            for fault in faults:
                if fault.method == method and length >= fault.least_bytes and fault.words in line:
                    faults.remove(fault)
                    return fault
        return None


class _ClosedError(Exception):
    """One side closed the connection, or a fault did."""


class _Reader:
    """Reads HTTP heads and bodies from a socket without reading beyond."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source

    def head(self) -> bytes:
        """Up to and with the empty line; nothing when the connection was closed before."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            # Look first: bytes of the body are not to be taken.
            peeked = self._source.recv(_BLOCK_BYTES, socket.MSG_PEEK)
            if not peeked:
                return b""
            end = (head + peeked).find(b"\r\n\r\n")
            take = len(peeked) if end < 0 else end + 4 - len(head)
            head += self._source.recv(take)
        return head

    def some(self, most: int) -> bytes:
        return self._source.recv(min(most, _BLOCK_BYTES))

    def skip(self, count: int) -> None:
        while count > 0:
            block = self.some(count)
            if not block:
                raise _ClosedError
            count -= len(block)

    def copy_chunks(self, target: socket.socket) -> None:
        """A body of `Transfer-Encoding: chunked`, without trailers."""
        left = 1
        while left:
            size = b""
            while not size.endswith(b"\r\n"):
                size += self.some(1) or b"\r\n"
            left = int(size.split(b";")[0], 16)
            target.sendall(size)
            self._copy(target, left + 2)

    def _copy(self, target: socket.socket, count: int) -> None:
        while count > 0:
            block = self.some(count)
            if not block:
                raise _ClosedError
            target.sendall(block)
            count -= len(block)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


@contextmanager
def fault_proxy(port: int) -> Iterator[FaultProxy]:
    """A proxy that lives as long as the block."""
    proxy = FaultProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
