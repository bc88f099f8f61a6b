"""A socket that brings a recorded stream in pieces, and keeps what is sent."""

import os
from collections.abc import Iterable
from typing import Any


class CutSocket:
    """Ends each read where the stream is cut, so the reader sees exactly these pieces.

    Always fewer bytes than asked for, where a piece ends: also where the
    caller asked the system to wait for all of them.
    """

    def __init__(self, stream: bytes, cuts: Iterable[int]) -> None:
        self._stream = memoryview(stream)
        self._ends = [*sorted(cuts, reverse=True)]
        self._ends.insert(0, len(stream))
        self._at = 0
        self.sent = bytearray()
        self._ready = open(os.devnull, "rb")  # noqa: SIM115  something can be read at any time

    def recv(self, count: int, flags: int = 0) -> bytes:
        buffer = memoryview(bytearray(count))
        return bytes(buffer[: self.recv_into(buffer)])

    def recv_into(self, view: memoryview, count: int = 0, flags: int = 0) -> int:
        while len(self._ends) > 1 and self._ends[-1] <= self._at:
            self._ends.pop()
        got = min(len(view), self._ends[-1] - self._at)
        view[:got] = self._stream[self._at : self._at + got]
        self._at += got
        return got

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.sent += data

    def gettimeout(self) -> float:
        return 1.0  # so that the descriptor, which is invalid, is never polled

    def settimeout(self, seconds: float | None) -> None: ...

    def setsockopt(self, *option: Any) -> None: ...

    def shutdown(self, how: int) -> None: ...

    def fileno(self) -> int:
        return self._ready.fileno()

    def close(self) -> None:
        self._ready.close()
