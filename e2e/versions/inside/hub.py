"""Serves a model repository as a hub does, on loopback, and downloads it with huggingface_hub itself.

hub.py REPOSITORY_FOLDER HOME: prints one JSON line: the snapshot in the cache, the download folder, the commit.
"""

import hashlib
import http.server
import json
import os
import pathlib
import sys
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/tiny"


def entries(root):
    """The files as the hub lists them: small ones by git blob id, large formats by SHA-256."""
    listed = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        data = path.read_bytes()
        name = path.relative_to(root).as_posix()
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"type": "file", "oid": oid, "size": len(data), "path": name}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        listed.append(entry)
    return listed


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = None
    listed = []

    def log_message(self, *_):
        pass

    def answer(self, body, headers=(), status=200):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def json(self, value):
        self.answer(json.dumps(value).encode(), [("Content-Type", "application/json")])

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path.startswith(f"/api/models/{NAME}/tree/"):
            return self.json(self.listed)
        if path == f"/api/models/{NAME}" or path.startswith(f"/api/models/{NAME}/revision/"):
            siblings = [{"rfilename": e["path"]} for e in self.listed]
            return self.json({"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings, "private": False,
                              "tags": [], "downloads": 0, "likes": 0})
        prefix = f"/{NAME}/resolve/"
        if path.startswith(prefix):
            _, _, name = path[len(prefix):].partition("/")
            entry = next((e for e in self.listed if e["path"] == name), None)
            if entry:
                etag = entry.get("lfs", {}).get("oid", entry["oid"])
                headers = [("X-Repo-Commit", COMMIT), ("ETag", f'"{etag}"')]
                return self.answer((self.root / name).read_bytes(), headers)
        return self.answer(b"{}", [("X-Error-Code", "EntryNotFound")], 404)


def main():
    Hub.root = pathlib.Path(sys.argv[1])
    Hub.listed = entries(Hub.root)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = pathlib.Path(sys.argv[2])
    os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{server.server_address[1]}", HF_HOME=str(home),
                      HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_XET="1")
    from huggingface_hub import snapshot_download

    snapshot = snapshot_download(NAME)
    folder = snapshot_download(NAME, local_dir=home / "download")
    part = snapshot_download(NAME, local_dir=home / "part", allow_patterns=["*.json"])
    server.shutdown()
    print(json.dumps({"snapshot": str(snapshot), "folder": str(folder), "part": str(part), "commit": COMMIT}))


main()
