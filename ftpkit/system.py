"""What this operating system offers beyond plain Python; each power has its plain fallback here."""

import contextlib
import errno
import mmap
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Final

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]  # probed below
try:
    import termios
    import tty
except ImportError:  # not a Unix
    termios = None  # type: ignore[assignment]  # probed below

# Held directory descriptors: without them paths are joined and checked part by part.
HAS_DIR_FD: Final = {
    os.open,
    os.stat,
    os.mkdir,
    os.rmdir,
    os.unlink,
    os.rename,
    os.link,
} <= os.supports_dir_fd and os.scandir in os.supports_fd
# Blocks reserved before they are written; without it promises are counted.
HAS_ALLOCATE: Final = hasattr(os, "posix_fallocate")
HAS_LOCKS: Final = fcntl is not None
# Files belong to somebody, and say who else may read them.
HAS_OWNERS: Final = hasattr(os, "geteuid")
# Terminals whose keys are heard one by one.
HAS_TERMINALS: Final = termios is not None
HAS_NOFOLLOW: Final = hasattr(os, "O_NOFOLLOW")
O_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
O_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)
O_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)
O_NOCTTY: Final = getattr(os, "O_NOCTTY", 0)
O_BINARY: Final = getattr(os, "O_BINARY", 0)
O_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
MSG_MORE: Final = getattr(socket, "MSG_MORE", 0)
# Fewer wake-ups while a large body streams in.
MSG_WAITALL: Final = getattr(socket, "MSG_WAITALL", 0)
MSG_CMSG_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
# Connections can be handed to another process.
HAS_HANDING_OVER: Final = hasattr(socket, "send_fds")

# Several datagrams in one call; Python does not name Linux's options.
HAS_UDP_SEGMENTS: Final = sys.platform == "linux" and hasattr(socket, "SOL_UDP")
# A second socket on a port, for one address alone.
HAS_SHARED_PORTS: Final = hasattr(socket, "SO_REUSEPORT")
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = {socket.IPPROTO_IP: 10, socket.IPPROTO_IPV6: 23}
_IP_MTU: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, 14),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 24),
}
_PMTUDISC_PROBE: Final = 3
_IP_PKTINFO: Final = 8
_U16: Final = struct.Struct("@H")
_INT: Final = struct.Struct("@i")
SEGMENT_NOTE: Final = socket.CMSG_SPACE(_INT.size) if HAS_UDP_SEGMENTS else 0

# What a terminal, a session or a service manager sends to all processes of a group.
GROUP_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_PR_SET_PDEATHSIG: Final = 1
_RENAME_NOREPLACE: Final = 1
# What is said by a kernel or a disk that cannot do that.
_CANNOT: Final = {errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP}

_HAS_TIMEO: Final = hasattr(socket, "SO_RCVTIMEO") and os.name == "posix"
_TIMEVAL: Final = struct.Struct("@ll")

# Where there is no pread, a file's position is shared by its readers and writers.
_POSITION: Final = threading.Lock()
_COPY: Final = 256 * 1024


