"""A stand-in for the Hugging Face Hub, on loopback and in memory: enough to upload and download a model."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers requests from `server.repositories`, which maps names to files by path."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        assert self.headers["Authorization"] == "Bearer hf_of_a_test"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name.startswith("forbidden/"):
                return self.answer({"error": "you may not"}, 403)
            self.server.repositories.setdefault(name, {})
            return self.answer({"url": f"{self.server.address}/{name}", "id": "1", "name": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name, action = urllib.parse.unquote(self.path).removeprefix("/api/models/").rsplit("/", 2)[:2]
        if action == "preupload":
            files = json.loads(body)["files"]
            return self.answer(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
            )
        assert action == "commit", self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer(
            {"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        )

    def do_GET(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        if path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/").partition("/revision/")[0]
            name, _, tree = name.partition("/tree/")
            files = self.server.repositories.get(name)
            if files is None:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            if tree:
                listed = [{"type": "file", "path": p, "size": len(d), "oid": etag(d)} for p, d in files.items()]
                return self.answer(listed)
            return self.answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": p} for p in files]})
        name, _, file = path.removeprefix("/").partition("/resolve/")
        data = self.server.repositories[name].get(file.partition("/")[2])
        if data is None:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        self.answer(data, ETag=f'"{etag(data)}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815


def etag(data):
    return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def serving():
    """Runs the server; it has the attributes `address` and `repositories`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.address = {}, f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
