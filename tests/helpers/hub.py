"""A small local hub that answers and records calls of huggingface_hub, and a client process."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

READ = "hf_reads"
WRITE = "hf_writes"
"""The two valid tokens; both belong to the user `us`."""


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Repository:
    """{branch or tag: {path: bytes}}, and who may read it."""

    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    private: bool = False
    gated: bool = False
    broken: bool = False
    messages: list[str] = field(default_factory=list)

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a branch, tag or commit."""
        for name, files in self.branches.items():
            commit = sha1(repr(sorted(files.items())).encode())
            if revision in (name, commit):
                return commit, files
        return None


@dataclass
class Hub:
    """The content of the server, and the requests it got: method, path and Authorization."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)

    def tokens(self, repository: str) -> set[str | None]:
        """The Authorization headers of all requests about a repository."""
        return {token for _, path, token in self.requests if f"/{repository}" in path}

    def fetched(self, repository: str) -> list[str]:
        """The files of a repository whose bytes were downloaded, sorted."""
        start = f"/{repository}/resolve/"
        paths = [
            path.removeprefix(start)
            for method, path, _ in self.requests
            if method == "GET" and start in path
        ]
        return sorted(unquote(path.partition("/")[2]) for path in paths)


class Refused(Exception):
    """An error answer: status, X-Error-Code, X-Error-Message."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests that the client makes for downloads and uploads."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        """Log nothing."""

    def answer_any(self) -> None:
        token = self.headers.get("Authorization")
        self.hub.requests.append((self.command, self.path, token))
        self.token = token.removeprefix("Bearer ") if token else None
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        try:
            if self.token not in (None, READ, WRITE):
                raise Refused(401, "", "Invalid credentials in Authorization header")
            self.route([unquote(part) for part in url.path.strip("/").split("/")])
        except Refused as refused:
            status, code, message = refused.args
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            self.answer({"error": message}, status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer_any

    def route(self, parts: list[str]) -> None:
        match self.command, parts:
            case "POST", ["api", "repos", "create"]:
                self.create(json.loads(self.body))
            case "POST", ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case "GET", ["api", "models", owner, name, *rest]:
                self.describe(self.repository(owner, name), f"{owner}/{name}", rest)
            case "POST", ["api", "models", owner, name, "preupload", "main"]:
                self.check_write(owner)
                self.preupload(self.repository(owner, name))
            case "POST", ["api", "models", owner, name, "commit", "main"]:
                self.check_write(owner)
                self.commit(self.repository(owner, name))
            case "POST", [owner, name, "info", "lfs", "objects", "batch"]:
                self.check_write(owner)
                # Nothing answers uploads to /nowhere.
                target = "nowhere" if name == "full.git" else "lfs"
                self.batch(json.loads(self.body)["objects"], target)
            case "PUT", ["lfs", oid]:
                assert sha256(self.body) == oid
                self.hub.blobs[oid] = self.body
                self.answer({})
            case (("GET" | "HEAD"), [owner, name, "resolve", revision, *path]):
                self.resolve(self.repository(owner, name), revision, "/".join(path))
            case _:
                raise Refused(404, "", f"{self.command} {self.path} is not known here")

    def repository(self, owner: str, name: str) -> Repository:
        """Find a repository.

        As on the real hub, the answer to a request without a token is the same for a private
        repository and for one that does not exist.
        """
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if self.token is None and (repository is None or repository.private):
            raise Refused(401, "", "Invalid username or password.")
        if repository is None:
            raise Refused(404, "RepoNotFound", "Repository not found")
        if repository.broken:
            raise Refused(503, "", "")
        return repository

    def check_write(self, owner: str) -> None:
        if self.token != WRITE or owner != "us":
            raise Refused(403, "", f"You may not write to {owner}")

    def describe(self, repository: Repository, name: str, rest: list[str]) -> None:
        if rest == ["refs"]:
            refs = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": "0"}
                for name in repository.branches
            ]
            return self.answer({"branches": refs, "converts": [], "tags": []})
        if rest == ["auth-check", "write"]:
            self.check_write(name.partition("/")[0])
            return self.answer({})
        commit, files = self.at(repository, rest[1] if rest else "main")
        if rest[:1] == ["tree"]:
            return self.answer([entry(path, data) for path, data in files.items()])
        siblings = [{"rfilename": path} for path in files]
        description = {"id": name, "sha": commit, "siblings": siblings}
        return self.answer(description | {"private": repository.private})

    def at(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        result = repository.find(revision)
        if result is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return result

    def resolve(self, repository: Repository, revision: str, path: str) -> None:
        if repository.gated:
            status = 403 if self.token else 401
            raise Refused(status, "GatedRepo", "Access to this model is restricted")
        commit, files = self.at(repository, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha1(data)}"'}
        if "Range" not in self.headers:
            return self.answer(data, 200, headers)
        start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.answer(data[start:], 206, headers)

    def create(self, request: dict) -> None:
        self.hub.created.append(request)
        owner = request["organization"] or "us"
        name = f"{owner}/{request['name']}"
        self.check_write(owner)
        exists = name in self.hub.repositories
        private = request.get("visibility") == "private" or request.get("private") is True
        self.hub.repositories.setdefault(name, Repository(private=private))
        self.answer({"url": f"{self.hub.address}/{name}"}, 409 if exists else 200)

    def preupload(self, repository: Repository) -> None:
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = ["lfs" if path.endswith((".safetensors", ".bin")) else "regular" for path in paths]
        files = [
            {"path": path, "uploadMode": mode, "shouldIgnore": False}
            for path, mode in zip(paths, modes, strict=True)
        ]
        self.answer({"files": files})

    def batch(self, objects: list[dict], target: str) -> None:
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.hub.address}/{target}/{item['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, repository: Repository) -> None:
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    repository.messages.append(value["summary"])
                case "file":
                    repository.branches["main"][value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repository.branches["main"][value["path"]] = self.hub.blobs[value["oid"]]
        oid, _ = self.at(repository, "main")
        url = f"{self.hub.address}{self.path.removeprefix('/api/models')}"
        self.answer({"commitUrl": url, "commitOid": oid})

    def answer(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entry(path: str, data: bytes) -> dict:
    """The entry of a file in the listing of a commit."""
    return {"type": "file", "path": path, "size": len(data), "oid": sha1(data)}


@contextmanager
def serve():
    """Run a hub until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    # Closing the server must wait for its threads, or it leaves sockets open.
    server.daemon_threads = False
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def call(name: str, *args, token: str | None = None, **options) -> tuple:
    """A call of a function of ddpm_jax.pretrained.hub for `client`, with this HF_TOKEN."""
    return name, args, options, token


def environment_of(hub: Hub, cache: Path) -> dict[str, str]:
    """The environment of a process that uses this hub and this cache."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))
    }
    return {
        **inherited,
        "JAX_PLATFORMS": "cpu",
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


def client(hub: Hub, cache: Path, *calls: tuple, **environment: str) -> list[str]:
    """The result of each call, or the name and message of its error.

    All calls run in one separate process, because the client reads the environment when it is
    imported. It reads only the token at each call.
    """
    process = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(calls, default=str),
        env=environment_of(hub, cache) | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    """Run the calls that stdin lists, and print their results."""
    from ddpm_jax.pretrained import hub

    results = []
    for name, args, options, token in json.load(sys.stdin):
        os.environ.pop("HF_TOKEN", None)
        if token:
            os.environ["HF_TOKEN"] = token
        args = [Path(arg) if name == "upload" and i == 0 else arg for i, arg in enumerate(args)]
        try:
            results.append(str(getattr(hub, name)(*args, **options)))
        except (ValueError, OSError) as error:
            results.append(f"{type(error).__name__}: {error}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
