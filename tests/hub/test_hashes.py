"""Small files that are damaged in the same way at every reading: what git's hash proves, and where it proves nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.checkpoint.hub.folder import HubFolder
from adaptertool.cli import main
from adaptertool.errors import CorruptError, NetworkError
from tests.hub import server
from tests.hub.conftest import files_of
from tests.hub.server import Damaged, Plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hub.server import Content, HubServer

TOKEN = "hf_secret_of_mine"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
README = b"---\nbase_model: org/base\n---\n# 8 layers\n"

PLACES = {
    CONFIG: b'"projection_prng_key": ',
    "README.md": b"# ",
    "config.json": b'"num_hidden_layers": ',
    INDEX: b'"total_size": ',
}
"""Before which digit the damage is: the file makes sense with it, and says something else."""

COMMANDS = {
    "inspect": ["inspect", "org/name", "--verify", "none"],
    "slim -o": ["slim", "org/name", "-o", "OUT"],
    "slim --push": ["slim", "org/name", "--push", "--token", TOKEN],
    "restore": ["restore", "org/slim", "-o", "OUT"],
    "restore --push": ["restore", "org/slim", "--push", "--token", TOKEN],
    "check-merge": ["check-merge", "org/name", "--base", "org/base"],
}

CASES = [
    *((command, CONFIG) for command in COMMANDS),
    *((command, "README.md") for command in ("slim -o", "restore")),
    *(("check-merge", name) for name in ("config.json", INDEX)),
]

SERVERS: dict[str, Callable[[Content], str]] = {
    "git": lambda file: file.blob_id,
    "SHA-1": lambda file: hashlib.sha1(whole(file)).hexdigest(),
    "other": lambda file: hashlib.sha1(b"salt" + whole(file)).hexdigest(),
    "no hash": lambda _: "v1",
}
"""What a server's ETag of a small file is."""


def whole(file: Content) -> bytes:
    file = file.whole if isinstance(file, Damaged) else file
    return file.part(0, file.size)


@pytest.fixture(scope="module")
def repos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """A RandLoRA adapter, the same stripped, and their base in two shards."""
    from safetensors.numpy import load_file, save

    import adaptertool

    fixtures = request.config.rootpath / "fixtures"
    adapter = files_of(fixtures / "randlora-llama")
    slimmed = tmp_path_factory.mktemp("slim") / "slim"
    adaptertool.slim(fixtures / "randlora-llama", output=slimmed)
    base = files_of(fixtures / "base-llama")
    tensors = load_file(fixtures / "base-llama/model.safetensors")
    del base["model.safetensors"]
    for number in (0, 1):
        part = {name: tensors[name] for name in sorted(tensors)[number::2]}
        base[f"model-0000{number + 1}-of-00002.safetensors"] = save(part, {"format": "pt"})
    shards = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    index = {"metadata": {"total_size": 100}, "weight_map": shards}
    base[INDEX] = json.dumps(index, indent=1).encode()
    repos = {"org/name": adapter, "org/slim": files_of(slimmed), "org/base": base}
    for files in (adapter, repos["org/slim"]):
        for name in set(files) - {CONFIG, WEIGHTS}:
            del files[name]
    return repos


Run = tuple[int, dict[str, Any]]


