"""Requests and replies to headers, and back (WIRE.md sections 2 and 6)."""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import cache
from types import NoneType
from typing import Any, Final, NamedTuple, get_args

from ftpkit.errors import Code, FtpkitError, ProtocolError, RefusedError
from ftpkit.protocol.fields import Constraint, validator
from ftpkit.protocol.frame import Header, decode_header, encode_json
from ftpkit.protocol.messages import REQUESTS, WITH_BODY, ListEntry, Pending, Reply, Request


def request_from_header(header: Header) -> Request:
    """Return the request in ``header``, or raise the RefusedError that is the reply to it."""
    op = header.get("op")
    if type(op) is not str:
        raise RefusedError(Code.BAD_REQUEST, "op is missing or not a string")
    kind = REQUESTS.get(op)
    if kind is None:
        raise RefusedError(Code.UNSUPPORTED, f"unknown operation {op[:40]!r}")
    values = _read(kind, header, lambda fault: RefusedError(Code.BAD_REQUEST, f"{op}: {fault}"))
    if header.get("size") and kind not in WITH_BODY:
        raise RefusedError(Code.BAD_REQUEST, f"{op}: this request has no body")
    return kind(**values)


def request_to_header(request: Request) -> Header:
    return {"op": request.op, **_values_of(request)}


def reply_from_header(kind: type[Reply], header: Header) -> Reply | Pending | RefusedError:
    """Return the reply in ``header`` to a request whose reply is a ``kind``.

    Raises ProtocolError for a header that is no such reply.
    """
    if header.get("ok") is False:
        code, message = header.get("code"), header.get("message")
        if type(code) is not str or type(message) is not str:
            raise ProtocolError("bad reply: a refusal needs a code and a message, both strings")
        return RefusedError(
            Code(code) if code in Code.__members__.values() else Code.INTERNAL, message
        )
    if header.get("ok") is not True:
        raise ProtocolError("bad reply: ok must be true or false")
    wanted = Pending if header.get("pending") is True else kind
    return wanted(**_read(wanted, header, lambda fault: ProtocolError(f"bad reply: {fault}")))


def reply_to_header(reply: Reply | Pending) -> Header:
    pending = {"pending": True} if isinstance(reply, Pending) else {}
    return {"ok": True, **pending, **_values_of(reply)}


def refusal_to_header(refusal: RefusedError) -> Header:
    """Return the header that carries ``refusal``."""
    return {"ok": False, "code": refusal.code, "message": str(refusal)}


def list_entry_to_json(entry: ListEntry) -> bytes:
    """Return the JSON line of ``entry`` in the body of a list."""
    return encode_json(_values_of(entry)) + b"\n"


def list_entry_from_json(line: bytes) -> ListEntry:
    """Return the entry in one line of a list; raises ProtocolError."""
    values = decode_header(line)
    return ListEntry(**_read(ListEntry, values, lambda fault: ProtocolError(f"bad list: {fault}")))


class _Field(NamedTuple):
    name: str
    accepts: Callable[[Any], bool]
    expected: str
    default: Any


_PLAIN: Final = {str: "a string", int: "an integer", bool: "true or false"}


@cache
def _fields_of(kind: type) -> tuple[_Field, ...]:
    """Return the fields of a message, read from its annotations once."""
    return tuple(map(_field, fields(kind)))


def _field(field: Field[Any]) -> _Field:
    hint: Any = field.type
    return _Field(field.name, validator(hint), _expected(hint), field.default)


def _expected(hint: Any) -> str:
    match get_args(hint):
        case (_, Constraint(expected=words)):
            return words
        case (nullable, none) if none is NoneType:
            return f"{_expected(nullable)} or null"
    return _PLAIN[hint]


def _read(kind: type, header: Header, error: Callable[[str], FtpkitError]) -> dict[str, Any]:
    """Return the values that ``header`` has for the fields of ``kind``; ignore other keys."""
    values = {}
    for field in _fields_of(kind):
        if field.name not in header:
            if field.default is MISSING:
                raise error(f"{field.name} is missing")
            continue
        value = values[field.name] = header[field.name]
        if not field.accepts(value):
            raise error(f"{field.name} must be {field.expected}")
    return values


def _values_of(message: Request | Reply | Pending | ListEntry) -> Header:
    """Return the fields of ``message`` that are not at their defaults."""
    kind: type = type(message)
    return {
        field.name: value
        for field in _fields_of(kind)
        if (value := getattr(message, field.name)) != field.default
    }
