"""What the operations of one connection work with, and what they give."""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ftpkit.errors import Code, RefusedError
from ftpkit.net.buffer_pool import BufferPool
from ftpkit.net.frame_stream import FrameStream
from ftpkit.protocol import messages as m
from ftpkit.protocol.digest import DEFAULT
from ftpkit.protocol.frame import Header
from ftpkit.protocol.status import ServerStatus
from ftpkit.scheduling.blocking import TurnHandle
from ftpkit.scheduling.flow import Account
from ftpkit.server.auth.authenticator import Authenticator
from ftpkit.server.jobs import Jobs
from ftpkit.server.transfers.registry import TransferRegistry, take_turn
from ftpkit.server.udp.listener import Begin, UdpConversation, UdpListener
from ftpkit.storage.api import Reader, Store, Upload
from ftpkit.tokens import Grant

# Where nobody is asked for a token, everybody may do everything.
_ANYBODY: Final = Grant(user="")
# Who has shown none yet may do nothing.
_NOBODY: Final = Grant(user="", can=frozenset())


@dataclass(frozen=True, slots=True)
class Handoff:
    """A conversation that another process goes on with, from the request ``header`` on.

    ``ahead`` is what was read of what follows that; ``requests`` were answered since ``since``.
    ``grant`` is that of the token that was shown, if one was, and ``local`` the family and
    address by which the client knows us.
    """

    header: Header
    ahead: bytes
    grant: Grant | None
    algorithm: str
    requests: int
    since: float
    local: tuple[int, tuple[Any, ...]]


class OtherWorkers(Protocol):
    """The other processes that serve the same root, as one connection sees them."""

    @property
    def leaving(self) -> bool:
        """Whether they are to serve what is not begun here."""

    def hand_over(self, sock: socket.socket, moved: Handoff, to: int, *, lent: bool) -> None:
        """Let the process with the number ``to`` go on with this conversation; 0 is any.

        If it is ``lent``, the connection stays here: ``sock`` leads to who carries its bytes.
        """

    def status(self) -> ServerStatus:
        """Tell what all of them do; RefusedError says that it cannot be told."""


@dataclass(slots=True)
class SessionContext:
    """What the operations of one connection work with."""

    store: Store
    jobs: Jobs
    buffers: BufferPool
    stream: FrameStream
    agent: str
    status: Callable[[], ServerStatus]
    """Tells what the whole server does."""
    authenticator: Authenticator | None = None
    """Where a token must be shown, if anywhere."""
    peer: str = ""
    grant: Grant = field(init=False)
    """What may be done over this connection."""
    account: Account = field(default_factory=lambda: Account(""))
    registry: TransferRegistry = field(default_factory=TransferRegistry)
    algorithm: str = DEFAULT
    udp_listener: UdpListener | None = None
    other_workers: OtherWorkers | None = None
    uploads: dict[str, Upload] = field(default_factory=dict)
    udp_conversation: UdpConversation | None = None
    _turn_handle: TurnHandle | None = None
    on_datagrams_ended: Callable[[], None] = lambda: None
    """Called when a session of datagrams has ended, perhaps in its own thread."""
    passed: Callable[[int], None] = lambda count: None
    """Called with the bytes of each piece of a body that has arrived."""

    def __post_init__(self) -> None:
        self.grant = _NOBODY if self.authenticator else _ANYBODY

    @property
    def owner(self) -> str:
        """Whose uploads are begun and continued over this connection."""
        return self.grant.user

    @property
    def unauthenticated(self) -> bool:
        """Whether a token must be shown first."""
        return self.grant is _NOBODY

    @property
    def still_authorized(self) -> bool:
        """Whether the token that was shown, if one was, still grants what it did then."""
        return (
            self.authenticator is None
            or self.unauthenticated
            or self.authenticator.is_valid(self.grant)
        )

    @property
    def log_fields(self) -> dict[str, str]:
        """What the log says of the user, where there are users."""
        return {"user": self.owner} if self.owner else {}

    def authenticated(self, grant: Grant, store: Store) -> None:
        """Let this be a connection of the holder of ``grant``, who sees ``store``."""
        self.grant, self.store = grant, store
        self.account = self.registry.account(
            grant.user, weight=grant.weight, bytes_per_s=grant.bytes_per_s
        )

    def leave(self) -> None:
        """Let another connection of its user have its place."""
        if self.authenticator is not None and not self.unauthenticated:
            self.authenticator.release(self.grant)

    def hold(self, upload: Upload) -> Upload:
        """Keep an upload open as long as the connection is."""
        if upload.id in self.uploads:
            upload.release()
        else:
            self.uploads[upload.id] = upload
        return upload

    def upload(self, identity: str) -> Upload:
        """Return an upload that was begun on this connection or on another of the same user."""
        known = self.uploads.get(identity)
        return known or self.hold(self.store.upload(identity, owner=self.owner))

    def drop(self, identity: str) -> None:
        """Let go of an upload."""
        upload = self.uploads.pop(identity, None)
        if upload is not None:
            upload.release()

    def open_datagram_session(
        self, begin: Begin, let_go: Callable[[], None], join: Callable[[], TurnHandle]
    ) -> m.SessionReply:
        """Open a session of datagrams, in place of an earlier one of this connection.

        It moves as part of what ``join`` joins, and ``let_go`` is called when it has ended.
        """

        def ended() -> None:
            handle.close()
            let_go()
            self.on_datagrams_ended()

        def turn(moved: Callable[[], int]) -> AbstractContextManager[int | None]:
            return take_turn(self.registry.scheduler, handle, moved)

        if self.udp_listener is None:
            raise RefusedError(Code.UNSUPPORTED, "this server takes no datagrams")
        self.end_datagram_session()
        handle = self._turn_handle = join()
        self.udp_conversation = self.udp_listener.open(begin, ended, turn, self.stream.local)
        return m.SessionReply(
            session=self.udp_conversation.session, key=self.udp_conversation.key.hex()
        )

    def end_datagram_session(self) -> None:
        """End the session of datagrams, if there is one."""
        if self.udp_conversation is not None and self._turn_handle is not None:
            self._turn_handle.close()
            self.udp_conversation.stop()
            self.udp_conversation = None

    def close(self) -> None:
        """Let go of everything."""
        self.end_datagram_session()
        for identity in list(self.uploads):
            self.drop(identity)


@dataclass(slots=True)
class Result:
    """A reply and its body: ``body``, or ``count`` bytes of ``reader`` from ``offset``."""

    reply: m.Reply | m.Pending
    body: bytes = b""
    reader: Reader | None = None
    offset: int = 0
    count: int = 0
