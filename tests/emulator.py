"""A bucket on this machine: gcp-storage-emulator plus preconditions and generations.

The emulator alone ignores preconditions (`ifGenerationMatch`), which locks need, sends no generations, and is never
unavailable.

    python tests/emulator.py PORT
"""

import contextlib
import http.server
import io
import json
import logging
import re
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # it logs whatever is asked for in vain

BUCKET = "bucket"


class Emulator:
    """A bucket, `gs://bucket`, in memory, served on a port of this machine.

    Attributes:
      environment: variables that lead programs to it.
      requests: the lines of all requests so far.
      refused: number of requests refused while it was unavailable.
    """

    def __init__(self, port: int = 0):
        self.storage, self.requests, self._away_until, self._awaited = Storage(use_memory_fs=True), [], 0.0, None
        self.refused = 0
        create_bucket(BUCKET, self.storage)
        self._server = _Server(("127.0.0.1", port), partial(_Handler, self))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {"STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address}
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def go_away(self, seconds: float) -> None:
        """Answers only 503 for some seconds."""
        self._away_until = time.monotonic() + seconds

    def is_away(self) -> bool:
        """True while it answers only 503."""
        return time.monotonic() < self._away_until

    def at(self, words: str, act: Callable[[], None]) -> None:
        """Calls `act` before it answers the next request whose first line contains these words."""
        self._awaited = words, act

    def hear(self, line: str) -> None:
        """Records the first line of a request."""
        self.requests.append(line)
        if self._awaited is not None and self._awaited[0] in urllib.parse.unquote(line):
            (_, act), self._awaited = self._awaited, None
            act()

    def names(self, folder: str) -> list[str]:
        """Returns the names of the objects below a folder, relative to it."""
        there = self.storage.objects.get(BUCKET, {})
        return sorted(name.removeprefix(f"{folder}/") for name in there if name.startswith(f"{folder}/"))

    def read(self, name: str) -> bytes:
        """Returns the bytes of an object."""
        return self.storage.get_file(BUCKET, name)

    def write(self, name: str, content: bytes) -> None:
        """Writes an object, as another program would."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        urllib.request.urlopen(f"{self.address}/upload/storage/v1/b/{BUCKET}/o?{query}", content).close()

    def delete(self, name: str) -> None:
        """Deletes an object."""
        self.storage.delete_file(BUCKET, name)

    def close(self) -> None:
        """Stops the server; its objects are lost."""
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.HTTPServer):
    def handle_error(self, request, client_address):
        """Logs nothing: killed clients and tensorstore close connections early."""


class _Handler(RequestHandler):
    def __init__(self, emulator, *of_request):
        self._emulator = emulator
        super().__init__(emulator.storage, *of_request)

    def _answer(self):
        self._emulator.hear(self.requestline)
        if self._emulator.is_away():
            self._emulator.refused += 1
            self._refuse(503)
        elif self._is_met():
            getattr(super(), f"do_{self.command}")()
        else:
            self._refuse(412)

    def _refuse(self, status):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = json.dumps({"error": {"code": status, "message": "refused"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _is_met(self):
        expected = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query).get("ifGenerationMatch")
        return expected is None or expected == [self._generation()]

    def _generation(self):
        """Returns the generation of the object of a request, as text; 0 if it does not exist."""
        url = urllib.parse.urlparse(self.path)
        name = urllib.parse.parse_qs(url.query).get("name") or re.findall(r"/o/([^/]+)$", url.path)
        name = urllib.parse.unquote(name[0]) if name else self._name_in_body()
        with contextlib.suppress(NotFound):
            return self.storage.get_file_obj(BUCKET, name)["generation"]
        return "0"

    def _name_in_body(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.rfile = io.BytesIO(body)  # the emulator reads it again
        return json.loads(re.search(rb"\{.*?\}(?=\r?\n)", body, re.S).group())["name"]

    def end_headers(self):
        # tensorstore compares it with that of the object that it means to write over.
        if self.command == "GET" and "alt=media" in self.path:
            self.send_header("x-goog-generation", self._generation())
        super().end_headers()

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _answer  # noqa: N815


if __name__ == "__main__":
    emulator = Emulator(int(sys.argv[1]))
    for name, value in emulator.environment.items():
        print(f"export {name}={value}", flush=True)
    while True:
        time.sleep(3600)
