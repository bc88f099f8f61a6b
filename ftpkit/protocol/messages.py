"""One frozen dataclass for each request and reply (WIRE.md section 4), and their way to headers."""

import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Final, NamedTuple, get_args, get_type_hints

from ftpkit.errors import Code, FtpkitError, ProtocolError, RefusedError
from ftpkit.protocol.digest import looks_like_algorithm, looks_like_digest
from ftpkit.protocol.frame import MAX_SIZE, Header, decode_header
from ftpkit.protocol.names import check_name

PROTOCOL_VERSION: Final = 1
MIN_BLOCK: Final = 64 * 1024
MAX_BLOCK: Final = 64 * 1024 * 1024
MAX_PAGE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a value must be, beyond its Python type, and how a person is told."""

    expected: str
    accepts: Callable[[Any], bool]


def is_block_size(value: int) -> bool:
    """Whether ``value`` is a power of two from 64 KiB to 64 MiB."""
    return MIN_BLOCK <= value <= MAX_BLOCK and value & (value - 1) == 0


def _are_texts(value: list[Any]) -> bool:
    return all(type(item) is str for item in value)


def _are_counts(value: dict[str, Any]) -> bool:
    return all(type(item) is int for item in value.values())


def _are_ranges(value: list[Any]) -> bool:
    return all(
        type(pair) is list
        and list(map(type, pair)) == [int, int]
        and 0 <= pair[0] < pair[1] <= MAX_SIZE
        for pair in value
    )


Size = Annotated[int, Constraint("an integer from 0 to 2^63-1", lambda v: 0 <= v <= MAX_SIZE)]
Time = Annotated[int, Constraint("nanoseconds since 1970", lambda v: -MAX_SIZE <= v <= MAX_SIZE)]
Block = Annotated[int, Constraint("a power of two from 64 KiB to 64 MiB", is_block_size)]
Digest = Annotated[str, Constraint('"<algorithm>:<lowercase hex>"', looks_like_digest)]
Algorithm = Annotated[str, Constraint("an algorithm's name", looks_like_algorithm)]
Texts = Annotated[list[str], Constraint("a list of strings", _are_texts)]
Counts = Annotated[dict[str, int], Constraint("an object of integers", _are_counts)]
Session = Annotated[int, Constraint("an integer from 0 to 2^32-1", lambda v: 0 <= v < 2**32)]
Ranges = Annotated[
    list[list[int]], Constraint("a list of [first block, block behind the last]", _are_ranges)
]
# check_name raises by itself, with a code of its own.
Name = Annotated[str, Constraint("a name", lambda v: check_name(v) == v)]
NameOrRoot = Annotated[str, Constraint("a name", lambda v: check_name(v, root=True) == v)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Open the conversation: who I am and which digests I like, best first."""

    op: ClassVar[str] = "hello"
    version: int
    agent: str = ""
    digests: Texts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloReply:
    """Who the server is, the digest it picked, whether ``auth`` must follow, and its limits."""

    version: int
    agent: str
    digest: Algorithm
    auth: bool
    features: Texts
    limits: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Show a token."""

    op: ClassVar[str] = "auth"
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthReply:
    """Whose token it was, and what it allows: "read", "write", "delete", "admin"."""

    user: str
    can: Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Ask whether the server is there."""

    op: ClassVar[str] = "ping"


