"""One dataclass for each request and reply (WIRE.md section 6)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, dataclass_transform

from ftpkit.protocol.fields import (
    Algorithm,
    Block,
    BlockRanges,
    Digest,
    Integers,
    Name,
    NameOrRoot,
    SessionId,
    Size,
    Strings,
    Time,
)

PROTOCOL_VERSION: Final = 1
# The largest page of a list, in bytes.
MAX_PAGE: Final = 1024 * 1024


class Message:
    """Comparison, hash and text of all messages.

    Methods that ``dataclass`` generates for each class are compiled at import: for all
    messages this took a third of a client's start, so only ``__init__`` is generated.
    """

    __slots__: tuple[str, ...] = ()

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._values() == self._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({values})"


@dataclass_transform(kw_only_default=True, frozen_default=True)
def _message(cls: type[Any]) -> type[Any]:
    """Make a keyword-only dataclass with slots, which type checkers hold to be frozen."""
    return dataclass(kw_only=True, slots=True, eq=False, repr=False)(cls)


@_message
class Hello(Message):
    """Open the session: the client's name, and the digests that it has, best first."""

    op: ClassVar[str] = "hello"
    version: int
    agent: str = ""
    digests: Strings | None = None


@_message
class HelloReply(Message):
    """The server's name and limits, the session's digest, and whether ``auth`` must follow."""

    version: int
    agent: str
    digest: Algorithm
    auth: bool
    features: Strings
    limits: Integers


@_message
class Auth(Message):
    op: ClassVar[str] = "auth"
    token: str


@_message
class AuthReply(Message):
    """The token's user and permissions: "read", "write", "delete", "admin"."""

    user: str
    can: Strings


@_message
class Ping(Message):
    """Check that the server answers, or keep an idle connection open."""

    op: ClassVar[str] = "ping"


@_message
class OkReply(Message):
    """Success without further fields: the reply to ``ping`` and ``abort``."""


@_message
class Stat(Message):
    op: ClassVar[str] = "stat"
    name: NameOrRoot


@_message
class StatReply(Message):
    """A "file" of ``total`` bytes or a "dir"; ``mtime`` in nanoseconds; ``version`` is opaque."""

    name: str
    kind: str
    total: Size
    mtime: Time
    version: str
    mode: Size | None = None
    content_digest: Digest | None = None


@_message
class List(Message):
    """List one page of a directory: the names after ``after``, in byte order."""

    op: ClassVar[str] = "list"
    name: NameOrRoot = ""
    recursive: bool = False
    after: str | None = None


@_message
class ListReply(Message):
    """The body is a page of JSON lines; ``next`` is the next page's ``after``, or None."""

    size: Size
    digest: Digest
    next: str | None


@_message
class ListEntry(Message):
    """One line of a list: kind "file", "dir", "link" or "other"; ``mtime`` in nanoseconds."""

    name: str
    kind: str
    total: Size
    mtime: Time


@_message
class Mkdir(Message):
    op: ClassVar[str] = "mkdir"
    name: Name


@_message
class Rename(Message):
    op: ClassVar[str] = "rename"
    name: Name
    to: Name
    overwrite: bool = False


@_message
class Delete(Message):
    """Delete a file or an empty directory; ``recursive``: a directory with its contents."""

    op: ClassVar[str] = "delete"
    name: Name
    recursive: bool = False


@_message
class NameReply(Message):
    """Success, and the name: the reply to ``mkdir``, ``rename`` and ``delete``."""

    name: str


@_message
class DigestRequest(Message):
    op: ClassVar[str] = "digest"
    name: Name
    digest: Algorithm | None = None


@_message
class FileReply(Message):
    """A complete file: the reply to ``put``, ``commit`` and ``digest``."""

    name: str
    total: Size
    version: str
    content_digest: Digest | None = None


@_message
class Put(Message):
    """Upload a whole file, which is the body."""

    op: ClassVar[str] = "put"
    name: Name
    size: Size
    digest: Digest | None = None
    mtime: Time | None = None
    mode: Size | None = None
    overwrite: bool = True


