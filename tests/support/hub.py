"""A hub on this machine: of the hub's interface what `huggingface_hub` asks to fetch the files of one repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

REPOSITORY = "someone/tiny"
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the files of a folder as the repository; `sent` counts the bytes of each.

    With `most_bytes` it gives no larger parts, whatever is asked for.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.sent: Counter[str] = Counter()
        self.most_bytes: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to ask here, and nowhere else."""
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HUB_DISABLE_XET": "1"}


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A listing, or a file or a part of one."""
        path = unquote(urlparse(self.path).path)
        if path.startswith(f"/api/models/{REPOSITORY}"):
            files = [
                file.relative_to(self.server.folder).as_posix() for file in self.server.folder.rglob("*.*")
            ]
            about = {"id": REPOSITORY, "sha": REVISION, "siblings": [{"rfilename": file} for file in files]}
            self._answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})
        else:
            self._file(path)

    def do_HEAD(self) -> None:
        """What there is to know of a file."""
        self._file(unquote(urlparse(self.path).path))

    def _file(self, path: str) -> None:
        name = path.removeprefix(f"/{REPOSITORY}/resolve/").partition("/")[2]
        file = self.server.folder / name
        if not file.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION})
            return
        data = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": REVISION,
            "Accept-Ranges": "bytes",
        }
        wanted = self.headers.get("Range")
        if wanted is None:
            self._answer(200, data, headers, name)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last or len(data)) + 1][: self.server.most_bytes]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._answer(206, part, headers, name)

    def _answer(self, status: int, data: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
            self.server.sent[name] += len(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub with the files of the folder."""
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