@dataclass(frozen=True, slots=True, kw_only=True)
class OkReply:
    """It is done, and there is nothing to add: the reply to ``ping`` and ``abort``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """Ask what stands under a name."""

    op: ClassVar[str] = "stat"
    name: NameOrRoot


@dataclass(frozen=True, slots=True, kw_only=True)
class StatReply:
    """A "file" of ``total`` bytes or a "dir"; ``mtime`` in nanoseconds; ``version`` is opaque."""

    name: str
    kind: str
    total: Size
    mtime: Time
    version: str
    mode: Size | None = None
    content_digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class List:
    """Ask for one page of names, in byte order, that come after ``after``."""

    op: ClassVar[str] = "list"
    name: NameOrRoot = ""
    recursive: bool = False
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListReply:
    """A page of JSON lines is the body; ``next`` is the ``after`` of the next page, or None."""

    size: Size
    digest: Digest
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListEntry:
    """One line of a list: kind "file", "dir", "link" or "other"; ``mtime`` in nanoseconds."""

    name: str
    kind: str
    total: Size
    mtime: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class Mkdir:
    """Make a directory and its parents."""

    op: ClassVar[str] = "mkdir"
    name: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    """Move what stands under ``name`` to ``to``."""

    op: ClassVar[str] = "rename"
    name: Name
    to: Name
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete a file, or a directory: an empty one, or with ``recursive`` all that is in it."""

    op: ClassVar[str] = "delete"
    name: Name
    recursive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NameReply:
    """It is done, under this name: the reply to ``mkdir``, ``rename`` and ``delete``."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRequest:
    """Ask the server to read a whole file and tell its digest."""

    op: ClassVar[str] = "digest"
    name: Name
    digest: Algorithm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReply:
    """A whole file stands under ``name``: the reply to ``put``, ``commit`` and ``digest``."""

    name: str
    total: Size
    version: str
    content_digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Upload a whole file: it is the body."""

    op: ClassVar[str] = "put"
    name: Name
    size: Size
    digest: Digest | None = None
    mtime: Time | None = None
    mode: Size | None = None
    overwrite: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """Download ``length`` bytes from ``offset``; with ``digest`` at most one block of them."""

    op: ClassVar[str] = "get"
    name: Name
    offset: Size = 0
    length: Size | None = None
    digest: Algorithm | None = None
    if_version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GetReply:
    """``size`` bytes from ``offset`` are the body, of a file of ``total``."""

    name: str
    offset: Size
    size: Size
    total: Size
    mtime: Time
    version: str
    mode: Size | None = None
    digest: Digest | None = None
    content_digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Open an upload in blocks, or continue an unfinished one of this name, total and block."""

    op: ClassVar[str] = "begin"
    name: Name
    total: Size | None
    block: Block
    mtime: Time | None = None
    mode: Size | None = None
    overwrite: bool = True
    basis: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginReply:
    """The upload's id; the body has a record for each block that is already held."""

    upload: str
    block: Block
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Send one block of an upload: it is the body."""

    op: ClassVar[str] = "write"
    upload: str
    offset: Size
    size: Size
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteReply:
    """The block matched its digest and is held; ``size`` is that of this reply's body, 0."""

    upload: str
    offset: Size
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Publish an upload under its name; WIRE.md section 5 says what ``ok`` then promises.

    ``blocks_digest`` is the digest of all raw block digests in the order of
    their offsets: what the sender believes the file to be, whoever sent the blocks.
    """

    op: ClassVar[str] = "commit"
    upload: str
    total: Size
    content_digest: Digest | None = None
    blocks_digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Throw an unfinished upload away."""

    op: ClassVar[str] = "abort"
    upload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """Send the missing blocks of an upload as datagrams (WIRE.md section 11)."""

    op: ClassVar[str] = "push"
    upload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """Ask for blocks of a file as datagrams: those of ``block`` bytes in ``ranges``.

    A range is [first, behind the last] in numbers of blocks. ``rate`` is how many
    bytes a second may come at most.
    """

    op: ClassVar[str] = "pull"
    name: Name
    version: str
    block: Block
    ranges: Ranges
    rate: Size | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReply:
    """A session of datagrams on the UDP port of the same number; ``key`` in hex seals them."""

    session: Session
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Ask what the server is doing now."""

    op: ClassVar[str] = "status"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReply:
    """One JSON object is the body."""

    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """The work goes on: ask again with the same request. ``done`` of ``total``, in its own unit."""

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
# The requests whose ``size`` bytes of body belong to them; any other body is an error.
WITH_BODY: Final = (Put, Write)


def request_from_header(header: Header) -> Request:
    """Return the request that ``header`` is; RefusedError says why it is none."""
    op = header.get("op")
    if type(op) is not str:
        raise RefusedError(Code.BAD_REQUEST, "a request names its op, a string")
    kind = REQUESTS.get(op)
    if kind is None:
        raise RefusedError(Code.UNSUPPORTED, f"no operation {op[:40]!a}")
    values = _read(kind, header, lambda fault: RefusedError(Code.BAD_REQUEST, f"{op}: {fault}"))
    if header.get("size") and kind not in WITH_BODY:
        raise RefusedError(Code.BAD_REQUEST, f"{op}: takes no body")
    return kind(**values)


def request_to_header(request: Request) -> Header:
    """Return the header of ``request``."""
    return {"op": request.op, **_written(request)}


def reply_from_header(kind: type[Reply], header: Header) -> Reply | Pending | RefusedError:
    """Return what ``header`` says to a request that asked for ``kind``, or raise ProtocolError."""
    if header.get("ok") is False:
        return _refusal(header)
    if header.get("ok") is not True:
        raise ProtocolError("the reply says neither ok nor why not")
    wanted = Pending if header.get("pending") is True else kind
    return wanted(**_read(wanted, header, lambda fault: ProtocolError(f"bad reply: {fault}")))


def reply_to_header(reply: Reply | Pending) -> Header:
    """Return the header of ``reply``."""
    if isinstance(reply, Pending):
        return {"ok": True, "pending": True, "done": reply.done, "total": reply.total}
    return {"ok": True, **_written(reply)}


def refusal_to_header(refusal: RefusedError) -> Header:
    """Return the header that carries ``refusal``."""
    return {"ok": False, "code": refusal.code, "message": str(refusal)}


def list_entry_to_json(entry: ListEntry) -> bytes:
    """Return the JSON line of ``entry`` in the body of a list."""
    return json.dumps(_written(entry), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def list_entry_from_json(line: bytes) -> ListEntry:
    """Return the entry that one line of a list is, or raise ProtocolError."""
    values = decode_header(line)
    return ListEntry(**_read(ListEntry, values, lambda fault: ProtocolError(f"bad list: {fault}")))


def _refusal(header: Header) -> RefusedError:
    code, message = header.get("code"), header.get("message")
    if type(code) is not str or type(message) is not str:
        raise ProtocolError("a refusal has a code and a message, both strings")
    known = Code(code) if code in Code.__members__.values() else Code.INTERNAL
    return RefusedError(known, message)


class _Field(NamedTuple):
    name: str
    type: type
    nullable: bool
    constraint: Constraint | None
    default: Any

    @property
    def expected(self) -> str:
        what = self.constraint.expected if self.constraint else _PLAIN[self.type]
        return f"{what} or null" if self.nullable else what


_PLAIN: Final = {str: "a string", int: "an integer", bool: "true or false"}


@cache
def _plan(kind: type) -> tuple[_Field, ...]:
    """Read the fields of a message from its annotations, once."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(_field(field.name, hints[field.name], field.default) for field in fields(kind))


