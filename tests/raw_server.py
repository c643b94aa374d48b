"""A loopback server that says exactly the bytes a test wants, and may break off anywhere."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Script = Callable[[socket.socket], None]


class RawServer:
    """Runs one script a connection, in order; the last one serves all further connections."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            script = self.scripts[min(self.connections, len(self.scripts) - 1)]
            self.connections += 1
            with conn:
                conn.settimeout(5)
                with contextlib.suppress(OSError):  # the client went away, as some tests want
                    script(conn)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def __enter__(self) -> "RawServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_request(conn: socket.socket) -> bytes:
    """Read one whole request, body included."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = conn.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ),
        0,
    )
    while len(body) < length:
        body += conn.recv(65536)
    return head + b"\r\n\r\n" + body


def reply(status: int, body: Any = b"", **headers: str) -> bytes:
    """The bytes of a whole answer; a dict or list body goes as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def answer(status: int, body: Any = b"", **headers: str) -> Script:
    """Read the request and answer it as ``reply`` says."""

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(reply(status, body, **headers))

    return script


def routed(routes: Mapping[str, Sequence[bytes | Script]]) -> Script:
    """Answer by the path's last part: its replies in order, the last one again and again.

    A reply that is a script gets the connection once the request is read.
    """
    asked = dict.fromkeys(routes, 0)

    def script(conn: socket.socket) -> None:
        name = read_request(conn).split(b" ")[1].decode().partition("?")[0].rpartition("/")[2]
        replies = routes[name]
        one = replies[min(asked[name], len(replies) - 1)]
        asked[name] += 1
        if isinstance(one, bytes):
            conn.sendall(one)
        else:
            one(conn)

    return script


def reset(conn: socket.socket) -> None:
    """Close with a reset instead of a farewell."""
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()
