"""Child processes that run a module of ftpkit and exchange lines of JSON with their parent."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import ftpkit
from ftpkit.errors import FtpkitError

# The child imports ftpkit from where we did, and nothing from the working directory.
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from importlib import import_module; import_module(sys.argv[2]).main(sys.stdin.readline())"
)
_EXIT_TIMEOUT_S: Final = 20.0


class ChildError(FtpkitError):
    """A child process has exited before it sent what was asked for; its stderr says why."""

    code = "child-ended"


@dataclass(frozen=True, slots=True)
class NamespaceEnd:
    """One end of an emulated network: a network namespace (the path of a file) and its addresses.

    ``v6`` is None where the kernel has no IPv6.
    """

    namespace: str
    v4: str
    v6: str | None

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` in this namespace, as the same process."""
        return ["nsenter", f"--net={self.namespace}", "--", *argv]


class ChildProcess:
    """Runs ``main(job)`` of a module of ftpkit, in the namespace of ``end`` if given.

    ``job`` is sent as a line of JSON. The child writes JSON objects, one a line, and exits
    when its standard input ends: at ``close``, or when this process exits in any way.
    """

    def __init__(self, module: str, job: dict[str, Any], end: NamespaceEnd | None = None) -> None:
        root = str(Path(ftpkit.__file__).parent.parent)
        argv = [sys.executable, "-P", "-c", _START, root, module]
        self._module = module
        with ExitStack() as stack:
            with _sigint_blocked():
                self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and code
                    end.command(argv) if end else argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    # Ctrl-C goes to the parent only, which ends its children so that they
                    # clean up.
                    start_new_session=True,
                )
                stack.callback(self.close)
                # Not on the command line, which other users can read: it may hold a token.
                self._send(json.dumps(job))
            stack.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, command: str = "") -> dict[str, Any]:
        """Send a line, and return the reply; ChildError if the child has exited."""
        self._send(command)
        return self.receive()

    def receive(self) -> dict[str, Any]:
        """Return the next object from the child; ChildError if it has exited."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ChildError(f"child process {self._module} exited with status {code}")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """End the child's standard input and wait until it exits; safe to call twice."""
        try:
            # communicate also reads what the child still writes, so that it cannot block.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=_EXIT_TIMEOUT_S)
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

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has exited, as ``receive`` will report
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()


def reply(message: dict[str, Any]) -> None:
    """Send an object to the parent; called in the child."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Delay Ctrl-C until the child is registered for clean-up."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