@pytest.fixture
def run(
    hub: HubServer, repos: dict[str, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Run]:
    """Runs a command on a fresh Hub, with one file damaged or none; a damaged one must leave nothing behind."""
    hub.tokens.add(TOKEN)

    def run(command: str, damaged: str | None = None, *, below: str = "") -> Run:
        hub.log.clear()
        for repo, small in repos.items():
            files: dict[str, Content] = {name: Plain(data) for name, data in small.items()}
            if damaged == "README.md":
                files["README.md"] = Plain(README)
            if damaged in files:
                place = whole(files[damaged]).index(PLACES[damaged]) + len(PLACES[damaged])
                files[damaged] = Damaged(files[damaged], place, 1)
            hub.add(repo, {below + name: file for name, file in files.items()})
        words = [str(tmp_path / "out") if word == "OUT" else word for word in COMMANDS[command]]
        words = [f"hf://{word}/{below}".rstrip("/") if below and word in repos else word for word in words]
        code = main([*words, "--format", "json"])
        if damaged is not None:
            assert not (tmp_path / "out").exists()
            assert not any(repo.pulls for repo in hub.repos.values())
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return code, json.loads(capsys.readouterr().out)

    return run


def outcome(document: dict[str, Any]) -> Any:
    return document.get("error") or document.get("action") or document.get("verdict") or document["adapter"]


@pytest.mark.parametrize("below", ["", "runs/last/"], ids=["root", "subfolder"])
@pytest.mark.parametrize("weights", ["LFS", "git"])
@pytest.mark.parametrize(("command", "damaged"), CASES)
def test_damage_that_is_the_same_at_every_reading(
    hub: HubServer,
    run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    damaged: str,
    weights: str,
    below: str,
) -> None:
    if weights == "git":
        monkeypatch.setattr(server, "is_lfs", lambda path, file: False)
    code, document = run(command, damaged, below=below)
    assert (code, document["error"]["kind"]) == (3, "corrupt"), outcome(document)
    assert damaged in document["error"]["message"]
    assert "digest" in document["error"]["message"]
    spent = len(hub.requests())
    code, document = run(command, below=below)
    assert code in (0, 1), outcome(document)
    # It is read again, and then the tree, or one more file.
    assert spent <= len(hub.requests()) + 3


@pytest.mark.parametrize("tree", [True, False], ids=["tree", "no tree"])
@pytest.mark.parametrize("etag", SERVERS)
@pytest.mark.parametrize(
    ("command", "damaged"), [(command, CONFIG) for command in COMMANDS if command != "restore --push"]
)
def test_servers_with_hashes_of_their_own(
    hub: HubServer, run: Callable[..., Run], command: str, damaged: str, etag: str, tree: bool
) -> None:
    """They can be used; and where the tree is the Hub's, damage is found all the same, if there is a hash to tell it."""
    right = run(command)
    hub.etag = SERVERS[etag]
    if not tree:
        hub.fail("tree", status=404, headers={"X-Error-Code": "EntryNotFound"})
    code, document = run(command)
    assert (code, outcome(document)) == (right[0], outcome(right[1]))
    if tree:
        code, document = run(command, damaged)
        assert (code, document["error"]["kind"]) == (3, "corrupt"), outcome(document)


def test_a_server_without_any_hash_is_asked_twice(hub: HubServer) -> None:
    hub.etag = SERVERS["no hash"]
    hub.fail("tree", status=404)
    hub.fail("resolve", damage=(6, 1), times=1)
    hub.add("org/name", {CONFIG: b'{"r": 8}', WEIGHTS: b"1"})
    with pytest.raises(CorruptError, match="two readings"):
        HubFolder("org/name").open(CONFIG).read(0, 8)
    assert HubFolder("org/name").open(CONFIG).read(0, 8) == b'{"r": 8}'


@pytest.mark.parametrize("etag", ["git", "SHA-1"])
def test_without_a_tree_another_small_file_shows_what_the_hashes_are(hub: HubServer, etag: str) -> None:
    hub.etag = SERVERS[etag]
    hub.fail("tree", status=404)
    hub.add("org/name", {CONFIG: Damaged(Plain(b'{"r": 8}'), 6, 1), "README.md": README, WEIGHTS: b"1"})
    with pytest.raises(CorruptError, match=CONFIG):
        HubFolder("org/name").open(CONFIG).read(0, 8)


def test_what_was_let_pass_counts_once_it_shows(hub: HubServer) -> None:
    """A server without lists of any kind: only the file that is read next shows that its hashes are git's."""
    hub.fail("tree", status=404)
    hub.fail("info", skip=1, status=404)
    hub.add("org/name", {CONFIG: Damaged(Plain(b'{"r": 8}'), 6, 1), "README.md": README})
    folder = HubFolder("org/name", revision=hub.repos["org/name"].refs["main"])
    hub.faults[1].skip = 0
    assert folder.open(CONFIG).read(0, 8) == b'{"r": 9}'
    with pytest.raises(CorruptError, match=CONFIG):
        folder.open("README.md").read(0, len(README))


def test_the_root_of_the_repo_shows_what_its_folders_do_not(hub: HubServer) -> None:
    """Every small file of the folder is damaged, its ETags are no hashes; the pointer to a large one elsewhere is enough."""
    hub.etag = SERVERS["other"]
    config = Damaged(Plain(b'{"r": 8}'), 6, 1)
    hub.add("org/name", {f"sub/{CONFIG}": config, "sub/README.md": config, WEIGHTS: b"1"})
    with pytest.raises(CorruptError, match=r"sub/\S+ is not what the commit holds"):
        HubFolder("org/name", subfolder="sub").open(CONFIG).read(0, 8)
    assert not hub.requests("storage")
    hub.add("org/name", {f"sub/{CONFIG}": config, ".gitattributes": b"*.bin filter=lfs"})
    with pytest.raises(CorruptError, match=r"sub/\S+ is not what the commit holds"):
        HubFolder("org/name", subfolder="sub").open(CONFIG).read(0, 8)


def test_hashes_of_nothing_known(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing shows what they are of: two readings that agree are taken, of that file and of others."""
    monkeypatch.setattr(server, "is_lfs", lambda path, file: False)
    monkeypatch.setattr(Plain, "blob_id", property(lambda self: hashlib.sha1(b"pepper" + self.data).hexdigest()))
    hub.etag = SERVERS["other"]
    files = {CONFIG: b'{"r": 8}', "README.md": README, WEIGHTS: b"1234"}
    hub.add("org/name", files)
    folder = HubFolder("org/name")
    for name, data in files.items():
        assert folder.open(name).read(0, len(data)) == data
    assert len(hub.requests("tree")) == 1


def test_what_etag_and_tree_name_alike_needs_no_other_proof(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is in the repo is damaged, and none of it is in large file storage."""
    monkeypatch.setattr(server, "is_lfs", lambda path, file: False)
    hub.add("org/name", {CONFIG: Damaged(Plain(b'{"r": 8}'), 6, 1), "README.md": Damaged(Plain(README), 5, 1)})
    with pytest.raises(CorruptError, match=CONFIG):
        HubFolder("org/name").open(CONFIG).read(0, 8)
    assert len(hub.requests("resolve")) == 2


def test_a_tree_that_does_not_come_is_no_answer(hub: HubServer) -> None:
    hub.fail("tree", status=500)
    hub.add("org/name", {CONFIG: Damaged(Plain(b'{"r": 8}'), 6, 1), WEIGHTS: b"1"})
    with pytest.raises(NetworkError, match="status 500"):
        HubFolder("org/name").open(CONFIG).read(0, 8)


def test_a_wrong_etag_of_the_right_content(hub: HubServer) -> None:
    """The tree bears the content out."""
    hub.fail("resolve", headers={"ETag": f'"{"0" * 40}"'})
    hub.add("org/name", {CONFIG: b'{"r": 8}', WEIGHTS: b"1"})
    assert HubFolder("org/name").open(CONFIG).read(0, 8) == b'{"r": 8}'


def test_the_tree_stands_in_for_a_digest_that_does_not_come_with_the_weights(hub: HubServer) -> None:
    hub.add("org/name", {WEIGHTS: b"12345678"})
    hub.fail("resolve", headers={"X-Linked-Etag": ""})
    assert HubFolder("org/name").open(WEIGHTS).read(0, 8) == b"12345678"
    hub.fail("storage", damage=(3, 1))
    with pytest.raises(CorruptError, match=WEIGHTS):
        HubFolder("org/name").open(WEIGHTS).read(0, 8)
