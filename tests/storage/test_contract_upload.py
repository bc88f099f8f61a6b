"""The contract of every store, part three: files that arrive in blocks."""

import itertools
import random
from collections.abc import Callable
from contextlib import closing

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import digest_of, format_digest, new_hasher, split_digest
from ftpkit.storage import Store, Upload
from ftpkit.storage.api import UploadSpec, offer_basis
from tests.storage.stores import (
    BLOCK,
    OWNER,
    Place,
    begin,
    blocks_of,
    commit,
    fetch,
    held,
    ignore,
    refused,
    send,
    stage,
)

DATA = random.Random(1).randbytes(3 * BLOCK + 17)
BLOCKS = blocks_of(DATA)
TAIL = 3 * BLOCK
HUGE = 2**63 - 1


def send_all(upload: Upload, data: bytes = DATA) -> None:
    for offset, block in blocks_of(data, upload.block).items():
        send(upload, offset, block)


def joined_digest(blocks: dict[int, bytes], algorithm: str = "blake3") -> str:
    hasher = new_hasher(algorithm)
    for _, block in sorted(blocks.items()):
        hasher.update(split_digest(digest_of(block, algorithm))[1])
    return format_digest(algorithm, hasher.digest())


# Blocks


@pytest.mark.parametrize("total", [len(DATA), None])
def test_blocks_may_come_in_any_order(store: Store, total: int | None) -> None:
    for number, order in enumerate(itertools.permutations(BLOCKS)):
        upload = begin(store, f"f{number}", total)
        for offset in order:
            send(upload, offset, BLOCKS[offset])
        assert held(upload) == sorted(BLOCKS)
        publication = commit(upload, len(DATA))
        assert publication.content_digest in (None, digest_of(DATA))
        upload.release()
        assert fetch(store, f"f{number}") == DATA


def test_blocks_in_order_give_the_digest_of_the_file(store: Store) -> None:
    upload = begin(store, "f", len(DATA))
    send_all(upload)
    assert commit(upload, len(DATA)).content_digest == digest_of(DATA)
    upload.release()


def test_the_name_does_not_exist_before_commit(store: Store, place: Place) -> None:
    upload = begin(store, "d/f", len(DATA))
    send_all(upload)
    assert place.visible() == []
    upload.release()
    assert place.visible() == []


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_records_have_offset_length_and_digest(store: Store, algorithm: str) -> None:
    upload = begin(store, "f", len(DATA))
    send(upload, TAIL, BLOCKS[TAIL], algorithm)
    send(upload, 0, BLOCKS[0], algorithm)
    assert [(r.offset, r.length, r.digest) for r in upload.records(algorithm)] == [
        (at, len(BLOCKS[at]), digest_of(BLOCKS[at], algorithm)) for at in (0, TAIL)
    ]
    other = {"blake3": "sha256", "sha256": "blake3"}[algorithm]
    assert upload.records(other) == []
    upload.release()


@pytest.mark.pairwise
@pytest.mark.parametrize(
    "offset", [-BLOCK, -1, 0, 1, BLOCK - 1, BLOCK, BLOCK + 1, TAIL, TAIL + 1, 4 * BLOCK, HUGE]
)
@pytest.mark.parametrize("size", [-1, 0, 1, 16, 17, 18, BLOCK - 1, BLOCK, BLOCK + 1, len(DATA)])
def test_only_blocks_of_the_grid_are_accepted(store: Store, offset: int, size: int) -> None:
    upload = begin(store, "f", len(DATA))
    good = (offset in (0, BLOCK) and size == BLOCK) or (offset == TAIL and size == 17)
    if good:
        upload.write(offset, size, digest_of(b"")).release()
    else:
        with refused(Code.BAD_REQUEST):
            upload.write(offset, size, digest_of(b""))
    assert held(upload) == []
    upload.release()


@pytest.mark.pairwise
@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("offset", [0, 1, BLOCK, HUGE])
def test_any_length_up_to_a_block_is_accepted_without_a_total(
    store: Store, offset: int, size: int
) -> None:
    upload = begin(store, "f", None)
    if offset % BLOCK == 0 and 0 < size <= BLOCK:
        upload.write(offset, size, digest_of(b"")).release()
    else:
        with refused(Code.BAD_REQUEST):
            upload.write(offset, size, digest_of(b""))
    upload.release()


def test_an_unknown_algorithm_is_refused(store: Store) -> None:
    upload = begin(store, "f", 1)
    with refused(Code.UNSUPPORTED):
        upload.write(0, 1, "md99:00")
    upload.release()


@pytest.mark.parametrize("sent", [b"wrong", b"", b"righ", b"rightx"])
def test_a_block_that_does_not_match_is_not_held(store: Store, sent: bytes) -> None:
    upload = begin(store, "f", 5)
    writer = upload.write(0, 5, digest_of(b"right"))
    writer.write(memoryview(sent))
    with refused(Code.DIGEST_MISMATCH):
        writer.finish()
    writer.release()
    assert held(upload) == []
    with refused(Code.INCOMPLETE):
        commit(upload, 5)
    send(upload, 0, b"right")
    commit(upload, 5)
    upload.release()
    assert fetch(store, "f") == b"right"


def test_a_block_that_was_not_finished_is_not_held(store: Store) -> None:
    upload = begin(store, "f", 5)
    writer = upload.write(0, 5, digest_of(b"right"))
    writer.write(memoryview(b"right"))
    writer.release()
    assert held(upload) == []
    upload.release()


def test_the_same_block_can_be_sent_twice(store: Store) -> None:
    upload = begin(store, "f", len(DATA))
    for offset in (0, 0, BLOCK, 0, BLOCK, 2 * BLOCK, TAIL, TAIL):
        send(upload, offset, BLOCKS[offset])
    assert commit(upload, len(DATA)).content_digest in (None, digest_of(DATA))
    upload.release()
    assert fetch(store, "f") == DATA


def test_damage_to_a_held_block_sent_again_does_not_reach_it(store: Store) -> None:
    upload = begin(store, "f", 5)
    send(upload, 0, b"right")
    writer = upload.write(0, 5, digest_of(b"right"))
    writer.write(memoryview(b"wrong"))
    with refused(Code.DIGEST_MISMATCH):
        writer.finish()
    writer.release()
    assert held(upload) == [0]
    commit(upload, 5)
    upload.release()
    assert fetch(store, "f") == b"right"


def test_other_content_for_a_held_block_replaces_it(store: Store) -> None:
    upload = begin(store, "f", len(DATA))
    send_all(upload)
    changed = bytes(BLOCK)
    send(upload, BLOCK, changed)
    data = DATA[:BLOCK] + changed + DATA[2 * BLOCK :]
    assert commit(upload, len(DATA)).content_digest in (None, digest_of(data))
    upload.release()
    assert fetch(store, "f") == data


def test_an_unfinished_replacement_drops_the_held_block(store: Store) -> None:
    upload = begin(store, "f", 5)
    send(upload, 0, b"first")
    writer = upload.write(0, 5, digest_of(b"other"))
    assert held(upload) == []
    writer.release()
    with refused(Code.INCOMPLETE):
        commit(upload, 5)
    upload.release()


def test_the_digest_is_that_of_a_block_replaced_while_the_next_was_written(
    store: Store,
) -> None:
    upload = begin(store, "f", 2 * BLOCK)
    old, new, second = bytes(BLOCK), b"\1" * BLOCK, b"\2" * BLOCK
    send(upload, 0, old)
    writer = upload.write(BLOCK, BLOCK, digest_of(second))
    writer.write(memoryview(second))
    send(upload, 0, new)
    writer.finish()
    writer.release()
    with refused(Code.DIGEST_MISMATCH):
        commit(upload, 2 * BLOCK, digest_of(old + second))
    assert commit(upload, 2 * BLOCK).content_digest in (None, digest_of(new + second))
    upload.release()
    assert fetch(store, "f") == new + second


# Continuing


def test_an_upload_is_continued_after_release(store: Store) -> None:
    first = begin(store, "f", len(DATA))
    send(first, BLOCK, BLOCKS[BLOCK])
    first.release()
    again = begin(store, "f", len(DATA))
    assert (again.id, held(again)) == (first.id, [BLOCK])
    send_all(again)
    commit(again, len(DATA))
    again.release()
    assert fetch(store, "f") == DATA


def test_an_upload_is_continued_by_another_server(place: Place) -> None:
    with closing(place.store()) as store:
        upload = begin(store, "f", len(DATA))
        identity = upload.id
        send(upload, BLOCK, BLOCKS[BLOCK])
        send(upload, TAIL, BLOCKS[TAIL])
        upload.release()
    with closing(place.store()) as store:
        upload = store.upload(identity, owner=OWNER)
        assert held(upload) == [BLOCK, TAIL]
        send(upload, 0, BLOCKS[0])
    with closing(place.store()) as store:
        upload = begin(store, "f", len(DATA))
        assert (upload.id, held(upload)) == (identity, [0, BLOCK, TAIL])
        send(upload, 2 * BLOCK, BLOCKS[2 * BLOCK])
        assert commit(upload, len(DATA)).content_digest in (None, digest_of(DATA))
        upload.release()
        assert fetch(store, "f") == DATA
        assert place.private() == []


def test_two_connections_share_one_upload(store: Store) -> None:
    one = begin(store, "f", len(DATA))
    two = store.upload(one.id, owner=OWNER)
    send(one, 0, BLOCKS[0])
    send(two, BLOCK, BLOCKS[BLOCK])
    one.release()
    send(two, 2 * BLOCK, BLOCKS[2 * BLOCK])
    send(two, TAIL, BLOCKS[TAIL])
    commit(two, len(DATA))
    two.release()
    assert fetch(store, "f") == DATA


@pytest.mark.parametrize(
    ("name", "total", "block", "owner"),
    [
        ("g", 5, BLOCK, OWNER),
        ("f", 6, BLOCK, OWNER),
        ("f", None, BLOCK, OWNER),
        ("f", 5, 2 * BLOCK, OWNER),
        ("f", 5, BLOCK, "bob"),
        ("f", 5, BLOCK, ""),
    ],
)
def test_only_the_same_owner_name_total_and_block_continue(
    store: Store, name: str, total: int | None, block: int, owner: str
) -> None:
    mine = begin(store, "f", 5)
    send(mine, 0, b"right")
    other = begin(store, name, total, owner=owner, block=block)
    assert other.id != mine.id
    assert held(other) == []
    other.release()
    mine.release()


@pytest.mark.parametrize("owner", ["bob", "", "ada\0f", "ADA"])
def test_another_owner_does_not_find_an_upload(store: Store, owner: str) -> None:
    upload = begin(store, "f", 5)
    send(upload, 0, b"right")
    with refused(Code.NOT_FOUND):
        store.upload(upload.id, owner=owner)
    with refused(Code.NOT_FOUND):
        store.abort(upload.id, owner=owner)
    assert store.published(upload.id, owner=owner) is None
    commit(upload, 5)
    upload.release()
    assert store.published(upload.id, owner=owner) is None
    assert store.published(upload.id, owner=OWNER) is not None


@pytest.mark.parametrize(
    "identity",
    ["", "x", "../../f", "0" * 32, "0" * 32 + "-" + "0" * 16, "0" * 32 + "-" + "0" * 15 + "/",
     "\0", "lock", "0" * 32 + "-" + "0" * 16 + "\n"],
)  # fmt: skip
def test_an_unknown_upload_is_not_found(store: Store, identity: str) -> None:
    with refused(Code.NOT_FOUND):
        store.upload(identity, owner=OWNER)
    with refused(Code.NOT_FOUND):
        store.abort(identity, owner=OWNER)
    assert store.published(identity, owner=OWNER) is None


def test_a_later_begin_can_change_mtime_and_overwrite(store: Store) -> None:
    stage(store, "f", b"old")
    upload = begin(store, "f", 3)
    send(upload, 0, b"new")
    upload.release()
    with refused(Code.EXISTS):
        begin(store, "f", 3, overwrite=False)
    again = store.begin(UploadSpec(name="f", total=3, mtime=77), owner=OWNER, block=BLOCK)
    assert commit(again, 3).mtime == 77
    again.release()


# Commit


@pytest.mark.parametrize("missing", sorted(BLOCKS))
def test_an_incomplete_upload_is_not_published(store: Store, place: Place, missing: int) -> None:
    upload = begin(store, "f", len(DATA))
    for offset in BLOCKS:
        if offset != missing:
            send(upload, offset, BLOCKS[offset])
    for digest in (None, digest_of(DATA)):
        with refused(Code.INCOMPLETE):
            commit(upload, len(DATA), digest)
    assert place.visible() == []
    send(upload, missing, BLOCKS[missing])
    commit(upload, len(DATA), digest_of(DATA))
    upload.release()
    assert fetch(store, "f") == DATA


@pytest.mark.parametrize("total", [0, 1, len(DATA) - 1, len(DATA) + 1, HUGE])
def test_another_total_than_that_of_begin_is_refused(store: Store, total: int) -> None:
    upload = begin(store, "f", len(DATA))
    send_all(upload)
    with refused(Code.BAD_REQUEST):
        commit(upload, total)
    commit(upload, len(DATA))
    upload.release()


@pytest.mark.parametrize(
    "total", [0, BLOCK, TAIL, TAIL + 16, TAIL + 18, 4 * BLOCK, 9 * BLOCK, HUGE]
)
def test_an_unknown_total_must_fit_the_blocks_at_commit(store: Store, total: int) -> None:
    upload = begin(store, "f", None)
    send_all(upload)
    with refused(Code.INCOMPLETE):
        commit(upload, total)
    commit(upload, len(DATA))
    upload.release()
    assert fetch(store, "f") == DATA


@pytest.mark.parametrize("total", [0, None])
def test_an_empty_file_needs_no_block(store: Store, total: int | None) -> None:
    upload = begin(store, "f", total)
    assert commit(upload, 0, digest_of(b"", "sha256")).total == 0
    upload.release()
    assert fetch(store, "f") == b""


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_digest_of_the_content_decides(store: Store, algorithm: str, order: int) -> None:
    stage(store, "f", b"old")
    upload = begin(store, "f", len(DATA))
    for offset in sorted(BLOCKS)[::order]:
        send(upload, offset, BLOCKS[offset])
    with refused(Code.DIGEST_MISMATCH):
        commit(upload, len(DATA), digest_of(b"other", algorithm))
    assert fetch(store, "f") == b"old"
    right = digest_of(DATA, algorithm)
    assert commit(upload, len(DATA), right).content_digest == right
    upload.release()
    assert fetch(store, "f") == DATA


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_the_digest_of_the_blocks_decides(store: Store, algorithm: str) -> None:
    upload = begin(store, "f", len(DATA))
    for offset in (TAIL, BLOCK, 0, 2 * BLOCK):
        send(upload, offset, BLOCKS[offset], algorithm)
    wrong = joined_digest({**BLOCKS, 0: bytes(BLOCK)}, algorithm)
    with refused(Code.DIGEST_MISMATCH):
        commit(upload, len(DATA), None, wrong)
    commit(upload, len(DATA), None, joined_digest(BLOCKS, algorithm))
    upload.release()
    assert fetch(store, "f") == DATA


def test_commit_may_be_repeated(place: Place) -> None:
    with closing(place.store()) as store:
        upload = begin(store, "f", 5)
        send(upload, 0, b"right")
        first = commit(upload, 5)
        assert commit(upload, 5) == first
        upload.release()
        assert store.published(upload.id, owner=OWNER) == first
        stage(store, "f", b"changed since")
        assert store.published(upload.id, owner=OWNER) == first
        with refused(Code.NOT_FOUND):
            store.upload(upload.id, owner=OWNER)
    with closing(place.store()) as store:
        assert store.published(upload.id, owner=OWNER) == first
        assert store.published(upload.id, owner="bob") is None


