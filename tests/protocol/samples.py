"""Hypothesis strategies for headers and messages."""

import dataclasses
import re
from typing import Any

from hypothesis import strategies as st

from ftpkit.protocol import messages
from ftpkit.protocol.frame import MAX_SIZE
from ftpkit.protocol.messages import REQUESTS, Pending, Reply, Request

REQUEST_KINDS: list[type[Request]] = list(REQUESTS.values())
REPLY_KINDS: list[type[Reply] | type[Pending]] = [
    *dict.fromkeys(kind.reply for kind in REQUEST_KINDS),
    Pending,
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
integers = st.integers(-(2**63), 2**64 - 1)
plain = st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Any] = st.recursive(
    plain | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

sizes = st.integers(0, MAX_SIZE)
digests = st.builds(
    lambda algorithm, raw: f"{algorithm}:{raw.hex()}",
    st.sampled_from(["blake3", "sha256", "a-new-one"]),
    st.binary(min_size=32, max_size=32),
)
algorithms = st.sampled_from(["blake3", "sha256", "a-new-one"])
names = st.from_regex(re.compile(r"[a-zé漢 ~]{1,8}(/[a-z.]{0,4}[a-z]){0,3}"), fullmatch=True)

headers = st.builds(
    lambda free, own: {**free, **own},
    st.dictionaries(texts.filter(lambda key: key not in ("size", "digest")), values, max_size=6),
    st.just({})
    | st.fixed_dictionaries({"size": sizes})
    | st.fixed_dictionaries({"size": sizes, "digest": digests})
    | st.fixed_dictionaries({"digest": st.none() | algorithms | digests}),
)

_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "after": texts,
    "agent": texts,
    "auth": st.booleans(),
    "basis": st.booleans(),
    "block": st.integers(16, 26).map(lambda power: 2**power),
    "blocks_digest": digests,
    "can": st.lists(texts, max_size=4),
    "content_digest": digests,
    "digest": digests,
    "digests": st.lists(texts, max_size=4),
    "done": sizes,
    "error": texts,
    "features": st.lists(texts, max_size=4),
    "if_version": texts,
    "job": texts,
    "key": texts,
    "kind": texts,
    "length": sizes,
    "limits": st.dictionaries(texts, integers, max_size=4),
    "mode": sizes,
    "mtime": st.integers(-MAX_SIZE, MAX_SIZE),
    "name": names,
    "next": texts,
    "offset": sizes,
    "overwrite": st.booleans(),
    "ranges": st.lists(
        st.tuples(st.integers(0, 2**40), st.integers(1, 2**20)).map(
            lambda pair: [pair[0], sum(pair)]
        ),
        max_size=4,
    ),
    "rate": sizes,
    "recursive": st.booleans(),
    "session": st.integers(0, 2**32 - 1),
    "size": sizes,
    "to": names,
    "token": texts,
    "total": sizes,
    "upload": texts,
    "user": texts,
    "version": texts,
}
_SPECIAL: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (messages.Hello, "version"): integers,
    (messages.HelloReply, "version"): integers,
    (messages.HelloReply, "digest"): algorithms,
    (messages.DigestRequest, "digest"): algorithms,
    (messages.Get, "digest"): algorithms,
    (messages.Begin, "total"): st.none() | sizes,
    (messages.ListReply, "next"): st.none() | texts,
    (messages.Stat, "name"): st.just("") | names,
    (messages.List, "name"): st.just("") | names,
}


def fields_of(kind: type) -> dict[str, st.SearchStrategy[Any]]:
    """Return what each field of a message may hold."""
    fields = {}
    for field in dataclasses.fields(kind):
        strategy = _SPECIAL.get((kind, field.name), _FIELDS[field.name])
        fields[field.name] = st.none() | strategy if field.default is None else strategy
    return fields


def messages_of(kind: type) -> st.SearchStrategy[Any]:
    """Return a strategy for messages of ``kind``, their optional fields there or not."""
    required = dict[str, st.SearchStrategy[Any]]()
    optional = dict[str, st.SearchStrategy[Any]]()
    for field in dataclasses.fields(kind):
        there = required if field.default is dataclasses.MISSING else optional
        there[field.name] = fields_of(kind)[field.name]
    return st.fixed_dictionaries(required, optional=optional).map(lambda found: kind(**found))
