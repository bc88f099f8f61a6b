"""What the operations of one connection work with, and what they give."""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ftpkit.access import Grant
from ftpkit.errors import Code, RefusedError
from ftpkit.net.buffers import BufferPool
from ftpkit.net.stream import FrameStream
from ftpkit.protocol import messages as m
from ftpkit.protocol.digest import DEFAULT
from ftpkit.protocol.frame import Header
from ftpkit.protocol.status import ServerStatus
from ftpkit.scheduling.dispatcher import TurnHandle
from ftpkit.scheduling.transfer import Account
from ftpkit.server.door import Begin, Door, Exchange
from ftpkit.server.gate import Gate
from ftpkit.server.jobs import Jobs
from ftpkit.server.traffic import Traffic, in_turn
from ftpkit.storage.store import Reader, Store, Upload

# Where nobody is asked for a token, everybody may do everything.
_ANYBODY: Final = Grant(user="")
# Who has shown none yet may do nothing.
_NOBODY: Final = Grant(user="", can=frozenset())


@dataclass(frozen=True, slots=True)
class Moved:
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


class Siblings(Protocol):
    """The other processes that serve the same root, as one connection sees them."""

    @property
    def leaving(self) -> bool:
        """Whether they are to serve what is not begun here."""

    def hand_over(self, sock: socket.socket, moved: Moved, to: int, *, lent: bool) -> None:
        """Let the process with the number ``to`` go on with this conversation; 0 is any.

        If it is ``lent``, the connection stays here: ``sock`` leads to who carries its bytes.
        """

    def status(self) -> ServerStatus:
        """Tell what all of them do; RefusedError says that it cannot be told."""


@dataclass(slots=True)
class Context:
    """What the operations of one connection work with."""

    store: Store
    jobs: Jobs
    buffers: BufferPool
    stream: FrameStream
    agent: str
    status: Callable[[], ServerStatus]
    """Tells what the whole server does."""
    gate: Gate | None = None
    """Where a token must be shown, if anywhere."""
    peer: str = ""
    grant: Grant = field(init=False)
    """What may be done over this connection."""
    account: Account = field(default_factory=lambda: Account(""))
    traffic: Traffic = field(default_factory=Traffic)
    algorithm: str = DEFAULT
    door: Door | None = None
    siblings: Siblings | None = None
    uploads: dict[str, Upload] = field(default_factory=dict)
    exchange: Exchange | None = None
    _carrier: TurnHandle | None = None
    on_exchanged: Callable[[], None] = lambda: None
    """Called when a session of datagrams has ended, perhaps in its own thread."""
    passed: Callable[[int], None] = lambda count: None
    """Called with the bytes of each piece of a body that has arrived."""

    def __post_init__(self) -> None:
        self.grant = _NOBODY if self.gate else _ANYBODY

    @property
    def owner(self) -> str:
        """Whose uploads are begun and continued over this connection."""
        return self.grant.user

    @property
    def locked(self) -> bool:
        """Whether a token must be shown first."""
        return self.grant is _NOBODY

    @property
    def good(self) -> bool:
        """Whether the token that was shown, if one was, still grants what it did then."""
        return self.gate is None or self.locked or self.gate.holds(self.grant)

    @property
    def who(self) -> dict[str, str]:
        """What the log says of the user, where there are users."""
        return {"user": self.owner} if self.owner else {}

    def admit(self, grant: Grant, store: Store) -> None:
        """Let this be a connection of the holder of ``grant``, who sees ``store``."""
        self.grant, self.store = grant, store
        self.account = self.traffic.account(
            grant.user, weight=grant.weight, rate_bps=grant.rate_bps
        )

    def leave(self) -> None:
        """Let another connection of its user have its place."""
        if self.gate is not None and not self.locked:
            self.gate.leave(self.grant)

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

    def exchange_datagrams(
        self, begin: Begin, let_go: Callable[[], None], join: Callable[[], TurnHandle]
    ) -> m.SessionReply:
        """Open a session of datagrams, in place of an earlier one of this connection.

        It moves as part of what ``join`` joins, and ``let_go`` is called when it has ended.
        """

        def ended() -> None:
            carrier.close()
            let_go()
            self.on_exchanged()

        def turn(moved: Callable[[], int]) -> AbstractContextManager[int | None]:
            return in_turn(self.traffic.dispatcher, carrier, moved)

        if self.door is None:
            raise RefusedError(Code.UNSUPPORTED, "this server takes no datagrams")
        self.end_exchange()
        carrier = self._carrier = join()
        self.exchange = self.door.open(begin, ended, turn, self.stream.local)
        return m.SessionReply(session=self.exchange.session, key=self.exchange.key.hex())

    def end_exchange(self) -> None:
        """End the session of datagrams, if there is one."""
        if self.exchange is not None and self._carrier is not None:
            self._carrier.close()
            self.exchange.stop()
            self.exchange = None

    def close(self) -> None:
        """Let go of everything."""
        self.end_exchange()
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