def test_an_unfinished_upload_is_not_published(store: Store) -> None:
    upload = begin(store, "f", 5)
    assert store.published(upload.id, owner=OWNER) is None
    upload.release()
    assert store.published(upload.id, owner=OWNER) is None


def test_after_commit_the_same_begin_is_a_new_upload(store: Store) -> None:
    upload = begin(store, "f", 5)
    send(upload, 0, b"right")
    commit(upload, 5)
    again = begin(store, "f", 5)
    assert again.id != upload.id
    assert held(again) == []
    with refused(Code.NOT_FOUND):
        upload.write(0, 5, digest_of(b"right"))
    upload.release()
    send(again, 0, b"newer")
    commit(again, 5)
    again.release()
    assert fetch(store, "f") == b"newer"


def test_a_commit_without_overwrite_loses_to_an_earlier_file(store: Store, place: Place) -> None:
    upload = begin(store, "f", 5, overwrite=False)
    send(upload, 0, b"right")
    stage(store, "f", b"first")
    with refused(Code.EXISTS):
        commit(upload, 5)
    assert fetch(store, "f") == b"first"
    upload.release()
    store.abort(upload.id, owner=OWNER)
    assert place.private() == []


def test_a_huge_total_costs_nothing(store: Store, place: Place) -> None:
    for total in (2**40, 2**62, HUGE):
        with refused(Code.NO_SPACE):
            begin(store, "f", total)
        upload = begin(store, "f", None)
        assert held(upload) == []
        offer_basis(store, upload, "blake3", ignore)
        with refused(Code.INCOMPLETE):
            commit(upload, total)
        upload.release()
        store.abort(upload.id, owner=OWNER)
    used = sum(path.stat().st_blocks * 512 for path in place.top.rglob("*") if path.is_file())
    assert used < 64 * 1024


# Delta


CHANGES: dict[str, Callable[[], bytes]] = {
    "same": lambda: DATA,
    "shorter": lambda: DATA[: 2 * BLOCK + 5],
    "longer": lambda: DATA + bytes(BLOCK),
    "grown within its last block": lambda: DATA + b"more",
    "changed": lambda: DATA[:BLOCK] + bytes(10) + DATA[BLOCK + 10 :],
    "empty": lambda: b"",
}


@pytest.mark.pairwise
@pytest.mark.parametrize("total", [len(DATA), None])
@pytest.mark.parametrize("change", CHANGES)
def test_blocks_that_are_not_sent_are_copied_from_the_existing_file(
    store: Store, change: str, total: int | None
) -> None:
    standing = CHANGES[change]()
    stage(store, "f", standing)
    upload = begin(store, "f", total)
    offer_basis(store, upload, "blake3", ignore)
    offered = {r.offset: r.digest for r in upload.records("blake3")}
    for offset, digest in offered.items():
        assert digest == digest_of(standing[offset : offset + BLOCK])
    sent = [at for at, block in BLOCKS.items() if offered.get(at) != digest_of(block)]
    for offset in sent:
        send(upload, offset, BLOCKS[offset])
    assert len(sent) == {"same": 0, "shorter": 2, "changed": 1, "empty": 4}.get(change, 1)
    assert commit(upload, len(DATA), digest_of(DATA)).content_digest == digest_of(DATA)
    upload.release()
    assert fetch(store, "f") == DATA


def test_there_is_no_basis_without_an_existing_file(store: Store) -> None:
    upload = begin(store, "f", len(DATA))
    offer_basis(store, upload, "blake3", ignore)
    assert held(upload) == []
    with refused(Code.INCOMPLETE):
        commit(upload, len(DATA))
    upload.release()


