"""Small programs that run in a namespace of an emulated network: senders, receivers, echoes.

Run as a file, since it needs nothing of ftpkit. Each prints JSON, one object a
line: first ``{"port": …}`` where others must know it, last what it has seen.
"""

import json
import socket
import struct
import sys
import time
from typing import Any, Final

NUMBER: Final = struct.Struct("!I")
_TIMESPEC: Final = struct.Struct("@qq")
_PATIENCE_S: Final = 30.0
# Linux; not in the socket module of every Python.
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SO_TIMESTAMPNS: Final = 35
_TCP_CONGESTION: Final = 13
_IP_MTU_DISCOVER: Final = 10
_IP_PMTUDISC_DO: Final = 2
_IPV6_MTU_DISCOVER: Final = 23
_BUFFER: Final = 256 * 1024 * 1024


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def udp(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    sock.settimeout(_PATIENCE_S)
    return sock


def bound(address: str) -> socket.socket:
    sock = udp(address)
    sock.bind((address, 0))
    say(port=sock.getsockname()[1])
    return sock


def arrival(ancillary: list[tuple[int, int, bytes]]) -> float:
    """Return when the kernel received it, in seconds, however late we read it."""
    seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2][: _TIMESPEC.size])
    return float(seconds + nanoseconds / 1e9)


def receive(address: str) -> None:
    """Receive as many numbered datagrams as a number on standard input says."""
    with bound(address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        expected = int(sys.stdin.readline())
        numbers, times, size = [], [], 0
        for _ in range(expected):
            data, ancillary, _, _ = sock.recvmsg(65536, 64)
            size += len(data)
            numbers.append(NUMBER.unpack_from(data)[0])
            times.append(arrival(ancillary))
        sock.settimeout(0.0)
        try:
            sock.recv(1)
            more = True
        except BlockingIOError:
            more = False
    say(numbers=numbers, first=times[0], last=times[-1], bytes=size, more=more)


def send(address: str, port: str, count: str, size: str) -> None:
    """Send ``count`` numbered datagrams of ``size`` bytes, as fast as possible."""
    rest = bytes(int(size) - NUMBER.size)
    with udp(address) as sock:
        sock.connect((address, int(port)))
        for number in range(int(count)):
            sock.send(NUMBER.pack(number) + rest)
    say(sent=int(count))


def echo(address: str) -> None:
    """Send every datagram back."""
    with bound(address) as sock:
        while True:
            data, peer = sock.recvfrom(65536)
            sock.sendto(data, peer)


def ask(address: str, port: str, count: str) -> None:
    """Send a datagram and wait for its echo, ``count`` times; say how long each took."""
    took = []
    with udp(address) as sock:
        sock.connect((address, int(port)))
        for number in range(int(count)):
            start = time.monotonic()
            sock.send(NUMBER.pack(number))
            if sock.recv(64) != NUMBER.pack(number):
                raise AssertionError("an echo out of order")
            took.append(time.monotonic() - start)
    say(took=took)


def ping(address: str, count: str) -> None:
    """Send ``count`` ICMP echo requests, and take what standard input then says is to come."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.settimeout(_PATIENCE_S)
        sock.connect((address, 0))
        for number in range(int(count)):
            head = struct.pack("!BBHHH", 8, 0, 0, 1, number)
            total = sum(struct.unpack("!4H", head))
            check = ~(total + (total >> 16)) & 0xFFFF
            sock.send(head[:2] + struct.pack("!H", check) + head[4:])
        say(sent=int(count))
        expected = int(sys.stdin.readline())
        answers = [sock.recv(256)[20] for _ in range(expected)]
    say(answers=answers.count(0))


def accept(address: str) -> None:
    """Read one connection to its end; say how much had come when, about every 64 KiB."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        listener.settimeout(_PATIENCE_S)
        # The window stays open however late we read.
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        # Here, and not on the connection: its first bytes may have come before it is accepted.
        listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        say(port=listener.getsockname()[1])
        connection, _ = listener.accept()
    marks: list[tuple[int, float]] = []
    total = 0
    with connection:
        connection.settimeout(_PATIENCE_S)
        while True:
            data, ancillary, _, _ = connection.recvmsg(65536, 64)
            if not data:
                break
            total += len(data)
            if total // 65536 > len(marks):
                marks.append((total, arrival(ancillary)))
    say(bytes=total, marks=marks)


def push(address: str, port: str, size: str, congestion: str) -> None:
    """Send ``size`` bytes over a connection with this congestion control."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, congestion.encode())
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)  # sent by the kernel
        sock.connect((address, int(port)))
        sock.sendall(bytes(int(size)))
    say(sent=int(size))


def whole(address: str, port: str) -> socket.socket:
    """Return a connected socket that does not fragment datagrams."""
    sock = udp(address)
    if ":" in address:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IP_PMTUDISC_DO)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
    sock.connect((address, int(port)))
    return sock


def told(address: str, port: str, size: str) -> None:
    """Send one datagram, and wait for the ICMP error."""
    with whole(address, port) as sock:
        sock.send(bytes(int(size)))
        try:
            sock.recv(1)
            error = None
        except OSError as refused:
            error = refused.errno
    say(errno=error)


def fits(address: str, port: str, size: str) -> None:
    """Send one datagram; report whether the device accepts it."""
    with whole(address, port) as sock:
        try:
            sock.send(bytes(int(size)))
            error = None
        except OSError as refused:
            error = refused.errno
    say(errno=error)


PROGRAMS: Final = {
    program.__name__: program
    for program in (receive, send, echo, ask, ping, accept, push, told, fits)
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