def _field(name: str, hint: Any, default: Any) -> _Field:
    nullable = isinstance(hint, UnionType) or NoneType in get_args(hint)
    if nullable:
        (hint,) = (arm for arm in get_args(hint) if arm is not NoneType)
    plain, *rules = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
    origin = getattr(plain, "__origin__", plain)
    return _Field(name, origin, nullable, rules[0] if rules else None, default)


def _read(kind: type, header: Header, error: Callable[[str], FtpkitError]) -> dict[str, Any]:
    """Return the values that ``header`` has for the fields of ``kind``; unknown keys are ignored.

    Types are compared exactly: JSON's true is no integer here.
    """
    values = {}
    for field in _plan(kind):
        if field.name not in header:
            if field.default is MISSING:
                raise error(f"{field.name} is missing")
            continue
        value = values[field.name] = header[field.name]
        if value is None and field.nullable:
            continue
        if type(value) is not field.type or (
            field.constraint and not field.constraint.accepts(value)
        ):
            raise error(f"{field.name} must be {field.expected}")
    return values


def _written(message: Request | Reply | ListEntry) -> Header:
    """Return the fields of ``message``; what is at its default goes without saying."""
    header = {}
    kind: type = type(message)
    for field in _plan(kind):
        value = getattr(message, field.name)
        if field.default is MISSING or value != field.default:
            header[field.name] = value
    return header
