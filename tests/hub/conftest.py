"""A Hub on the loopback interface, and huggingface_hub pointed at it."""

from __future__ import annotations

import ipaddress
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.checkpoint.hub import patience
from tests.hub.large import large_adapter
from tests.hub.server import HubServer, Repeated, Sparse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches anything but this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError(f"a test reached out to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that huggingface_hub takes for the real one, with an empty cache and no token."""
    server = HubServer()
    home = tmp_path / "hf"
    environment = {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    # huggingface_hub reads its environment once, when it is imported.
    from huggingface_hub import constants

    settings: dict[str, object] = {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }
    for setting, it in settings.items():
        monkeypatch.setattr(constants, setting, it)
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.01)
    yield server
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    close_session()
    server.close()


@pytest.fixture
def offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's offline mode."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def randlora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RandLoRA adapter on a tiny Llama, written by PEFT, projections included."""
    import torch
    from peft import RandLoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    config = RandLoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"])
    folder = tmp_path_factory.mktemp("randlora")
    get_peft_model(base, config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def adapter() -> dict[str, bytes]:
    """A megabyte of real RandLoRA: seven copies of a basis of 131 kB."""
    files, _ = large_adapter(3, 128, 256, 8)
    return {name: b"".join(file.parts) if isinstance(file, Repeated) else file for name, file in files.items()}


@pytest.fixture(scope="session")
def slimmed(adapter: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same, stripped."""
    import adaptertool

    source, output = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("slim") / "slim"
    for name, data in adapter.items():
        (source / name).write_bytes(data)
    assert adaptertool.slim(source, output=output).action == "stripped"
    return files_of(output)


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder's files, as a commit takes them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def many_tensors(count: int, shape: list[int], copies: int = 0) -> Sparse:
    """A RandLoRA weights file of any size: the header is real, the data zeros that exist nowhere.

    Args:
        count: Trained tensors, of `shape` in bfloat16.
        shape: Theirs.
        copies: Copies of a projection of shape (9216, 288, 32), as in a 4B model.
    """
    tensors: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0

    def add(name: str, shape: list[int]) -> None:
        nonlocal end
        nbytes = 2
        for dim in shape:
            nbytes *= dim
        tensors[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes

    for number in range(count):
        add(f"base_model.model.model.layers.{number // 4}.mlp.p{number % 4}.randlora_lambda", shape)
    for number in range(copies):
        add(f"base_model.model.model.layers.{number // 4}.mlp.p{number % 4}.randlora_B", [9216, 288, 32])
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return Sparse(head, len(head) + end)
