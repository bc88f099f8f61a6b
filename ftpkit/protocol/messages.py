"""One dataclass for each request and reply (WIRE.md section 6)."""

from collections.abc import Callable
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
    # Type checkers hold it to be frozen.
    return dataclass(kw_only=True, slots=True, eq=False, repr=False)(cls)


@_message
class Reply(Message):
    """The fields of a reply."""


@_message
class Request(Message):
    """The fields of a request; ``op`` names it, and ``reply`` is the class of its reply."""

    op: ClassVar[str]
    reply: ClassVar[type[Reply]]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def _request(op: str, reply: type[Reply]) -> Callable[[type[Any]], type[Any]]:
    def make(cls: type[Any]) -> type[Any]:
        cls.op, cls.reply = op, reply
        return _message(cls)

    return make


@_message
class HelloReply(Reply):
    """The server's name and limits, the session's digest, and whether ``auth`` must follow."""

    version: int
    agent: str
    digest: Algorithm
    auth: bool
    features: Strings
    limits: Integers


@_request("hello", HelloReply)
class Hello(Request):
    """Open the session: the client's name, and the digests that it has, best first."""

    version: int
    agent: str = ""
    digests: Strings | None = None


@_message
class AuthReply(Reply):
    """The token's user and permissions: "read", "write", "delete", "admin"."""

    user: str
    can: Strings


@_request("auth", AuthReply)
class Auth(Request):
    token: str


@_message
class OkReply(Reply):
    """Success without further fields: the reply to ``ping`` and ``abort``."""


@_request("ping", OkReply)
class Ping(Request):
    """Check that the server answers, or keep an idle connection open."""


@_message
class StatReply(Reply):
    """A "file" of ``total`` bytes or a "dir"; ``mtime`` in nanoseconds; ``version`` is opaque."""

    name: str
    kind: str
    total: Size
    mtime: Time
    version: str
    mode: Size | None = None
    content_digest: Digest | None = None


@_request("stat", StatReply)
class Stat(Request):
    name: NameOrRoot


@_message
class ListReply(Reply):
    """The body is a page of JSON lines; ``next`` is the next page's ``after``, or None."""

    size: Size
    digest: Digest
    next: str | None


@_request("list", ListReply)
class List(Request):
    """List one page of a directory: the names after ``after``, in byte order."""

    name: NameOrRoot = ""
    recursive: bool = False
    after: str | None = None


@_message
class ListEntry(Message):
    """One line of a list: kind "file", "dir", "link" or "other"; ``mtime`` in nanoseconds.

    ``error`` says why the list is incomplete here; ``name`` is then no name for a request.
    """

    name: str
    kind: str
    total: Size
    mtime: Time
    error: str | None = None


@_message
class NameReply(Reply):
    """Success, and the name: the reply to ``mkdir``, ``rename`` and ``delete``."""

    name: str


@_request("mkdir", NameReply)
class Mkdir(Request):
    name: Name


@_request("rename", NameReply)
class Rename(Request):
    name: Name
    to: Name
    overwrite: bool = False


@_request("delete", NameReply)
class Delete(Request):
    """Delete a file or an empty directory; ``recursive``: a directory with its contents."""

    name: Name
    recursive: bool = False


@_message
class FileReply(Reply):
    """A complete file: the reply to ``put``, ``commit`` and ``digest``."""

    name: str
    total: Size
    version: str
    content_digest: Digest | None = None


@_request("digest", FileReply)
class DigestRequest(Request):
    name: Name
    digest: Algorithm | None = None


@_request("put", FileReply)
class Put(Request):
    """Upload a whole file, which is the body."""

    name: Name
    size: Size
    digest: Digest | None = None
    mtime: Time | None = None
    mode: Size | None = None
    overwrite: bool = True


@_request("wait", FileReply)
class Wait(Request):
    """Ask again for the reply to a ``put`` that was answered with the name of a job."""

    job: str


@_message
class GetReply(Reply):
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


@_request("get", GetReply)
class Get(Request):
    """Download ``length`` bytes from ``offset``; with ``digest``, at most ``limits.block``."""

    name: Name
    offset: Size = 0
    length: Size | None = None
    digest: Algorithm | None = None
    if_version: str | None = None


@_message
class BeginReply(Reply):
    """The upload's id; the body has a record (``fields.BLOCK_RECORD``) for each block held."""

    upload: str
    block: Block
    size: Size


@_request("begin", BeginReply)
class Begin(Request):
    """Begin an upload in blocks, or resume an unfinished one of the same name, total and block."""

    name: Name
    total: Size | None
    block: Block
    mtime: Time | None = None
    mode: Size | None = None
    overwrite: bool = True
    basis: bool = False


@_message
class WriteReply(Reply):
    """The block matched its digest and is held; ``size`` is 0: this reply has no body."""

    upload: str
    offset: Size
    size: Size


@_request("write", WriteReply)
class Write(Request):
    """Send one block of an upload, which is the body."""

    upload: str
    offset: Size
    size: Size
    digest: Digest


@_request("commit", FileReply)
class Commit(Request):
    """Publish an upload under its name; WIRE.md section 7 says what ``ok`` then promises.

    ``blocks_digest`` is the digest of all raw block digests in the order of their
    offsets; the server compares it with those of the blocks that it holds.
    """

    upload: str
    total: Size
    content_digest: Digest | None = None
    blocks_digest: Digest | None = None


@_request("abort", OkReply)
class Abort(Request):
    upload: str


@_message
class SessionReply(Reply):
    """A UDP session on the port of the same number; ``key`` (hex) encrypts its datagrams."""

    session: SessionId
    key: str


@_request("push", SessionReply)
class Push(Request):
    """Open a UDP session to send the missing blocks of an upload (WIRE.md section 11)."""

    upload: str


@_request("pull", SessionReply)
class Pull(Request):
    """Open a UDP session to receive the blocks of ``block`` bytes in ``ranges``.

    A range is [first block, last block + 1]; ``rate`` is the most bytes per second.
    """

    name: Name
    version: str
    block: Block
    ranges: BlockRanges
    rate: Size | None = None


@_message
class StatusReply(Reply):
    """The body is one JSON object (``status.ServerStatus``)."""

    size: Size


@_request("status", StatusReply)
class Status(Request):
    """No fields."""


@_message
class Pending(Message):
    """Still at work, ``done`` of ``total``.

    Send the same request again for the result, or ``Wait`` if the reply names a ``job``.
    """

    done: Size
    total: Size
    job: str | None = None


REQUESTS: Final[dict[str, type[Request]]] = {
    kind.op: kind
    for kind in (
        Hello, Auth, Ping, Stat, List, Mkdir, Rename, Delete, DigestRequest,
        Put, Wait, Get, Begin, Write, Commit, Abort, Push, Pull, Status,
    )
}  # fmt: skip
# The requests that have a body of ``size`` bytes.
WITH_BODY: Final = (Put, Write)
# The requests whose reply may be ``Pending``; of these, only ``Put`` has a body.
LONG: Final = (Mkdir, Rename, Delete, DigestRequest, Put, Wait, Begin, Commit, Abort)
