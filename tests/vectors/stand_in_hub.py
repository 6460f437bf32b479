"""A stand-in for the Hugging Face hub on this machine: as much of it as pushing and pulling a pack needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_standin"


class StandInHub:
    """``files`` maps repository -> name -> bytes; ``objects`` what was uploaded, sha256 -> bytes.

    ``fault``: a status for every answer; ``half`` breaks off whole downloads in the middle; ``short``
    says that half of each file is all of it. ``faults`` are (part of a path, status) of single answers;
    ``gone`` for a status breaks the connection off. Writing needs ``TOKEN``. As with the hub, text comes
    with the commit and everything else before it, as an LFS object.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.fault: int | str | None = None
        self.faults: list[tuple[str, int | str]] = []
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> StandInHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: object = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def begin(self) -> tuple[str, bytes]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        return path, body

    def refuse(self, path: str) -> bool:
        """Answer with the fault that is set for ``path``, if one is."""
        faults = [status for part, status in self.hub.faults if part in path]
        fault = self.hub.fault if isinstance(self.hub.fault, int) else next(iter(faults), None)
        if fault == "gone":
            self.close_connection = True
        elif fault is not None:
            code = {"X_Error_Code": "EntryNotFound"} if "/resolve/" in path and fault == 404 else {}
            self.answer(int(fault), {"error": "a fault"}, **code)
        return fault is not None

    def do_PUT(self) -> None:
        path, body = self.begin()
        if self.refuse(path):
            return None
        oid = path.removeprefix("/upload/")
        self.hub.objects[oid] = body
        return self.answer(200 if hashlib.sha256(body).hexdigest() == oid else 400)

    def do_POST(self) -> None:
        path, body = self.begin()
        files = self.hub.files
        if self.refuse(path):
            return None
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(
                401, {"error": "no token"}, X_Error_Message="Invalid credentials in Authorization header"
            )
        if path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            files.setdefault(repo, {})
            return self.answer(200, {"url": f"{self.hub.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = [
                {"path": f["path"], "uploadMode": "regular" if f["path"].endswith(".md") else "lfs"}
                for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": [{**m, "shouldIgnore": False} for m in modes]})
        if re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.answer(200, {"objects": [self.action(o) for o in json.loads(body)["objects"]]})
        if path == "/lfs-verify":
            asked = json.loads(body)
            there = self.hub.objects.get(asked["oid"])
            return self.answer(200 if there is not None and len(there) == asked["size"] else 400)
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[match[1]][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[match[1]][value["path"]] = self.hub.objects[value["oid"]]
            url = f"{self.hub.url}/{match[1]}/commit/0"
            return self.answer(200, {"commitUrl": url, "commitOid": "0" * 40, "success": True})
        return self.answer(404)

    def action(self, wanted: dict[str, object]) -> dict[str, object]:
        """What the batch endpoint says of an object: where to put it, nothing if it is there, or an error."""
        told = {k: wanted[k] for k in ("oid", "size")}
        if self.hub.fault == "full":
            return {**told, "error": {"code": 403, "message": "You have used up your storage"}}
        if wanted["oid"] in self.hub.objects:
            return told
        upload, verify = f"{self.hub.url}/upload/{wanted['oid']}", f"{self.hub.url}/lfs-verify"
        return {**told, "actions": {"upload": {"href": upload}, "verify": {"href": verify}}}

    def do_GET(self) -> None:
        path, _ = self.begin()
        files = self.hub.files
        if self.refuse(path):
            return None
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            if match[1] not in files:
                return self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
            siblings = [{"rfilename": n, "size": len(b)} for n, b in files[match[1]].items()]
            return self.answer(200, {"id": match[1], "modelId": match[1], "sha": "0" * 40, "siblings": siblings})
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", path)
        data = files.get(match[1], {}).get(match[2]) if match else None
        if data is None:
            return self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            piece = data[first : last + 1]
            return self.answer(206, piece, Content_Range=f"bytes {first}-{last}/{len(data)}")
        if self.hub.fault == "half":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        return self.answer(200, data[: len(data) // 2] if self.hub.fault == "short" else data)

    do_HEAD = do_GET
