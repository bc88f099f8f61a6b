"""Streams for the tests of net."""

import socket
from collections.abc import Iterator

import pytest

from ftpkit.net.frame_stream import FrameStream

PATIENT_S = 30.0


@pytest.fixture
def pair() -> Iterator[tuple[FrameStream, socket.socket]]:
    """A stream, and the bare socket of its peer."""
    ours, peer = socket.socketpair()
    peer.settimeout(PATIENT_S)
    stream = FrameStream(ours, stall_timeout_s=PATIENT_S)
    yield stream, peer
    stream.close()
    peer.close()
