"""Slimming a repo takes what one basis takes, however many copies the file holds: in memory, and on disk what stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.hub.large import WEIGHTS, large_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer

# Nothing larger than its first argument can be written to any file; the last line is the peak of memory.
PROGRAM = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from adaptertool.cli import main
code = main(sys.argv[2:])
status = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peaks of memory are read from /proc")  # noqa: PTH110
def test_memory_and_disk_do_not_grow_with_the_copies(hub: HubServer, tmp_path: Path) -> None:
    peaks: dict[int, int] = {}
    for layers in (2, 80):
        files, trained = large_adapter(layers, 256, 512, 8)
        name = f"org/layers-{layers}"
        hub.add(name, files)
        document, peaks[layers] = slim(hub, name, tmp_path / f"out-{layers}", limit=2 * trained + (256 << 10))
        size = hub.repos[name].commits[hub.repos[name].refs["main"]][WEIGHTS].size
        assert (document["action"], document["bytes_before"]) == ("stripped", size)
        assert sum(path.stat().st_size for path in (tmp_path / f"out-{layers}").rglob("*")) < trained + (128 << 10)
    assert size > 80 << 20
    assert peaks[80] - peaks[2] < 100 << 10  # KiB; up to 64 MiB are fetched ahead
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.is_file()], "the cache is not written to"


def slim(hub: HubServer, name: str, output: Path, limit: int) -> tuple[dict[str, Any], int]:
    command = [sys.executable, "-c", PROGRAM, str(limit), "slim", name, "-o", str(output), "--format", "json"]
    done = subprocess.run(command, env={**os.environ, "HF_ENDPOINT": hub.endpoint}, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return json.loads(done.stdout), int(done.stderr.split()[-1])
