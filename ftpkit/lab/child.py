"""Processes of our own, so that what each of them costs can be told apart."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import ftpkit
from ftpkit.errors import FtpkitError
from ftpkit.lab.network import NamespaceEnd

# It finds ftpkit where we found it, and runs nothing from the working directory.
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from importlib import import_module; import_module(sys.argv[2]).main(sys.stdin.readline())"
)
_PATIENCE_S: Final = 20.0


class ChildError(FtpkitError):
    """A process that was started for a comparison has ended before its work."""

    code = "child-ended"


class ChildProcess:
    """Runs ``main`` of a module of ours with ``job``, in an ``end`` of a link if one is given.

    It says JSON objects, a line each, and ends when its standard input does: with
    the block, or with this process, however that ends.
    """

    def __init__(self, module: str, job: dict[str, Any], end: NamespaceEnd | None = None) -> None:
        root = str(Path(ftpkit.__file__).parent.parent)
        argv = [sys.executable, "-P", "-c", _START, root, module]
        self._module = module
        with ExitStack() as stack:
            with _uninterrupted():
                self._process = _start(end.command(argv) if end else argv)
                stack.callback(self.close)
                # Not on its command line, which others can see: there may be a token in it.
                self._say(json.dumps(job))
            stack.pop_all()

    def ask(self) -> dict[str, Any]:
        """Send an empty line, and return what the process answers."""
        self._say("")
        return self.receive()

    def receive(self) -> dict[str, Any]:
        """Return what the process says next; ChildError if it has ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        """Let the process end, and wait until it has."""
        try:
            # With its standard input; what it says meanwhile is read, so that it is not stuck.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=_PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as ``hear`` tells
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _ended(self) -> ChildError:
        code = self._process.wait()
        return ChildError(f"a process of this comparison has ended with {code}: {self._module}")


def _start(argv: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # noqa: S603  # our own interpreter and code
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A terminal's Ctrl-C is for us alone: we let them end, and they clean up.
        start_new_session=True,
    )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C wait for the end of the block: nobody would know of a process half started."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
