"""Serves a scene to this machine alone.

On 127.0.0.1, under an address that nobody can guess, to requests that name this host: neither
another machine, nor another user's program, nor a page of another site reads the scans.
"""

import json
import secrets
import sys
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from universal_model_hub.errors import ConfigError
from universal_model_hub.viewer.scene import Scene

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".nii": "application/octet-stream",
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CHUNK = 1 << 20


@dataclass(frozen=True)
class Served:
    """What may be asked for, and nothing else: name in the address to content."""

    files: dict[str, Path]
    texts: dict[str, bytes]


class ViewerServer(ThreadingHTTPServer):
    """A server of one scene; ``address`` is where the page is.

    Raises:
        ConfigError: If the port is taken.
    """

    daemon_threads = True
    block_on_close = False  # a browser that is slow to read must not delay Ctrl-C

    def __init__(self, scene: Scene, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(18)
        files = {path.name: path for path in PAGE.iterdir()}
        files |= {volume["file"]: scene.folder / volume["file"] for volume in scene.volumes}
        self.served = Served(files, {"scene.json": json.dumps(scene.to_json()).encode()})
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"Expected a free port, got {port}: {error}. Choose another, or 0 for any."
            ) from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that left in the middle of an answer; it is no error of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    server_version, sys_version = "umh", ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer with a file of the scene or of the page."""
        port = self.server.server_port
        # A page of another site that lets its own name point here still sends its own name.
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            return self._refuse(HTTPStatus.FORBIDDEN)
        start, _, name = self.path.split("?")[0].rpartition("/")
        # As bytes: text must be ASCII to be compared, and a request may hold anything.
        if not secrets.compare_digest(start.encode(), f"/{self.server.token}".encode()):
            return self._refuse(HTTPStatus.NOT_FOUND)
        name = name or "index.html"
        if name in self.server.served.texts:
            content = self.server.served.texts[name]
            self._head(name, len(content))
            self.wfile.write(content)
        elif name in self.server.served.files:
            self._send(self.server.served.files[name])
        else:
            self._refuse(HTTPStatus.NOT_FOUND)
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scan's name is nobody's business."""

    def _send(self, path: Path) -> None:
        with path.open("rb") as stream:
            self._head(path.name, path.stat().st_size)
            while chunk := stream.read(CHUNK):
                self.wfile.write(chunk)

    def _head(self, name: str, size: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES[Path(name).suffix])
        self.send_header("Content-Length", str(size))
        for header, value in HEADERS.items():
            self.send_header(header, value)
        self.end_headers()

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
