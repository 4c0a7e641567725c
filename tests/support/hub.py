"""A Hugging Face hub of its own, on loopback."""

import hashlib
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """The few endpoints of the hub that the files of a data set need, or those of a model (`repo` "models/org/name").
    A file's bytes take `seconds`."""

    commit = "c0ffee" + "0" * 34

    def __init__(self, files: dict[str, bytes], repo: str = "datasets/org/chats", seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files, self.repo, self.seconds = files, repo, seconds
        self.sent: list[str] = []
        """Paths of the files whose bytes were asked for."""
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        if "org/chats" in path:  # the hub's client also asks for things of its own
            self.server.tokens.add(self.headers.get("Authorization"))
        repo, commit = self.server.repo, self.server.commit
        api, resolve = f"/api/{repo}", f"/{repo.removeprefix('models/')}/resolve/{commit}/"
        if path in (f"{api}/revision/v1", f"{api}/revision/{commit}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self.reply({"id": repo.partition("/")[2], "sha": commit, "siblings": siblings})
        elif path == f"{api}/tree/{commit}":
            self.reply([{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in self.server.files.items()])
        elif path.startswith(resolve) and (data := self.server.files.get(path.removeprefix(resolve))) is not None:
            if self.command == "GET":
                self.server.sent.append(path.removeprefix(resolve))
                time.sleep(self.server.seconds)
            self.reply(data)
        else:
            self.reply({"error": "not here"}, 404, {"X-Error-Code": "RevisionNotFound"})

    def reply(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        etag = hashlib.sha256(data).hexdigest()
        fixed = {"Content-Length": str(len(data)), "ETag": f'"{etag}"', "X-Repo-Commit": self.server.commit}
        for key, value in (fixed | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass
