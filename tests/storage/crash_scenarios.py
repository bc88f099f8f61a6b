"""The scenarios to crash: each way in which a client changes a store."""

from typing import Final

from ftpkit.protocol.digest import DEFAULT
from ftpkit.storage.api import offer_basis
from tests.storage.crash_explore import Run, Scenario
from tests.storage.crash_promise import BLOCK, OWNER, ignore

OLD: Final = b"old." * 300
NEW: Final = b"new!" * 350
OTHER: Final = b"oth_" * 350

# Blocks that differ from each other; the last one is short.
LARGE: Final = b"".join(bytes([65 + i]) * BLOCK for i in range(3))[:-500]
AGAIN: Final = LARGE[:BLOCK] + LARGE[BLOCK:].lower()
LONG: Final = b"".join(bytes([65 + i]) * BLOCK for i in range(9))


def _old(run: Run) -> None:
    run.put("file", OLD)


def _put(run: Run) -> None:
    run.put("file", NEW)


def _put_nested(run: Run) -> None:
    run.put("a/b/file", NEW, mtime=1_000_000_007)


def _put_free(run: Run) -> None:
    run.put("new/file", NEW, overwrite=False)


def _put_two(run: Run) -> None:
    run.put("new/one", NEW)
    run.put("new/two", OTHER, overwrite=False)


def _put_meanwhile(run: Run) -> None:
    run.files.meanwhile = lambda: run.put("new/second", OTHER)
    run.mkdir("new")


def _mkdir(run: Run) -> None:
    run.mkdir("a/b")


def _upload(run: Run) -> None:
    run.upload("dir/large", LARGE)


def _upload_over(run: Run) -> None:
    run.upload("file", LARGE)


def _upload_free(run: Run) -> None:
    run.upload("large", LARGE, overwrite=False)


def _upload_in_parts(run: Run) -> None:
    upload = run.begin("large", LARGE)
    run.send(upload, LARGE, BLOCK, 0)
    run.checkpoint(upload)
    run.send(upload, LARGE, 2 * BLOCK)
    run.checkpoint(upload)
    upload.release()
    run.upload("large", LARGE)


def _some_blocks(run: Run) -> None:
    upload = run.begin("large", LARGE)
    run.send(upload, LARGE, 0, BLOCK)
    run.checkpoint(upload)
    upload.release()


def _rewrite(run: Run) -> None:
    """The file has changed since its first blocks were sent."""
    upload = run.begin("large", AGAIN)
    run.send(upload, AGAIN, BLOCK, 0)
    run.checkpoint(upload)
    run.send(upload, AGAIN, 2 * BLOCK)
    run.commit(upload)


def _long(run: Run) -> None:
    """The journal is longer than a sector, so that it can be torn in many places."""
    upload = run.begin("long", LONG)
    for offset in range(0, len(LONG) - BLOCK, BLOCK):
        run.send(upload, LONG, offset)
        if offset == 5 * BLOCK:
            run.checkpoint(upload)
    run.checkpoint(upload)
    upload.release()


def _standing(run: Run) -> None:
    run.put("large", LARGE)


def _delta(run: Run) -> None:
    upload = run.begin("large", AGAIN)
    offer_basis(run.store, upload, DEFAULT, ignore)
    run.send(upload, AGAIN, BLOCK, 2 * BLOCK)
    run.commit(upload)


def _upload_then_put(run: Run) -> None:
    run.upload("large", LARGE)
    run.put("large", AGAIN)


def _sweep(run: Run) -> None:
    run.forsake()
    run.store.sweep(uploads_s=-1, publications_s=-1)


def _unfinished_and_published(run: Run) -> None:
    _some_blocks(run)
    run.upload("other", LARGE)


def _abort(run: Run) -> None:
    upload = run.begin("large", LARGE)
    run.send(upload, LARGE, 0)
    upload.release()
    run.forsake(upload.id)
    run.store.abort(upload.id, owner=OWNER)


def _two(run: Run) -> None:
    run.put("file", OLD)
    run.put("dir/other", OTHER)


def _rename_over(run: Run) -> None:
    run.rename("file", "dir/other", overwrite=True)


def _rename_free(run: Run) -> None:
    run.rename("file", "new/name", overwrite=False)


def _rename_beside(run: Run) -> None:
    run.rename("file", "name", overwrite=False)


def _rename_beside_over(run: Run) -> None:
    run.put("name", NEW)
    run.rename("file", "name", overwrite=True)


def _tree(run: Run) -> None:
    run.put("dir/a", OLD)
    run.put("dir/sub/b", OTHER)
    run.put("dir/sub/deep/c", OLD)
    run.mkdir("empty")


def _rename_directory(run: Run) -> None:
    run.rename("dir", "new/place", overwrite=False)


def _rename_directory_beside(run: Run) -> None:
    run.rename("dir", "place", overwrite=False)


def _rename_directory_over(run: Run) -> None:
    run.rename("dir", "empty", overwrite=True)


def _delete(run: Run) -> None:
    run.delete("file")


def _delete_empty(run: Run) -> None:
    run.delete("empty")


def _delete_all(run: Run) -> None:
    run.delete("dir/sub", recursive=True)


SCENARIOS: Final = [
    Scenario("the first put of all", _put, None),
    Scenario("put", _put),
    Scenario("put over a file", _put, _old),
    Scenario("put into new directories", _put_nested),
    Scenario("put without overwrite", _put_free),
    Scenario("two puts into a new directory", _put_two),
    Scenario("put while another makes the directory", _put_meanwhile),
    Scenario("mkdir", _mkdir),
    Scenario("the first upload of all", _upload, None),
    Scenario("upload", _upload),
    Scenario("upload over a file", _upload_over, _old),
    Scenario("upload without overwrite", _upload_free),
    Scenario("upload in parts", _upload_in_parts),
    Scenario("upload of a file that changes", _rewrite, _some_blocks),
    Scenario("upload of many blocks", _long),
    Scenario("upload from a basis", _delta, _standing),
    Scenario("upload, then put", _upload_then_put),
    Scenario("abort", _abort),
    Scenario("sweep", _sweep, _unfinished_and_published),
    Scenario("rename over a file", _rename_over, _two),
    Scenario("rename to a free name", _rename_free, _two),
    Scenario("rename beside", _rename_beside, _two),
    Scenario("rename beside over a file", _rename_beside_over, _two),
    Scenario("rename of a directory", _rename_directory, _tree),
    Scenario("rename of a directory beside", _rename_directory_beside, _tree),
    Scenario("rename of a directory over an empty one", _rename_directory_over, _tree),
    Scenario("delete", _delete, _two),
    Scenario("delete of an empty directory", _delete_empty, _tree),
    Scenario("delete of all", _delete_all, _tree),
]
