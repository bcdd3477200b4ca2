"""A small hub on this machine: the calls of huggingface_hub, answered and recorded; and the client in a process."""

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

READ, WRITE = "hf_reads", "hf_writes"
"""The tokens that there are; both are of the user `us`."""


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Repository:
    """Files by branch or tag, and who may see them."""

    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    private: bool = False
    gated: bool = False
    broken: bool = False
    messages: list[str] = field(default_factory=list)

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a branch, tag or commit."""
        commits = {
            name: sha1(repr(sorted(files.items())).encode())
            for name, files in self.branches.items()
        }
        return next(
            (
                (commits[name], files)
                for name, files in self.branches.items()
                if revision in (name, commits[name])
            ),
            None,
        )


@dataclass
class Hub:
    """What the server holds and the requests that it got: method, path and Authorization."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)

    def tokens(self, repository: str) -> set[str | None]:
        """The Authorization of the requests about a repository."""
        return {token for _, path, token in self.requests if f"/{repository}" in path}

    def fetched(self, repository: str) -> list[str]:
        """The files of a repository whose bytes were asked for, in order of their names."""
        start = f"/{repository}/resolve/"
        paths = [
            path.removeprefix(start)
            for method, path, _ in self.requests
            if method == "GET" and start in path
        ]
        return sorted(unquote(path.partition("/")[2]) for path in paths)


class Refused(Exception):
    """An answer that is an error: status, X-Error-Code, X-Error-Message."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        """Says nothing."""

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
            self.answer(
                {"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message}
            )

    do_GET = do_HEAD = do_POST = do_PUT = answer_any

    def route(self, parts: list[str]) -> None:
        match self.command, parts:
            case "POST", ["api", "repos", "create"]:
                self.create(json.loads(self.body))
            case "POST", ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case "GET", ["api", "models", owner, name, *rest]:
                self.describe(self.repository(owner, name), f"{owner}/{name}", rest)
            case "POST", ["api", "models", owner, name, ("preupload" | "commit") as what, "main"]:
                self.may_write(owner)
                getattr(self, what)(self.repository(owner, name))
            case "POST", [owner, name, "info", "lfs", "objects", "batch"]:
                self.may_write(owner)
                self.batch(
                    json.loads(self.body)["objects"], "nowhere" if name == "full.git" else "lfs"
                )
            case "PUT", ["lfs", oid]:
                assert sha256(self.body) == oid
                self.hub.blobs[oid] = self.body
                self.answer({})
            case (("GET" | "HEAD"), [owner, name, "resolve", revision, *path]):
                self.resolve(self.repository(owner, name), revision, "/".join(path))
            case _:
                raise Refused(404, "", f"{self.command} {self.path} is not known here")

    def repository(self, owner: str, name: str) -> Repository:
        """Without a token the hub does not say whether a repository is private or not there."""
        found = self.hub.repositories.get(f"{owner}/{name}")
        if self.token is None and (found is None or found.private):
            raise Refused(401, "", "Invalid username or password.")
        if found is None:
            raise Refused(404, "RepoNotFound", "Repository not found")
        if found.broken:
            raise Refused(503, "", "")
        return found

    def may_write(self, owner: str) -> None:
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
            self.may_write(name.partition("/")[0])
            return self.answer({})
        commit, files = self.at(repository, rest[1] if rest else "main")
        if rest[:1] == ["tree"]:
            return self.answer([entry(path, data) for path, data in files.items()])
        siblings = [{"rfilename": path} for path in files]
        return self.answer(
            {"id": name, "sha": commit, "private": repository.private, "siblings": siblings}
        )

    def at(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        found = repository.find(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def resolve(self, repository: Repository, revision: str, path: str) -> None:
        if repository.gated:
            raise Refused(
                403 if self.token else 401, "GatedRepo", "Access to this model is restricted"
            )
        commit, files = self.at(repository, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = files[path]
        start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].partition("-")[0])
        ranged = (
            {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            if "Range" in self.headers
            else {}
        )
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha1(data)}"', **ranged}
        self.answer(data[start:], 206 if ranged else 200, headers)

    def create(self, asked: dict) -> None:
        self.hub.created.append(asked)
        owner = asked["organization"] or "us"
        name = f"{owner}/{asked['name']}"
        self.may_write(owner)
        there = name in self.hub.repositories
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories.setdefault(name, Repository(private=private))
        self.answer({"url": f"{self.hub.address}/{name}"}, 409 if there else 200)

    def preupload(self, repository: Repository) -> None:
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = ["lfs" if path.endswith((".safetensors", ".bin")) else "regular" for path in paths]
        files = [
            {"path": path, "uploadMode": mode, "shouldIgnore": False}
            for path, mode in zip(paths, modes, strict=True)
        ]
        self.answer({"files": files})

    def batch(self, objects: list[dict], where: str) -> None:
        for thing in objects:
            thing["actions"] = {"upload": {"href": f"{self.hub.address}/{where}/{thing['oid']}"}}
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
        self.answer(
            {
                "commitUrl": f"{self.hub.address}{self.path.removeprefix('/api/models')}",
                "commitOid": oid,
            }
        )

    def answer(self, what, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entry(path: str, data: bytes) -> dict:
    """A file in the listing of a commit."""
    return {"type": "file", "path": path, "size": len(data), "oid": sha1(data)}


@contextmanager
def serve():
    """A hub that answers until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = False  # so that closing waits for them, and leaves no socket open
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
    """A call of a function of ddpm_jax.pretrained.hub with this HF_TOKEN, for `client`."""
    return name, args, options, token


def environment_of(hub: Hub, cache: Path) -> dict[str, str]:
    """The environment of a process whose hub and cache are these."""
    ours = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))
    }
    root = str(Path(__file__).parents[2])
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": root,
    }
    return {**ours, "JAX_PLATFORMS": "cpu", **settings}


def client(hub: Hub, cache: Path, *calls: tuple, **environment: str) -> list[str]:
    """What each of the calls returns, or the name of its error and the message.

    All calls run in one other process, as the client reads the environment when it is imported;
    only the token is read at each call.
    """
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(calls, default=str),
        env=environment_of(hub, cache) | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from ddpm_jax.pretrained import hub

    results = []
    for name, args, options, token in json.load(sys.stdin):
        os.environ.pop("HF_TOKEN", None)
        os.environ.update({"HF_TOKEN": token} if token else {})
        args = [Path(arg) if name == "upload" and i == 0 else arg for i, arg in enumerate(args)]
        try:
            results.append(str(getattr(hub, name)(*args, **options)))
        except (ValueError, OSError) as error:
            results.append(f"{type(error).__name__}: {error}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
