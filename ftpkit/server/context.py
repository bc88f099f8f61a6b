"""The state of one connection that its operations use, and the result that they return."""

import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from ftpkit.errors import Code, RefusedError
from ftpkit.net.buffer_pool import BufferPool
from ftpkit.net.frame_stream import FrameStream
from ftpkit.osapi.process import descriptor_limit
from ftpkit.protocol import messages as m
from ftpkit.protocol.digest import DEFAULT
from ftpkit.protocol.frame import Header
from ftpkit.protocol.status import ServerStatus
from ftpkit.protocol.udp.session import StartSession
from ftpkit.scheduling.blocking import TurnHandle
from ftpkit.scheduling.flow import Account, Transfer
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.server.auth.authenticator import Authenticator
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.jobs import Jobs, Work
from ftpkit.server.transfers.registry import TransferRegistry, take_turn
from ftpkit.server.udp.listener import UdpConversation, UdpListener
from ftpkit.storage.api import Reader, Store, Upload
from ftpkit.tokens import Grant

# Each open upload has three descriptors, and half of all remain for connections and readers.
_DESCRIPTORS: Final = 3
# Open uploads of one connection; a client uses one at a time.
_MAX_UPLOADS: Final = 16
# Of a server without tokens: all permissions.
_UNRESTRICTED: Final = Grant(user="")
# Before a token was presented: no permission.
_UNAUTHENTICATED: Final = Grant(user="", can=frozenset())

# Each may hold all names of a directory, and a descriptor.
_MAX_PAUSED_LISTS: Final = 8


@dataclass(frozen=True, slots=True)
class Handoff:
    """A session that another worker continues, from the request ``header`` on.

    ``ahead`` is what was read after the header; ``requests`` were answered since ``since``.
    ``grant`` is that of the presented token, if any, and ``local`` the socket family and the
    address that the client connected to.
    """

    header: Header
    ahead: bytes
    grant: Grant | None
    algorithm: str
    requests: int
    since: float
    local: tuple[int, tuple[Any, ...]]


class OtherWorkers(Protocol):
    """The other workers of a server, as one session sees them."""

    @property
    def draining(self) -> bool:
        """Whether this worker only finishes what it has begun."""

    def hand_over(self, sock: socket.socket, handoff: Handoff, to: int, *, proxied: bool) -> None:
        """Let worker number ``to`` continue the session; 0 is any.

        If ``proxied``, this worker keeps the TLS connection and relays its bytes over ``sock``.
        """

    def status(self) -> ServerStatus:
        """Return the status of all workers together; RefusedError if it is not available."""


Page = tuple[bytes, str | None]
"""One page of a list, and its last name if there are more."""


