"""The journal: whatever damages it, no block is held without a good record."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import digest_of
from ftpkit.storage import DirectoryStore, Upload, journal
from ftpkit.storage.api import UploadSpec
from ftpkit.storage.directory.upload import DirectoryUpload
from ftpkit.storage.journal import JournalState, replay
from ftpkit.storage.upload import UnfinishedUpload
from tests.storage.stores import BLOCK, OWNER, Place, begin, commit, fetch, held, refused, send

WISH = {"id": "x", "name": "ä\n", "total": None}
A, B, C = (digest_of(word) for word in (b"a", b"b", b"c"))

RECORDS = [
    journal.encode_spec(WISH),
    journal.encode_block(0, 10, A),
    journal.encode_block(1 << 62, 20, digest_of(b"b", "sha256")),
    journal.encode_forget(0),
    journal.encode_block(0, 30, C),
    journal.encode_checkpoint(9),
    journal.encode_prepared({"total": 1}),
    journal.encode_published({"total": 2}),
]
WHOLE = b"".join(RECORDS)
ENDS = [len(b"".join(RECORDS[:count])) for count in range(len(RECORDS) + 1)]


def said(data: bytes) -> tuple[object, ...]:
    """Return the state of a replay, without the offsets of records."""
    state = replay(data)
    blocks = {at: (held.length, held.digest, held.end) for at, held in state.blocks.items()}
    return state.spec, blocks, state.safe, state.prepared, state.published, state.length


def test_every_record_is_read_back() -> None:
    state = replay(WHOLE)
    assert state.spec == WISH
    assert state.length == len(WHOLE)
    assert {at: (held.length, held.digest) for at, held in state.blocks.items()} == {
        0: (30, C),
        1 << 62: (20, digest_of(b"b", "sha256")),
    }
    assert state.safe == 9
    assert (state.prepared, state.published) == ({"total": 1}, {"total": 2})


def test_an_empty_journal_has_no_state() -> None:
    assert replay(b"") == JournalState()


def test_a_truncated_journal_has_the_state_of_its_whole_records() -> None:
    for length in range(len(WHOLE) + 1):
        whole = max(end for end in ENDS if end <= length)
        assert said(WHOLE[:length]) == said(WHOLE[:whole])
        assert replay(WHOLE[:length]).length == whole


def test_every_flipped_bit_ends_the_journal_before_its_record() -> None:
    for at in range(len(WHOLE)):
        before = max(end for end in ENDS if end <= at)
        expected = said(WHOLE[:before])
        for bit in range(8):
            damaged = bytearray(WHOLE)
            damaged[at] ^= 1 << bit
            assert said(bytes(damaged)) == expected, (at, bit)


@pytest.mark.parametrize("rest", [b"\0" * 4096, b"\xff" * 100, WHOLE[5:], b"B\0\0\0\x2c"])
def test_nothing_after_the_last_good_record_is_read(rest: bytes) -> None:
    assert said(WHOLE + rest) == said(WHOLE)


digests = st.builds(digest_of, st.binary(max_size=3), st.sampled_from(["blake3", "sha256"]))
blocks = st.tuples(st.integers(0, 5), st.integers(1, 2**26), digests)
changes = st.one_of(blocks, st.integers(0, 5))


def encode(change: tuple[int, int, str] | int) -> bytes:
    """A block that is held, or the offset of one that is forgotten."""
    if isinstance(change, int):
        return journal.encode_forget(change)
    return journal.encode_block(*change)


@given(st.lists(changes, max_size=12), st.data())
def test_any_damage_leaves_the_blocks_of_the_records_before_it(
    changes: list[tuple[int, int, str] | int], data: st.DataObject
) -> None:
    records = [encode(change) for change in changes]
    whole = bytearray(b"".join(records))
    cut = len(whole)
    if whole:
        at = data.draw(st.integers(0, len(whole) - 1))
        # Fewer bits than a CRC-32 surely sees in a burst.
        whole[at] ^= data.draw(st.integers(1, 255))
        cut = at
    expected: dict[int, tuple[int, str]] = {}
    end = 0
    for change, record in zip(changes, records, strict=True):
        end += len(record)
        if end > cut and whole:
            break
        if isinstance(change, int):
            expected.pop(change, None)
        else:
            expected[change[0]] = change[1:]
    found = replay(bytes(whole)).blocks
    assert {at: (held.length, held.digest) for at, held in found.items()} == expected


@given(st.binary(max_size=400))
def test_bytes_after_good_records_never_raise_and_never_add(noise: bytes) -> None:
    assert set(replay(RECORDS[0] + noise).blocks) == set()


# Checkpoints


def test_a_checkpoint_covers_only_records_that_end_before_it() -> None:
    first, second = journal.encode_block(0, 1, A), journal.encode_block(1, 1, B)
    for covered in range(len(first) + len(second) + 1):
        state = replay(first + second + journal.encode_checkpoint(covered))
        assert state.is_safe(state.blocks[0]) == (covered >= len(first))
        assert state.is_safe(state.blocks[1]) == (covered >= len(first) + len(second))


def test_a_checkpoint_cannot_cover_what_follows_it() -> None:
    state = replay(journal.encode_checkpoint(2**40) + journal.encode_block(0, 1, A))
    assert not state.is_safe(state.blocks[0])


def test_a_block_written_again_is_not_safe_until_the_next_checkpoint() -> None:
    first = journal.encode_block(0, 1, A)
    again = first + journal.encode_checkpoint(len(first)) + journal.encode_forget(0)
    assert replay(again).blocks == {}
    again += journal.encode_block(0, 1, B)
    assert not replay(again).is_safe(replay(again).blocks[0])
    again += journal.encode_checkpoint(len(again))
    assert replay(again).is_safe(replay(again).blocks[0])


# A store that finds a journal


def upload_directory(place: Place, upload: Upload) -> Path:
    return place.root / ".ftpkit" / "uploads" / upload.id.partition("-")[0]


def crash(place: Place, store: DirectoryStore, upload: DirectoryUpload) -> dict[str, bytes]:
    """Keep the state that a crash would leave now, then close the store."""
    directory = upload_directory(place, upload)
    found = {path.name: path.read_bytes() for path in directory.iterdir()}
    store.close()
    return found


def restore(place: Place, upload: Upload, found: dict[str, bytes]) -> None:
    for name, content in found.items():
        (upload_directory(place, upload) / name).write_bytes(content)


def test_blocks_without_a_checkpoint_are_verified_and_damaged_ones_dropped(place: Place) -> None:
    store = place.open()
    upload = begin(store, "f", 3 * BLOCK)
    assert isinstance(upload, UnfinishedUpload)
    for offset in (0, BLOCK):
        send(upload, offset, bytes([offset % 255]) * BLOCK)
    found = crash(place, store, upload)
    found["data"] = found["data"][:BLOCK] + b"x" + found["data"][BLOCK + 1 :]
    restore(place, upload, found)
    again = begin(place.open(), "f", 3 * BLOCK)
    assert again.id == upload.id
    assert held(again) == [0]


def test_a_dropped_block_is_not_covered_by_a_later_checkpoint(place: Place) -> None:
    store = place.open()
    upload = begin(store, "f", 2 * BLOCK)
    assert isinstance(upload, UnfinishedUpload)
    send(upload, 0, b"a" * BLOCK)
    found = crash(place, store, upload)
    restore(place, upload, {**found, "data": bytes(BLOCK)})
    with place.open() as store:
        again = begin(store, "f", 2 * BLOCK)
        assert held(again) == []
        send(again, BLOCK, b"b" * BLOCK)
        again.release()
    last = begin(place.open(), "f", 2 * BLOCK)
    assert held(last) == [BLOCK]


def test_a_block_that_a_checkpoint_covers_is_not_read_again(place: Place) -> None:
    with place.open() as store:
        upload = begin(store, "f", 2 * BLOCK)
        assert isinstance(upload, UnfinishedUpload)
        send(upload, 0, b"a" * BLOCK)
        upload.checkpoint()
        send(upload, BLOCK, b"b" * BLOCK)
        found = crash(place, store, upload)
    restore(place, upload, {**found, "data": bytes(2 * BLOCK)})
    assert held(begin(place.open(), "f", 2 * BLOCK)) == [0]


@pytest.mark.parametrize("data", [b"a" * BLOCK + b"x" * BLOCK, b"a" * BLOCK], ids=["rot", "cut"])
def test_a_block_damaged_after_a_checkpoint_is_never_published(place: Place, data: bytes) -> None:
    with place.open() as store:
        upload = begin(store, "f", 3 * BLOCK)
        for offset, letter in ((0, b"a"), (BLOCK, b"b")):
            send(upload, offset, letter * BLOCK)
        upload.release()
    (upload_directory(place, upload) / "data").write_bytes(data)
    with place.open() as store:
        again = begin(store, "f", 3 * BLOCK)
        send(again, 2 * BLOCK, b"c" * BLOCK)
        with pytest.raises(RefusedError) as caught:
            commit(again, 3 * BLOCK)
        assert caught.value.code is Code.INCOMPLETE
        assert held(again) == [0, 2 * BLOCK]
        send(again, BLOCK, b"b" * BLOCK)
        commit(again, 3 * BLOCK)
        assert fetch(store, "f") == b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK


def test_an_upload_continues_from_the_good_start_of_a_damaged_journal(place: Place) -> None:
    with place.open() as store:
        upload = begin(store, "f", 3 * BLOCK)
        for offset in (0, BLOCK):
            send(upload, offset, b"a" * BLOCK)
        upload.release()
    path = upload_directory(place, upload) / "journal"
    good = path.read_bytes()
    second = replay(good).blocks[BLOCK].end
    path.write_bytes(good[: second - 1] + b"\0" + good[second:])
    with place.open() as store:
        again = begin(store, "f", 3 * BLOCK)
        assert held(again) == [0]
        send(again, 2 * BLOCK, b"c" * BLOCK)
        again.release()
    with place.open() as store:
        last = begin(store, "f", 3 * BLOCK)
        assert held(last) == [0, 2 * BLOCK]
        send(last, BLOCK, b"b" * BLOCK)
        commit(last, 3 * BLOCK)
        assert fetch(store, "f") == b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK


@pytest.mark.parametrize("content", [b"", b"\0" * 100, WHOLE[: ENDS[1] - 1]])
def test_an_upload_with_an_unreadable_journal_starts_anew(place: Place, content: bytes) -> None:
    with place.open() as store:
        upload = begin(store, "f", BLOCK)
        send(upload, 0, b"a" * BLOCK)
        upload.release()
    (upload_directory(place, upload) / "journal").write_bytes(content)
    with place.open() as store:
        again = begin(store, "f", BLOCK)
        assert again.id != upload.id
        assert held(again) == []
        assert store.published(upload.id, owner=OWNER) is None


def test_a_journal_grows_with_blocks_and_not_with_changed_metadata(place: Place) -> None:
    store = place.open()
    name = "/".join(["é" * 120] * 16)

    def spec(mtime: int) -> str:
        upload = store.begin(UploadSpec(name=name, total=3, mtime=mtime), owner=OWNER, block=BLOCK)
        upload.release()
        return upload.id

    identity = spec(0)
    with refused(Code.BUSY):
        for mtime in range(1000):
            spec(mtime)
    store.abort(identity, owner=OWNER)
    assert spec(0) != identity
