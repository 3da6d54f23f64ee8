"""Under every fault: the right bytes, or an error of ours. Never a wrong answer, a hang or another exception."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import pytest

import adaptertool
from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.hub import file, patience
from adaptertool.checkpoint.hub.file import PREFETCH
from adaptertool.checkpoint.hub.folder import HubFolder
from adaptertool.checkpoint.target import open_target
from adaptertool.errors import AdapterToolError, CorruptError, NetworkError, UsageError
from adaptertool.projection import comparison
from tests.hub.conftest import files_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer

WEIGHTS = "adapter_model.safetensors"
DATA = b"".join(number.to_bytes(4, "little") for number in range(400_000))

FAULTS: dict[str, dict[str, Any]] = {
    "400": {"status": 400},
    "401": {"status": 401},
    "403": {"status": 403},
    "404": {"status": 404},
    "404 of an entry": {"status": 404, "headers": {"X-Error-Code": "EntryNotFound"}},
    "404 of a revision": {"status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}},
    "403 of a gate": {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}},
    "204": {"status": 204},
    "302 to nowhere": {"status": 302},
    "302 to itself": {"status": 302, "headers": {"Location": ""}},
    "302 to no address": {"status": 302, "headers": {"Location": "http://["}},
    "302 to a file": {"status": 302, "headers": {"Location": "file:///etc/passwd"}},
    "408": {"status": 408},
    "416": {"status": 416},
    "429": {"status": 429},
    "429, retry at once": {"status": 429, "headers": {"Retry-After": "0"}},
    "429, retry tomorrow": {"status": 429, "headers": {"Retry-After": "86400"}},
    "429, retry never": {
        "status": 429,
        "headers": {"Retry-After": "9" * 5000, "RateLimit": f'"api";r=0;t={"9" * 5000}'},
    },
    "429, retry at no time": {"status": 429, "headers": {"Retry-After": f"Fri, 31 Dec 2100 {'9' * 30}:59:59 GMT"}},
    "500": {"status": 500},
    "502": {"status": 502},
    "503": {"status": 503},
    "cut at once": {"cut": 0},
    "cut": {"cut": 70},
    "shifted": {"shift": 1},
    "shifted, and it says so": {"lead": 1},
    "too short": {"claim": -1},
    "too long": {"claim": 1},
    "too short, without a length": {"chunked": -1},
    "too long, without a length": {"chunked": 1},
    "silent": {"delay": 1.0},
    "slow": {"drip": 0.05},
    "ranges ignored": {"ignore_range": True},
    "wrong range": {"headers": {"Content-Range": "bytes 8-15/16"}},
    "no range": {"headers": {"Content-Range": ""}},
    "wrong size": {"headers": {"Content-Range": "bytes 0-131071/131072"}},
    "compressed": {"headers": {"Content-Encoding": "gzip"}},
    "other commit": {"headers": {"X-Repo-Commit": "a" * 40}},
    "other content": {"headers": {"X-Linked-Etag": f'"{"a" * 64}"'}},
    "other length": {"headers": {"X-Linked-Size": "5"}},
    "a length beyond all": {"headers": {"X-Linked-Size": "9" * 5000}},
    "a range beyond all": {"headers": {"Content-Range": f"bytes 0-5/{'9' * 5000}"}},
    "a size beyond all": {
        "status": 200,
        "body": b'[{"type": "file", "path": "adapter_config.json", "size": %s}]' % (b"9" * 400),
    },
    "a login page": {"status": 200, "body": b"<html>Welcome!</html>", "headers": {"Content-Type": "text/html"}},
    "nothing": {"status": 200, "body": b""},
    "another document": {"status": 200, "body": b"7"},
    "an empty object": {"status": 200, "body": b"{}"},
    "an empty list": {"status": 200, "body": b"[]"},
    "a list of nonsense": {"status": 200, "body": b'[{"type": "file"}, 7]'},
    "a deep document": {"status": 200, "body": b"[" * 100_000},
    "sizes of nonsense": {"status": 200, "body": b'[{"type": "file", "path": "adapter_config.json", "size": "many"}]'},
}

# Nothing in the answer gives these away but the content itself, which only a whole file's digest, or its format, can.
UNSEEN_IN_A_RANGE = {"shifted"}


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SILENCE", 0.3)
    monkeypatch.setenv(patience.TIMEOUT_VARIABLE, "0.6")


@pytest.mark.parametrize("times", [1, 1_000_000], ids=["once", "always"])
@pytest.mark.parametrize("kind", ["info", "tree", "resolve", "storage"])
@pytest.mark.parametrize("fault", FAULTS)
def test_opening_an_adapter(hub: HubServer, randlora: Path, kind: str, fault: str, times: int) -> None:
    hub.add("org/name", files_of(randlora))
    hub.fail(kind, times=times, **FAULTS[fault])
    begin = time.monotonic()
    error = None
    try:
        adapter = open_adapter(open_target("org/name"))
    except AdapterToolError as raised:
        error = raised
    if error is not None:
        assert error.exit_code == 3
        assert error.message
        assert "\n" not in error.message
        assert "signature" not in error.message
    else:
        here = open_adapter(open_target(randlora))
        assert adapter.config.text == here.config.text
        assert adapter.weights.tensors == here.weights.tensors
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("times", [1, 1_000_000], ids=["once", "always"])
@pytest.mark.parametrize("fault", FAULTS)
def test_streaming_weights(hub: HubServer, fault: str, times: int) -> None:
    hub.add("org/name", {WEIGHTS: DATA})
    file = HubFolder("org/name").open(WEIGHTS)
    file.read(0, 8)
    hub.fail("storage", times=times, **FAULTS[fault])
    begin = time.monotonic()
    for start, length in ((0, len(DATA)), (0, 64), (400_000, 1_100_000)):
        received, whole = b"", False
        try:
            for piece in file.stream(start, length):
                received += piece
            whole = True
        except (NetworkError, CorruptError):
            pass
        if fault in UNSEEN_IN_A_RANGE and length != len(DATA):
            assert len(received) == length
        elif whole:
            assert received == DATA[start : start + length]
        elif fault not in UNSEEN_IN_A_RANGE:
            assert len(received) < length
            assert DATA[start : start + length].startswith(received)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    "fault", ["408", "429", "429, retry at once", "500", "502", "503", "cut at once", "cut", "too short", "wrong range"]
)
@pytest.mark.parametrize("kind", ["info", "tree", "resolve", "storage"])
def test_what_passes_is_waited_for(hub: HubServer, randlora: Path, kind: str, fault: str) -> None:
    hub.add("org/name", files_of(randlora))
    hub.fail(kind, times=2, **FAULTS[fault])
    assert open_adapter(open_target("org/name")).weights.tensors


def test_a_stream_goes_on_where_it_was_cut(hub: HubServer) -> None:
    hub.add("org/name", {WEIGHTS: DATA})
    file = HubFolder("org/name").open(WEIGHTS)
    hub.fail("storage", times=1, cut=700_000)
    hub.fail("storage", times=1, cut=100_000)
    begin, end = PREFETCH, PREFETCH + 1_000_000
    assert b"".join(map(bytes, file.stream(begin, end - begin))) == DATA[begin:end]
    ranges = [entry.range for entry in hub.requests("storage")][1:]
    starts = [begin, begin + 700_000, begin + 800_000]
    assert ranges == [f"bytes={start}-{end - 1}" for start in starts]
    assert file.bytes_read == end


def test_every_mebibyte_has_its_own_tries(hub: HubServer) -> None:
    data = bytes(range(256)) * 40_000
    hub.add("org/name", {WEIGHTS: data})
    hub.fail("storage", cut=1_000_000, times=10)
    file = HubFolder("org/name").open(WEIGHTS)
    assert b"".join(map(bytes, file.stream(0, file.size))) == data


def test_a_connection_that_is_always_cut_ends(hub: HubServer) -> None:
    hub.add("org/name", {WEIGHTS: DATA})
    hub.fail("storage", cut=10)
    with pytest.raises(NetworkError, match="lost the connection"):
        HubFolder("org/name").open(WEIGHTS).read(0, 200_000)
    assert len(hub.requests("storage")) == patience.TRIES


def test_a_server_without_ranges_sends_no_more_than_asked_for(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server hashes the file first, which a busy machine takes its time for.
    monkeypatch.setattr(patience, "SILENCE", 10.0)
    monkeypatch.setenv(patience.TIMEOUT_VARIABLE, "30")
    hub.add("org/name", {WEIGHTS: bytes(16 << 20)})
    hub.fail("storage", ignore_range=True)
    file = HubFolder("org/name").open(WEIGHTS)
    assert file.read(0, 8) == bytes(8)
    assert file.read(8, 5000) == bytes(5000)
    assert file.bytes_read <= PREFETCH + (128 << 10)
    with pytest.raises(NetworkError, match="ignores ranges"):
        file.read(1 << 20, 8)
    # What the kernel took before the connection was closed is all that left the server.
    assert sum(entry.body_bytes for entry in hub.requests("storage")) < 14 << 20
    assert file.bytes_read <= PREFETCH + (128 << 10)


def test_a_server_without_ranges_is_soon_given_up(
    hub: HubServer, randlora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "PREFETCH", 4 << 10)
    hub.add("org/name", files_of(randlora))
    hub.fail("storage", ignore_range=True)
    with pytest.raises(NetworkError, match="ignores ranges"):
        adaptertool.inspect("org/name", verify="sample")
    # The config, the weights' beginning, and the ranges that are on their way when the first one is refused.
    assert len(hub.requests("storage")) <= 1 + 2 * comparison.REMOTE_REQUESTS


def test_a_range_that_is_ignored_once(hub: HubServer) -> None:
    hub.add("org/name", {WEIGHTS: DATA})
    file = HubFolder("org/name").open(WEIGHTS)
    hub.fail("storage", ignore_range=True, times=1)
    assert file.read(800_000, 8) == DATA[800_000:800_008]
    hub.fail("storage", ignore_range=True, times=1)
    assert file.read(900_000, 8) == DATA[900_000:900_008]


def test_a_server_without_ranges_still_serves_a_whole_file(hub: HubServer) -> None:
    hub.add("org/name", {WEIGHTS: DATA})
    hub.fail("storage", ignore_range=True)
    file = HubFolder("org/name").open(WEIGHTS)
    assert b"".join(map(bytes, file.stream(0, file.size))) == DATA


def test_a_mirror_whose_etags_are_other_hashes(hub: HubServer) -> None:
    hub.add("org/name", {"config.json": b"{}"})
    hub.fail("resolve", headers={"ETag": f'"{hashlib.sha1(b"{}").hexdigest()}"'})
    assert HubFolder("org/name").open("config.json").read(0, 2) == b"{}"


def test_damage_of_the_first_file_that_is_read_shows_by_another(hub: HubServer) -> None:
    """Whether the server's hashes are git's is asked of another small file, where two readings contradict the hash."""
    hub.add("org/name", {"config.json": b'{"r": 8}', "README.md": b"# mine"})
    hub.fail("resolve", shift=1, times=2)
    with pytest.raises(CorruptError, match="digest"):
        HubFolder("org/name").open("config.json").read(0, 8)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_whole_file_is_held_against_its_digest(hub: HubServer, name: str) -> None:
    hub.add("org/name", {name: DATA, "README.md": b"# mine"})
    folder = HubFolder("org/name")
    folder.open("README.md")
    hub.fail("storage" if name == WEIGHTS else "resolve", shift=1)
    file = folder.open(name)
    with pytest.raises(CorruptError, match="digest"):
        list(file.stream(0, file.size))


def test_content_that_changes_under_the_same_address(hub: HubServer) -> None:
    hub.add("org/name", {WEIGHTS: DATA})
    file = HubFolder("org/name").open(WEIGHTS)
    file.read(0, 8)
    hub.fail("storage", headers={"ETag": '"another"'})
    with pytest.raises(NetworkError, match="changed between two reads"):
        file.read(1_000_000, 8)


def test_retry_after_is_honoured(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.TIMEOUT_VARIABLE, "5")
    hub.add("org/name", {"a": b"1"})
    hub.fail("info", times=1, status=429, headers={"Retry-After": "1"})
    begin = time.monotonic()
    assert HubFolder("org/name").files() == ["a"]
    assert time.monotonic() - begin >= 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "3600"},
        {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"},
        {"RateLimit": '"api";r=0;t=3600'},
    ],
)
def test_a_long_wait_is_not_waited_for(hub: HubServer, headers: dict[str, str]) -> None:
    hub.add("org/name", {"a": b"1"})
    hub.fail("info", status=429, headers=headers)
    begin = time.monotonic()
    with pytest.raises(NetworkError, match="limits the rate of requests for"):
        HubFolder("org/name").files()
    assert time.monotonic() - begin < 5
    assert len(hub.requests()) == 1


def test_nobody_there(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.close()
    begin = time.monotonic()
    with pytest.raises(NetworkError, match="cannot reach") as caught:
        HubFolder("org/name").files()
    assert time.monotonic() - begin < 5
    assert caught.value.hint is not None
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize(
    "endpoint", ["http://no-such-host.invalid", "127.0.0.1", "ftp://127.0.0.1", "http://[", "http://a:b", ""]
)
def test_an_endpoint_that_is_none(hub: HubServer, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises((NetworkError, UsageError)):
        HubFolder("org/name").files()


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "inf", "nan"])
def test_a_time_limit_that_is_none(hub: HubServer, monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv(patience.TIMEOUT_VARIABLE, seconds)
    with pytest.raises(UsageError, match=patience.TIMEOUT_VARIABLE):
        HubFolder("org/name")
