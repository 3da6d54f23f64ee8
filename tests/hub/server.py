"""A Hub on the loopback interface: the endpoints that huggingface_hub 2.4 talks to for reading and for pull requests.

Two origins, as in life: the endpoint, and a storage host to which files in large file storage are redirected. Paths,
headers, status codes and JSON are the Hub's, as huggingface_hub's source and its recorded answers have them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BLOCK = 1 << 16


class Content(Protocol):
    """A file's bytes, which need not exist anywhere."""

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    @property
    def blob_id(self) -> str: ...

    def part(self, start: int, length: int) -> bytes: ...


@dataclass(frozen=True)
class Plain:
    """Bytes in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def part(self, start: int, length: int) -> bytes:
        return self.data[start : start + length]


@dataclass(frozen=True)
class Sparse:
    """A real beginning, then zeros for as long as wanted. Its digests are made up: nobody reads all of it."""

    head: bytes
    size: int
    sha256: str = "5" * 64
    blob_id: str = "5" * 40

    def part(self, start: int, length: int) -> bytes:
        length = max(0, min(length, self.size - start))
        return self.head[start : start + length].ljust(length, b"\0")


@dataclass(frozen=True)
class Repeated:
    """Some bytes many times over: a file of any size, of which one copy of each part is in memory.

    Attributes:
        parts: In order; many of them may be the same object.
    """

    parts: tuple[bytes | memoryview, ...]
    blob_id: str = "6" * 40

    @cached_property
    def sha256(self) -> str:
        running = hashlib.sha256()
        for part in self.parts:
            running.update(part)
        return running.hexdigest()

    @cached_property
    def ends(self) -> list[int]:
        return list(accumulate(len(part) for part in self.parts))

    @property
    def size(self) -> int:
        return self.ends[-1]

    def part(self, start: int, length: int) -> bytes:
        length = max(0, min(length, self.size - start))
        found = []
        index = bisect_right(self.ends, start)
        while length:
            part = self.parts[index]
            offset = start - (self.ends[index] - len(part))
            found.append(part[offset : offset + length])
            length -= len(found[-1])
            start += len(found[-1])
            index += 1
        return b"".join(found)


@dataclass(frozen=True)
class Damaged:
    """A file in which some bytes are others than they should be, at every reading. Its digests are those of the whole one."""

    whole: Content
    start: int
    length: int

    @property
    def size(self) -> int:
        return self.whole.size

    @property
    def sha256(self) -> str:
        return self.whole.sha256

    @property
    def blob_id(self) -> str:
        return self.whole.blob_id

    def part(self, start: int, length: int) -> bytes:
        data = bytearray(self.whole.part(start, length))
        for at in range(max(start, self.start), min(start + len(data), self.start + self.length)):
            data[at - start] ^= 1
        return bytes(data)


@dataclass
class Repo:
    """Commits, and the branches that lead to them.

    Attributes:
        commits: Files by path, for each commit.
        refs: Branches and `refs/pr/N`.
        access: `public`, `gated` or `private`.
        readers: Tokens that may read it although it is gated or private.
        ignored: Paths that a .gitignore would drop.
        pulls: The pull requests, as they were sent.
        closed: The numbers of those that are not open any more.
    """

    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    access: str = "public"
    readers: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)
    pulls: list[Pull] = field(default_factory=list)
    closed: set[int] = field(default_factory=set)

    @property
    def is_adapter(self) -> bool:
        """Whether the Hub tags it as a PEFT adapter: its main branch holds an adapter's config."""
        return any(path.rpartition("/")[2] == "adapter_config.json" for path in self.commits[self.refs["main"]])

    def commit(self, files: Mapping[str, Content | bytes], branch: str = "main") -> str:
        """Make these files all that the branch holds."""
        held = {path: Plain(file) if isinstance(file, bytes) else file for path, file in files.items()}
        text = json.dumps([sorted((path, file.sha256) for path, file in held.items()), len(self.commits)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = held
        self.refs[branch] = sha
        return sha


@dataclass(frozen=True)
class Pull:
    """A pull request."""

    title: str
    description: str
    parent: str
    commit: str
    target: str


@dataclass(frozen=True)
class Logged:
    """A request that was answered."""

    kind: str
    method: str
    path: str
    range: str | None
    authorization: str | None
    status: int
    body_bytes: int


@dataclass
class Fault:
    """What goes wrong with answers of one kind.

    Attributes:
        kind: `models`, `discussions`, `discussion`, `info`, `tree`, `resolve`, `storage`, `preupload`, `batch`, `upload`,
            `verify`, `commit` or `any`.
        path: Only answers about paths that end in this, if anything.
        times: How many answers are spoilt before all is well again.
        skip: How many go well before.
        status: This status instead of an answer.
        headers: Headers with it, or over the answer's own.
        cut: The connection ends after this many bytes of the body.
        shift: The body comes from this many bytes further on; the headers say nothing of it.
        lead: The same, and Content-Range says so.
        ignore_range: The whole file, status 200.
        claim: Content-Length is this many bytes off, and the body too.
        chunked: Sent without a length, with this many bytes too many (or too few).
        delay: Seconds before the first byte of the answer.
        damage: Start and length of the bytes of the file that are others than they should be, whenever they are sent.
        drip: Seconds between single bytes.
        body: These bytes instead of the body.
        raw: These bytes instead of an answer in HTTP, and the connection ends.
        then: Called when the answer is made and before it is sent.
    """

    kind: str
    path: str = ""
    times: int = 1_000_000
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    shift: int = 0
    lead: int = 0
    ignore_range: bool = False
    claim: int = 0
    chunked: int | None = None
    delay: float = 0.0
    damage: tuple[int, int] | None = None
    drip: float = 0.0
    body: bytes | None = None
    raw: bytes | None = None
    then: Callable[[], object] | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class HubServer:
    """A Hub with its storage host.

    Attributes:
        repos: By name.
        tokens: Tokens that the Hub knows.
        others: Datasets and spaces: `dataset` or `space` by name.
        faults: What goes wrong; the first one that fits an answer is used.
        log: All requests, in order of their end.
        page: Entries on one page of a tree.
        etag: What the ETag of a file in git is; the Hub's is git's hash.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()
        self.others: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.log: list[Logged] = []
        self.page = 1000
        self.etag: Callable[[Content], str] = lambda file: file.blob_id
        self.uploads: dict[str, bytes] = {}
        self.active = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self._servers = [_Server(("127.0.0.1", 0), handler(self)) for handler in (_endpoint, _storage)]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def close(self) -> None:
        self.stopping.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repo_id: str, files: Mapping[str, Content | bytes], **settings: Any) -> Repo:
        """A repo with these files on its main branch."""
        repo = self.repos[repo_id] = Repo(**settings)
        repo.commit(files)
        return repo

    def fail(self, kind: str, **fault: Any) -> None:
        self.faults.append(Fault(kind, **fault))

    def stored(self, oid: str) -> Content | None:
        """What large file storage holds under that digest."""
        if oid in self.uploads:
            return Plain(self.uploads[oid])
        held = (file for repo in self.repos.values() for files in repo.commits.values() for file in files.values())
        return next((file for file in held if file.sha256 == oid), None)

    def requests(self, *kinds: str) -> list[Logged]:
        """Requests of these kinds, or all, once what is being answered is answered."""
        wait_for(lambda: not self.active, 2.0)
        with self.lock:
            return [entry for entry in self.log if not kinds or entry.kind in kinds]

    def fault(self, kind: str, path: str) -> Fault:
        """What is to go wrong with this answer."""
        path = unquote(urlsplit(path).path)
        with self.lock:
            for fault in self.faults:
                if fault.kind in (kind, "any") and fault.times and path.endswith(fault.path):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return replace(fault, kind=kind)
        return Fault(kind)


def wait_for(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it becomes true within the time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def is_lfs(path: str, file: Content) -> bool:
    """What the Hub's default .gitattributes puts into large file storage."""
    return path.endswith((".safetensors", ".bin")) or file.size > 10 << 20


class _Handler(BaseHTTPRequestHandler):
    """What both origins have in common: faults, ranges, the log."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body would wait until its head is acknowledged, 40 ms each time
    hub: HubServer

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Nothing on stderr: the log is a list."""

    def token(self) -> str | None:
        value = self.headers.get("authorization")
        return value.removeprefix("Bearer ") if value else None

    def received(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while length := int(self.rfile.readline().strip(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, kind: str, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        fault = self.hub.fault(kind, self.path)
        if fault.status is not None:
            status, body = fault.status, b""
        if fault.body is not None:
            body = fault.body
        headers = {"Content-Type": "application/json", **(headers or {}), **fault.headers}
        self.send(fault, status, headers, Plain(body), 0, len(body))

    def refuse(self, kind: str, status: int, code: str = "", message: str = "", **more: str) -> None:
        headers = {"X-Error-Message": message, **{name.replace("_", "-"): value for name, value in more.items()}}
        if code:
            headers["X-Error-Code"] = code
        self.answer(kind, status, json.dumps({"error": message}).encode(), headers)

    def serve(self, kind: str, file: Content, headers: Mapping[str, str]) -> None:
        """A file, or the range of it that was asked for."""
        fault = self.hub.fault(kind, self.path)
        if fault.status is not None or fault.body is not None:
            body = fault.body or b""
            self.send(fault, fault.status or 200, {**headers, **fault.headers}, Plain(body), 0, len(body))
            return
        if fault.damage is not None:
            file = Damaged(file, *fault.damage)
        start, length, status = 0, file.size, 200
        sent = {"Accept-Ranges": "bytes", **headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if wanted and not fault.ignore_range:
            start = int(wanted.group(1))
            end = min(int(wanted.group(2) or file.size), file.size - 1)
            if start >= file.size:
                self.send(fault, 416, {"Content-Range": f"bytes */{file.size}"}, Plain(b""), 0, 0)
                return
            length, status = end - start + 1, 206
            start, length = start + fault.lead, length - fault.lead
            sent["Content-Range"] = f"bytes {start}-{start + length - 1}/{file.size}"
        self.send(fault, status, {**sent, **fault.headers}, file, start + fault.shift, length)

    def send(
        self, fault: Fault, status: int, headers: Mapping[str, str], file: Content, start: int, length: int
    ) -> None:
        with self.hub.lock:
            self.hub.active += 1
        if fault.then is not None:
            fault.then()
        if fault.delay:
            self.hub.stopping.wait(fault.delay)
        sent = 0
        if fault.raw is None:
            sent = self.send_answer(fault, status, headers, file, start, length)
        else:
            self.close_connection = True
            self.wfile.write(fault.raw)
        wanted, token = self.headers.get("range"), self.headers.get("authorization")
        entry = Logged(fault.kind, self.command, self.path, wanted, token, status, sent)
        with self.hub.lock:
            self.hub.active -= 1
            self.hub.log.append(entry)

    def send_answer(
        self, fault: Fault, status: int, headers: Mapping[str, str], file: Content, start: int, length: int
    ) -> int:
        """Status, headers and body; how many bytes of the body were sent."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.chunked is None:
            length += fault.claim
            self.send_header("Content-Length", str(length))
        else:
            length += fault.chunked
            self.send_header("Transfer-Encoding", "chunked")
        sent = 0
        try:
            self.end_headers()
            while sent < length and self.command != "HEAD":
                step = 1 if fault.drip else BLOCK
                block = file.part(start + sent, min(step, length - sent)).ljust(min(step, length - sent), b"\0")
                if fault.cut is not None:
                    block = block[: fault.cut - sent]
                if fault.chunked is None:
                    self.wfile.write(block)
                else:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
                sent += len(block)
                if fault.cut is not None and sent >= fault.cut:
                    self.close_connection = True
                    break
                if fault.drip and self.hub.stopping.wait(fault.drip):
                    break
            else:
                if fault.chunked is not None:
                    self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        return sent


def _storage(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Storage(_Handler):
        """Signed addresses: whoever knows one may read, and a token has no business here."""

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            repo_id, commit, path = (unquote(part) for part in parts.path[1:].split("/"))
            if parse_qs(parts.query).get("signature") != ["open-sesame"]:
                self.answer("storage", 403)
                return
            file = hub.repos[repo_id].commits[commit][path]
            self.serve("storage", file, {"ETag": f'"{file.sha256[:32]}"'})

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            body = self.received()
            oid = urlsplit(self.path).path.rpartition("/")[2]
            if hashlib.sha256(body).hexdigest() != oid:
                self.answer("upload", 400)
                return
            with hub.lock:
                hub.uploads[oid] = body
            self.answer("upload", 200, b"", {"ETag": f'"{oid}"'})

    Storage.hub = hub
    return Storage


def _endpoint(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Endpoint(_Handler):
        """The Hub itself."""

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            query = parse_qs(urlsplit(self.path).query)
            if path == "/api/models":
                self.models(query)
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/discussions", path):
                self.discussions(match.group(1), query)
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/discussions/(\d+)", path):
                self.discussion(match.group(1), int(match.group(2)))
            elif match := re.fullmatch(r"/api/(dataset|space)s/([^/]+/[^/]+)", path):
                if hub.others.get(match.group(2)) == match.group(1):
                    self.answer("other", 200, json.dumps({"id": match.group(2), "sha": "c" * 40}).encode())
                else:
                    self.refuse("other", 401 if self.token() is None else 404, "RepoNotFound", "Repo not found")
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                self.info(match.group(1), unquote(match.group(2) or "main"))
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/([^/]+))?", path):
                self.tree(match.group(1), unquote(match.group(2)), unquote(match.group(3) or ""), query)
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.resolve(match.group(1), unquote(match.group(2)), unquote(match.group(3)))
            else:
                self.refuse("unknown", 404, "", "Not found")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            query = parse_qs(urlsplit(self.path).query)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", path):
                self.paths_info(match.group(1), unquote(match.group(2)))
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
                self.preupload(match.group(1), unquote(match.group(2)))
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
                self.commit(match.group(1), unquote(match.group(2)), query)
            elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                self.batch(match.group(1))
            elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/verify", path):
                wanted = json.loads(self.received())
                self.answer("verify", 200 if wanted["oid"] in hub.uploads else 404, b"{}")
            elif path == "/api/validate-yaml":
                self.received()
                self.answer("validate", 200, b'{"errors": [], "warnings": []}')
            else:
                self.received()
                self.refuse("unknown", 404, "", "Not found")

        def repo(self, kind: str, repo_id: str, *, content: bool) -> Repo | None:
            """The repo, if it exists and this token may see it (or its content)."""
            token = self.token()
            if token is not None and token not in hub.tokens:
                self.refuse(kind, 401, "", "Invalid credentials in Authorization header")
                return None
            repo = hub.repos.get(repo_id)
            reader = repo is not None and token in repo.readers
            if repo is None or (repo.access == "private" and not reader):
                # To the anonymous the Hub does not say whether a repo exists.
                status, message = (401, "Invalid username or password.") if token is None else (404, "Repo not found")
                self.refuse(kind, status, "RepoNotFound", message)
                return None
            if content and repo.access == "gated" and not reader:
                message = f"Access to model {repo_id} is restricted."
                self.refuse(kind, 401 if token is None else 403, "GatedRepo", message)
                return None
            return repo

        def commit_of(self, kind: str, repo: Repo, revision: str) -> str | None:
            sha = repo.refs.get(revision) or (revision if revision in repo.commits else None)
            if sha is None:
                self.refuse(kind, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return sha

        def models(self, query: Mapping[str, list[str]]) -> None:
            """The list of an author's repos with the tag that is asked for; adapters are told by their config."""
            author = query["author"][0]
            names = [
                name
                for name, repo in sorted(hub.repos.items())
                if name.startswith(f"{author}/")
                and (repo.access != "private" or self.token() in repo.readers)
                and (query.get("filter") != ["peft"] or repo.is_adapter)
            ]
            begin = int(query.get("cursor", ["0"])[0])
            page = names[begin : begin + hub.page]
            headers = {}
            if begin + hub.page < len(names):
                there = f"{hub.endpoint}/api/models?filter=peft&author={author}&cursor={begin + hub.page}"
                headers["Link"] = f'<{there}>; rel="next"'
            document = [{"_id": "1", "id": name, "modelId": name, "tags": ["peft"]} for name in page]
            self.answer("models", 200, json.dumps(document).encode(), headers)

        def discussions(self, repo_id: str, query: Mapping[str, list[str]]) -> None:
            """The open pull requests, the newest first."""
            repo = self.repo("discussions", repo_id, content=False)
            if repo is None:
                return
            found = [
                {"num": number, "title": pull.title, "isPullRequest": True, "status": "open"}
                for number, pull in reversed([*enumerate(repo.pulls, 1)])
                if number not in repo.closed
            ]
            start = hub.page * int(query.get("p", ["0"])[0])
            document = {"discussions": found[start : start + hub.page], "count": len(found), "start": start}
            self.answer("discussions", 200, json.dumps(document).encode())

        def discussion(self, repo_id: str, number: int) -> None:
            """What a pull request is against."""
            repo = self.repo("discussion", repo_id, content=False)
            if repo is None:
                return
            document = {"num": number, "changes": {"base": f"refs/heads/{repo.pulls[number - 1].target}"}}
            self.answer("discussion", 200, json.dumps(document).encode())

        def info(self, repo_id: str, revision: str) -> None:
            repo = self.repo("info", repo_id, content=False)
            sha = self.commit_of("info", repo, revision) if repo else None
            if repo is None or sha is None:
                return
            siblings = [{"rfilename": path} for path in repo.commits[sha]]
            document = {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": sha, "siblings": siblings}
            self.answer("info", 200, json.dumps(document).encode())

        def tree(self, repo_id: str, revision: str, folder: str, query: Mapping[str, list[str]]) -> None:
            repo = self.repo("tree", repo_id, content=False)
            sha = self.commit_of("tree", repo, revision) if repo else None
            if repo is None or sha is None:
                return
            prefix = f"{folder}/" if folder else ""
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            entries: dict[str, dict[str, Any]] = {}
            for path, file in sorted(repo.commits[sha].items()):
                if not path.startswith(prefix):
                    continue
                name, slash, _ = path[len(prefix) :].partition("/")
                if slash:
                    entries[prefix + name] = {"type": "directory", "oid": "d" * 40, "size": 0, "path": prefix + name}
                if recursive or not slash:
                    entries[path] = _entry(path, file)
            if not entries and folder:
                self.refuse("tree", 404, "EntryNotFound", f'{folder} does not exist on "{revision}"')
                return
            begin = int(query.get("cursor", ["0"])[0])
            page = list(entries.values())[begin : begin + hub.page]
            headers = {}
            if begin + hub.page < len(entries):
                there = f"{hub.endpoint}{urlsplit(self.path).path}?cursor={begin + hub.page}"
                there += "&recursive=true" if recursive else ""
                headers["Link"] = f'<{there}>; rel="next"'
            self.answer("tree", 200, json.dumps(page).encode(), headers)

        def paths_info(self, repo_id: str, revision: str) -> None:
            wanted = parse_qs(self.received().decode())["paths"]
            repo = self.repo("tree", repo_id, content=False)
            sha = self.commit_of("tree", repo, revision) if repo else None
            if repo is None or sha is None:
                return
            found = [_entry(path, file) for path, file in repo.commits[sha].items() if path in wanted]
            self.answer("tree", 200, json.dumps(found).encode())

        def resolve(self, repo_id: str, revision: str, path: str) -> None:
            repo = self.repo("resolve", repo_id, content=True)
            sha = self.commit_of("resolve", repo, revision) if repo else None
            if repo is None or sha is None:
                return
            file = repo.commits[sha].get(path)
            if file is None:
                self.refuse("resolve", 404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
                return
            headers = {"X-Repo-Commit": sha}
            if not is_lfs(path, file):
                self.serve("resolve", file, {**headers, "ETag": f'"{hub.etag(file)}"'})
                return
            headers["X-Linked-Size"] = str(file.size)
            headers["X-Linked-Etag"] = f'"{file.sha256}"'
            there = "/".join(quote(part, safe="") for part in (repo_id, sha, path))
            headers["Location"] = f"{hub.storage}/{there}?signature=open-sesame"
            self.answer("resolve", 302, b"Found", headers)

        def preupload(self, repo_id: str, revision: str) -> None:
            wanted = json.loads(self.received())["files"]
            repo = self.repo("preupload", repo_id, content=False)
            if repo is None:
                return
            if self.token() is None:
                self.refuse("preupload", 401, "", "Invalid username or password.")
                return
            if revision not in repo.refs:
                self.refuse("preupload", 404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return
            held = repo.commits[repo.refs[revision]]
            answers = []
            for file in wanted:
                path = file["path"]
                lfs = path.endswith((".safetensors", ".bin")) or file["size"] > 10 << 20
                old = held.get(path)
                oid = None if old is None else old.sha256 if lfs else old.blob_id
                mode = "lfs" if lfs else "regular"
                ignored = path in repo.ignored
                answers.append({"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
            self.answer("preupload", 200, json.dumps({"files": answers}).encode())

        def batch(self, repo_id: str) -> None:
            wanted = json.loads(self.received())["objects"]
            if self.repo("batch", repo_id, content=False) is None:
                return
            objects = []
            for each in wanted:
                upload = {"href": f"{hub.storage}/upload/{each['oid']}?signature=open-sesame", "header": {}}
                verify = {"href": f"{hub.endpoint}/{repo_id}.git/info/lfs/verify"}
                actions = {} if hub.stored(each["oid"]) else {"actions": {"upload": upload, "verify": verify}}
                objects.append({**each, **actions})
            self.answer("batch", 200, json.dumps({"transfer": "basic", "objects": objects}).encode())

        def commit(self, repo_id: str, branch: str, query: Mapping[str, list[str]]) -> None:
            lines = [json.loads(line) for line in self.received().splitlines()]
            repo = self.repo("commit", repo_id, content=False)
            if repo is None:
                return
            if self.token() is None:
                self.refuse("commit", 401, "", "Invalid username or password.")
                return
            if branch not in repo.refs:
                self.refuse("commit", 404, "RevisionNotFound", f"Invalid rev id: {branch}")
                return
            fault = hub.fault("commit", self.path)
            if fault.status is not None:
                refused = {"X-Error-Message": "No", **fault.headers}
                self.send(Fault("commit"), fault.status, refused, Plain(b"{}"), 0, 2)
                return
            header = lines[0]["value"]
            parent = header.get("parentCommit", repo.refs[branch])
            files = dict(repo.commits[parent])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = Plain(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    stored = hub.stored(value["oid"])
                    assert stored is not None
                    files[value["path"]] = stored
                else:
                    del files[value["path"]]
            # Pull requests that are opened at the same time have numbers of their own.
            with hub.lock:
                number = len(repo.pulls) + 1
                target = f"refs/pr/{number}" if query.get("create_pr") == ["1"] else branch
                sha = repo.commit(files, target)
                repo.pulls.append(Pull(header["summary"], header["description"], parent, sha, branch))
            document = {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{hub.endpoint}/{repo_id}/commit/{sha}",
                "pullRequestUrl": f"{hub.endpoint}/{repo_id}/discussions/{number}",
            }
            body = json.dumps(document).encode()
            self.send(fault, 200, {"Content-Type": "application/json"}, Plain(body), 0, len(body))

    Endpoint.hub = hub
    return Endpoint


def _entry(path: str, file: Content) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.blob_id, "size": file.size, "path": path}
    if is_lfs(path, file):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer.encode()).hexdigest()
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer)}
    return entry
