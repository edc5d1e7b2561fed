"""A small server that keeps blobs and versions in memory and speaks the artifact routes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": code, "message": message, "hint": "", **facts}}


@dataclass
class ArtifactServer:
    """What it holds, what it was asked, and what it is told to do wrong."""

    url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    uses: list[tuple[str, str, str]] = field(default_factory=list)
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    """(method, path, bytes of the body)"""
    busy: int = 0
    """So many requests are answered with 503."""
    cut: int = 0
    """So many answers with many bytes end in the middle."""
    ranges: int = 1 << 30
    """So many ranges of blobs are answered; the next ones wait for `go_on`."""
    go_on: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def sent(self, prefix: str) -> int:
        """Bytes sent to paths that begin so."""
        return sum(size for method, path, size in self.asked if f"{method} {path}".startswith(prefix))

    def count(self, prefix: str) -> int:
        """Requests to paths that begin so."""
        return sum(f"{method} {path}".startswith(prefix) for method, path, _ in self.asked)

    def keep(self, data: bytes) -> str:
        """Store a blob, and say its digest."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    # ---- answers

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> Any:
        with self.lock:
            self.asked.append((method, path, len(body)))
            self.ranges -= "Range" in headers
            waits = self.ranges < 0 and "Range" in headers
        if waits:
            self.go_on.wait(60)
        with self.lock:
            if self.busy:
                self.busy -= 1
                raise Refusal(503, "unavailable", "expected to be free, got work", retry_after=0.01)
            parts = [unquote(part) for part in path.split("/")]
            if parts[0] == "blobs":
                return self._blobs(method, parts[1], body, headers)
            if parts[0] == "uploads":
                return self._uploads(method, parts, query, body)
            if parts[0] == "artifacts":
                return self._artifacts(method, parts[1:], query, json.loads(body) if body else {})
            if parts[0] == "events":
                return {"token": "ledger:0:1", "positions": []}
            if parts[0] == "viewer":
                return {"user": "ada", "key_id": "k", "version": "0"}
            if parts[0] == "runs" and len(parts) == 4:
                return {"entity": parts[1], "project": parts[2], "id": parts[3], "state": "finished"}
            raise Refusal(404, "not_found", f"expected a known path, got {path}")

    def _blobs(self, method: str, what: str, body: bytes, headers: Any) -> Any:
        if what == "missing":
            digests = json.loads(body)["digests"]
            assert len(digests) <= 10_000
            return {"missing": [digest for digest in digests if digest not in self.blobs]}
        if what == "pack":
            found = dict(unframed(body))
            for digest, data in found.items():
                _check(digest, data)
            self.blobs |= found
            return {"stored": len(found)}
        if what == "read":
            digests = json.loads(body)["digests"]
            if missing := [digest for digest in digests if digest not in self.blobs]:
                raise Refusal(404, "not_found", "expected blobs that are there", missing=missing)
            return b"".join(bytes.fromhex(d) + len(self.blobs[d]).to_bytes(8) + self.blobs[d] for d in digests)
        if method == "PUT":
            _check(what, body)
            self.blobs[what] = body
            return {"digest": what, "size": len(body)}
        if what not in self.blobs:
            raise Refusal(404, "not_found", f"expected a blob that is there, got {what}")
        data = self.blobs[what]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range") or "")
        return data[int(asked[1]) : int(asked[2]) + 1] if asked else data

    def _uploads(self, method: str, parts: list[str], query: dict[str, str], body: bytes) -> Any:
        digest = parts[1]
        if method == "PUT":
            under_way = self.uploads.setdefault(digest, {"size": int(query["size"]), "parts": {}})
            under_way["part_size"] = int(query["part_size"])
            under_way["parts"][int(parts[2])] = body
            return {"digest": digest, "part": int(parts[2])}
        under_way = self.uploads.get(digest, {"parts": {}})
        if method == "GET":
            told = {key: under_way[key] for key in ("size", "part_size") if key in under_way}
            return {**told, "parts": sorted(under_way["parts"])}
        data = b"".join(under_way["parts"][number] for number in sorted(under_way["parts"]))
        self.uploads.pop(digest, None)
        _check(digest, data)
        self.blobs[digest] = data
        return {"digest": digest, "size": len(data)}

    def _artifacts(self, method: str, parts: list[str], query: dict[str, str], body: dict[str, Any]) -> Any:
        path = "/".join(parts[:3])
        if len(parts) == 2:
            found = [one for key, one in self.collections.items() if key.startswith(f"{path}/")]
            return {"artifacts": [_listed(one) for one in found if query.get("type") in (None, one["type"])]}
        if len(parts) == 3 and method == "POST":
            return self._commit(path, body)
        one = self.collections.get(path)
        if one is None:
            raise Refusal(404, "not_found", f"expected an artifact, got {path}")
        if len(parts) == 3:
            first = int(query["cursor"]) if "cursor" in query else len(one["versions"]) - 1
            numbers = list(range(first, -1, -1))[: int(query["limit"])]
            more = numbers[-1] - 1 if numbers and numbers[-1] else None
            return {"versions": [self._told(one, n) for n in numbers], "cursor": None if more is None else str(more)}
        if parts[3] == "aliases":
            return self._move(one, parts[4], body)
        number = self._number(one, parts[3])
        version = one["versions"][number]
        if method == "PATCH":
            version.update(body)
        elif method == "DELETE":
            if self._named(one, number) != [] and query.get("with_aliases") != "true":
                raise Refusal(409, "conflict", "expected a version without aliases")
            version["state"] = "deleted"
        elif parts[-1] == "restore":
            version["state"] = "committed"
        elif parts[-1] == "uses":
            self.uses.append((path, f"v{number}", body["run"]))
        elif parts[-1] == "lineage":
            node = f"{path}:v{number}"
            runs = [run for used, at, run in self.uses if f"{used}:{at}" == node]
            return {"nodes": [], "edges": [{"from": node, "to": run, "kind": "used"} for run in runs]}
        return self._told(one, number)

    def _commit(self, path: str, body: dict[str, Any]) -> Any:
        if body["manifest"] not in self.blobs:
            raise Refusal(422, "blobs_missing", "expected a manifest", missing=[body["manifest"]])
        entries = json.loads(self.blobs[body["manifest"]])["entries"]
        wanted = {entry["digest"] for entry in entries.values() if "ref" not in entry}
        if missing := sorted(wanted - self.blobs.keys()):
            raise Refusal(422, "blobs_missing", "expected blobs", missing=missing)
        one = self.collections.setdefault(path, {"path": path, "type": body["type"], "versions": [], "aliases": {}})
        if one["type"] != body["type"]:
            raise Refusal(409, "conflict", f"expected a {one['type']}")
        digests = [version["digest"] for version in one["versions"]]
        if body["manifest"] not in digests:
            size = sum(entry["size"] for entry in entries.values() if "ref" not in entry)
            words = {key: body[key] for key in ("type", "description", "metadata", "tags", "run")}
            version = {**words, "digest": body["manifest"], "size": size, "files": len(entries), "state": "committed"}
            one["versions"].append(version)
            digests.append(body["manifest"])
        number = digests.index(body["manifest"])
        one["aliases"] |= dict.fromkeys(["latest", *body["aliases"]], number)
        return self._told(one, number)

    def _move(self, one: dict[str, Any], alias: str, body: dict[str, Any]) -> Any:
        before = one["aliases"].get(alias)
        if "expected" in body and body["expected"] != (None if before is None else f"v{before}"):
            raise Refusal(409, "conflict", f"expected {alias} to be {body['expected']}, found v{before}")
        if body["version"] is None:
            one["aliases"].pop(alias)
        else:
            one["aliases"][alias] = int(body["version"][1:])
        return {"alias": alias, "version": body["version"], "before": before}

    def _number(self, one: dict[str, Any], ref: str) -> int:
        number = int(ref[1:]) if re.fullmatch(r"v\d+", ref) else one["aliases"].get(ref)
        if number is None or number >= len(one["versions"]):
            raise Refusal(404, "not_found", f"expected a version, got {one['path']}:{ref}")
        return int(number)

    def _named(self, one: dict[str, Any], number: int) -> list[str]:
        return [alias for alias, at in one["aliases"].items() if at == number and alias != "latest"]

    def _told(self, one: dict[str, Any], number: int) -> dict[str, Any]:
        entity, project, name = one["path"].split("/")
        aliases = [alias for alias, at in one["aliases"].items() if at == number]
        times = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
        where = {"path": one["path"], "entity": entity, "project": project, "name": name, "version": f"v{number}"}
        return {**where, **one["versions"][number], "aliases": aliases, "user": "ada", **times}