def test_a_basis_stays_the_same_file(store: Store) -> None:
    stage(store, "f", DATA)
    upload = begin(store, "f", len(DATA))
    offer_basis(store, upload, "blake3", ignore)
    stage(store, "f", bytes(len(DATA)))
    send(upload, 0, bytes(BLOCK))
    commit(upload, len(DATA))
    upload.release()
    assert fetch(store, "f") == bytes(BLOCK) + DATA[BLOCK:]


def test_a_basis_offered_twice_is_the_newer_file(store: Store) -> None:
    upload = begin(store, "f", 5)
    for standing in (b"first", b"later"):
        stage(store, "f", standing)
        offer_basis(store, upload, "blake3", ignore)
    assert [record.digest for record in upload.records("blake3")] == [digest_of(b"later")]
    upload.release()


def test_a_basis_is_not_kept_for_another_begin(store: Store) -> None:
    stage(store, "f", DATA)
    upload = begin(store, "f", len(DATA))
    offer_basis(store, upload, "blake3", ignore)
    upload.release()
    again = begin(store, "f", len(DATA))
    assert held(again) == []
    again.release()


# Takeover and abort


@pytest.mark.parametrize("same", [True, False])
def test_a_newer_writer_takes_over_the_block(store: Store, same: bool) -> None:
    new = b"newer" if not same else b"older"
    upload = begin(store, "f", 5)
    older = upload.write(0, 5, digest_of(b"older"))
    older.write(memoryview(b"old"))
    newer = upload.write(0, 5, digest_of(new))
    newer.write(memoryview(new))
    with refused(Code.BUSY):
        older.write(memoryview(b"er"))
    newer.finish()
    newer.release()
    with refused(Code.BUSY):
        older.write(memoryview(b"er"))
    older.release()
    assert held(upload) == [0]
    commit(upload, 5, digest_of(new))
    upload.release()
    assert fetch(store, "f") == new


def test_a_writer_that_has_all_its_bytes_cannot_finish_after_a_takeover(store: Store) -> None:
    upload = begin(store, "f", 5)
    older = upload.write(0, 5, digest_of(b"older"))
    older.write(memoryview(b"older"))
    newer = upload.write(0, 5, digest_of(b"newer"))
    with refused(Code.BUSY):
        older.finish()
    older.release()
    newer.write(memoryview(b"newer"))
    newer.finish()
    newer.release()
    commit(upload, 5)
    upload.release()
    assert fetch(store, "f") == b"newer"


def test_abort_deletes_everything_while_a_writer_is_active(store: Store, place: Place) -> None:
    stage(store, "f", b"old")
    upload = begin(store, "f", 5)
    writer = upload.write(0, 5, digest_of(b"right"))
    writer.write(memoryview(b"rig"))
    store.abort(upload.id, owner=OWNER)
    with refused(Code.BUSY, Code.NOT_FOUND):
        writer.write(memoryview(b"ht"))
    writer.release()
    with refused(Code.NOT_FOUND):
        commit(upload, 5)
    upload.release()
    with refused(Code.NOT_FOUND):
        store.upload(upload.id, owner=OWNER)
    assert place.private() == []
    assert fetch(store, "f") == b"old"


def test_a_begin_after_abort_starts_anew(store: Store) -> None:
    upload = begin(store, "f", 5)
    send(upload, 0, b"right")
    store.abort(upload.id, owner=OWNER)
    again = begin(store, "f", 5)
    assert again.id != upload.id
    assert held(again) == []
    again.release()
    upload.release()


def test_a_write_during_commit_does_not_reach_the_file(store: Store) -> None:
    stage(store, "f", b"old")
    upload = begin(store, "f", len(DATA))
    send_all(upload)
    late: list[str] = []

    def write(done: int, total: int) -> None:
        try:
            writer = upload.write(0, BLOCK, digest_of(bytes(BLOCK)))
        except RefusedError as refusal:
            late.append(refusal.code)
            return
        writer.write(memoryview(bytes(100)))

    right = digest_of(DATA, "sha256")
    assert upload.commit(len(DATA), right, None, write).content_digest == right
    upload.release()
    assert fetch(store, "f") == DATA
    assert set(late) == {Code.BUSY}
