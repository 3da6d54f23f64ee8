"""The command line in a process that stops before each of its file-system calls until the test says what happens next.

The kernel does the stopping (seccomp's user notification, Linux 5.5 and newer): the call waits, and then it is made, or it
fails with an error number of the test's choice, or the process is killed or gets a signal, or something else happens first
to the files that it works on. Nothing in the program knows of it, and nothing is replaced by a stand-in.

Processes are forked from one that has imported everything already, so that a run costs milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import json
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]

# System call -> its number on x86-64 and on 64-bit ARM, and which of its arguments are paths (p) or file descriptors (f).
_CALLS: dict[str, tuple[int | None, int | None, str]] = {
    "open": (2, None, "p"),
    "openat": (257, 56, "-p"),
    "creat": (85, None, "p"),
    "read": (0, 63, "f"),
    "pread64": (17, 67, "f"),
    "preadv": (295, 69, "f"),
    "preadv2": (327, 286, "f"),
    "write": (1, 64, "f"),
    "pwrite64": (18, 68, "f"),
    "writev": (20, 66, "f"),
    "sendfile": (40, 71, "ff"),
    "copy_file_range": (326, 285, "f-f"),
    "fsync": (74, 82, "f"),
    "fdatasync": (75, 83, "f"),
    "truncate": (76, 45, "p"),
    "ftruncate": (77, 46, "f"),
    "fallocate": (285, 47, "f"),
    "rename": (82, None, "pp"),
    "renameat": (264, 38, "-p-p"),
    "renameat2": (316, 276, "-p-p"),
    "link": (86, None, "pp"),
    "linkat": (265, 37, "-p-p"),
    "symlink": (88, None, "pp"),
    "symlinkat": (266, 36, "p-p"),
    "unlink": (87, None, "p"),
    "unlinkat": (263, 35, "-p"),
    "rmdir": (84, None, "p"),
    "mkdir": (83, None, "p"),
    "mkdirat": (258, 34, "-p"),
    "chmod": (90, None, "p"),
    "fchmod": (91, 52, "f"),
    "fchmodat": (268, 53, "-p"),
    "fchmodat2": (452, 452, "-p"),
    "chown": (92, None, "p"),
    "fchown": (93, 55, "f"),
    "lchown": (94, None, "p"),
    "fchownat": (260, 54, "-p"),
    "utimensat": (280, 88, "-p"),
    "setxattr": (188, 5, "p"),
    "lsetxattr": (189, 6, "p"),
    "fsetxattr": (190, 7, "f"),
    "flock": (73, 32, "f"),
}
READS = ("read", "pread64", "preadv", "preadv2")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}

_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
_NOTICE = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")
_CONTINUE = 1


@dataclass(frozen=True)
class Step:
    """A call that a process is about to make.

    Attributes:
        call: Its name, such as `rename`.
        paths: The files that it names.
        process: Who makes it.
    """

    call: str
    paths: tuple[str, ...]
    process: int

    def __str__(self) -> str:
        return f"{self.call}({', '.join(self.paths)})"


@dataclass(frozen=True)
class Go:
    """The call is made."""


@dataclass(frozen=True)
class Fail:
    """The call is not made, and returns an error."""

    number: int


@dataclass(frozen=True)
class Send:
    """The process gets a signal; if it lives on, the call is made."""

    number: int


Answer = Go | Fail | Send
KILL = Send(signal.SIGKILL)


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code, or a negative signal number.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
        steps: The calls that it made, or was about to make.
    """

    code: int
    out: str
    err: str
    steps: list[Step] = field(default_factory=list)