def _listed(one: dict[str, Any]) -> dict[str, Any]:
    aliases = {alias: f"v{number}" for alias, number in one["aliases"].items()}
    name = one["path"].split("/")[2]
    return {
        "path": one["path"],
        "name": name,
        "type": one["type"],
        "versions": len(one["versions"]),
        "aliases": aliases,
    }


def _check(digest: str, data: bytes) -> None:
    got = hashlib.sha256(data).hexdigest()
    if got != digest:
        raise Refusal(422, "digest_mismatch", f"expected bytes of {digest}, got those of {got}", digest=digest, got=got)


def unframed(body: bytes) -> Iterator[tuple[str, bytes]]:
    """The blobs of a pack."""
    at = 0
    while at < len(body):
        size = int.from_bytes(body[at + 32 : at + 40])
        yield body[at : at + 32].hex(), body[at + 40 : at + 40 + size]
        at += 40 + size


@contextmanager
def serving_artifacts() -> Iterator[ArtifactServer]:
    """The server, on a free port."""
    state = ArtifactServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = parts.path.removeprefix("/api/v1/")
            status = 200
            try:
                said = state.answer(self.command, path, dict(parse_qsl(parts.query)), body, self.headers)
            except Refusal as refusal:
                status, said = refusal.status, refusal.body
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            if self.headers.get("Range") and status == 200:
                status = 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if state.cut and isinstance(said, bytes) and len(data) > 1000:
                state.cut -= 1
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    ThreadingHTTPServer.request_queue_size = 128  # many clients connect at once
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
