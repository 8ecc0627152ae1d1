"""An S3 server (moto, in a process of its own), and a proxy that makes it fail."""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}
SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
Headers = Mapping[str, str]
Node = Callable[[str], Path]
"""The fixture `on`."""


@contextmanager
def server(log: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """The endpoint of a server that starts empty and ends here."""
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", address, "-p", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _wait(process, (address, port), log)
        yield f"http://{address}:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], at: tuple[str, int], log: Path) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(at, 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"moto did not start: {log.read_text()[-2000:]}")


def make_bucket(endpoint: str, name: str) -> None:
    urlopen(Request(f"{endpoint}/{name}", method="PUT"), timeout=10).close()


# ----------------------------------------------------------------------------------------- faults

Fault = str
"""`busy` (503), `refuse` (403), `stall`, `cut` (the connection, half-way through the larger body),
`lose` (the answer of a request that was carried out), `deaf` (to If-None-Match); "" is none."""
Schedule = Callable[[str, str], Fault]
"""From a request's method and path to what goes wrong with it."""


def some(seed: int, share: float, *, stalls: int = 0) -> Schedule:
    """That share of all requests fails, and this many of them by stalling, drawn by seed."""
    draw, lock = random.Random(seed), threading.Lock()
    left = [stalls]

    def fault(method: str, path: str) -> Fault:
        with lock:
            if draw.random() >= share:
                return ""
            kind = draw.choice(["busy", "cut", "cut", "lose", "stall"])
            if kind == "stall":
                left[0] -= 1
                return "stall" if left[0] >= 0 else "busy"
            return kind

    return fault


class Proxy:
    """Between a client and a server; `seen` counts requests by method, `faults` what went wrong."""

    def __init__(self, endpoint: str, schedule: Schedule, stall: float) -> None:
        self.target = urlsplit(endpoint).netloc
        self.schedule, self.stall = schedule, stall
        self.seen: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.lock = threading.Lock()

    def fault(self, method: str, path: str) -> Fault:
        kind = self.schedule(method, path)
        with self.lock:
            self.seen[method] += 1
            self.faults[kind] += 1
        return kind


@contextmanager
def proxy(
    endpoint: str, schedule: Schedule = lambda method, path: "", stall: float = 35.0
) -> Iterator[tuple[str, Proxy]]:
    """The endpoint of a proxy that fails by schedule, and its counts."""
    state = Proxy(endpoint, schedule, stall)
    httpd = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": state}))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", state
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed hang up, too."""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        fault = self.proxy.fault(self.command, self.path)
        size = int(self.headers.get("Content-Length") or 0)
        if fault == "cut" and size:  # Half of an upload arrives, and nobody hears of it.
            self.rfile.read(size // 2)
            self._hang_up()
            return
        body = self.rfile.read(size)
        if fault == "stall":
            time.sleep(self.proxy.stall)
            self._hang_up()
        elif fault == "busy":
            self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
        elif fault == "refuse":
            self._answer(403, {}, b"")
        else:
            self._pass_on(fault, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _pass_on(self, fault: Fault, body: bytes) -> None:
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        if fault == "deaf":
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        connection = http.client.HTTPConnection(self.proxy.target, timeout=60)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content, found = answer.read(), dict(answer.getheaders())
        finally:
            connection.close()
        if fault == "lose":
            self._hang_up()
        else:
            self._answer(answer.status, found, content, half=fault == "cut")

    def _answer(self, status: int, headers: Headers, body: bytes, *, half: bool = False) -> None:
        self.send_response_only(status)
        own = {"connection", "transfer-encoding", "content-length"}
        for name, value in headers.items():
            if name.lower() not in own:
                self.send_header(name, value)
        length = next((v for k, v in headers.items() if k.lower() == "content-length"), None)
        is_head = self.command == "HEAD"
        self.send_header("Content-Length", length if is_head and length else str(len(body)))
        self.end_headers()
        if not is_head:
            self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