def why_not() -> str | None:
    """Why processes can't be stopped like this here; None where they can."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return f"needs Linux on x86-64 or 64-bit ARM, and this is {sys.platform} on {platform.machine()}"
    child = os.fork()
    if child == 0:
        try:
            _listen(())
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"the kernel gives no seccomp notifications here: {os.strerror(code)}" if code else None


class Stepper:
    """Starts processes of the command line that stop before each file-system call."""

    def __init__(self, folder: Path, *warm_up: Sequence[object]) -> None:
        """Start the process that the others are forked from.

        Args:
            folder: Where it keeps their output.
            warm_up: Command lines that it runs itself, so that everything is imported.
        """
        told = [[str(one) for one in arguments] for arguments in warm_up]
        self._folder = folder
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = mine
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.steps", str(theirs.fileno()), str(folder), json.dumps(told)],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
                cwd=ROOT,
            )
        assert self._socket.recv(64) == b"ready"

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._server.wait(timeout=30)

    def start(self, *arguments: object, cwd: Path | None = None, reads: bool = False, user: int = 0) -> Running:
        """Start the command line; it stops before its first call.

        Args:
            arguments: Its arguments.
            cwd: Its working directory.
            reads: Whether it stops before reads, too.
            user: The user that it runs as, where the tests run as root.
        """
        request = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or self._folder),
            "reads": reads,
            "user": user,
        }
        self._socket.send(json.dumps(request).encode())
        answer, descriptors, _, _ = socket.recv_fds(self._socket, 64, 1)
        return Running(self, int(answer), descriptors[0], reads)

    def run(
        self,
        *arguments: object,
        at: int | None = None,
        do: Answer | Callable[[Step], Answer] = Go(),
        cwd: Path | None = None,
        reads: bool = False,
        user: int = 0,
    ) -> Ended:
        """Run the command line, and have something happen at one of its steps.

        Args:
            arguments: Its arguments.
            at: Before which of its steps, counted from 0; None for every step.
            do: What happens there: an answer, or a function of the step that gives one.
            cwd: Its working directory.
            reads: Whether reads are steps, too.
            user: The user that it runs as.
        """
        running = self.start(*arguments, cwd=cwd, reads=reads, user=user)
        number = 0
        while (step := running.wait()) is not None:
            happens = at is None or number == at
            running.answer((do(step) if callable(do) else do) if happens else Go())
            number += 1
        return running.ended()


class Running:
    """A process that was started by a `Stepper`."""

    def __init__(self, stepper: Stepper, process: int, listener: int, reads: bool) -> None:
        self.process = process
        self._stepper = stepper
        self._listener = listener
        self._reads = reads
        self._identity = 0
        self._status: int | None = None
        self.steps: list[Step] = []

    def wait(self, seconds: float = 60.0) -> Step | None:
        """Its next step; None where it ended.

        Raises:
            TimeoutError: it makes no call and does not end; it may be waiting for a lock.
        """
        while self._status is None:
            events = self._poll(seconds)
            if not events:
                raise TimeoutError
            if events.get(self._listener, 0) & select.POLLIN:
                if (step := self._receive()) is not None:
                    self.steps.append(step)
                    return step
            elif self._listener in events or self._stepper._socket.fileno() in events:
                # Nobody is left that could make a call.
                self._status = int(self._stepper._socket.recv(64))
                os.close(self._listener)
        return None

    def _poll(self, seconds: float) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stepper._socket, select.POLLIN)
        return dict(poll.poll(seconds * 1000))

    def answer(self, answer: Answer) -> None:
        """Let the call that was waited for happen, or not."""
        if isinstance(answer, Send):
            os.kill(self.process, answer.number)
        self._reply(answer.number if isinstance(answer, Fail) else 0)

    def ended(self) -> Ended:
        """How it ended; it must have."""
        assert self._status is not None
        out, err = (
            (self._stepper._folder / f"{self.process}.{name}").read_text(encoding="utf-8") for name in ("out", "err")
        )
        return Ended(os.waitstatus_to_exitcode(self._status), out, err, self.steps)

    def _receive(self) -> Step | None:
        buffer = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # it was killed, or is about to make the call again
                return None
            raise
        self._identity, process, _, number, _, _, *arguments = _NOTICE.unpack(buffer)
        name, kinds = _by_number()[number]
        if (name in ("open", "openat") and not arguments[kinds.index("p") + 1] & _WRITING and not self._reads) or (
            kinds[0] == "f" and arguments[0] <= 2
        ):
            self._reply(0)
            return None
        paths = [_path(process, *one) for one in zip(kinds, arguments, strict=False) if one[0] != "-"]
        if name in (*READS, "flock", "write") and paths and not paths[0].startswith("/"):
            self._reply(0)  # pipes and sockets
            return None
        return Step(name, tuple(paths), process)

    def _reply(self, number: int) -> None:
        answer = _ANSWER.pack(self._identity, 0, -number, 0 if number else _CONTINUE)
        try:
            fcntl.ioctl(self._listener, _SEND, answer)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINPROGRESS):  # it was killed, or interrupted by a signal
                raise


def _path(process: int, kind: str, argument: int) -> str:
    try:
        if kind == "f":
            return str(Path(f"/proc/{process}/fd/{argument}").readlink())
        with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
            memory.seek(argument)
            text = memory.read(4096 - argument % 4096)
            while b"\0" not in text:
                text += memory.read(4096)
    except OSError:
        return "?"
    return os.fsdecode(text[: text.index(b"\0")])


def _by_number() -> dict[int, tuple[str, str]]:
    column = _MACHINES[platform.machine()][0]
    return {entry[column]: (name, entry[2]) for name, entry in _CALLS.items() if entry[column] is not None}  # type: ignore[misc]


def _listen(calls: Sequence[str]) -> int:
    """Have the calling process stop before these calls from now on.

    Returns:
        The descriptor on which the kernel tells of them.
    """
    column, architecture, seccomp = _MACHINES[platform.machine()]
    numbers = [number for name in calls if (number := _CALLS[name][column]) is not None]
    load, equal, give = 0x20, 0x15, 0x06
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, architecture),
        (give, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        (load, 0, 0, 0),  # the call's number
        *((equal, len(numbers) - index, 0, number) for index, number in enumerate(numbers)),
        (give, 0, 0, 0x7FFF0000),
        (give, 0, 0, 0x7FC00000),  # SECCOMP_RET_USER_NOTIF
    ]
    code = b"".join(struct.pack("<HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    filter_program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl")
    listener: int = libc.syscall(seccomp, 1, 8, filter_program)  # SECCOMP_SET_MODE_FILTER, ..._FLAG_NEW_LISTENER
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def _serve(descriptor: int, folder: Path, warm_up: Sequence[Sequence[str]]) -> None:
    """Fork a process for each request until the test goes away."""
    from adaptertool.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for arguments in warm_up:
            main(arguments)
    with socket.socket(fileno=descriptor) as control:
        control.send(b"ready")
        while request := control.recv(1 << 16):
            wanted = json.loads(request)
            child = os.fork()
            if child == 0:
                _become(control, folder, wanted)
                code = 255
                try:
                    code = main(wanted["arguments"])
                    sys.stdout.flush()
                finally:
                    os._exit(code)
            control.send(str(os.waitpid(child, 0)[1]).encode())


def _become(control: socket.socket, folder: Path, wanted: dict[str, object]) -> None:
    os.chdir(str(wanted["cwd"]))
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(folder / f"{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    if wanted["user"]:
        os.setgroups([])
        os.setgid(int(str(wanted["user"])))
        os.setuid(int(str(wanted["user"])))
    calls = [name for name in _CALLS if wanted["reads"] or name not in READS]
    # The listener's descriptor travels over the socket by calls that are not among those that stop.
    listener = _listen(calls)
    socket.send_fds(control, [str(os.getpid()).encode()], [listener])
    os.close(listener)
    control.close()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