@_message
class Get(Message):
    """Download ``length`` bytes from ``offset``; with ``digest``, at most ``limits.block``."""

    op: ClassVar[str] = "get"
    name: Name
    offset: Size = 0
    length: Size | None = None
    digest: Algorithm | None = None
    if_version: str | None = None


@_message
class GetReply(Message):
    """The body is ``size`` bytes from ``offset`` of a file of ``total`` bytes."""

    name: str
    offset: Size
    size: Size
    total: Size
    mtime: Time
    version: str
    mode: Size | None = None
    digest: Digest | None = None
    content_digest: Digest | None = None


@_message
class Begin(Message):
    """Begin an upload in blocks, or resume an unfinished one of the same name, total and block."""

    op: ClassVar[str] = "begin"
    name: Name
    total: Size | None
    block: Block
    mtime: Time | None = None
    mode: Size | None = None
    overwrite: bool = True
    basis: bool = False


@_message
class BeginReply(Message):
    """The upload's id; the body has a record (``fields.BLOCK_RECORD``) for each block held."""

    upload: str
    block: Block
    size: Size


@_message
class Write(Message):
    """Send one block of an upload, which is the body."""

    op: ClassVar[str] = "write"
    upload: str
    offset: Size
    size: Size
    digest: Digest


@_message
class WriteReply(Message):
    """The block matched its digest and is held; ``size`` is 0: this reply has no body."""

    upload: str
    offset: Size
    size: Size


@_message
class Commit(Message):
    """Publish an upload under its name; WIRE.md section 7 says what ``ok`` then promises.

    ``blocks_digest`` is the digest of all raw block digests in the order of their
    offsets; the server compares it with those of the blocks that it holds.
    """

    op: ClassVar[str] = "commit"
    upload: str
    total: Size
    content_digest: Digest | None = None
    blocks_digest: Digest | None = None


@_message
class Abort(Message):
    op: ClassVar[str] = "abort"
    upload: str


@_message
class Push(Message):
    """Open a UDP session to send the missing blocks of an upload (WIRE.md section 11)."""

    op: ClassVar[str] = "push"
    upload: str


@_message
class Pull(Message):
    """Open a UDP session to receive the blocks of ``block`` bytes in ``ranges``.

    A range is [first block, last block + 1]; ``rate`` is the most bytes per second.
    """

    op: ClassVar[str] = "pull"
    name: Name
    version: str
    block: Block
    ranges: BlockRanges
    rate: Size | None = None


@_message
class SessionReply(Message):
    """A UDP session on the port of the same number; ``key`` (hex) encrypts its datagrams."""

    session: SessionId
    key: str


@_message
class Status(Message):
    op: ClassVar[str] = "status"


@_message
class StatusReply(Message):
    """The body is one JSON object (``status.ServerStatus``)."""

    size: Size


@_message
class Pending(Message):
    """Still at work, ``done`` of ``total``: send the same request again for the result."""

    done: Size
    total: Size


Request = (
    Hello | Auth | Ping | Stat | List | Mkdir | Rename | Delete | DigestRequest
    | Put | Get | Begin | Write | Commit | Abort | Push | Pull | Status
)  # fmt: skip
Reply = (
    HelloReply | AuthReply | OkReply | StatReply | ListReply | NameReply | FileReply
    | GetReply | BeginReply | WriteReply | SessionReply | StatusReply
)  # fmt: skip

REPLIES: Final[dict[type[Request], type[Reply]]] = {
    Hello: HelloReply,
    Auth: AuthReply,
    Ping: OkReply,
    Stat: StatReply,
    List: ListReply,
    Mkdir: NameReply,
    Rename: NameReply,
    Delete: NameReply,
    DigestRequest: FileReply,
    Put: FileReply,
    Get: GetReply,
    Begin: BeginReply,
    Write: WriteReply,
    Commit: FileReply,
    Abort: OkReply,
    Push: SessionReply,
    Pull: SessionReply,
    Status: StatusReply,
}
REQUESTS: Final[dict[str, type[Request]]] = {kind.op: kind for kind in REPLIES}
# The requests that have a body of ``size`` bytes.
WITH_BODY: Final = (Put, Write)