def memory(length: int) -> memoryview:
    """Return zeros that take no memory before something else is written there, where possible."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return memoryview(mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    return memoryview(bytearray(length))


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from ``offset`` of a file; return how many bytes there were (0: the end)."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    with _POSITION:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(fd: int, view: memoryview, offset: int) -> None:
    """Write all of ``view`` at ``offset`` of a file."""
    while view:
        if hasattr(os, "pwrite"):
            done = os.pwrite(fd, view, offset)
        else:
            with _POSITION:
                os.lseek(fd, offset, os.SEEK_SET)
                done = os.write(fd, view)
        view, offset = view[done:], offset + done


def append(fd: int, data: bytes) -> None:
    """Write ``data`` at the end of a file in one call."""
    with _POSITION:
        os.lseek(fd, 0, os.SEEK_END)
        write = os.write(fd, data)
    if write != len(data):
        raise OSError(f"only {write} of {len(data)} bytes were written")


def reserve(fd: int, size: int, promised: int = 0) -> None:
    """Make sure that a file can grow to ``size`` bytes, or raise OSError with ENOSPC.

    Where blocks can be allocated ahead they are; elsewhere the free space is
    looked at, less what was ``promised`` to other files.
    """
    if hasattr(os, "fstatvfs"):
        # Asked for too much, some file systems allocate all there is before they say no.
        space = os.fstatvfs(fd)
        if size > space.f_bavail * space.f_frsize - promised:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if HAS_ALLOCATE:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                os.ftruncate(fd, 0)
                raise
    else:
        # Its length tells what was promised to it; see ``unwritten``.
        os.ftruncate(fd, size)


def unwritten(status: os.stat_result) -> int:
    """Return how many bytes of a file have no block on the disk yet, as far as that is told."""
    return max(0, status.st_size - getattr(status, "st_blocks", status.st_size) * 512)


def set_note(fd: int, key: str, value: bytes) -> None:
    """Keep a short note with a file, as an extended attribute, where there are such."""
    if hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):
            os.setxattr(fd, f"user.{key}", value)


def get_note(fd: int, key: str) -> bytes | None:
    """Return the note that was kept with a file, if it was and still is."""
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):
            return os.getxattr(fd, f"user.{key}")
    return None


@contextlib.contextmanager
def secret_file(data: bytes) -> Iterator[str]:
    """Hold ``data`` in a file for those who read nothing else; yield its path."""
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd"):
            fd = os.memfd_create("ftpkit", os.MFD_CLOEXEC)
            path = f"/proc/self/fd/{fd}"
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            path = os.path.join(directory, "secret")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | O_CLOEXEC | O_BINARY, 0o600)
        stack.callback(os.close, fd)
        append(fd, data)
        yield path


def sync_data(fd: int) -> None:
    """Bring a file's bytes and length to stable storage."""
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_directory(path: str) -> None:
    """Bring the names in a directory to stable storage, where directories can be opened."""
    if O_DIRECTORY:
        fd = os.open(path, os.O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def rename_free(source_fd: int, part: str, target_fd: int, to: str) -> None:
    """Move ``part`` of one directory to a free name in another, in one step.

    NotImplementedError says that the system cannot, or not on this disk.
    """
    if sys.platform != "linux":
        raise NotImplementedError
    import ctypes  # os has no such call

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        raise NotImplementedError from None
    if call(source_fd, os.fsencode(part), target_fd, os.fsencode(to), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        if number in _CANNOT:
            raise NotImplementedError
        raise OSError(number, os.strerror(number), part)


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Ask for these bytes to be written to the disk soon, without waiting for it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def expect_read(fd: int, offset: int, size: int) -> None:
    """Ask for these bytes to be read from the disk soon, without waiting for it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)


def set_mode(fd: int, path: str, mode: int) -> None:
    """Set the permission bits, of ``fd`` where that works, else of ``path``."""
    os.chmod(fd if os.chmod in os.supports_fd else path, mode)


def set_mtime(fd: int, path: str, mtime: int) -> None:
    """Set the modification time in nanoseconds, of ``fd`` where that works, else of ``path``."""
    os.utime(fd if os.utime in os.supports_fd else path, ns=(mtime, mtime))


def is_ours(status: os.stat_result) -> bool:
    """Whether what has this status belongs to us, as far as that is told; root has everything."""
    return not HAS_OWNERS or os.geteuid() in (0, status.st_uid)


def give_to_owner(fd: int, directory: str) -> None:
    """Let a file that root has made in a directory belong to the owner of that directory."""
    if HAS_OWNERS and os.geteuid() == 0:
        status = os.stat(directory)
        os.fchown(fd, status.st_uid, status.st_gid)


def send_file(sock: socket.socket, fd: int, offset: int, count: int) -> int:
    """Send up to ``count`` bytes of a file; return how many went out (0: the file has ended)."""
    if hasattr(os, "sendfile") and sock.gettimeout() is None:
        return os.sendfile(sock.fileno(), fd, offset, count)
    buffer = memoryview(bytearray(min(count, _COPY)))
    got = read_at(fd, buffer, offset)
    sock.sendall(buffer[:got])
    return got


def send_file_now(sock: socket.socket, fd: int, offset: int, count: int) -> int:
    """As ``send_file`` to a socket that is writable, but raise BlockingIOError and do not wait."""
    if not hasattr(os, "sendfile") or sock.gettimeout() is not None:
        buffer = memoryview(bytearray(min(count, _COPY)))
        got = read_at(fd, buffer, offset)
        return send_now(sock, buffer[:got]) if got else 0
    # A flag of the call would do, but sendfile has none.
    os.set_blocking(sock.fileno(), False)
    try:
        return os.sendfile(sock.fileno(), fd, offset, count)
    finally:
        os.set_blocking(sock.fileno(), True)


def send_now(sock: socket.socket, data: memoryview) -> int:
    """Send what a socket that is writable takes without waiting; BlockingIOError for nothing."""
    return sock.send(data, getattr(socket, "MSG_DONTWAIT", 0))


def receive_now(sock: socket.socket, view: memoryview) -> int:
    """Receive what is there without waiting; BlockingIOError for nothing."""
    # With a timeout Python itself would wait.
    if sock.gettimeout() is not None and not wait_readable(sock, 0):
        raise BlockingIOError
    return sock.recv_into(view, 0, getattr(socket, "MSG_DONTWAIT", 0))


def set_socket_timeout(sock: socket.socket, seconds: float) -> None:
    """Let a call that moves no byte for ``seconds`` fail with BlockingIOError or TimeoutError.

    The kernel's own timeouts keep the socket blocking underneath, as ``sendfile`` needs it.
    """
    if _HAS_TIMEO:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
        limit_sending(sock, seconds)
    else:
        sock.settimeout(seconds)


def limit_sending(sock: socket.socket, seconds: float) -> None:
    """Let sending alone fail where no byte leaves for ``seconds``, if the system can."""
    if _HAS_TIMEO:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return _TIMEVAL.pack(whole, max(int((seconds - whole) * 1e6), 0 if whole else 1))


def wait_readable(sock: socket.socket, seconds: float) -> bool:
    """Wait until something, or the end, can be read; False says that ``seconds`` have passed."""
    return _wait(sock, seconds, to_write=False)


def wait_writable(sock: socket.socket, seconds: float) -> bool:
    """Wait until something can be sent, or has failed; False says that ``seconds`` have passed."""
    return _wait(sock, seconds, to_write=True)


def _wait(sock: socket.socket, seconds: float, *, to_write: bool) -> bool:
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if hasattr(select, "poll"):  # unlike select, it takes any descriptor
        poll = select.poll()
        poll.register(sock, select.POLLOUT if to_write else select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    ready = select.select([] if to_write else [sock], [sock] if to_write else [], [], seconds)
    return any(ready)


def wait_any(readers: list[socket.socket], writers: list[socket.socket]) -> set[socket.socket]:
    """Wait until one of them can go on, or is broken; return the readers that can.

    For systems on which connections can be handed over.
    """
    poll = select.poll()
    for sock in {*readers, *writers}:
        poll.register(sock, select.POLLIN * (sock in readers) | select.POLLOUT * (sock in writers))
    found = {fd for fd, seen in poll.poll() if seen != select.POLLOUT}
    return {sock for sock in readers if sock.fileno() in found}


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel probe an idle peer, and end the connection of one that is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextlib.contextmanager
def exclusive(fd: int, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock on an open file until the block ends; False says that another process does.

    With ``wait`` the other one is waited for.
    """
    if not HAS_LOCKS:
        yield True
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    yield True
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_locked(fd: int) -> bool:
    """Whether another process holds ``exclusive`` on an open file; there must be locks."""
    try:
        # Shared, so that two who ask are not in each other's way.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def is_running(pid: int) -> bool:
    """Whether there is such a process; True where that cannot be asked."""
    if os.name != "posix":  # os.kill would do something to it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is somebody else's
    return True


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def die_with_parent(parent: int) -> None:
    """End this process, by SIGKILL, when the thread that started it ends, if the system can.

    ``parent`` is the process of that thread: it may be gone already.
    """
    if sys.platform == "linux":
        import ctypes  # nobody else has a use for it

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def segments_of(size: int) -> list[tuple[int, int, bytes]]:
    """Return what tells sendmsg that its bytes are a row of datagrams of ``size`` bytes."""
    return [(socket.SOL_UDP, _UDP_SEGMENT, _U16.pack(size))]


def segment_size(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return of what size the datagrams are that recvmsg gave in one; 0 if it was a single one."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_UDP, _UDP_GRO):
            return int(_INT.unpack_from(data)[0])
    return 0


def join_segments(sock: socket.socket) -> None:
    """Let datagrams of one size arrive joined, where the system can."""
    if HAS_UDP_SEGMENTS:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)


def never_fragment(sock: socket.socket) -> None:
    """Let datagrams that are too large for the path be lost, where the system can."""
    if sys.platform == "linux":
        for level, option in _IP_MTU_DISCOVER.items():
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, _PMTUDISC_PROBE)


def path_mtu(sock: socket.socket) -> int:
    """Return how long a packet a connected socket's first device carries; 0 if unknown."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return sock.getsockopt(*_IP_MTU[sock.family])
    return 0


def sent_from(family: int, address: tuple[Any, ...]) -> list[tuple[int, int, bytes]]:
    """Return what tells sendmsg which of our addresses to send from, where the system can."""
    if sys.platform != "linux":
        return []
    raw = socket.inet_pton(family, address[0].partition("%")[0])
    if family == socket.AF_INET6:
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, raw + _INT.pack(0))]
    return [(socket.IPPROTO_IP, _IP_PKTINFO, _INT.pack(0) + raw + bytes(4))]


def share_port(sock: socket.socket) -> None:
    """Let several sockets of this user be bound to one port."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


@contextlib.contextmanager
def unbuffered_keys(fd: int) -> Iterator[None]:
    """Hear the keys of a terminal one by one, and do not show them, until the block ends."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # nobody is there any more
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def read_keys(fd: int, seconds: float) -> bytes:
    """Return what is typed within ``seconds``, perhaps nothing; EOFError where that has ended."""
    if not select.select([fd], [], [], seconds)[0]:
        return b""
    if not (typed := os.read(fd, 64)):
        raise EOFError
    return typed
