"""What it costs to inspect and slim a 42 GB adapter on the Hub: seconds, requests, bytes, and the peaks of memory and disk.

    python -m tests.benchmarks.hub_slim [PAIRS_OF_LAYERS]

The Hub is the loopback server of the tests, in this process; the program runs in its own. 124 pairs of layers are 42.5 GB.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.hub.large import large_adapter
from tests.hub.server import HubServer


def disk(folder: Path) -> int:
    """Bytes that a folder takes up."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).lstat().st_blocks * 512
    return total


def memory(process: int) -> int:
    """The most that a process had in memory so far, in KiB. What wait4 tells includes the process that started it."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text()
        return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return 0


def measure(place: Path, hub: HubServer, *arguments: str) -> None:
    """Run a command, and print what it took."""
    home, scratch = place / "home", place / "tmp"
    for folder in (home, scratch):
        folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "TMPDIR": str(scratch),
        "NO_PROXY": "127.0.0.1",
    }
    hub.log.clear()
    most = {"memory": 0, "disk": 0}
    done, before = threading.Event(), disk(place)
    begin = time.perf_counter()
    command = [sys.executable, "-m", "adaptertool", *arguments, "--format", "json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

        def watch() -> None:
            while not done.wait(0.05):
                most["memory"] = max(most["memory"], memory(process.pid))
                most["disk"] = max(most["disk"], disk(place))

        watcher = threading.Thread(target=watch)
        watcher.start()
        output, _ = process.communicate()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    document = json.loads(output)
    entries = hub.requests()
    sent = sum(entry.body_bytes for entry in entries)
    verdict = (document.get("projections") or {}).get("verdict") or document
    print(f"{' '.join(arguments)}: exit {process.returncode}, {document.get('action', 'inspected')}, {verdict}")
    print(f"    {seconds:.1f} s, {len(entries)} requests, {sent / 1e6:,.1f} MB received")
    print(f"    peak memory {most['memory'] / 1024:,.0f} MiB, peak disk {(most['disk'] - before) / 1e6:,.1f} MB")


def main(pairs: int = 124) -> None:
    """Print what each command takes."""
    files, trained = large_adapter(pairs, 2560, 9216, 32)
    hub = HubServer()
    hub.add("org/large", files)
    size = hub.repos["org/large"].commits[hub.repos["org/large"].refs["main"]]["adapter_model.safetensors"].size
    print(f"{size / 1e9:.1f} GB, of which {trained / 1e9:.3f} GB were trained")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        measure(place, hub, "inspect", "org/large", "--verify", "none")
        measure(place, hub, "inspect", "org/large")
        measure(place, hub, "slim", "org/large", "-o", str(place / "slim"))
        measure(place, hub, "slim", "org/large", "-o", str(place / "one"), "--keep-one-copy")
        measure(place, hub, "slim", "org/large", "--dry-run", "--for-torch", "2.11")
    hub.close()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
