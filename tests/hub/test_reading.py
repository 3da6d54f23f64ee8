"""Reading a repo: the right bytes, from the right commit, at a small price."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.bytes import CHUNK, Bytes, LocalBytes
from adaptertool.checkpoint.config import read_config
from adaptertool.checkpoint.folder import Folder, LocalFolder
from adaptertool.checkpoint.hub.file import PREFETCH
from adaptertool.checkpoint.hub.folder import HubFolder
from adaptertool.checkpoint.target import open_target
from adaptertool.checkpoint.weights import SafetensorsWeights
from adaptertool.errors import CorruptError, NetworkError, NotFoundError, UsageError
from tests.hub.conftest import files_of, many_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer, Logged

WEIGHTS = "adapter_model.safetensors"
CONFIG = b'{"peft_type": "RANDLORA", "r": 32}'


def content(entries: list[Logged]) -> int:
    """Bytes of file content that the server sent."""
    return sum(entry.body_bytes for entry in entries if entry.status in (200, 206))


def same(there: Bytes, here: bytes) -> None:
    assert there.size == len(here)
    assert b"".join(bytes(piece) for piece in there.stream(0, there.size)) == here


def test_a_hub_folder_is_a_folder(hub: HubServer, randlora: Path) -> None:
    hub.add("org/name", files_of(randlora))
    folder: Folder = HubFolder("org/name")
    file: Bytes = folder.open(WEIGHTS)
    assert (folder.kind, folder.location, folder.revision) == ("hub", "org/name", hub.repos["org/name"].refs["main"])
    assert folder.files() == LocalFolder(randlora).files()
    assert (file.name, file.changed()) == (f"org/name/{WEIGHTS}", False)


def test_an_adapter_reads_as_its_local_copy_does(hub: HubServer, randlora: Path) -> None:
    hub.add("org/name", files_of(randlora))
    there, here = open_adapter(open_target("org/name")), open_adapter(open_target(randlora))
    assert there.config.fields == here.config.fields
    assert there.config.text == here.config.text
    assert isinstance(there.weights, SafetensorsWeights)
    assert isinstance(here.weights, SafetensorsWeights)
    assert there.weights.header == here.weights.header
    for name in here.weights.tensors:
        assert b"".join(map(bytes, there.weights.stream(name))) == b"".join(map(bytes, here.weights.stream(name)))
    assert not there.weights.changed()


def test_every_file_of_a_repo_reads_the_same(hub: HubServer, randlora: Path) -> None:
    hub.add("org/name", files_of(randlora))
    folder = HubFolder("org/name")
    for name, here in files_of(randlora).items():
        same(folder.open(name), here)
        file = folder.open(name)
        assert file.read(0, file.size) == here


@pytest.mark.parametrize("target", ["hf://org/name@dev/checkpoints/last", "hf://models/org/name@dev/checkpoints/last/"])
def test_revision_and_subfolder_in_an_address(hub: HubServer, randlora: Path, target: str) -> None:
    repo = hub.add("org/name", {"README.md": b"nothing"})
    sha = repo.commit({f"checkpoints/last/{name}": data for name, data in files_of(randlora).items()}, "dev")
    folder = open_adapter(open_target(target)).folder
    assert (folder.location, folder.revision) == ("org/name/checkpoints/last", sha)
    assert folder.files() == LocalFolder(randlora).files()


def test_revisions_of_every_kind(hub: HubServer) -> None:
    repo = hub.add("org/name", {"a": b"main"})
    shas = {name: repo.commit({"a": name.encode()}, name) for name in ("feature/x y", "v1.0", "refs/pr/7")}
    for name, sha in shas.items():
        for named in (name, sha):
            folder = HubFolder("org/name", revision=named)
            assert folder.revision == sha
            assert folder.open("a").read(0, len(name)) == name.encode()


@pytest.mark.parametrize("target", ["hf://org/name@feature%2Fx", "hf://org/name@refs%2Fpr%2F7", "org/name@feature/x"])
def test_a_revision_with_slashes(hub: HubServer, randlora: Path, target: str) -> None:
    repo = hub.add("org/name", {"README.md": b"nothing"})
    shas = {repo.commit(files_of(randlora), name) for name in ("feature/x", "refs/pr/7")}
    assert open_adapter(open_target(target)).folder.revision in shas


def test_a_list_that_lacks_what_was_read(hub: HubServer, randlora: Path) -> None:
    repo = hub.add("org/name", files_of(randlora))
    folder = open_adapter(open_target("org/name")).folder
    commit = repo.commits[folder.revision or ""]
    commit.pop("adapter_config.json")
    with pytest.raises(NetworkError, match=r"lacks adapter_config\.json"):
        folder.walk()


def test_a_commit_needs_no_request_to_be_resolved(hub: HubServer) -> None:
    repo = hub.add("org/name", {"a": b"1"})
    assert HubFolder("org/name", revision=repo.refs["main"]).requests == 0


def test_all_reads_are_of_one_commit(hub: HubServer) -> None:
    repo = hub.add("org/name", {"a.json": b"old", WEIGHTS: b"old" * 100_000})
    folder = HubFolder("org/name")
    weights = folder.open(WEIGHTS)
    assert weights.read(0, 3) == b"old"
    repo.commit({"a.json": b"new", WEIGHTS: b"new" * 100_000})
    assert weights.read(200_001, 3) == b"old"
    assert folder.open("a.json").read(0, 3) == b"old"


def test_a_branch_that_moves_between_two_requests(hub: HubServer, randlora: Path) -> None:
    repo = hub.add("org/name", files_of(randlora))
    hub.fail("info", times=1, then=lambda: repo.commit({"README.md": b"all gone"}))
    assert open_adapter(open_target("org/name")).weights.tensors


def test_subfolders_do_not_mix(hub: HubServer) -> None:
    hub.add("org/name", {"a": b"1", "sub/b": b"2", "sub/deeper/c": b"3"})
    assert HubFolder("org/name").files() == ["a"]
    assert HubFolder("org/name", subfolder="/sub/").files() == ["b"]
    assert HubFolder("org/name", subfolder="sub/deeper").open("c").read(0, 1) == b"3"
    with pytest.raises(NotFoundError):
        HubFolder("org/name").open("b")
    with pytest.raises(UsageError):
        HubFolder("org/name", subfolder="sub/../..")


def test_names_that_need_quoting(hub: HubServer) -> None:
    name = "a b#c?d%20é.json"
    hub.add("org/name", {f"x y/{name}": b"found"})
    folder = HubFolder("org/name", subfolder="x y")
    assert folder.files() == [name]
    assert folder.open(name).read(0, 5) == b"found"


def test_a_tree_of_many_pages(hub: HubServer) -> None:
    hub.page = 3
    names = [f"{number:02}.txt" for number in range(10)]
    hub.add("org/name", {name: name.encode() for name in names})
    folder = HubFolder("org/name")
    assert folder.files() == names
    assert folder.open("09.txt").read(0, 6) == b"09.txt"


def test_empty_files_and_empty_ranges(hub: HubServer) -> None:
    hub.add("org/name", {"empty": b"", "full": b"12"})
    folder = HubFolder("org/name")
    assert folder.open("empty").read(0, 0) == b""
    assert list(folder.open("empty").stream(0, 0)) == []
    assert folder.open("full").read(2, 0) == b""
    for start, length in ((0, 3), (2, 1), (-1, 1), (0, -1)):
        with pytest.raises(CorruptError):
            folder.open("full").read(start, length)


def test_pieces_are_chunks(hub: HubServer) -> None:
    data = bytes(range(256)) * 10_000
    hub.add("org/name", {WEIGHTS: data})
    pieces = [bytes(piece) for piece in HubFolder("org/name").open(WEIGHTS).stream(5, 2_500_000)]
    assert [len(piece) for piece in pieces] == [CHUNK] * (2_500_000 // CHUNK) + [2_500_000 % CHUNK]
    assert b"".join(pieces) == data[5 : 5 + 2_500_000]


def test_a_stream_that_is_left_early_leaves_the_rest(hub: HubServer) -> None:
    hub.add("org/name", {WEIGHTS: bytes(64 << 20)})
    file = HubFolder("org/name").open(WEIGHTS)
    stream = file.stream(0, file.size)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert file.bytes_read < 3 * CHUNK
    assert file.read(1 << 20, 4) == bytes(4)


def test_threads_share_a_file(hub: HubServer) -> None:
    data = b"".join(number.to_bytes(4, "little") for number in range(500_000))
    hub.add("org/name", {WEIGHTS: data})
    file = HubFolder("org/name").open(WEIGHTS)

    def part(number: int) -> bool:
        start, length = number * 50_021, 49_000 + number
        streamed = b"".join(map(bytes, file.stream(start, length)))
        return file.read(start, length) == data[start : start + length] == streamed

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(part, range(36)))
    # A part is asked for twice, and once more where a connection broke and nothing of the answer was read.
    times = Counter((entry.range, entry.body_bytes) for entry in hub.requests("storage"))
    assert file.bytes_read == sum(min(count, 2) * size for (_, size), count in times.items())


def test_what_it_costs_to_open_a_thousand_tensors(hub: HubServer) -> None:
    weights = many_tensors(1000, [32, 288])
    hub.add("org/name", {"adapter_config.json": CONFIG, WEIGHTS: weights})
    adapter = open_adapter(open_target("org/name"))
    assert len(adapter.weights.tensors) == 1000
    # The config, whose answer names the commit, and the header behind a redirect.
    assert [entry.kind for entry in hub.requests()] == ["resolve", "resolve", "storage"]
    assert adapter.folder.requests == 3
    assert len(weights.head) < PREFETCH
    assert adapter.folder.bytes_read == content(hub.requests("resolve", "storage")) == len(CONFIG) + PREFETCH


def test_a_header_longer_than_what_is_fetched_ahead(hub: HubServer) -> None:
    weights = many_tensors(2500, [32, 288])
    hub.add("org/name", {"adapter_config.json": CONFIG, WEIGHTS: weights})
    adapter = open_adapter(open_target("org/name"))
    assert len(adapter.weights.tensors) == 2500
    assert adapter.folder.requests == 4
    assert adapter.folder.bytes_read == content(hub.requests("resolve", "storage")) == len(CONFIG) + len(weights.head)


def test_what_it_costs_to_open_42_gigabytes(hub: HubServer) -> None:
    weights = many_tensors(496, [32, 288], copies=249)
    assert weights.size > 42_000_000_000
    hub.add("org/name", {"adapter_config.json": CONFIG, WEIGHTS: weights})
    adapter = open_adapter(open_target("org/name"))
    assert len(adapter.weights.tensors) == 745
    assert adapter.folder.requests == 3
    assert adapter.folder.bytes_read == len(CONFIG) + PREFETCH
    last = list(adapter.weights.tensors)[-1]
    assert bytes(next(adapter.weights.stream(last, 169_000_000, 4096))) == bytes(4096)
    assert adapter.folder.requests == 4, "the storage host's address is kept"


@pytest.mark.parametrize("recursive", [False, True])
def test_a_mirror_without_trees(hub: HubServer, randlora: Path, recursive: bool) -> None:
    hub.add("org/name", {**files_of(randlora), "runs/events": b"1", "empty": b""})
    hub.fail("tree", status=404)
    folder = HubFolder("org/name")
    names = folder.walk() if recursive else folder.files()
    assert set(names) == {*files_of(randlora), "empty"} | ({"runs/events"} if recursive else set())
    for name, here in {**files_of(randlora), "empty": b""}.items():
        same(folder.open(name), here)
    assert HubFolder("org/name", subfolder="runs").files() == ["events"]
    with pytest.raises(NotFoundError):
        HubFolder("org/name", subfolder="nothing").files()


def test_a_mirror_that_names_no_commit(hub: HubServer, randlora: Path) -> None:
    hub.add("org/name", files_of(randlora))
    hub.fail("resolve", headers={"X-Repo-Commit": "", "X-Linked-Size": "", "X-Linked-Etag": "", "ETag": ""})
    adapter = open_adapter(open_target("org/name"))
    assert adapter.weights.tensors == open_adapter(open_target(randlora)).weights.tensors
    assert adapter.folder.revision == hub.repos["org/name"].refs["main"]
    assert all("/resolve/main/" not in entry.path for entry in hub.requests("resolve")[1:])


def test_a_small_file_is_fetched_once(hub: HubServer) -> None:
    hub.add("org/name", {"adapter_config.json": CONFIG})
    folder = HubFolder("org/name")
    read_config(folder)
    assert [entry.kind for entry in hub.requests()] == ["resolve"]


def test_an_expired_address_is_asked_for_again(hub: HubServer) -> None:
    data = bytes(range(256)) * 1000
    hub.add("org/name", {WEIGHTS: data})
    file = HubFolder("org/name").open(WEIGHTS)
    file.read(0, 8)
    hub.fail("storage", status=403, times=1)
    assert file.read(200_000, 8) == data[200_000:200_008]
    assert sorted(entry.kind for entry in hub.requests()) == ["resolve"] * 2 + ["storage"] * 3


def test_the_token_goes_to_the_endpoint_only(hub: HubServer, randlora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens.add("hf_secret")
    hub.add("org/private", files_of(randlora), access="private", readers={"hf_secret"})
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    open_adapter(open_target("org/private"))
    hub.add("org/gated", files_of(randlora), access="gated", readers={"hf_secret"})
    open_adapter(open_target("org/gated", token="hf_secret"))
    assert {entry.authorization for entry in hub.requests("storage")} == {None}
    assert {entry.authorization for entry in hub.requests("info", "tree", "resolve")} == {"Bearer hf_secret"}


def test_a_next_page_elsewhere_is_asked_for_at_the_endpoint(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens.add("hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add("org/name", {"a": b"1"})
    hub.page = 1
    hub.add("org/name", {"a": b"1", "b": b"2"})
    there = f"/api/models/org/name/tree/{hub.repos['org/name'].refs['main']}?cursor=1"
    hub.fail("tree", times=1, headers={"Link": f'<{hub.storage}{there}>; rel="next"'})
    assert HubFolder("org/name").files() == ["a", "b"]
    assert not hub.requests("storage")


def test_a_disabled_implicit_token_is_not_sent(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    hub.add("org/name", {"a": b"1"})
    assert HubFolder("org/name").files() == ["a"]
    assert {entry.authorization for entry in hub.requests()} == {None}


def download(repo_id: str, *names: str) -> None:
    from huggingface_hub import hf_hub_download

    for name in names:
        hf_hub_download(repo_id, name)


def test_cached_files_are_read_from_the_cache(hub: HubServer, randlora: Path) -> None:
    hub.add("org/name", files_of(randlora))
    download("org/name", "adapter_config.json", WEIGHTS)
    before = len(hub.requests())
    folder = HubFolder("org/name")
    same(folder.open(WEIGHTS), (randlora / WEIGHTS).read_bytes())
    assert folder.requests == len(hub.requests()) - before == 1
    assert folder.bytes_read == (randlora / WEIGHTS).stat().st_size


def test_a_cached_file_of_another_commit_is_not(hub: HubServer) -> None:
    repo = hub.add("org/name", {"a": b"old"})
    download("org/name", "a")
    repo.commit({"a": b"new"})
    assert HubFolder("org/name").open("a").read(0, 3) == b"new"


def test_a_cached_file_of_another_length_is_not(hub: HubServer) -> None:
    hub.add("org/name", {"a": b"right"})
    download("org/name", "a")
    folder = HubFolder("org/name")
    folder.files()
    cached = folder.open("a")
    assert isinstance(cached, LocalBytes)
    cached.path.resolve().write_bytes(b"rig")
    assert folder.open("a").read(0, 5) == b"right"


def test_huggingface_hub_is_imported_for_repos_only(randlora: Path) -> None:
    code = (
        "import sys, adaptertool.checkpoint.hub.folder, adaptertool.checkpoint.hub.push\n"
        "from adaptertool.checkpoint.target import open_target\n"
        "from adaptertool.checkpoint.adapter import open_adapter\n"
        "open_adapter(open_target(sys.argv[1]))\n"
        "assert not {'huggingface_hub', 'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(randlora)], check=True)


def test_the_guard_of_these_tests() -> None:
    with socket.socket() as outward, pytest.raises(AssertionError, match="reached out"):
        outward.connect(("192.0.2.1", 80))
