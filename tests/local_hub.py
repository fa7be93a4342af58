"""A tiny Hugging Face Hub stand-in for tests: real client, local server, faults on demand.

The server speaks the part of the Hub's HTTP API that ``huggingface_hub`` needs for
``hf_hub_download``, ``snapshot_download``, ``create_repo``, ``create_commit``, ``upload_file``,
``upload_folder``, ``create_tag``, ``create_branch``, ``list_repo_refs``, ``list_repo_files`` and
``verify_repo_checksums``. It uses the standard library only, listens on 127.0.0.1 only, and keeps
everything below one directory.

In a test::

    with LocalHub(tmp_path) as hub:
        hub.add_repo("org/model", {"config.json": b"{}", "model.safetensors": data})
        hub.add_fault("corrupt", path="*.safetensors", times=1)
        hf_hub_download("org/model", "config.json", endpoint=hub.url, cache_dir=cache)

For a subprocess (a CLI under test) pass ``env={**os.environ, **hub.env()}``: ``huggingface_hub``
reads HF_ENDPOINT when it is imported, so setting it later in the same process has no effect (pass
``endpoint=`` there). ``env()`` also sets HF_HUB_DISABLE_XET=1, which uploads need: the server has
no Xet storage, and a client with ``hf_xet`` installed otherwise sends large files there.
``HF_HUB_ETAG_TIMEOUT`` and ``HF_HUB_DOWNLOAD_TIMEOUT`` (seconds) shorten the ``stall`` fault.

Fault kinds (``add_fault(kind, path=..., method=..., times=..., **options)``):

==================  ============================================================================
``status``          answer ``code`` (default 500) with an empty body
``gated``           403 with ``X-Error-Code: GatedRepo``
``unauthorized``    401 with ``X-Error-Code: RepoNotFound`` (what the Hub says to a bad token)
``not_found``       404 with ``X-Error-Code: EntryNotFound``
``drop``            promise the whole body, send ``keep`` bytes (default half), close the connection
``truncate``        send ``keep`` bytes (default half) and claim that this is the whole body
``pad``             send the whole body plus ``extra`` (default 16) zero bytes, claimed as the whole
``corrupt``         flip one bit of byte ``offset`` (default: the middle); same length, same headers
``stall``           send nothing for ``seconds`` (default 30), then go on
``header``          replace response headers: ``headers={"ETag": '"x"', "X-Repo-Commit": None}``
``no_range``        ignore Range and answer 200 with the whole body
==================  ============================================================================

``path`` is a glob on the request path (``*`` crosses slashes), e.g. ``*/resolve/*/config.json``,
``*/commit/*``, ``/api/*``. ``times=None`` means always. ``hub.requests`` lists what was asked.

Run it by hand: ``python local_hub.py --root DIR [--port N] [--fault corrupt:*.safetensors]``.
Self-test: ``python local_hub.py --self-test``.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fnmatch
import hashlib
import json
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gz", ".npz", ".onnx")
KINDS = ("models", "datasets", "spaces")


@dataclass
class Fault:
    """One fault rule; see the module docstring for the kinds."""

    kind: str
    path: str = "*"
    method: str | None = None
    times: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    hits: int = 0


@dataclass(frozen=True)
class Seen:
    """One request the server got."""

    method: str
    path: str
    authorized: bool
    range: str | None = None


class LocalHub:
    """The server: start it as a context manager or with :meth:`start` / :meth:`stop`.

    ``token``: if set, every request must carry it (else 401). ``max_regular``: bigger files, and
    files with an LFS suffix, go through LFS as on the Hub. ``redirect_lfs``: answer ``resolve`` of
    an LFS file with a 302 to another origin, as the Hub does for its CDN.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        port: int = 0,
        token: str | None = None,
        max_regular: int = 1 << 20,
        redirect_lfs: bool = False,
    ) -> None:
        self.root = Path(root)
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        self.token, self.max_regular, self.redirect_lfs = token, max_regular, redirect_lfs
        self.faults: list[Fault] = []
        self.requests: list[Seen] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self})
        )
        self.server.daemon_threads = True
        self.port: int = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> LocalHub:
        """Serve in a thread."""
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving and end stalls."""
        self._stopping.set()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self) -> LocalHub:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def env(self, **extra: str) -> dict[str, str]:
        """Environment for a subprocess that should talk to this server."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": self.token or "hf_local",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **extra,
        }

    # -- faults -------------------------------------------------------------------------------
    def add_fault(
        self,
        kind: str,
        path: str = "*",
        *,
        method: str | None = None,
        times: int | None = None,
        **options: Any,
    ) -> Fault:
        """Add a fault rule; see the module docstring for the kinds."""
        fault = Fault(kind, path, method, times, options)
        with self.lock:
            self.faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Forget all faults."""
        with self.lock:
            self.faults.clear()

    def take_faults(self, method: str, path: str) -> list[Fault]:
        """Return the faults for a request, each counted as used once more."""
        with self.lock:
            hit = [
                f
                for f in self.faults
                if fnmatch.fnmatchcase(path, f.path)
                and f.method in (None, method)
                and (f.times is None or f.hits < f.times)
            ]
            for f in hit:
                f.hits += 1
            return hit

    def count(self, method: str | None = None, path: str = "*") -> int:
        """How many requests matched."""
        return sum(
            1
            for r in self.requests
            if r.method == (method or r.method) and fnmatch.fnmatchcase(r.path, path)
        )

    # -- storage: blobs/<sha256>, <kind>/<repo>/{refs.json,commits/<sha>.json} ------------------
    def put_blob(self, data: bytes) -> str:
        """Store content; returns its sha256."""
        sha = hashlib.sha256(data).hexdigest()
        path = self.root / "blobs" / sha
        if not path.exists():
            path.write_bytes(data)
        return sha

    def blob(self, sha: str) -> bytes:
        """Return stored content."""
        return (self.root / "blobs" / sha).read_bytes()

    def repo_dir(self, repo_id: str, kind: str = "models") -> Path:
        """Return where a repo is stored."""
        if kind not in KINDS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo_id) or ".." in repo_id:
            raise KeyError(repo_id)
        return self.root / kind / repo_id.replace("/", "--")

    def refs(self, repo_id: str, kind: str = "models") -> dict[str, Any]:
        """Return branches, tags and the log of commits."""
        path = self.repo_dir(repo_id, kind) / "refs.json"
        if not path.is_file():
            raise KeyError(repo_id)
        return cast("dict[str, Any]", json.loads(path.read_text()))

    def set_ref(self, repo_id: str, group: str, name: str, sha: str, kind: str = "models") -> None:
        """Move a branch or a tag."""
        refs = self.refs(repo_id, kind)
        refs[group][name] = sha
        (self.repo_dir(repo_id, kind) / "refs.json").write_text(json.dumps(refs))

    def create_repo(self, repo_id: str, kind: str = "models", private: bool = False) -> None:
        """Create a repo with one empty commit."""
        folder = self.repo_dir(repo_id, kind)
        (folder / "commits").mkdir(parents=True, exist_ok=True)
        (folder / "refs.json").write_text(
            json.dumps({"branches": {}, "tags": {}, "private": private, "log": []})
        )
        self.commit(repo_id, {}, kind=kind, message="initial commit")

    def resolve(self, repo_id: str, revision: str, kind: str = "models") -> str | None:
        """Return the commit of a branch, tag or commit id."""
        refs = self.refs(repo_id, kind)
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = refs["branches"].get(revision) or refs["tags"].get(revision)
        if sha is None and revision in refs["log"]:
            sha = revision
        return cast("str | None", sha)

    def files(
        self, repo_id: str, revision: str = "main", kind: str = "models"
    ) -> dict[str, dict[str, Any]]:
        """Return {path: {"size", "sha256", "oid", "lfs"}} at a revision."""
        sha = self.resolve(repo_id, revision, kind)
        if sha is None:
            raise KeyError(revision)
        record = json.loads((self.repo_dir(repo_id, kind) / "commits" / f"{sha}.json").read_text())
        return cast("dict[str, dict[str, Any]]", record["files"])

    def read(self, repo_id: str, path: str, revision: str = "main", kind: str = "models") -> bytes:
        """Return a file's content at a revision."""
        return self.blob(self.files(repo_id, revision, kind)[path]["sha256"])

    def commit(
        self,
        repo_id: str,
        changes: Mapping[str, str | None],
        *,
        branch: str = "main",
        kind: str = "models",
        message: str = "",
        parent: str | None = None,
    ) -> str:
        """Apply {path: blob sha256, or None to delete} to a branch; returns the commit id."""
        with self.lock:
            refs = self.refs(repo_id, kind)
            head = refs["branches"].get(branch)
            if parent is not None and parent != head:
                raise ValueError("parent commit is not the head")
            files = self.files(repo_id, branch, kind) if head else {}
            for path, sha in changes.items():
                if sha is None:
                    files = {
                        p: f for p, f in files.items() if p != path and not p.startswith(path + "/")
                    }
                else:
                    data = self.blob(sha)
                    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                    files[path] = {
                        "size": len(data),
                        "sha256": sha,
                        "oid": git,
                        "lfs": self.is_lfs(path, len(data)),
                    }
            body = json.dumps(
                {"parent": head, "n": len(refs["log"]), "message": message, "files": files},
                sort_keys=True,
            )
            commit = hashlib.sha1(body.encode()).hexdigest()
            (self.repo_dir(repo_id, kind) / "commits" / f"{commit}.json").write_text(body)
            refs["branches"][branch] = commit
            refs["log"].append(commit)
            (self.repo_dir(repo_id, kind) / "refs.json").write_text(json.dumps(refs))
            return commit

    def add_repo(self, repo_id: str, files: Mapping[str, bytes], kind: str = "models") -> str:
        """Create the repo if it is new and commit these files; returns the commit id."""
        if not (self.repo_dir(repo_id, kind) / "refs.json").exists():
            self.create_repo(repo_id, kind)
        return self.commit(repo_id, {p: self.put_blob(d) for p, d in files.items()}, kind=kind)

    def is_lfs(self, path: str, size: int) -> bool:
        """Whether a file goes through LFS."""
        return size > 0 and (path.endswith(LFS_SUFFIXES) or size > self.max_regular)


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:  # quiet
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    # -- replies ------------------------------------------------------------------------------
    def reply(
        self,
        body: bytes | dict[str, Any] | list[Any] = b"",
        code: int = 200,
        headers: Mapping[str, str | None] | None = None,
    ) -> None:
        """Send a response, bent by whatever faults apply to this request."""
        head: dict[str, str | None] = {}
        if not isinstance(body, bytes):
            body, head["Content-Type"] = json.dumps(body).encode(), "application/json"
        head.update(headers or {})
        promised = len(body)
        for fault in self.active:
            opt = fault.options
            keep = min(opt.get("keep", len(body) // 2), len(body))
            if fault.kind == "drop":
                body = body[:keep]
            elif fault.kind == "truncate" and self.command == "GET":
                body, promised = body[:keep], keep
            elif fault.kind == "pad" and self.command == "GET":
                body, promised = (
                    body + bytes(opt.get("extra", 16)),
                    len(body) + opt.get("extra", 16),
                )
            elif fault.kind == "corrupt" and body:
                at = opt.get("offset", len(body) // 2)
                body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
            elif fault.kind == "header":
                head.update(opt["headers"])
        self.send_response(code)
        head.setdefault("Content-Length", str(promised))
        for name, value in head.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            if len(body) < promised:
                self.close_connection = True

    def error(self, code: int, error: str, message: str = "") -> None:
        self.reply(
            {"error": message or error},
            code,
            {"X-Error-Code": error, "X-Error-Message": message or error},
        )

    # -- routing ------------------------------------------------------------------------------
    def dispatch(self) -> None:
        split = urlsplit(self.path)
        path, self.query = split.path, parse_qs(split.query)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.body = b"".join(parts)
        else:
            self.body = self.rfile.read(length)
        auth = self.headers.get("Authorization")
        self.hub.requests.append(
            Seen(self.command, unquote(path), auth is not None, self.headers.get("Range"))
        )
        self.active = self.hub.take_faults(self.command, unquote(path))
        for fault in self.active:
            if fault.kind == "stall":
                self.hub._stopping.wait(fault.options.get("seconds", 30))
            elif fault.kind == "status":
                return self.reply(b"", fault.options.get("code", 500))
            elif fault.kind == "gated":
                return self.error(403, "GatedRepo", "Access to this model is restricted.")
            elif fault.kind == "unauthorized":
                return self.error(401, "RepoNotFound", "Repository not found")
            elif fault.kind == "not_found":
                return self.error(404, "EntryNotFound", "Entry not found")
        if (
            self.hub.token
            and auth != f"Bearer {self.hub.token}"
            and not path.startswith(("/cdn/", "/lfs/"))
        ):
            return self.error(401, "RepoNotFound", "Invalid username or password.")
        try:
            self.route(path)
        except KeyError as err:
            self.error(404, "RepoNotFound", f"Repository not found: {err}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch

    def route(self, path: str) -> None:
        hub = self.hub
        if path == "/api/whoami-v2":
            return self.reply(
                {"type": "user", "name": "local", "orgs": [], "auth": {"type": "access_token"}}
            )
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            want = json.loads(self.body)
            kind, repo = (
                want.get("type", "model") + "s",
                f"{want.get('organization') or 'local'}/{want['name']}",
            )
            if (hub.repo_dir(repo, kind) / "refs.json").exists():
                return self.reply({"error": "exists", "url": f"{hub.url}/{repo}"}, 409)
            hub.create_repo(
                repo, kind, want.get("visibility") == "private" or bool(want.get("private"))
            )
            prefix = "" if kind == "models" else f"{kind}/"
            return self.reply({"url": f"{hub.url}/{prefix}{repo}", "name": repo, "id": repo})
        if match := re.fullmatch(r"/(?:cdn|lfs)/([0-9a-f]{64})", path):
            if self.command == "PUT":
                if hashlib.sha256(self.body).hexdigest() != match[1]:
                    return self.error(400, "BadRequest", "sha256 mismatch")
                hub.put_blob(self.body)
                return self.reply(b"", headers={"ETag": f'"{match[1]}"'})
            return self.send_blob(hub.blob(match[1]), {"ETag": f'"{match[1]}"'})
        if path == "/lfs-verify":
            found = (hub.root / "blobs" / json.loads(self.body)["oid"]).is_file()
            return self.reply({}, 200 if found else 404)
        if match := re.fullmatch(r"/(?:(datasets|spaces)/)?(.+)\.git/info/lfs/objects/batch", path):
            objects = []
            for item in json.loads(self.body)["objects"]:
                entry: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
                if not (hub.root / "blobs" / item["oid"]).is_file():
                    entry["actions"] = {
                        "upload": {"href": f"{hub.url}/lfs/{item['oid']}"},
                        "verify": {"href": f"{hub.url}/lfs-verify"},
                    }
                objects.append(entry)
            return self.reply({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(
            r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path
        ):
            return self.resolve_file(
                match[1] or "models", match[2], unquote(match[3]), unquote(match[4])
            )
        if match := re.fullmatch(
            r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path
        ):
            return self.repo_api(
                match[1], match[2], match[3] or "revision", unquote(match[4] or "main")
            )
        self.error(404, "EntryNotFound", "no such route")

    def resolve_file(self, kind: str, repo: str, revision: str, name: str) -> None:
        commit = self.hub.resolve(repo, revision, kind)
        if commit is None:
            return self.error(404, "RevisionNotFound")
        info = self.hub.files(repo, commit, kind).get(name)
        if info is None:
            return self.reply(
                b"Entry not found", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            )
        head: dict[str, str | None] = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        head["ETag"] = f'"{info["sha256"] if info["lfs"] else info["oid"]}"'
        if info["lfs"]:
            head.update({"X-Linked-Etag": head["ETag"], "X-Linked-Size": str(info["size"])})
            if self.hub.redirect_lfs:
                head["Location"] = f"http://localhost:{self.hub.port}/cdn/{info['sha256']}"
                return self.reply(b"", 302, head)
        self.send_blob(self.hub.blob(info["sha256"]), head)

    def send_blob(self, data: bytes, head: dict[str, str | None]) -> None:
        code, wanted = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and not any(f.kind == "no_range" for f in self.active):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
            if first >= len(data):
                return self.reply(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
            head["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, code = data[first : last + 1], 206
        self.reply(data, code, head)

    def repo_api(self, kind: str, repo: str, verb: str, revision: str) -> None:
        hub = self.hub
        refs = hub.refs(repo, kind)
        if verb == "refs":
            return self.reply(
                {
                    group: [
                        {"name": n, "ref": f"refs/{at}/{n}", "targetCommit": s}
                        for n, s in refs[group].items()
                    ]
                    for group, at in (("branches", "heads"), ("tags", "tags"))
                }
                | {"converts": []}
            )
        if verb == "preupload":
            have = hub.files(repo, revision, kind) if hub.resolve(repo, revision, kind) else {}
            answer = []
            for f in json.loads(self.body)["files"]:
                old = have.get(f["path"])
                answer.append(
                    {
                        "path": f["path"],
                        "shouldIgnore": False,
                        "oid": old and (old["sha256"] if old["lfs"] else old["oid"]),
                        "uploadMode": "lfs" if hub.is_lfs(f["path"], f["size"]) else "regular",
                    }
                )
            return self.reply({"files": answer})
        if verb == "commit":
            return self.do_commit(kind, repo, revision)
        if verb in ("tag", "branch") and self.command == "POST":
            want = json.loads(self.body or b"{}")
            name = want.get("tag", revision)
            source = hub.resolve(
                repo, revision if verb == "tag" else want.get("startingPoint") or "main", kind
            )
            group = "tags" if verb == "tag" else "branches"
            if source is None:
                return self.error(404, "RevisionNotFound")
            if name in refs[group]:
                return self.error(409, "Conflict", "Reference already exists")
            hub.set_ref(repo, group, name, source, kind)
            return self.reply({})
        commit = hub.resolve(repo, revision.split("/")[0] if verb == "tree" else revision, kind)
        if commit is None:
            return self.error(404, "RevisionNotFound")
        files = hub.files(repo, commit, kind)
        entries = []
        for name, f in sorted(files.items()):
            entry = {"type": "file", "path": name, "size": f["size"], "oid": f["oid"]}
            if f["lfs"]:
                entry["lfs"] = {
                    "oid": f["sha256"],
                    "sha256": f["sha256"],
                    "size": f["size"],
                    "pointerSize": 134,
                }
            entries.append(entry)
        if verb == "tree":
            return self.reply(entries)
        if verb == "paths-info":
            raw = self.body.decode()
            want = (
                json.loads(raw)["paths"] if raw.startswith("{") else parse_qs(raw).get("paths", [])
            )
            return self.reply([e for e in entries if e["path"] in want])
        if verb == "revision":
            return self.reply(
                {
                    "_id": commit[:24],
                    "id": repo,
                    "modelId": repo,
                    "sha": commit,
                    "tags": [],
                    "private": refs["private"],
                    "disabled": False,
                    "gated": False,
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": n} for n in sorted(files)],
                }
            )
        self.error(404, "EntryNotFound", f"no such route: {verb}")

    def do_commit(self, kind: str, repo: str, branch: str) -> None:
        changes: dict[str, str | None] = {}
        header: dict[str, Any] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            elif key == "file":
                changes[value["path"]] = self.hub.put_blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if not (self.hub.root / "blobs" / value["oid"]).is_file():
                    return self.error(
                        400, "BadRequest", f"LFS object {value['oid']} was never uploaded"
                    )
                changes[value["path"]] = value["oid"]
            elif key in ("deletedFile", "deletedFolder"):
                changes[value["path"].rstrip("/")] = None
        if branch not in self.hub.refs(repo, kind)["branches"]:
            return self.error(404, "RevisionNotFound")
        try:
            oid = self.hub.commit(
                repo,
                changes,
                branch=branch,
                kind=kind,
                message=header.get("summary", ""),
                parent=header.get("parentCommit"),
            )
        except ValueError as err:
            return self.error(412, "PreconditionFailed", str(err))
        self.reply(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"}
        )


def self_test() -> None:
    """Upload, tag, download, catch and miss faults with the real client."""
    import os

    os.environ["HF_HUB_DISABLE_XET"] = "1"  # before the first import of huggingface_hub
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError

    with (
        tempfile.TemporaryDirectory() as tmp,
        LocalHub(Path(tmp) / "hub", redirect_lfs=True) as hub,
    ):
        api = HfApi(endpoint=hub.url, token="hf_local")
        source = Path(tmp) / "source"
        (source / "sub").mkdir(parents=True)
        weights = bytes(range(256)) * 64
        (source / "model.safetensors").write_bytes(weights)
        (source / "sub" / "config.json").write_text("{}")
        repo = api.create_repo("org/net", exist_ok=True).repo_id
        api.upload_folder(repo_id=repo, folder_path=source, commit_message="first")
        api.create_tag(repo, tag="v1")
        assert sorted(api.list_repo_files(repo)) == ["model.safetensors", "sub/config.json"]
        before = hub.refs(repo)["log"]
        api.upload_folder(repo_id=repo, folder_path=source, commit_message="unchanged")
        assert hub.refs(repo)["log"] == before, "an upload without changes made a commit"
        common: dict[str, Any] = {"endpoint": hub.url, "token": "hf_local"}
        got = Path(snapshot_download(repo, revision="v1", cache_dir=f"{tmp}/a", **common))
        assert (got / "model.safetensors").read_bytes() == weights
        assert not any(r.authorized for r in hub.requests if r.path.startswith("/cdn/")), (
            "token sent to the CDN"
        )
        hub.add_fault("drop", "/cdn/*", times=1)
        again = hf_hub_download(repo, "model.safetensors", cache_dir=f"{tmp}/b", **common)
        assert Path(again).read_bytes() == weights
        assert hub.count("GET", "/cdn/*") == 3, "no retry after a drop"
        hub.clear_faults()
        hub.add_fault("corrupt", "/cdn/*", times=1)
        bad = Path(
            hf_hub_download(repo, "model.safetensors", cache_dir=f"{tmp}/c", **common)
        ).read_bytes()
        assert len(bad) == len(weights)
        assert bad != weights, "the client checks content"
        hub.clear_faults()
        for kind, expected in (("gated", GatedRepoError), ("not_found", EntryNotFoundError)):
            hub.clear_faults()
            hub.add_fault(kind)
            try:
                hf_hub_download(repo, "sub/config.json", cache_dir=f"{tmp}/d", **common)
            except expected:
                continue
            raise AssertionError(f"{kind}: no {expected.__name__}")
    print("self-test passed")


def main() -> None:
    parser = argparse.ArgumentParser(description="Local Hugging Face Hub stand-in")
    parser.add_argument("--root", default=None, help="storage directory (default: a temporary one)")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fault", action="append", default=[], metavar="KIND[:GLOB[:TIMES]]")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    with LocalHub(args.root or tempfile.mkdtemp(prefix="local-hub-"), port=args.port) as hub:
        for spec in args.fault:
            kind, _, rest = spec.partition(":")
            path, _, times = rest.partition(":")
            hub.add_fault(kind, path or "*", times=int(times) if times else None)
        print(f"HF_ENDPOINT={hub.url} HF_HUB_DISABLE_XET=1", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