class PausedLists:
    """The pages that remain of lists of which a client has read some, one list a connection.

    The next page goes on there; to begin anew for each would cost the square of the names. One
    that was dropped is begun anew behind the last name.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rests = dict[FrameStream, tuple[m.List, Iterator[Page]]]()

    def keep(self, stream: FrameStream, request: m.List, rest: Iterator[Page]) -> None:
        """Keep the ``rest`` for the ``request`` that will ask for it; drop the oldest of many."""
        with self._lock:
            self._rests[stream] = request, rest
            if len(self._rests) > _MAX_PAUSED_LISTS:
                del self._rests[next(iter(self._rests))]

    def take(self, stream: FrameStream, request: m.List) -> Iterator[Page] | None:
        """Return what was kept for ``request``, and drop what was kept for another one."""
        with self._lock:
            expected, rest = self._rests.pop(stream, (None, None))
        return rest if request == expected else None

    def drop(self, stream: FrameStream) -> None:
        """Drop what was kept for a connection that ends."""
        with self._lock:
            self._rests.pop(stream, None)


@dataclass(slots=True)
class SessionContext:
    """What the operations of one connection use.

    ``status`` returns the status of the whole server. With an ``authenticator`` the client must
    present a token first.
    """

    store: Store
    jobs: Jobs
    buffers: BufferPool
    stream: FrameStream
    status: Callable[[], ServerStatus]
    authenticator: Authenticator | None = None
    peer: str = ""
    grant: Grant = field(init=False)
    account: Account = field(default_factory=lambda: Account(""))
    registry: TransferRegistry = field(default_factory=TransferRegistry)
    paused_lists: PausedLists = field(default_factory=PausedLists)
    algorithm: str = DEFAULT
    udp_listener: UdpListener | None = None
    other_workers: OtherWorkers | None = None
    uploads: dict[str, Upload] = field(default_factory=dict)
    open_uploads: ConnectionLimiter = field(default_factory=ConnectionLimiter)
    """How many uploads are open in this process, by user."""
    udp_conversation: UdpConversation | None = None
    _turn_handle: TurnHandle | None = None
    _holding: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False
    on_datagrams_ended: Callable[[], None] = lambda: None
    """Called when a UDP session has ended, possibly in its own thread."""
    on_bytes: Callable[[int], None] = lambda count: None
    """Called with the size of each piece of a request's body that has arrived."""

    def __post_init__(self) -> None:
        self.grant = _UNAUTHENTICATED if self.authenticator else _UNRESTRICTED

    @property
    def unauthenticated(self) -> bool:
        return self.grant is _UNAUTHENTICATED

    @property
    def still_authorized(self) -> bool:
        """Whether the presented token, if any, is still valid and grants the same."""
        return (
            self.authenticator is None
            or self.unauthenticated
            or self.authenticator.is_valid(self.grant)
        )

    @property
    def moves_datagrams(self) -> bool:
        return self.udp_conversation is not None and self.udp_conversation.running

    @property
    def log_fields(self) -> dict[str, str]:
        """The log fields that name the user, if there are users."""
        return {"user": self.grant.user} if self.grant.user else {}

    def authenticated(self, grant: Grant, store: Store) -> None:
        """Continue as the user of ``grant``, who sees ``store``."""
        self.grant, self.store = grant, store
        self.account = self.registry.account(
            grant.user, weight=grant.weight, bytes_per_s=grant.bytes_per_s
        )

    def leave(self) -> None:
        if self.authenticator is not None and not self.unauthenticated:
            self.authenticator.release(self.grant)

    def run_job(self, key: Hashable, work: Work, *, must_finish: bool = False) -> Any:
        """Run ``work`` as a job of this user; ``Jobs.run`` says what is returned."""
        return self.jobs.run(key, work, user=self.account, must_finish=must_finish)

    def open_upload(self, open_: Callable[[], Upload]) -> Upload:
        """Open an upload and keep it open until the connection ends.

        Of too many, the one that was used longest ago is closed; it can be opened again. Raises
        RefusedError ``busy`` if the others are open elsewhere. A job may call this after the end.
        """
        user, total = self.account.user, max(descriptor_limit() // 2 // _DESCRIPTORS, 2)
        while len(self.uploads) >= _MAX_UPLOADS or not self.open_uploads.acquire(
            user, total // 2, total
        ):
            with self._holding:
                oldest = next(iter(self.uploads), None)
            if oldest is None:
                raise RefusedError(
                    Code.BUSY, "too many uploads are open; try again when some have ended"
                )
            self.release(oldest)
        try:
            upload = open_()
        except BaseException:
            self.open_uploads.release(user)
            raise
        with self._holding:
            hold = not self._closed and upload.id not in self.uploads
            if hold:
                self.uploads[upload.id] = upload
        if not hold:
            self._let_go(upload)
        return upload

    def upload(self, upload_id: str) -> Upload:
        """Return an upload that this or another connection of the same user began."""
        with self._holding:
            known = self.uploads.pop(upload_id, None)
            if known is not None:
                self.uploads[upload_id] = known  # as the one that was used last
                return known
        return self.open_upload(lambda: self.store.upload(upload_id, owner=self.grant.user))

    def release(self, upload_id: str) -> None:
        """Release an upload, if this connection holds it."""
        with self._holding:
            upload = self.uploads.pop(upload_id, None)
        if upload is not None:
            self._let_go(upload)

    def _let_go(self, upload: Upload) -> None:
        upload.release()
        self.open_uploads.release(self.account.user)

    def join_transfer(
        self,
        name: str,
        direction: Direction,
        total: int | None,
        moved: int = 0,
        upload_id: str | None = None,
    ) -> TurnHandle:
        """Return a handle for a transfer; all connections that carry one upload share it."""
        now = time.monotonic()
        transfer = Transfer(self.account, name, direction, total, now, moved, self.peer)
        return self.registry.join(transfer, upload_id)

    def join_upload(self, upload: Upload) -> TurnHandle:
        """Return a handle for ``upload``; the blocks that the server has count as moved."""
        spec = upload.spec
        return self.join_transfer(spec.name, Direction.UP, spec.total, upload.held, upload.id)

    def open_datagram_session(
        self,
        start: StartSession,
        join: Callable[[], TurnHandle],
        on_end: Callable[[], None] = lambda: None,
    ) -> m.SessionReply:
        """Open a UDP session, which replaces an earlier one of this connection.

        ``join`` returns the handle for its turns; ``on_end`` is called when it has ended.
        """

        def ended() -> None:
            handle.close()
            on_end()
            self.on_datagrams_ended()

        if self.udp_listener is None:
            raise RefusedError(Code.UNSUPPORTED, "this server does not accept UDP datagrams")
        self.end_datagram_session()
        handle = self._turn_handle = join()
        turn = partial(take_turn, self.registry.scheduler, handle)
        conversation = self.udp_conversation = UdpConversation(
            self.udp_listener, start, ended, turn, self.stream.local
        )
        return m.SessionReply(session=conversation.session, key=conversation.key.hex())

    def end_datagram_session(self) -> None:
        if self.udp_conversation is not None and self._turn_handle is not None:
            self._turn_handle.close()
            self.udp_conversation.stop()
            self.udp_conversation = None

    def close(self) -> None:
        self.end_datagram_session()
        self.paused_lists.drop(self.stream)
        with self._holding:
            self._closed = True
        for upload_id in list(self.uploads):
            self.release(upload_id)


@dataclass(slots=True)
class Result:
    """A reply and its body: ``body``, or ``count`` bytes of ``reader`` from ``offset``.

    ``then`` is called when a reply without a reader has been sent.
    """

    reply: m.Reply | m.Pending
    body: bytes = b""
    reader: Reader | None = None
    offset: int = 0
    count: int = 0
    then: Callable[[], None] | None = None
